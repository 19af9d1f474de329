"""Builds the native kernel with the machine's compiler, once per kind of processor, and loads it.

The library is kept beside JAX's compiled programs, under a name that says what it was built
from: sources, flags, compiler, processor and jaxlib. Machines that share a home but not a
processor build their own, unless the code is to be portable (`processors`).
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
from typing import NamedTuple

import jax

from polar_jax import processors

SOURCES = pathlib.Path(__file__).parent / "native"
FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi"),
)
_TARGETS = {
    "polar_rounds_f32": "PolarRoundsF32",
    "polar_rounds_f64": "PolarRoundsF64",
    "polar_refresh_f32": "PolarRefreshF32",
    "polar_refresh_f64": "PolarRefreshF64",
    "polar_sums_f32": "PolarSumsF32",
    "polar_sums_f64": "PolarSumsF64",
    "polar_bits": "PolarBits",
}
_TIME_LIMIT = 300.0  # seconds a compiler may take


class Native(NamedTuple):
    """The kernel's library, or why there is none."""

    path: pathlib.Path | None
    reason: str  # "" where there is one


@functools.cache
def native() -> Native:
    """Builds, loads and registers the kernel, at most once per process.

    Returns:
      Where the library is; or, as the engine runs without it as well, why it cannot be had.
    """
    try:
        path = _built()
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # damaged: a full disk, a machine that went down
            path.unlink(missing_ok=True)
            library = ctypes.CDLL(str(_built()))
        for target, symbol in _TARGETS.items():
            handler = jax.ffi.pycapsule(getattr(library, symbol))
            jax.ffi.register_ffi_target(target, handler, platform="cpu")
    except _UnavailableError as error:
        return Native(None, str(error))
    except (OSError, AttributeError) as error:
        return Native(None, f"the library cannot be used: {error}")
    return Native(path, "")


def command() -> list[str]:
    """The compiler and its flags, as the kernel is built with them.

    Raises:
      ValueError: if there is no compiler.
    """
    try:
        return [*_compiler(), *_flags()]
    except _UnavailableError as error:
        raise ValueError(str(error)) from None


class _UnavailableError(Exception):
    """Why the kernel cannot be built here."""


def _compiler() -> list[str]:
    named = os.environ.get("CXX", "")
    try:
        found = [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]
    except ValueError as error:
        raise _UnavailableError(f"CXX={named} is no command: {error}") from None
    for words in found:
        if words and shutil.which(words[0]):
            return words
    raise _UnavailableError(
        f"no C++ compiler: {'CXX=' + named if named else 'none of c++, g++, clang++'} "
        "is on the path."
    )


@functools.cache
def compiler_version() -> str | None:
    """The compiler that builds the kernel, in its own words; None where there is none."""
    try:
        said = _ran([*_compiler(), "--version"]).stdout.decode(errors="replace")
    except (_UnavailableError, OSError):
        return None
    return said.partition("\n")[0].strip() or None


def _flags() -> tuple[str, ...]:
    """What the compiler is told: code for this processor, or for all of a level."""
    portable = processors.code() == processors.PORTABLE
    return (f"-march={processors.PORTABLE if portable else 'native'}", *FLAGS)


def _processor() -> str:
    """What code for this processor depends on: its model and its instruction sets."""
    if processors.code() == processors.PORTABLE:
        return processors.PORTABLE
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    known = ("model name", "flags", "CPU part", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(known)}))


def _folder() -> pathlib.Path:
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = pathlib.Path(root) if root else pathlib.Path.home() / ".cache"
        folder = folder / "polar_jax" / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise _UnavailableError(f"no folder to keep it in: {error}") from None
    return folder


def _built() -> pathlib.Path:
    """The library, built where it is not there yet."""
    compiler = _compiler()
    digest = hashlib.sha256(_ran([*compiler, "--version"]).stdout)
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    known = (*compiler, *_flags(), _processor(), importlib.metadata.version("jaxlib"))
    digest.update("\0".join(known).encode())
    path = _folder() / f"rounds-{digest.hexdigest()[:16]}.so"
    if not path.is_file():
        _build(compiler, path)
    return path


def _ran(words: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Runs a compiler, which must neither ask nor take for ever."""
    try:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        message = f"{words[0]} took more than {_TIME_LIMIT:.0f} s."
        raise _UnavailableError(message) from None


def _build(compiler: list[str], path: pathlib.Path) -> None:
    """Compiles to a name of its own, then moves: two processes may build at once."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = pathlib.Path(folder) / "rounds.so"
            sources = [str(source) for source in sorted(SOURCES.glob("*.cc"))]
            headers = f"-I{jax.ffi.include_dir()}"
            run = _ran([*compiler, *_flags(), headers, *sources, "-o", str(made)])
            if run.returncode:
                lines = run.stderr.decode(errors="replace").splitlines()
                wrong = [line for line in lines if "error" in line] or lines or ["no message"]
                raise _UnavailableError(f"{compiler[0]} failed: {wrong[0]}")
            with made.open("rb") as file:
                os.fsync(file.fileno())
            made.replace(path)
    except OSError as error:
        raise _UnavailableError(f"it cannot be kept: {error}") from None
