"""The name of a microarchitecture from what /proc/cpuinfo says of it."""

import pytest

from gossamer.measure.processor import processor


def cpuinfo(vendor, family, model, stepping=1, flags="fma avx2"):
    fields = {"processor": 0, "vendor_id": vendor, "cpu family": family, "model": model, "stepping": stepping}
    one = "\n".join(f"{name}\t: {value}" for name, value in {**fields, "flags": flags}.items())
    return f"{one}\n\nprocessor\t: 1\ncpu family\t: 99\n"


@pytest.mark.parametrize(
    ("vendor", "family", "model", "stepping", "name"),
    [
        ("GenuineIntel", 6, 143, 8, "Sapphire Rapids"),
        ("GenuineIntel", 6, 85, 4, "Skylake"),
        ("GenuineIntel", 6, 85, 7, "Cascade Lake"),
        ("AuthenticAMD", 23, 49, 0, "Zen 2"),
        ("AuthenticAMD", 25, 1, 1, "Zen 3"),
        ("AuthenticAMD", 25, 17, 1, "Zen 4"),
        ("AuthenticAMD", 25, 97, 2, "Zen 4"),
        ("AuthenticAMD", 26, 2, 1, "Zen 5"),
    ],
)
def test_known_processors_are_named(vendor, family, model, stepping, name):
    found = processor(cpuinfo(vendor, family, model, stepping))
    assert found == {
        "family": family, "model": model, "stepping": stepping, "microarchitecture": f"{name} ({family}/{model})"
    }  # fmt: skip


def test_an_unknown_processor_has_numbers_and_no_name():
    assert processor(cpuinfo("GenuineIntel", 6, 250))["microarchitecture"] is None
    assert processor(cpuinfo("AuthenticAMD", 6, 143))["microarchitecture"] is None


def test_a_model_that_the_instructions_contradict_is_not_believed():
    found = processor(cpuinfo("GenuineIntel", 6, 167, flags="avx512f amx_tile"))
    assert found["microarchitecture"] == "Sapphire Rapids or later, by its AMX (6/167)"
    found = processor(cpuinfo("GenuineIntel", 6, 143, flags="avx512f amx_tile"))
    assert found["microarchitecture"] == "Sapphire Rapids (6/143)"


def test_a_file_that_says_nothing_gives_nothing():
    assert set(processor("").values()) == {None}
    assert set(processor("processor : 0\nCPU implementer : 0x41\n").values()) == {None}
