// The bindings: every op of the list, its addresses as integers (the cheapest way across) and its structs as tuples.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include <array>
#include <bit>
#include <cstdlib>
#include <string>
#include <type_traits>

#include "dispatch.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace gossamer;

namespace {

// What Python passes for a parameter of type T: a number for itself, an integer for an address, integers for a struct.
template <class T, class Plain = std::remove_cvref_t<T>>
using Crossing = std::conditional_t<std::is_pointer_v<Plain>, uintptr_t,
                                    std::conditional_t<std::is_class_v<Plain>, std::array<int64_t, sizeof(Plain) / 8>, Plain>>;

template <class T>
std::remove_cvref_t<T> crossed(const Crossing<T>& value) {
  if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(value);
  else return std::bit_cast<std::remove_cvref_t<T>>(value);
}

template <class Result, class... Parameters>
void define(nb::module_& m, Result (*Kernels::*op)(Parameters...), const char* name, const char* signature) {
  m.def(name, [op](Crossing<Parameters>... values) { return (active().*op)(crossed<Parameters>(values)...); },
        nb::call_guard<nb::gil_scoped_release>(), nb::sig(signature));
}

// "def name(x: int, ...) -> int" from the parameters as they stand in the list.
std::string signature_of(const std::string& name, const std::string& result, const std::string& parameters) {
  std::string text = "def " + name + "(";
  for (size_t begin = 0; begin < parameters.size();) {
    const size_t end = std::min(parameters.find(", ", begin), parameters.size());
    const std::string one = parameters.substr(begin, end - begin);
    const bool is_struct = one.find('&') != std::string::npos, is_address = one.find('*') != std::string::npos;
    const char* type = is_struct ? "tuple[int, ...]" : is_address ? "int" : one.starts_with("bool") ? "bool"
                       : one.starts_with("float") ? "float" : "int";
    text += one.substr(one.rfind(' ') + 1) + ": " + type + ", ";
    begin = end + 2;
  }
  return text + "/) -> " + (result == "void" ? "None" : result == "bool" ? "bool" : "int");
}

nb::list isas(bool (*wanted)(int)) {
  nb::list names;
  for (int i = 0; i < isa_count(); ++i)
    if (wanted(i)) names.append(isa_name(i));
  return names;
}

nb::list ops_of(const std::string& isa) {
  nb::list names;
  for (int i = 0; i < isa_count(); ++i)
    if (isa == isa_name(i) && isa_built(i))
      for (const char* const* op = isa_ops(i); *op != nullptr; ++op) names.append(*op);
  return names;
}

// `who` is how the user asked, for the message.
void require_isa(const std::string& name, const std::string& who) {
  const char* why = nullptr;
  switch (select_isa(name.c_str())) {
    case IsaStatus::kOk: return;
    case IsaStatus::kUnknown: why = " is not a known instruction set"; break;
    case IsaStatus::kNotBuilt: why = " was not built for this processor family"; break;
    case IsaStatus::kNotSupported: why = " is not supported by this CPU, or refused by its operating system"; break;
  }
  const std::string here = nb::cast<std::string>(nb::str(", ").attr("join")(isas(isa_supported)));
  throw nb::value_error((who + "'" + name + "'" + why + "; available here: " + here).c_str());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The C++ kernels on raw addresses. Call them through gossamer.kernels.cpu, which checks its arguments.\n\n"
            "Addresses are integers (`tensor.data_ptr()`); sizes are elements unless called bytes.";
  const char* const forced = std::getenv("GOSSAMER_ISA");
  forced != nullptr ? require_isa(forced, "GOSSAMER_ISA=") : require_isa(best_isa(), "isa ");

  m.def("isa", [] { return std::string(active_name()); }, "The instruction set in use.");
  m.def("set_isa", [](const std::string& name) { require_isa(name, "isa "); }, nb::arg("name"),
        "Switch every later call to `name`; ValueError when this machine cannot run it.");
  const nb::sig names("def available_isas() -> list[str]"), built("def built_isas() -> list[str]");
  m.def("available_isas", [] { return isas(isa_supported); }, names, "Built, and run by this CPU; narrow to wide.");
  m.def("best_isa", [] { return std::string(best_isa()); }, "What is chosen unless GOSSAMER_ISA says otherwise.");
  m.def("built_isas", [] { return isas(isa_built); }, built);
  m.def("ops_of", ops_of, nb::arg("isa"), nb::sig("def ops_of(isa: str) -> list[str]"),
        "Ops that `isa` was built with code of its own for; others run the code of a narrower one.");
  m.def("openmp_library", [] { return std::string(openmp_library()); },
        "The file of the OpenMP runtime in use; empty when built without OpenMP.");
  m.def("compiler", [] { return std::string(GOSSAMER_COMPILER); });

#define GOSSAMER_DEFINE(name, result, ...) \
  static const std::string name##_signature = signature_of(#name, #result, #__VA_ARGS__); \
  define(m, &Kernels::name, #name, name##_signature.c_str());
  GOSSAMER_FOR_EACH_OP(GOSSAMER_DEFINE)
}
