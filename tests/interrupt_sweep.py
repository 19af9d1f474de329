"""Kills a sweep with `kill -9` at random moments and resumes it each time.

    python tests/interrupt_sweep.py --kills 20

runs a small sweep undisturbed and once more with kills, and fails unless all rows are
bitwise the same, no progress was lost beyond a checkpoint, and no stray file is left.
"""

import argparse
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import polars

from polar_jax import sweep
from polar_jax.sweep import store

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


def command(spec: pathlib.Path, out: pathlib.Path, *more: str) -> list[str]:
    """The command line that runs a sweep here."""
    options = ["--shard-seconds", "2", "--checkpoint-seconds", str(CHECKPOINT_SECONDS)]
    words = ["sweep", "run", str(spec), "--out", str(out), "--quiet", "--no-report", *options]
    return [sys.executable, "-m", "polar_jax", *words, *more]


def start(spec: pathlib.Path, out: pathlib.Path, *more: str) -> "subprocess.Popen[str]":
    """Starts a sweep in a process of its own."""
    return subprocess.Popen(
        command(spec, out, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: "subprocess.Popen[str]") -> None:
    """Waits for a sweep that must succeed."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {errors}")


def files(out: pathlib.Path) -> list[str]:
    """Every file of a folder."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


def progress(out: pathlib.Path) -> float:
    """Work that is safely stored, in shards; a checkpoint counts by how far it is."""
    try:
        folder = store.open_existing(out)
    except store.StoreError:
        return 0.0
    states = folder.states(folder.manifest["num_shards"])
    done = float(sum(state == "done" for state in states.values()))
    for index, state in states.items():
        found = None if state == "done" else folder.read_checkpoint(index)
        if found is not None:
            position = found[1]["position"]
            rounds = position.get("first_round", 0) / 1e5
            done += min(0.9, found[1]["batch"] / 10 + rounds / 10)
    return done


def assert_equal_rows(left: pathlib.Path, right: pathlib.Path) -> int:
    """Checks that two sweeps hold bitwise the same rows; returns how many."""
    a, b = sweep.load(left), sweep.load(right)
    if not a.equals(b, null_equal=True):
        raise AssertionError(f"rows of {left} and {right} differ: {a.shape}, {b.shape}")
    assert isinstance(a, polars.DataFrame)
    return a.height


def wait_for_work(
    process: "subprocess.Popen[str]", out: pathlib.Path, before: float, seconds: float
) -> None:
    """Waits until a sweep has stored something new, or has ended."""
    until = time.perf_counter() + seconds
    while process.poll() is None and time.perf_counter() < until and progress(out) <= before:
        time.sleep(0.05)


def interrupt(out: pathlib.Path, spec: pathlib.Path, kills: int, seed: int) -> int:
    """Runs a sweep to its end through `kills` kills; returns how many hit it at work.

    Every fourth kill comes at any moment from the start on, the others soon after new work
    was stored, so that most of them find the process at work.
    """
    rng = random.Random(seed)
    hits, before = 0, 0.0
    for kill in range(kills):
        process = start(spec, out)
        if kill % 4:
            wait_for_work(process, out, before, 120.0)
        time.sleep(rng.uniform(0.0, 1.0 if kill % 4 else 6.0))
        hits += process.poll() is None
        process.kill()
        process.communicate()
        now = progress(out)
        if now < before - 1e-9:
            raise AssertionError(f"stored work went back from {before} to {now}")
        before = now
    finish(start(spec, out))
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
