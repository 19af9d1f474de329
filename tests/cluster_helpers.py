"""Small sweeps for clusters: specs, the command line in processes, and what is compared."""

import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import interrupt_sweep

from polar_jax.sweep import store

SPEC = """
title = "Small shards"
[fixed]
adapters = 5
context_dim = 3
seeds = 64
horizon = {horizon}
policies = ["lru"]
environment = "sticky"
[axes]
slots = {slots}
price_per_ms = {prices}
"""
# As many shards as combinations: each combination is more than a shard aims at.
SHARD_SECONDS = "0.001"
_BUSY = 5.0


def spec(folder: pathlib.Path, *, shards: int, horizon: int = 300) -> pathlib.Path:
    """Writes a spec of so many shards."""
    slots = [1, 2, 3, 4] if shards % 4 == 0 else [1]
    prices = [round(0.01 * (1 + i), 2) for i in range(shards // len(slots))]
    path = folder / f"small{shards}.toml"
    path.write_text(SPEC.format(horizon=horizon, slots=slots, prices=prices), "utf-8")
    return path


def cli(
    *words: str | pathlib.Path, environment: Mapping[str, str], timeout: float = 900.0
) -> "subprocess.CompletedProcess[str]":
    """Runs the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "polar_jax", *map(str, words)],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def submit(
    path: pathlib.Path,
    out: pathlib.Path,
    *more: str,
    environment: Mapping[str, str],
) -> str:
    """Submits a sweep; returns what was printed."""
    options = ("--out", out, "--shard-seconds", SHARD_SECONDS, *more)
    done = cli("sweep", "submit", path, *options, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def status(out: pathlib.Path, environment: Mapping[str, str]) -> str:
    """What `sweep status` prints."""
    done = cli("sweep", "status", out, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(
    path: pathlib.Path, out: pathlib.Path, environment: Mapping[str, str], *more: str
) -> None:
    """Runs a sweep on this machine, to compare with."""
    options = ("--out", out, "--shard-seconds", SHARD_SECONDS, "--no-report", "--quiet", *more)
    done = cli("sweep", "run", path, *options, environment=environment)
    assert done.returncode == 0, done.stderr


def horizon_of(seconds: float, folder: pathlib.Path, environment: Mapping[str, str]) -> int:
    """Requests that a task of one processor serves in so many seconds, on this machine now."""
    path = spec(folder, shards=1, horizon=500_000)
    # The second time its programs are compiled.
    for name in ("first", "second"):
        run_here(path, folder / name, environment, "--devices", "1")
    facts = store.open_existing(folder / "second").read_facts(0)
    return int(500_000 * seconds / facts["seconds"])


def assert_same_bits(left: pathlib.Path, right: pathlib.Path, *, shards: int) -> None:
    """Sees that both folders hold all shards, and the same rows bit for bit."""
    for out in (left, right):
        assert len(list((out / "shards").rglob("*.parquet"))) == shards
    assert interrupt_sweep.assert_equal_rows(left, right) == shards * 64


def until(true: Callable[[], object], seconds: float, what: str) -> None:
    """Waits for something to become true; machines may be busy with much else.

    Raises:
      TimeoutError: after so many seconds.
    """
    deadline = time.monotonic() + _BUSY * seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {_BUSY * seconds} s")
        time.sleep(0.1)


def checkpointed(out: pathlib.Path, shard: int) -> bool:
    """Whether a shard in work has a checkpoint."""
    return (out / "checkpoints" / str(shard) / "state.npz").exists()


def owner(out: pathlib.Path, shard: int) -> int:
    """The process that holds a shard."""
    return json.loads((out / "claims" / str(shard)).read_bytes())["pid"]


def stored(out: pathlib.Path) -> int:
    """Decisions that are safely stored."""
    return interrupt_sweep.progress(out)
