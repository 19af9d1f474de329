"""Sweeps in processes of their own: killed, stopped by signals, two at once, without a reader."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import interrupt_sweep
import pytest

from polar_jax import sweep_cli, terminal
from polar_jax.sweep import run, store

LONG = interrupt_sweep.SPEC.replace("30_000", "200_000")
# Runs the command line given, after a change to the program.
CHANGED = "import sys\nfrom polar_jax import cli\n{}\nsys.exit(cli.main(sys.argv[1:]))"
# Starts every shard again.
FORGETFUL = CHANGED.format("from polar_jax.sweep import run\nrun.ShardRun._resume = lambda _: None")
# Takes its time over the report.
SLOW_REPORT = CHANGED.format(
    "import time\nfrom polar_jax.sweep import report\n"
    "report.write = lambda *_: print('reporting', flush=True) or time.sleep(60)"
)
TINY = """
[fixed]
adapters = 5
context_dim = 3
seeds = 70
policies = ["lru", "static"]
horizon = 2_000
[axes]
slots = [1, 2, 3]
price_per_ms = [0.01, 0.02, 0.03]
"""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    """A spec that takes a while."""
    path = tmp_path / "long.toml"
    path.write_text(LONG, "utf-8")
    return path


@pytest.mark.slow
def test_killed_and_stopped_sweeps_go_on_bitwise_and_leave_nothing(tmp_path, path):
    path.write_text(interrupt_sweep.SPEC, "utf-8")
    interrupt_sweep.finish(interrupt_sweep.start(path, tmp_path / "whole"))
    assert interrupt_sweep.interrupt(tmp_path / "killed", path, kills=3, seed=1) >= 1
    interrupt_sweep.assert_equal_rows(tmp_path / "whole", tmp_path / "killed")
    assert interrupt_sweep.files(tmp_path / "killed") == interrupt_sweep.files(tmp_path / "whole")


@pytest.mark.slow
def test_a_sweep_that_forgets_its_checkpoints_is_found_out(tmp_path, path):
    # Control of the one above, whose rows would be right all the same.
    out = tmp_path / "out"
    process = interrupt_sweep.start(path, out)
    stored = interrupt_sweep.follow(process, out, 120.0, 0)
    stored = interrupt_sweep.follow(process, out, 60.0, 3 * stored)
    process.kill()
    process.communicate()
    forgetful = interrupt_sweep.start(path, out, program=("-c", FORGETFUL))
    try:
        with pytest.raises(AssertionError, match="stored decisions went back from"):
            interrupt_sweep.follow(forgetful, out, 60.0)
    finally:
        forgetful.kill()
        forgetful.communicate()
    assert stored > 0


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)]
)
def test_a_signal_checkpoints_and_ends_within_five_seconds(tmp_path, path, number):
    process = interrupt_sweep.start(path, tmp_path / "out")
    interrupt_sweep.follow(process, tmp_path / "out", 120.0, 0)
    began = time.perf_counter()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.perf_counter() - began < 5.0
    assert process.returncode == 128 + number
    assert "the same command goes on" in errors
    assert interrupt_sweep.progress(tmp_path / "out") > 0
    assert not list((tmp_path / "out" / "claims").glob("*"))


@pytest.mark.parametrize(
    ("second", "seconds", "ended"),
    [
        # As Slurm has it: a job step's signal, and srun passes on its own.
        (signal.SIGTERM, 4.9, []),
        (signal.SIGTERM, 5.1, [128 + signal.SIGTERM]),
        (signal.SIGUSR2, 0.1, [128 + signal.SIGUSR2]),
    ],
)
def test_a_signal_that_is_passed_on_again_is_one(monkeypatch, second, seconds, ended):
    assert signals(monkeypatch, (signal.SIGTERM, second), seconds) == ended


def test_ctrl_c_twice_ends_at_once(monkeypatch):
    assert signals(monkeypatch, (signal.SIGINT, signal.SIGINT), 0.1) == [130]


def signals(monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, int], apart: float) -> list[int]:
    """With which codes a run would end at once that gets two signals so many seconds apart."""
    ended: list[int] = []
    handlers: list[Callable[[int, None], None]] = []
    monkeypatch.setattr(terminal, "on_signals", handlers.append)
    monkeypatch.setattr(terminal, "say_at_once", lambda _: None)
    monkeypatch.setattr(os, "_exit", ended.append)
    stop = run.Stop()
    assert sweep_cli._stop_at_signals(stop) == []
    for number, now in zip(numbers, (100.0, 100.0 + apart), strict=True):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        handlers[0](number, None)
        assert stop.requested
    return ended


@pytest.mark.slow
def test_ctrl_c_that_ends_the_reader_of_the_log_too_still_checkpoints(tmp_path, path):
    # `2>&1 | tee log`: the terminal's Ctrl-C goes to both, and nobody reads what is said.
    out = tmp_path / "out"
    reader, writer = os.pipe()
    words = ["sweep", "run", str(path), "--out", str(out), "--no-report", "--shard-seconds", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "polar_jax", *words, "--checkpoint-seconds", "0.2"],
        stdout=writer,
        stderr=writer,
        text=True,
    )
    os.close(writer)
    stored = interrupt_sweep.follow(process, out, 120.0, 0)
    os.close(reader)
    # What it has to say at the end of a shard goes nowhere, and it goes on.
    stored = interrupt_sweep.follow(process, out, 60.0, store_of(out).manifest["decisions"] // 8)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert interrupt_sweep.progress(out) >= stored
    assert store_of(out).read_failures() == {}
    assert list((out / "checkpoints").glob("*/state.npz"))


def store_of(out: pathlib.Path) -> store.Store:
    """A sweep's folder."""
    return store.open_existing(out)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGUSR1]
)
def test_a_signal_while_the_report_is_made_ends_at_once(tmp_path, path, number):
    path.write_text(TINY, "utf-8")
    words = ["sweep", "run", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_REPORT, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reporting\n"
    process.send_signal(number)
    # At once: the report would take a minute.
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "all 1 shards are stored, `polar-jax sweep report" in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_two_processes_at_once_share_a_sweep_and_change_no_bit(tmp_path, path):
    path.write_text(TINY, "utf-8")
    more = ("--shard-seconds", "0.02")
    both = [interrupt_sweep.start(path, tmp_path / "both", *more) for _ in range(2)]
    for process in both:
        interrupt_sweep.finish(process)
    interrupt_sweep.finish(interrupt_sweep.start(path, tmp_path / "alone", *more))
    assert store_of(tmp_path / "both").manifest["num_shards"] >= 6
    interrupt_sweep.assert_equal_rows(tmp_path / "alone", tmp_path / "both")
    assert interrupt_sweep.files(tmp_path / "alone") == interrupt_sweep.files(tmp_path / "both")


# Says how much memory it held at most, in KiB.
MEASURED = CHANGED.replace("sys.exit(", "code = (") + (
    "\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\nsys.exit(code)"
)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_horizon(tmp_path, path):
    peaks = []
    for horizon in (10_000, 1_000_000):
        text = TINY.replace("2_000", str(horizon)).replace("70", "64")
        path.write_text(text.replace("[1, 2, 3]", "[2]").replace(", 0.02, 0.03", ""), "utf-8")
        process = interrupt_sweep.start(
            path, tmp_path / str(horizon), program=("-c", MEASURED.format(""))
        )
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        found = re.fullmatch(r"(\d+)\n", output)
        assert found is not None
        peaks.append(int(found[1]))
    assert peaks[1] <= 1.1 * peaks[0], peaks
