// For wheels: what GCC's headers since 11 ask of libstdc++.so, said with what every libstdc++.so since that of GCC 4.4 has.
//
// Copying and dropping a std::exception_ptr, which nanobind does, became inline, and what is called inside was given the
// version CXXABI_1.3.13. It would be the only thing here that an older Linux lacks.
#include <exception>

#if defined(__GLIBCXX__) && defined(__linux__) && defined(__GNUC__)

extern "C" {
void copy_construct(void* to, const void* from) asm("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void destroy(void* pointer) asm("_ZNSt15__exception_ptr13exception_ptrD1Ev");

__attribute__((visibility("hidden"))) void add_reference(void* pointer) asm("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv");
__attribute__((visibility("hidden"))) void release(void* pointer) asm("_ZNSt15__exception_ptr13exception_ptr10_M_releaseEv");

// A copy that is never destroyed is one more reference.
void add_reference(void* pointer) {
  alignas(std::exception_ptr) unsigned char copy[sizeof(std::exception_ptr)];
  copy_construct(copy, pointer);
}

void release(void* pointer) { destroy(pointer); }
}

#endif
