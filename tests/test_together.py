"""Shards that two real processes compute together, as Slurm would start them."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import interrupt_sweep
import pytest

from polar_jax import processes

SPEC = """
[fixed]
adapters = 5
context_dim = 3
seeds = 70
policies = ["lru", "polar"]
horizon = {horizon}
[axes]
slots = [1, 2]
"""
ONE_LINE_SECONDS = processes.HEARTBEAT_SECONDS + 30.0


@pytest.fixture
def spec(tmp_path: pathlib.Path) -> pathlib.Path:
    """A spec of a few shards that take a while."""
    path = tmp_path / "spec.toml"
    path.write_text(SPEC.format(horizon=100_000), "utf-8")
    return path


Pair = tuple["subprocess.Popen[str]", "subprocess.Popen[str]"]


def start(spec: pathlib.Path, out: pathlib.Path, *more: str, **second: str) -> Pair:
    """Two processes of one job step on this machine; `second` is set in the latter alone."""
    # JAX takes its port from the job's number.
    job = str(random.randrange(4096))
    step = {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    words = ["sweep", "run", str(spec), "--out", str(out), "--quiet", "--no-report"]
    options = ["--shard-seconds", "2", "--checkpoint-seconds", "0.2", "--distributed"]

    def one(number: int, **env: str) -> "subprocess.Popen[str]":
        place = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
        return subprocess.Popen(
            [sys.executable, "-m", "polar_jax", *words, "--devices", "1", *options, *more],
            env={**os.environ, **step, **place, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return one(0), one(1, **second)


def finish(pair: Pair, seconds: float = 300.0) -> list[tuple[int, str]]:
    """Exit codes, and what was said on stderr but for the transport's own greeting."""
    ended = []
    try:
        for process in pair:
            _, said = process.communicate(timeout=seconds)
            lines = [line for line in said.splitlines() if not line.startswith("[Gloo]")]
            ended.append((process.returncode, "\n".join(line for line in lines if line)))
    finally:
        for process in pair:
            process.kill()
    return ended


def alone(spec: pathlib.Path, out: pathlib.Path) -> None:
    """The same sweep in one process, from where it is."""
    interrupt_sweep.finish(interrupt_sweep.start(spec, out, "--devices", "1"))


@pytest.mark.slow
def test_two_processes_compute_shards_together_to_the_bit(tmp_path, spec):
    spec.write_text(SPEC.format(horizon=20_000), "utf-8")
    assert finish(start(spec, tmp_path / "both")) == [(0, ""), (0, "")]
    alone(spec, tmp_path / "alone")
    interrupt_sweep.assert_equal_rows(tmp_path / "alone", tmp_path / "both")
    assert interrupt_sweep.files(tmp_path / "alone") == interrupt_sweep.files(tmp_path / "both")


@pytest.mark.slow
def test_a_signal_checkpoints_once_for_both_and_either_kind_of_run_goes_on(tmp_path, spec):
    out = tmp_path / "out"
    pair = start(spec, out)
    interrupt_sweep.follow(pair[0], out, 120.0, 0)
    for process in pair:
        process.send_signal(signal.SIGTERM)
    (first, said), (second, _) = finish(pair, 30.0)
    assert first == second == 128 + signal.SIGTERM
    assert "the one in work is checkpointed" in said
    stored = interrupt_sweep.progress(out)
    assert stored > 0
    pair = start(spec, out)
    interrupt_sweep.follow(pair[0], out, 120.0, stored)
    # A signal to one of them stops both.
    pair[1].send_signal(signal.SIGUSR1)
    assert [code for code, _ in finish(pair, 30.0)] == [1, 128 + signal.SIGUSR1]
    assert interrupt_sweep.progress(out) >= stored
    alone(spec, out)
    alone(spec, tmp_path / "alone")
    interrupt_sweep.assert_equal_rows(tmp_path / "alone", out)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_next_run_goes_on(tmp_path, spec, victim):
    out = tmp_path / "out"
    pair = start(spec, out)
    stored = interrupt_sweep.follow(pair[0], out, 120.0, 0)
    pair[victim].kill()
    began = time.perf_counter()
    ended = finish(pair, ONE_LINE_SECONDS)
    code, said = ended[1 - victim]
    # Our line, unless JAX's own service notices first and aborts with lines of its own.
    ours = (code, said) == (1, "polar-jax: error: another process of this run has ended")
    assert ours or "Terminating process because the JAX distributed service" in said
    assert time.perf_counter() - began < ONE_LINE_SECONDS
    assert interrupt_sweep.progress(out) >= stored
    alone(spec, out)
    alone(spec, tmp_path / "alone")
    interrupt_sweep.assert_equal_rows(tmp_path / "alone", out)


@pytest.mark.slow
def test_unlike_processes_are_refused(tmp_path, spec):
    ended = finish(start(spec, tmp_path / "out", POLAR_JAX_KERNEL="blocked"))
    for code, said in ended:
        assert code == 2
        assert said.startswith("polar-jax: error: --distributed needs processes that are alike")
        assert "blocked in process 1" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_a_launcher_it_is_refused(tmp_path, spec):
    process = interrupt_sweep.start(spec, tmp_path / "out", "--distributed")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("polar-jax: error: --distributed must be started by srun")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("env", "own"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        # All tasks of a node see all of its accelerators: JAX gives each its own.
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_LOCALID": "1"}, None),
        # A task sees its own alone.
        (
            {"CUDA_VISIBLE_DEVICES": "3", "SLURM_LOCALID": "3", "SLURM_GPUS_PER_TASK": "1"},
            [0],
        ),
        # One task per node has all of them.
        (
            {
                "CUDA_VISIBLE_DEVICES": "0,1,2,3",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
            },
            [0, 1, 2, 3],
        ),
    ],
)
def test_a_task_takes_the_accelerators_that_are_its_own(env, own):
    assert processes.local_devices(env) == own
