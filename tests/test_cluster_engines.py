"""What is asked of Slurm and Ray, and how tasks end, without either of them."""

import contextlib
import os
import pathlib
import threading
import types
from typing import Any

import pytest

from polar_jax.cluster import journal, ray_engine, slurm, task
from polar_jax.cluster.engines import EngineError

RESOURCES: dict[str, Any] = {
    **{"partition": None, "account": None, "qos": None, "memory": None, "setup": []},
    **{"minutes": 60, "warning": 90, "gpus_per_task": 0, "cpus_per_task": 1},
    **{"array_parallelism": 8, "sbatch": []},
}


def submission(folder: pathlib.Path, **resources: Any) -> journal.Submission:
    """Four tasks in two arrays."""
    request = {"name": "few", "tasks": [[0], [1], [2], [3]], "tasks_per_array": 2}
    request |= {"resources": {**RESOURCES, **resources}}
    return journal.Submission(1, folder, request, {}, False)


class RefusedError(Exception):
    """What submitit raises."""


class Slurm:
    """submitit's package, as far as a submission uses it."""

    def __init__(self) -> None:
        utils = types.SimpleNamespace(
            FailedJobError=RefusedError, FailedSubmissionError=RefusedError
        )
        self.core = types.SimpleNamespace(utils=utils)
        self.calls = 0
        self.environment: dict[str, str] = {}

    def submit_array(self, group: list) -> list:
        self.calls += 1
        self.environment = dict(os.environ)
        if self.calls > 1:
            raise RefusedError("sbatch: error: no more")
        return [types.SimpleNamespace(job_id=f"7_{i}") for i in range(len(group))]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A Slurm that takes one array."""
    made = Slurm()
    monkeypatch.setattr(slurm, "_submitit", lambda: made)
    monkeypatch.setattr(slurm, "_executor", lambda *_: made)
    return made


def tasks() -> list[task.Task]:
    return [task.Task("", 1, number, print) for number in range(4)]


def test_a_refusal_in_the_middle_says_how_much_was_taken(tmp_path, few):
    del few
    taken: dict[int, str] = {}
    with pytest.raises(EngineError) as caught:
        slurm.submit(submission(tmp_path), tasks(), taken.update)
    assert str(caught.value) == "sbatch refused: no more; 2 of 4 tasks were submitted"
    assert taken == {0: "7_0", 1: "7_1"}


def test_sbatch_hears_of_no_variable_but_who_pays_and_where(tmp_path, few, monkeypatch):
    given = {"ARRAY_INX": "0-9", "PARTITION": "gpu", "ACCOUNT": "mine", "CLUSTERS": "far"}
    given |= {"RESERVATION": "course", "WAIT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    before = dict(os.environ)
    one = submission(tmp_path, account="theirs", sbatch=["reservation=exam"])
    with pytest.raises(EngineError):
        slurm.submit(one, tasks(), lambda _: None)
    kept = {name: text for name, text in few.environment.items() if name.startswith("SBATCH_")}
    assert kept == {"SBATCH_PARTITION": "gpu"}
    assert dict(os.environ) == before


def test_what_is_queued_is_asked_without_filters_from_the_environment(tmp_path, monkeypatch):
    program = tmp_path / "squeue"
    program.write_text(
        "#!/bin/sh\n/usr/bin/env | /bin/grep -q ^SQUEUE_ && exit 1\n"
        "echo CLUSTER: here\necho 'few.1|1|PENDING|Resources'\necho 'few.0|0|COMPLETED|None'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    found = slurm.queue([submission(tmp_path)])
    assert found == {(1, 3): (False, "Resources")}


@pytest.mark.parametrize(("memory", "asked"), [(0.0004, "1M"), (1.5, "1536M")])
def test_no_memory_is_so_small_that_it_means_all(tmp_path, monkeypatch, memory, asked):
    submitit = pytest.importorskip("submitit")
    monkeypatch.setattr(slurm, "_submitit", lambda: submitit)
    executor = slurm._executor(submission(tmp_path, memory=memory), 0)
    assert executor.parameters["mem"] == asked


class Ray:
    """Ray, whose tasks are lost; it breaks when it is asked to wait for them often."""

    exceptions = types.SimpleNamespace(RayTaskError=LookupError)

    def __init__(self, waits: int) -> None:
        self.waits = waits

    def wait(self, pending: list, **_: Any) -> tuple[list, list]:
        if not self.waits:
            raise RuntimeError("no answer")
        self.waits -= 1
        return pending[:1], pending[1:]

    def get(self, _reference: object) -> None:
        raise ConnectionError("the worker died")


class Remote:
    """Starts tasks and ends actors, by name only."""

    def __init__(self) -> None:
        self.left = 0
        self.leave = self

    def remote(self, one: Any = None) -> object:
        self.left += one is None
        return object()


def starter(out: pathlib.Path, waits: int) -> tuple[Any, Remote]:
    """The actor outside of Ray."""
    made: Any = object.__new__(ray_engine._Starter)
    me = Remote()
    made._ray, made._remote, made._me = Ray(waits), Remote(), me
    made._submission = submission(out)
    made._waiting, made._most, made._started = tasks(), 2, {}
    made._lock = threading.Lock()
    return made, me


def test_a_line_that_cannot_be_logged_keeps_no_task_from_starting(tmp_path):
    (tmp_path / "logs").touch()
    made, me = starter(tmp_path, waits=9)
    made._keep_going()
    assert (made.queue(), me.left, made._ray.waits) == ([], 1, 5)


def test_an_actor_whose_thread_ends_has_no_tasks_and_leaves(tmp_path):
    made, me = starter(tmp_path, waits=1)
    with pytest.raises(RuntimeError, match="no answer"):
        made._keep_going()
    assert (made.queue(), me.left) == ([], 1)
    assert (tmp_path / "logs" / "0.log").read_text() == "ray: the worker died\n"


def test_a_task_that_fails_while_it_is_warned_leaves_its_reason(tmp_path):
    pytest.importorskip("submitit")
    one = submission(tmp_path)
    call = task.Task(str(tmp_path), 1, 2, print)
    work: Any = object.__new__(task._Work)
    work.task, work.submission, work.error = call, one, ValueError("out\nof luck")
    work.end = contextlib.nullcontext
    call._work = work
    assert call.checkpoint() is None
    ((number, end),) = one.ends().items()
    assert (number, end["state"], end["error"]) == (2, "failed", "out of luck")


def test_a_manifest_is_no_progress(tmp_path):
    assert task._stored(tmp_path, [4, 5]) == [0, 0]
