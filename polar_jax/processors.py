"""The processor that runs this, and which instructions compiled code may use. Loads no JAX.

Two processors with unlike instruction sets compute sums in unlike order and round products
differently (fused or not), so that results agree to about 1e-6 only. Portable code uses what every
x86-64 processor of the third level has (AVX2, FMA: since 2013), whichever one it runs on.
"""

import os
import pathlib
import platform

from polar_jax import checks

# Set by --portable, and inherited by processes that this one starts.
VARIABLE = "POLAR_JAX_PORTABLE"
PORTABLE, NATIVE = "x86-64-v3", "this processor's"
# What depends on the processor in XLA's code: its instructions; approximate ones, such as that of
# 1/sqrt, which every make has its own of; and two libraries of matrix products, which look at the
# processor by themselves.
_XLA = {
    "--xla_cpu_max_isa": "AVX2",
    "--xla_cpu_enable_platform_dependent_math": "false",
    "--xla_cpu_experimental_ynn_fusion_type": "",
}
_LIBRARY, _LIBRARY_LEVEL = "ONEDNN_MAX_CPU_ISA", "AVX2"
# What the level asks for, as Linux names it; levels above it are told apart by the rest.
_LEVEL_3 = frozenset(("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"))
_LEVEL_4 = frozenset(("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"))
_WIDER = ("avx", "amx", "gfni", "vaes", "vpclmul", "fma4", "xop", "asimd", "sve", "sme", "bf16")
_INFO = pathlib.Path("/proc/cpuinfo")


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    return _field("model name") or platform.processor() or platform.machine()


def instruction_set() -> str:
    """What tells this processor's code from another's: its level and what it has beyond."""
    found = _flags()
    if not found:
        return platform.machine() or "unknown"
    level, known = platform.machine(), frozenset[str]()
    for name, needed in (("x86-64-v3", _LEVEL_3), ("x86-64-v4", _LEVEL_3 | _LEVEL_4)):
        if needed <= found:
            level, known = name, needed
    more = sorted(name for name in found - known if name.startswith(_WIDER))
    return " ".join((level, *more))


def code() -> str:
    """Whose instructions compiled code uses: `NATIVE`, or `PORTABLE` after `make_portable`.

    Raises:
      ValueError: if the environment variable says neither yes nor no.
    """
    said = os.environ.get(VARIABLE, "0")
    checks.one_of(VARIABLE, said, ("0", "1"))
    return PORTABLE if said == "1" else NATIVE


def make_portable() -> None:
    """Caps the instructions of all code compiled from here on; to be called before JAX starts.

    Raises:
      ValueError: if this processor has not what portable code needs, or `XLA_FLAGS` says
        otherwise.
    """
    lacking = sorted(_LEVEL_3 - _flags())
    if lacking:
        raise ValueError(
            f"--portable must run on an x86-64 processor with {', '.join(sorted(_LEVEL_3))}; "
            f"{cpu_model()} ({platform.machine()}) has no {', '.join(lacking)}."
        )
    words = os.environ.get("XLA_FLAGS", "").split()
    for name, value in _XLA.items():
        others = [word for word in words if word.partition("=")[0] == name]
        if any(word != f"{name}={value}" for word in others):
            raise ValueError(f"--portable sets {name}={value}, and XLA_FLAGS has {others[-1]}.")
        words += [] if others else [f"{name}={value}"]
    library = os.environ.get(_LIBRARY, _LIBRARY_LEVEL)
    if library != _LIBRARY_LEVEL:
        raise ValueError(f"--portable sets {_LIBRARY}={_LIBRARY_LEVEL}, and it is {library}.")
    os.environ |= {"XLA_FLAGS": " ".join(words), _LIBRARY: _LIBRARY_LEVEL, VARIABLE: "1"}


def _flags() -> frozenset[str]:
    """Instructions that the system says the processor has; none where it tells nothing."""
    return frozenset((_field("flags") or _field("Features")).split())


def _field(name: str) -> str:
    """A line of what the system tells about the first processor; "" where it has none."""
    try:
        lines = _INFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        label, _, value = line.partition(":")
        if label.strip() == name:
            return value.strip()
    return ""
