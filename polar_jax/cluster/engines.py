"""What a scheduler has to do for a sweep, and the two that do it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from polar_jax.cluster.journal import Submission
from polar_jax.cluster.task import Task

NAMES = ("slurm", "ray")


class EngineError(RuntimeError):
    """A scheduler that is absent or refuses; one line for the person who asked."""


class UnreachableError(EngineError):
    """A scheduler that does not answer now: nothing is known of what it runs."""


class Alive(NamedTuple):
    """What a scheduler says of one task that has not ended."""

    running: bool  # False: it waits
    why: str  # what it waits for, in the scheduler's words; "" where it tells nothing


# (number of the submission, task) to what the scheduler says.
Queue = dict[tuple[int, int], Alive]


class Engine(NamedTuple):
    """A scheduler; every function raises `EngineError` with one line.

    Attributes:
      check: given a request, sees that the scheduler and what talks to it are there; returns
        what of the request depends on the scheduler.
      preview: given a submission and its tasks, the lines that `--dry-run` shows.
      submit: hands tasks over and tells, after each group that was taken, their numbers.
      queue: which tasks of some submissions have not ended.
      cancel: takes a submission's tasks away and ends those that run.
    """

    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    preview: Callable[[Submission, Sequence[Task]], list[str]]
    submit: Callable[[Submission, Sequence[Task], Callable[[Mapping[int, str]], None]], None]
    queue: Callable[[Sequence[Submission]], Queue]
    cancel: Callable[[Submission], None]


def named(name: str) -> Engine:
    """An engine by name, one of `NAMES`."""
    # Each loads what it talks through, which need not be installed.
    if name == "slurm":
        from polar_jax.cluster import slurm

        return slurm.ENGINE
    from polar_jax.cluster import ray_engine

    return ray_engine.ENGINE
