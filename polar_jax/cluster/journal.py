"""What was handed to a scheduler: `OUT/cluster`, a folder per submission.

    OUT/cluster/<number>/request.json    what was asked: tasks, their shards, spec, resources
    OUT/cluster/<number>/jobs.json       what the scheduler took: its numbers of the tasks
    OUT/cluster/<number>/cancelled.json  there when it was cancelled
    OUT/cluster/<number>/forgotten.json  there when its scheduler is gone, as a person said
    OUT/cluster/<number>/ends/<task>.json  how a task ended that did not end well
    OUT/cluster/<number>/logs/           what the tasks print

A record is written whole and never changed, but for `jobs.json`, which grows by whole
replacements. The request is there before the scheduler hears of it, so that no task runs
that the journal does not know.
"""

import collections
import contextlib
import dataclasses
import datetime
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from polar_jax.sweep import claims, files, manifests, shard_files
from polar_jax.sweep.files import StoreError

FOLDER = manifests.RECORDS


@dataclasses.dataclass(frozen=True)
class Submission:
    """One call of `sweep submit`.

    Attributes:
      number: from 1 in each sweep.
      folder: where its records are.
      request: what was asked, as `submission.request` makes it.
      jobs: task to the scheduler's number of it, for those that it took.
      cancelled: whether it was cancelled.
      forgotten: whether its scheduler is gone, so that nobody is asked about it.
    """

    number: int
    folder: pathlib.Path
    request: Mapping[str, Any]
    jobs: Mapping[int, str]
    cancelled: bool
    forgotten: bool = False

    @property
    def engine(self) -> str:
        """`slurm` or `ray`."""
        return self.request["engine"]

    @property
    def name(self) -> str:
        """What the scheduler calls its jobs; no other submission has it."""
        return self.request["name"]

    @property
    def tasks(self) -> Sequence[Sequence[int]]:
        """The shards of every task."""
        return self.request["tasks"]

    @property
    def created(self) -> str:
        """When, in UTC, as ISO 8601."""
        return self.request["created"]

    @property
    def logs(self) -> pathlib.Path:
        """Where its tasks' logs are."""
        return self.folder / "logs"

    def handed(self) -> Iterator[int]:
        """Shards that the scheduler took, in order of tasks."""
        for task in sorted(self.jobs):
            yield from self.tasks[task]

    def task_of(self, shard: int) -> int:
        """The task that a shard belongs to."""
        return next(task for task, shards in enumerate(self.tasks) if shard in shards)

    def record_jobs(self, jobs: Mapping[int, str]) -> "Submission":
        """Keeps what the scheduler took, beside what it took before.

        Args:
          jobs: task to the scheduler's number of it.

        Returns:
          The submission with them.
        """
        merged = {**self.jobs, **jobs}
        _write(self.folder / "jobs.json", {str(task): job for task, job in merged.items()})
        return dataclasses.replace(self, jobs=merged)

    def record_cancelled(self) -> None:
        """Keeps that it was cancelled."""
        _write(self.folder / "cancelled.json", {"time": now()})

    def record_forgotten(self) -> None:
        """Keeps that its scheduler is gone: whatever it had has ended."""
        _write(self.folder / "forgotten.json", {"time": now()})

    def record_end(self, task: int, state: str, error: str) -> None:
        """Keeps how a task ended that did not end well.

        Args:
          task: its number.
          state: "failed", or "stopped" where it was asked to end.
          error: one line.
        """
        record = {"task": task, "state": state, "error": error, "time": now()}
        _write(self._end_path(task), {**record, "host": files.this_process().host})

    def clear_end(self, task: int) -> None:
        """Forgets how a task ended, when it starts again."""
        self._end_path(task).unlink(missing_ok=True)

    def ends(self) -> dict[int, dict[str, Any]]:
        """Task to `state`, `error`, `time` and `host`, of those that did not end well."""
        found = {}
        for name in shard_files.names(self.folder / "ends"):
            task = shard_files.number(name, ".json")
            record = None if task is None else _read(self._end_path(task))
            if task is not None and record is not None:
                found[task] = record
        return found

    def _end_path(self, task: int) -> pathlib.Path:
        return self.folder / "ends" / f"{task}.json"


