"""Which microarchitecture a processor is: what a time is worth depends on that, and "AMD EPYC" does not say it."""

from __future__ import annotations

from typing import Any

_INTEL = {  # models of family 6
    63: "Haswell", 79: "Broadwell", 94: "Skylake", 158: "Coffee Lake", 106: "Ice Lake", 108: "Ice Lake",
    126: "Ice Lake", 140: "Tiger Lake", 141: "Tiger Lake", 143: "Sapphire Rapids", 151: "Alder Lake",
    154: "Alder Lake", 167: "Rocket Lake", 173: "Granite Rapids", 174: "Granite Rapids", 175: "Sierra Forest",
    183: "Raptor Lake", 186: "Raptor Lake", 191: "Raptor Lake", 207: "Emerald Rapids",
}  # fmt: skip
_AMX = ("Sapphire Rapids", "Emerald Rapids", "Granite Rapids")
_ZEN = (  # family, first and last model
    (23, 0x00, 0x2F, "Zen"), (23, 0x30, 0xAF, "Zen 2"), (25, 0x00, 0x0F, "Zen 3"), (25, 0x10, 0x1F, "Zen 4"),
    (25, 0x20, 0x5F, "Zen 3"), (25, 0x60, 0xAF, "Zen 4"), (26, 0x00, 0xFF, "Zen 5"),
)  # fmt: skip


def processor(cpuinfo: str) -> dict[str, Any]:
    """Family, model and stepping as /proc/cpuinfo says them, and the microarchitecture's name with family and model.

    None for what it does not say, or for a model without a name here. A hypervisor may show a model that is not the
    processor's: where the instructions say so, the name does too.

    >>> text = "vendor_id : AuthenticAMD\\ncpu family : 25\\nmodel : 97\\nstepping : 2\\nflags : fma avx2 avx512f"
    >>> processor(text)
    {'family': 25, 'model': 97, 'stepping': 2, 'microarchitecture': 'Zen 4 (25/97)'}
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.split("\n\n", 1)[0].splitlines():
        name, _, text = line.partition(":")
        fields[name.strip()] = text.strip()

    def number(name: str) -> int | None:
        return int(fields[name]) if fields.get(name, "").isdigit() else None

    family, model, stepping = number("cpu family"), number("model"), number("stepping")
    found: str | None = None
    if family is not None and model is not None:
        found = _name(fields.get("vendor_id", ""), family, model, stepping or 0)
        if "amx_tile" in fields.get("flags", "").split() and found not in _AMX:
            found = "Sapphire Rapids or later, by its AMX"
    return {
        "family": family, "model": model, "stepping": stepping,
        "microarchitecture": None if found is None else f"{found} ({family}/{model})",
    }  # fmt: skip


def _name(vendor: str, family: int, model: int, stepping: int) -> str | None:
    if vendor == "AuthenticAMD":
        return next((name for its, low, high, name in _ZEN if family == its and low <= model <= high), None)
    if vendor != "GenuineIntel" or family != 6:
        return None
    if model == 85:
        return "Skylake" if stepping < 5 else "Cascade Lake" if stepping < 10 else "Cooper Lake"
    return _INTEL.get(model)
