"""The native kernel against a loop in C++ that was written for one purpose, in one run.

Usage, from the repository's root::

    python tests/bench/against_hand_written.py            # the table of docs/performance.md
    python tests/bench/against_hand_written.py --small    # a quick look

Both serve plain LinUCB on the same requests, are built by the same compiler with the same flags,
take all cores and are sampled in turns; what each chose is held against float64 statistics. Prints
a Markdown table of decisions per second and the median of the paired ratios.
"""

import argparse
import ctypes
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np

from polar_jax import kernels, lanes, manifest
from polar_jax.bench import arithmetic, baselines, engine
from polar_jax.bench.arithmetic import Sample
from polar_jax.kernels import native_build

SOURCE = pathlib.Path(__file__).with_name("hand_written.cc")
POLICY = "full_cache"


class Case(NamedTuple):
    """Sizes, and seconds of a sample at least."""

    num_adapters: int
    context_dim: int
    num_lanes: int
    seconds: float = 0.3


CASES = (Case(15, 16, 64), Case(64, 32, 64), Case(15, 16, 1))
SMALL = (Case(15, 16, 4, 0.05), Case(64, 32, 2, 0.05))


class HandWritten:
    """The loop, and the statistics of its lanes."""

    def __init__(self, library: ctypes.CDLL, stream: baselines.Stream, cores: int) -> None:
        num_lanes, rounds, num_adapters = stream.utility.shape
        dim = stream.context.shape[-1]
        self._call, self._stream, self._cores = library.hand_written, stream, cores
        self._call.restype = ctypes.c_bool
        eye = np.eye(dim, dtype=np.float32) / np.float32(baselines.RIDGE)
        self._inverse = np.tile(eye, (num_lanes, num_adapters, 1, 1))
        self._theta = np.zeros((num_lanes, num_adapters, dim), np.float32)
        self.chosen = np.zeros((num_lanes, rounds), np.int32)

    def serve(self, rounds: int) -> Sample:
        """Serves the stream's rounds as often as they go into `rounds`."""
        num_lanes, num_rounds, num_adapters = self._stream.utility.shape
        arrays = (*self._stream, self._inverse, self._theta, self.chosen)
        pointers = [one.ctypes.data_as(ctypes.c_void_p) for one in arrays]
        sizes = (num_lanes, num_rounds, num_adapters, self._stream.context.shape[-1])
        given = [
            *(*pointers, *map(ctypes.c_int64, sizes)),
            *(ctypes.c_float(baselines.ALPHA), ctypes.c_int64(min(self._cores, num_lanes))),
        ]
        began = time.perf_counter()
        for _ in range(rounds // num_rounds):
            if not self._call(*given):
                raise ValueError(f"the loop was not written for {sizes[2:]} adapters, features.")
        return Sample(rounds * num_lanes, time.perf_counter() - began)


def build(folder: pathlib.Path) -> ctypes.CDLL:
    """Builds the loop as the kernel is built.

    Raises:
      ValueError: if there is no native kernel to compare with.
    """
    if native_build.native().reason:
        raise ValueError(f"there is no native kernel: {native_build.native().reason}")
    made = folder / "hand_written.so"
    words = [*native_build.command(), f"-I{native_build.SOURCES}"]
    subprocess.run([*words, str(SOURCE), "-o", str(made), "-pthread"], check=True)
    return ctypes.CDLL(str(made))


def measure(case: Case, library: ctypes.CDLL, repeats: int) -> str:
    """One line of the table.

    Raises:
      ValueError: if either chose an adapter that was not the best within float32's rounding.
    """
    shape = lanes.Shape(case.num_adapters, case.context_dim)
    ready = engine.Ready(shape, case.num_lanes, None, [POLICY])
    ready.compile("native", kernels.run_rounds("native"), POLICY)
    stream = ready.stream(case.num_lanes)
    loop = HandWritten(library, stream, len(jax.devices()))
    ready.serve("native", POLICY, ready.rounds)
    loop.serve(ready.rounds)
    for name, chosen in (("native", ready.chosen(POLICY)), ("hand-written", loop.chosen)):
        gap = max(baselines.worst_gap(stream, lane, chosen[lane]) for lane in {0, len(chosen) - 1})
        if gap > baselines.SINGLE:
            raise ValueError(f"{name} chose an adapter {gap:.1e} below the best.")
    rounds = {"native": ready.rounds, "loop": ready.rounds}
    serve = {"native": lambda n: ready.serve("native", POLICY, n), "loop": loop.serve}
    for name, call in serve.items():
        while call(rounds[name]).seconds < case.seconds:
            rounds[name] *= 2
    samples: dict[str, list[Sample]] = {name: [] for name in serve}
    for _ in range(repeats):
        for name, call in serve.items():
            samples[name].append(call(rounds[name]))
    rates = {
        name: np.median([one.decisions / one.seconds for one in every]) / 1e6
        for name, every in samples.items()
    }
    ratio = arithmetic.paired_ratio(samples["native"], samples["loop"])
    return (
        f"| ({case.num_adapters}, {case.context_dim}), {case.num_lanes} | {rates['native']:.2f} | "
        f"{rates['loop']:.2f} | {ratio:.2f} |"
    )


def main(words: list[str]) -> int:
    """Measures and prints; the exit code."""
    parser = argparse.ArgumentParser(description="The native kernel against a hand-written loop.")
    parser.add_argument("--small", action="store_true", help="few lanes, short samples")
    parser.add_argument("--repeats", type=int, default=9, help="samples of each (default: 9)")
    options = parser.parse_args(words)
    jax.config.update("jax_num_cpu_devices", manifest.usable_cores())
    with tempfile.TemporaryDirectory() as folder:
        library = build(pathlib.Path(folder))
        print("| (N, d), lanes | native, M decisions/s | hand-written | native over it |")
        print("|---|---|---|---|")
        for case in SMALL if options.small else CASES:
            print(measure(case, library, options.repeats), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
