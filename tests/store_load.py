"""What a sweep of very many shards asks of the disk that holds it.

    python tests/store_load.py                      # the table of docs/scaling-out.md
    python tests/store_load.py --shards 400 --empty 80
    strace -f -c -e trace=%file python tests/store_load.py --shards 0 --empty 400

Several processes store made-up rows of one sweep, 64 each, as fast as they can; then what people
and tasks do with the folder is timed. The second part has them run shards that compute nothing,
claims and all. Nothing here needs more than sweeps have had from the first, so that the script
tells about older versions as well.
"""

import argparse
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import cluster_helpers
import numpy as np
import pyarrow

from polar_jax import sweep
from polar_jax.sweep import plan, run, spec, status, store

ROWS, PROCESSES, SLICES = 64, 4, 16
FACTS = {"seconds": 1.0, "decisions": 4_000}


def table(index: int) -> pyarrow.Table:
    """Made-up rows of one shard, as wide as real ones."""
    names = [f"figure_{number}" for number in range(30)]
    figures = np.random.default_rng(index).random((len(names), ROWS))
    curves = [list(map(float, range(48)))] * ROWS
    return pyarrow.table(
        {
            "configuration": np.full(ROWS, index),
            "policy": ["lru"] * ROWS,
            "seed": np.arange(ROWS),
            "curve_round": curves,
            **dict(zip(names, figures, strict=True)),
        }
    )


class Nothing:
    """In the place of a shard's run: stores rows that were made up."""

    def __init__(self, worker: Any, shard: plan.Shard, claim: Any) -> None:
        del claim
        self.folder, self.index = worker.folder, shard.index

    def execute(self) -> None:
        """Stores them."""
        self.folder.write_shard(self.index, table(self.index), FACTS)


def planned(path: pathlib.Path) -> plan.Plan:
    """The plan of a spec, a shard per combination."""
    return plan.make(spec.read(path), shard_seconds=0.001)


def execute(path: pathlib.Path, out: pathlib.Path, part: tuple[int, int] | None) -> None:
    """Runs shards that compute nothing; in a process of its own."""
    for name in ("ShardRun", "_ShardRun"):
        if hasattr(run, name):
            setattr(run, name, Nothing)
    options = run.Options(part=part)
    run.execute(planned(path), out, options, lambda _: None, run.Stop())


def fill(path: pathlib.Path, out: pathlib.Path, first: int) -> None:
    """Stores every `PROCESSES`-th shard; in a process of its own."""
    made = planned(path)
    described = run.describe(made, None)
    folder = store.create_or_open(out, {"created": "", **described})
    for index in range(first, len(made.shards), PROCESSES):
        folder.write_shard(index, table(index), FACTS)


def together(function: Callable[..., None], every: Iterator[tuple[Any, ...]]) -> None:
    """Runs processes side by side and waits for all.

    Raises:
      RuntimeError: if one fails.
    """
    started = [multiprocessing.Process(target=function, args=args) for args in every]
    for process in started:
        process.start()
    for process in started:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process ended with {process.exitcode}")


def timed(what: str, call: Callable[[], Any]) -> Any:
    """Prints how long a call took; returns what it gave."""
    began = time.perf_counter()
    given = call()
    print(f"{what:>52}: {time.perf_counter() - began:7.2f} s", flush=True)
    return given


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What many shards ask of a disk.")
    parser.add_argument("--shards", type=int, default=10_000, help="a multiple of 4, 0 for none")
    parser.add_argument("--empty", type=int, default=2_000, help="shards that compute nothing")
    given = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if given.shards:
            path, out = cluster_helpers.spec(folder, shards=given.shards), folder / "many"
            timed("planning", lambda: planned(path))
            timed(
                f"storing {given.shards}, {PROCESSES} processes, their start included",
                lambda: together(fill, iter((path, out, first) for first in range(PROCESSES))),
            )
            timed("`sweep status`", lambda: status.read(out))
            timed("what all shards are", lambda: store.open_existing(out).states(given.shards))
            timed(
                f"a task of 1/{SLICES} with nothing left to do, its start included",
                lambda: together(execute, iter([(path, out, (0, SLICES))])),
            )
            height = timed("all rows in one table", lambda: sweep.load(out)).height
            if height != given.shards * ROWS:
                raise RuntimeError(f"{height} rows are there")
        if given.empty:
            path, out = cluster_helpers.spec(folder, shards=given.empty), folder / "empty"
            timed(
                f"{given.empty} empty shards, {PROCESSES} processes on one folder",
                lambda: together(execute, iter([(path, out, None)] * PROCESSES)),
            )


if __name__ == "__main__":
    main()
