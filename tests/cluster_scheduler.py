"""A scheduler that tests make up, and what is handed to it."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cluster_helpers as helpers
import pytest
import sweep_helpers

from polar_jax import terminal
from polar_jax.cluster import engines, journal, standing, submission
from polar_jax.cluster.commands import SweepSubmit
from polar_jax.cluster.engines import Alive, Engine, EngineError
from polar_jax.cluster.task import Task
from polar_jax.sweep import plan as plans
from polar_jax.sweep import spec as specs
from polar_jax.sweep import store


class Scheduler:
    """Takes everything, runs nothing; tests say what is in its queue."""

    def __init__(self) -> None:
        self.alive: dict[tuple[int, int], Alive] = {}
        self.takes = 1000
        self.answers = True
        self.dead: set[str] = set()  # addresses that do not answer
        self.asked: set[int] = set()
        self.loses = False  # whether it takes a task and never says so
        self.cancelled: list[int] = []

    def engine(self) -> Engine:
        return Engine(self.check, self.preview, self.submit, self.queue, self.cancel)

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        del request
        return {"tasks_per_array": 3}

    def preview(self, one: journal.Submission, tasks: Sequence[Task]) -> list[str]:
        return [f"{one.name}: {len(tasks)}"]

    def submit(
        self,
        one: journal.Submission,
        tasks: Sequence[Task],
        taken: Callable[[Mapping[int, str]], None],
    ) -> None:
        for task in tasks:
            if task.number >= self.takes:
                raise EngineError("full")
            self.alive[one.number, task.number] = Alive(False, "Resources")
            if self.loses:
                raise EngineError("timed out.")
            taken({task.number: f"7_{task.number}"})

    def queue(self, submissions: Sequence[journal.Submission]) -> engines.Queue:
        self.asked |= {one.number for one in submissions}
        if not self.answers or self.dead & {one.request["address"] for one in submissions}:
            raise engines.UnreachableError("it sleeps")
        known = {one.number for one in submissions}
        return {place: alive for place, alive in self.alive.items() if place[0] in known}

    def cancel(self, one: journal.Submission) -> None:
        self.cancelled.append(one.number)
        self.alive.clear()


def options(plan: plans.Plan, **changes: Any) -> SweepSubmit:
    return SweepSubmit(pathlib.Path(f"{plan.spec.name}.toml"), **changes)


def submit(plan: plans.Plan, out: pathlib.Path, **changes: Any) -> submission.Submitted:
    return submission.submit(plan, options(plan, **changes), out, terminal.prepare_jax)


def states(out: pathlib.Path) -> list[str]:
    return [one.state for one in standing.Reader(out).read().shards]


def finish(out: pathlib.Path, plan: plans.Plan, index: int) -> None:
    """Stores a shard, as a task would."""
    manifest = {
        **sweep_helpers.MANIFEST,
        **plan.spec.describe(),
        "plan_hash": plan.plan_hash,
        "shard_seconds": plan.shard_seconds,
        "decisions": plan.decisions,
        "num_shards": len(plan.shards),
    }
    opened = store.create_or_open(out, manifest)
    opened.write_shard(index, sweep_helpers.rows(index), sweep_helpers.FACTS)


def in_place_of_all(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """A scheduler that whoever asks for an engine gets."""
    made = Scheduler()
    monkeypatch.setattr(engines, "named", lambda _: made.engine())
    return made


def four_shards(folder: pathlib.Path) -> plans.Plan:
    """The plan of a sweep of four shards, whose spec lies in `folder`."""
    return plans.make(specs.read(helpers.spec(folder, shards=4)), shard_seconds=0.001)
