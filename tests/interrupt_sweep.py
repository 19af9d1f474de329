"""Kills a sweep with `kill -9` at random moments and resumes it each time.

    python tests/interrupt_sweep.py --kills 20

runs a small sweep undisturbed and once more with kills, and fails unless all rows are
bitwise the same, what was stored never became less, and no stray file is left.
"""

import argparse
import math
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import polars

from polar_jax import sweep
from polar_jax.sweep import status, store

SPEC = """
filters = ["slots <= adapters"]
[fixed]
adapters = 6
context_dim = 3
seeds = 40
horizon = 30_000
environment = "sticky"
policies = ["polar_plus", "polar_experts", "lru"]
[axes]
slots = [1, 2]
alpha = [0.2, 0.5]
"""
CHECKPOINT_SECONDS = 0.2


PROGRAM = ("-m", "polar_jax")


def start(
    spec: pathlib.Path, out: pathlib.Path, *more: str, program: Sequence[str] = PROGRAM
) -> "subprocess.Popen[str]":
    """Starts a sweep in a process of its own; `program` is what Python is to run."""
    options = ["--shard-seconds", "2", "--checkpoint-seconds", str(CHECKPOINT_SECONDS)]
    words = ["sweep", "run", str(spec), "--out", str(out), "--quiet", "--no-report", *options]
    return subprocess.Popen(
        [sys.executable, *program, *words, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> None:
    """Waits for a sweep that must succeed."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {errors}")


def files(out: pathlib.Path) -> list[str]:
    """Every file of a folder."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def progress(out: pathlib.Path) -> int:
    """Decisions that are safely stored, in shards and in checkpoints."""
    try:
        found = status.read(out)
    except store.StoreError:
        return 0
    return found["decisions"] + found["checkpointed"]


def assert_equal_rows(left: pathlib.Path, right: pathlib.Path) -> int:
    """Checks that two sweeps hold bitwise the same rows; returns how many."""
    a, b = sweep.load(left), sweep.load(right)
    if not a.equals(b, null_equal=True):
        raise AssertionError(f"rows of {left} and {right} differ: {a.shape}, {b.shape}")
    assert isinstance(a, polars.DataFrame)
    return a.height


def follow(
    process: "subprocess.Popen[str]", out: pathlib.Path, seconds: float, beyond: float = math.inf
) -> int:
    """Watches what a sweep has stored, which must never become less.

    A process that starts a shard again in place of going on from its checkpoint overwrites
    that with less, soon after it began and long before it has caught up.

    Args:
      process: the sweep's.
      out: its folder.
      seconds: how long to watch at most.
      beyond: watch no longer once more decisions than these are stored.

    Returns:
      Decisions that are stored at the end.
    """
    until, stored = time.perf_counter() + seconds, progress(out)
    while process.poll() is None and time.perf_counter() < until and stored <= beyond:
        time.sleep(0.02)
        now = progress(out)
        if now < stored:
            raise AssertionError(f"stored decisions went back from {stored:,} to {now:,}")
        stored = now
    return stored


def interrupt(
    out: pathlib.Path,
    spec: pathlib.Path,
    kills: int,
    seed: int,
    program: Sequence[str] = PROGRAM,
) -> int:
    """Runs a sweep to its end through `kills` kills; returns how many hit it at work.

    Every fourth kill comes at any moment from the start on, the others soon after new work
    was stored, so that most of them find the process at work.
    """
    rng = random.Random(seed)
    hits = 0
    for kill in range(kills + 1):
        before = progress(out)
        process = start(spec, out, program=program)
        try:
            if kill == kills:
                follow(process, out, math.inf)
                finish(process)
                break
            if kill % 4:
                follow(process, out, 120.0, before)
            follow(process, out, rng.uniform(0.0, 1.0 if kill % 4 else 6.0))
            hits += process.poll() is None
        finally:
            process.kill()
            process.communicate()
        if progress(out) < before:
            raise AssertionError(f"stored decisions went back from {before:,} to {progress(out):,}")
    return hits


def main() -> int:
    """Runs the check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        spec = base / "small.toml"
        spec.write_text(SPEC.replace("30_000", str(15_000 * options.kills)), "utf-8")
        began = time.perf_counter()
        finish(start(spec, base / "whole"))
        whole = time.perf_counter() - began
        hits = interrupt(base / "killed", spec, options.kills, options.seed)
        rows = assert_equal_rows(base / "whole", base / "killed")
        assert files(base / "whole") == files(base / "killed"), files(base / "killed")
    print(
        f"{options.kills} kills, {hits} of them at work (undisturbed {whole:.0f} s); "
        f"{rows} rows bitwise the same; no stray file."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
