"""Versions of the native kernel's sources against each other, in turns and without the engine.

Usage, from the repository's root::

    python tests/bench/kernel_versions.py 02c8a5c .                 # a commit and the working tree
    python tests/bench/kernel_versions.py 02c8a5c . --shapes 15x64 256x16
    python tests/bench/kernel_versions.py hand .                    # the hand-written loop as well

Each is compiled with the machine's compiler and the kernel's flags, serves the same made-up lanes
on one core and is sampled in turns with the others. Prints nanoseconds per decision, plain LinUCB
and POLAR-E, and the median of the paired ratios to the first: above 1 is faster. That is how a
change within the kernel is measured, where the engine round it would blur it. "hand" is
`hand_written.cc`, which has plain LinUCB at (15, 16) and (64, 32) alone.
"""

import argparse
import ctypes
import io
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable

import jax

from polar_jax.kernels import native_build

HERE = pathlib.Path(__file__).parent
ROUNDS = 1_024
POLICIES = {"LinUCB": False, "POLAR-E": True}
HAND, BY_HAND = "hand", ((15, 16), (64, 32))


def sources(version: str, folder: pathlib.Path) -> pathlib.Path:
    """The kernel's sources in a version: "." for those of the working tree, or a commit.

    Raises:
      subprocess.CalledProcessError: for what is no commit.
    """
    if version == ".":
        return native_build.SOURCES
    native = native_build.SOURCES.resolve().relative_to(HERE.parents[1].resolve())
    words = ["git", "-C", str(HERE.parents[1]), "archive", version, native.as_posix()]
    packed = subprocess.run(words, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder / native


def build(version: str, folder: pathlib.Path) -> ctypes.CDLL:
    """Compiles a version's kernel with the lanes that are timed.

    Raises:
      ValueError: if there is no compiler.
    """
    folder.mkdir()
    made = folder / "lanes.so"
    own = "." if version == HAND else version
    headers = [f"-I{sources(own, folder)}", f"-I{jax.ffi.include_dir()}", "-w"]
    headers += ["-DPOLAR_HAND_WRITTEN"] * (version == HAND)
    words = [*native_build.command(), *headers, str(HERE / "kernel_versions.cc")]
    subprocess.run([*words, "-o", str(made)], check=True)
    library = ctypes.CDLL(str(made))
    library.make_lanes.restype = ctypes.c_void_p
    return library


def lanes_of(
    library: ctypes.CDLL, shape: tuple[int, int], num_lanes: int, *, experts: bool
) -> tuple[Callable[[], float], Callable[[], None]]:
    """What serves a chunk of every lane and says how long it took, and what ends the lanes."""
    sizes = [ctypes.c_int64(size) for size in (*shape, ROUNDS, num_lanes)]
    lanes = ctypes.c_void_p(library.make_lanes(*sizes, ctypes.c_bool(experts)))

    def serve() -> float:
        began = time.perf_counter()
        library.serve_lanes(lanes)
        return time.perf_counter() - began

    return serve, lambda: library.drop_lanes(lanes)


def line(
    libraries: dict[str, ctypes.CDLL], shape: tuple[int, int], policy: str, lanes: int, repeats: int
) -> str:
    """One line of the table."""
    made = {
        version: lanes_of(library, shape, lanes, experts=POLICIES[policy])
        for version, library in libraries.items()
    }
    seconds: dict[str, list[float]] = {version: [] for version in made}
    for serve, _ in made.values():
        serve()
    for _ in range(repeats):
        for version, (serve, _) in made.items():
            seconds[version].append(serve())
    for _, drop in made.values():
        drop()
    first = next(iter(seconds.values()))
    cells = [f"({shape[0]}, {shape[1]})", policy]
    for one in seconds.values():
        nanoseconds = 1e9 * statistics.median(one) / (lanes * ROUNDS)
        ratio = statistics.median(a / b for a, b in zip(first, one, strict=True))
        cells.append(f"{nanoseconds:,.0f} ({ratio:.2f})")
    return f"| {' | '.join(cells)} |"


def main(words: list[str]) -> int:
    """Measures and prints; the exit code."""
    parser = argparse.ArgumentParser(description="Versions of the native kernel's sources.")
    parser.add_argument("versions", nargs="+", help='commits, "." for the working tree, "hand"')
    parser.add_argument(
        "--shapes", nargs="+", default=["15x16", "64x32"], help="adapters x features"
    )
    parser.add_argument("--lanes", type=int, default=8, help="lanes (default: 8)")
    parser.add_argument("--repeats", type=int, default=25, help="samples of each (default: 25)")
    options = parser.parse_args(words)
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    with tempfile.TemporaryDirectory() as folder:
        libraries = {
            version: build(version, pathlib.Path(folder) / f"version{number}")
            for number, version in enumerate(options.versions)
        }
        names = (f"{version}, ns" for version in libraries)
        print(f"| (N, d) | policy | {' | '.join(names)} |\n|{'---|' * (2 + len(libraries))}")
        for n, d in shapes:
            for policy in POLICIES:
                if HAND in libraries and (POLICIES[policy] or (n, d) not in BY_HAND):
                    continue
                told = line(libraries, (n, d), policy, options.lanes, options.repeats)
                print(told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