def now() -> str:
    """The time, in UTC, as ISO 8601 with microseconds: it sorts as it passes."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def exists(out: pathlib.Path) -> bool:
    """Whether anything of a sweep was ever handed to a scheduler."""
    return (out / FOLDER).is_dir()


def read(out: pathlib.Path) -> list[Submission]:
    """All submissions of a sweep, oldest first.

    Args:
      out: the sweep's folder.

    Raises:
      StoreError: if a record is damaged.
    """
    numbers = sorted(int(path.name) for path in shard_files.folders(out / FOLDER))
    found = [_load(out, number) for number in numbers]
    return [one for one in found if one is not None]


def load(out: pathlib.Path, number: int) -> Submission:
    """One submission of a sweep.

    Args:
      out: the sweep's folder.
      number: which.

    Raises:
      StoreError: if it is not there, or damaged.
    """
    found = _load(out, number)
    if found is None:
        raise StoreError(f"{str(_folder(out, number))!r} holds no submission.")
    return found


def add(out: pathlib.Path, request: Mapping[str, Any]) -> Submission:
    """Writes a new submission's request.

    Args:
      out: the sweep's folder, whose lock this process holds.
      request: plain values, ready for JSON.

    Returns:
      The submission.

    Raises:
      NoSpaceError: if the disk is full.
    """
    number = next_number(out)
    folder = _folder(out, number)
    text = json.dumps(dict(request), indent=1).encode() + b"\n"
    if not files.create_whole(folder / "request.json", text):
        raise StoreError(f"{str(folder)!r} was made by another process; try again.")
    return Submission(number, folder, json.loads(text), {}, False)


def next_number(out: pathlib.Path) -> int:
    """The number of the submission that comes next."""
    return max((one.number for one in read(out)), default=0) + 1


def withdraw(submission: Submission) -> None:
    """Removes a submission of which the scheduler took nothing."""
    if not submission.jobs:
        shutil.rmtree(submission.folder, ignore_errors=True)


def attempts(submissions: Iterable[Submission]) -> collections.Counter[int]:
    """How often each shard was handed over; what was cancelled or forgotten does not count."""
    counts: collections.Counter[int] = collections.Counter()
    for one in submissions:
        if not (one.cancelled or one.forgotten):
            counts.update(one.handed())
    return counts


@contextlib.contextmanager
def locked(out: pathlib.Path) -> Iterator[None]:
    """Keeps other calls of `sweep submit` and `sweep cancel` on one sweep out.

    Args:
      out: the sweep's folder.

    Raises:
      StoreError: if another one holds the lock.
    """
    with claims.Claims(out / FOLDER / "claims") as held:
        claim = held.try_claim(0)
        if claim is None:
            raise StoreError(
                f"another `polar-jax sweep submit` or `cancel` is at work on {str(out)!r}; wait "
                "for it to end."
            )
        yield


def _folder(out: pathlib.Path, number: int) -> pathlib.Path:
    return out / FOLDER / str(number)


def _load(out: pathlib.Path, number: int) -> Submission | None:
    folder = _folder(out, number)
    request = _read(folder / "request.json")
    if request is None:
        return None
    jobs = _read(folder / "jobs.json") or {}
    return Submission(
        number,
        folder,
        request,
        {int(task): str(job) for task, job in jobs.items()},
        (folder / "cancelled.json").exists(),
        (folder / "forgotten.json").exists(),
    )


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """A record; None where it is not there."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise StoreError(f"{str(path)!r} is damaged; move its folder away.") from None
    if not isinstance(found, dict):
        raise StoreError(f"{str(path)!r} is no record of a submission; move its folder away.")
    return found


def _write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    text = json.dumps(dict(record), indent=1).encode() + b"\n"
    files.write_whole(path, lambda file: file.write(text))
