"""The native kernel as `--portable` builds it, on a lesser processor than the one that built it.

`native_lanes.cc` serves lanes by every rule without JAX, which would take minutes to emulate.
"""

import pathlib
import re
import shutil
import signal
import subprocess

import emulated
import jax
import pytest

from polar_jax import processors
from polar_jax.kernels import native_build

SOURCE = pathlib.Path(__file__).parent / "native_lanes.cc"
# What AVX-512 has and no instruction of AVX2 can name: long registers, masks, registers from 16 on.
BEYOND = re.compile(r"%zmm|%k[0-7]\b|%[xy]mm(1[6-9]|[23]\d)\b")
CASES = 720

pytestmark = [pytest.mark.slow, emulated.has_portable]


def compiled(path: pathlib.Path, level: str) -> pathlib.Path:
    """The lanes as a program, built as the kernel is, for a level of processors."""
    words = [word for word in native_build.command() if word != "-shared"]
    words[words.index(f"-march={processors.PORTABLE}")] = f"-march={level}"
    headers = [f"-I{folder}" for folder in (native_build.SOURCES, jax.ffi.include_dir())]
    subprocess.run([*words, *headers, str(SOURCE), "-o", str(path)], check=True, timeout=300)
    return path


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    """The program in portable code, and the same with instructions of the next level."""
    if native_build.compiler_version() is None:
        pytest.skip("without a C++ compiler there is no native code")
    folder = tmp_path_factory.mktemp("lanes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(processors.VARIABLE, "1")
        return (
            compiled(folder / "portable", processors.PORTABLE),
            compiled(folder / "wider", "x86-64-v4"),
        )


def test_portable_code_serves_to_the_bit_on_an_emulated_haswell(portable):
    lesser = emulated.before("Haswell")
    here, there = (
        subprocess.run([*before, str(portable[0])], check=True, capture_output=True, timeout=300)
        for before in ([], lesser)
    )
    assert there.stdout == here.stdout
    # Every case came to something else, so that none went unserved.
    assert len({line.split()[-1] for line in here.stdout.splitlines()}) == CASES
    # The control: the emulator refuses what a Haswell does not have.
    wider = subprocess.run([*lesser, str(portable[1])], check=False, capture_output=True)
    assert wider.returncode == -signal.SIGILL


def test_portable_code_has_no_instruction_beyond_its_level(portable):
    if shutil.which("objdump") is None:
        pytest.skip("objdump (binutils) is not installed, which not all compilers bring along")
    found = []
    for path in portable:
        words = ["objdump", "--disassemble", "--no-show-raw-insn", str(path)]
        shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        assert "%ymm" in shown
        found.append(bool(BEYOND.search(shown)))
    # The wider program is the control.
    assert found == [False, True]
