"""Lesser processors than this one, emulated: one machine is one processor."""

import shutil

import pytest

from polar_jax import processors

# What qemu cannot emulate of a Haswell and would warn about.
_LACKING = ("pcid", "x2apic", "tsc-deadline", "hle", "rtm", "invpcid")

emulator = shutil.which("qemu-x86_64")
has_portable = pytest.mark.skipif(
    "x86-64-v" not in processors.instruction_set(), reason="this processor has no AVX2"
)


def before(cpu: str) -> list[str]:
    """What to put before a command so that it runs on a processor, by qemu's name; skips without.

    Args:
      cpu: such as Haswell, which has AVX2 and nothing of AVX-512.
    """
    if emulator is None:
        pytest.skip("one machine is one processor, and qemu-x86_64 (qemu-user) is not installed")
    return [emulator, "-cpu", ",".join((cpu, *(f"-{name}" for name in _LACKING)))]
