"""How a submitted sweep stands: what the scheduler says, joined with which files are there.

Files decide what is done; the scheduler, what is queued or runs. A task that it no longer
knows, whose shards are neither done nor failed, is lost.
"""

import dataclasses
import itertools
import os
import pathlib
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from polar_jax.cluster import engines, journal
from polar_jax.cluster.engines import Alive
from polar_jax.sweep import manifests, shard_files, store
from polar_jax.sweep.claims import Claims

State = Literal["done", "running", "queued", "failed", "lost", "stopped", "missing", "foreign"]
STATES: tuple[State, ...] = State.__args__
# A log's end, which holds its last line.
_TAIL_BYTES = 8192
# What a launcher adds when a process has ended by itself.
_TRAILERS = ("Exited with exit code", "Terminated", "STEP CANCELLED", "JOB CANCELLED")


@dataclasses.dataclass(frozen=True)
class Shard:
    """What is known of one shard."""

    index: int
    state: State
    detail: str  # error, last line of the log, or what it waits for; "" where nothing is to tell
    attempts: int  # how often it was handed over


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a sweep stands.

    Attributes:
      title: the sweep's.
      shards: all, in order.
      made: decisions that are stored, in shards and in checkpoints.
      total: decisions of the whole sweep.
      per_second: decisions per second over the cluster: what a process made on average in
        all that is stored, times those that run; None before there is any.
      submissions: all, oldest first.
      notes: lines on schedulers that do not answer.
      free_bytes: room on the disk of the folder; None where it does not say.
    """

    title: str
    shards: Sequence[Shard]
    made: int
    total: int
    per_second: float | None
    submissions: Sequence[journal.Submission]
    notes: Sequence[str]
    free_bytes: int | None

    def count(self, state: State) -> int:
        """Shards in a state."""
        return sum(one.state == state for one in self.shards)

    @property
    def seconds_left(self) -> float | None:
        """At the pace of now; None where there is none."""
        if not self.per_second:
            return None
        return (self.total - self.made) / self.per_second

    @property
    def is_over(self) -> bool:
        """Whether all is done, or nothing is queued or running as far as is known."""
        if self.shards and self.count("done") == len(self.shards):
            return True
        return not self.notes and not self.count("queued") and not self.count("running")


class Reader:
    """Reads how a sweep stands, again and again; files that did not change are read once."""

    def __init__(
        self,
        out: pathlib.Path,
        *,
        request: Mapping[str, Any] | None = None,
        whole: bool = False,
    ) -> None:
        """Reads nothing yet.

        Args:
          out: the sweep's folder.
          request: what is about to be submitted, for a folder that holds nothing yet.
          whole: whether to judge shards by all their pages, not by their footers alone.
        """
        self._out = out
        self._request = request
        self._whole = whole
        self._store: store.Store | None = None

    def read(self, *, sure: bool = False) -> Standing:
        """Reads it now.

        Args:
          sure: whether to know what is queued, rather than to say that a scheduler does not
            answer.

        Raises:
          StoreError: if nothing was ever submitted or run here.
          EngineError: if `sure`, and a scheduler does not answer.
        """
        submissions = journal.read(self._out)
        folder = self._opened()
        states = {} if folder is None else folder.states()
        done = {index for index, state in states.items() if state == "done"}
        # Before the files are looked at again: a task that ends in between is done, not lost.
        queue, complaints = ask(unfinished(submissions, done))
        if sure and complaints:
            raise engines.UnreachableError("; ".join(told(complaints)))
        notes = [f"what is queued is not known: {line}" for line in told(complaints)]
        folder = self._opened()
        facts = _facts(folder, submissions, self._request)
        joined = _Joined(self._out, submissions, queue, set(complaints), folder)
        shards = [joined.shard(index) for index in range(len(facts.decisions))]
        made, seconds = joined.stored()
        running = sum(one.state == "running" for one in shards)
        return Standing(
            title=facts.title,
            shards=shards,
            made=made,
            total=sum(facts.decisions) or facts.total,
            per_second=running * made / seconds if seconds else None,
            submissions=submissions,
            notes=notes,
            free_bytes=_free_bytes(self._out),
        )

    def _opened(self) -> store.Store | None:
        """The folder's store, which remembers footers; None before the first task started."""
        if self._store is None and (self._out / manifests.NAME).exists():
            self._store = store.open_existing(self._out, whole=self._whole)
        return self._store


def _free_bytes(folder: pathlib.Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


class _Facts(NamedTuple):
    title: str
    decisions: Sequence[int]  # of every shard; zeros where only their sum is known
    total: int


def _facts(
    folder: store.Store | None,
    submissions: Sequence[journal.Submission],
    request: Mapping[str, Any] | None,
) -> _Facts:
    known = request or (submissions[-1].request if submissions else None)
    if known is not None:
        spec = known["spec"]
        return _Facts(spec["title"] or spec["name"], known["decisions"], 0)
    if folder is None:
        raise store.StoreError("nothing was submitted or run in this folder yet.")
    manifest = folder.manifest
    zeros = [0] * manifest["num_shards"]
    return _Facts(manifest["title"] or manifest["name"], zeros, manifest["decisions"])


class Asked(NamedTuple):
    """What schedulers say of some submissions.

    Attributes:
      queue: tasks that have not ended.
      complaints: number of a submission to why its scheduler does not answer.
    """

    queue: engines.Queue
    complaints: dict[int, str]


def unfinished(
    submissions: Sequence[journal.Submission], done: Collection[int]
) -> list[journal.Submission]:
    """Those with a shard that is not done; no scheduler need be asked about the others.

    Args:
      submissions: any.
      done: shards that are done.
    """
    finished = set(done)
    return [
        one
        for one in submissions
        if not finished.issuperset(itertools.chain.from_iterable(one.tasks))
    ]


def ask(submissions: Sequence[journal.Submission]) -> Asked:
    """Asks every scheduler; one that is gone says nothing about the others.

    Args:
      submissions: those to ask about; forgotten ones are left out.
    """
    queue: engines.Queue = {}
    complaints: dict[int, str] = {}
    groups: dict[tuple[str, Any], list[journal.Submission]] = {}
    for one in submissions:
        if not one.forgotten:
            groups.setdefault((one.engine, one.request["address"]), []).append(one)
    for (name, _), own in groups.items():
        try:
            queue |= engines.named(name).queue(own)
        except engines.EngineError as error:
            complaints |= {one.number: str(error) for one in own}
    return Asked(queue, complaints)


def told(complaints: Mapping[int, str]) -> list[str]:
    """Lines on schedulers that do not answer, those that complain alike in one.

    Args:
      complaints: number of a submission to why its scheduler does not answer.
    """
    alike: dict[str, list[int]] = {}
    for number, text in complaints.items():
        alike.setdefault(text.rstrip("."), []).append(number)
    return [
        f"{text} (submission {', '.join(map(str, numbers))}; if it is gone for good: `sweep "
        f"cancel OUT --forget {' '.join(map(str, numbers))}`)"
        for text, numbers in alike.items()
    ]


class _Joined:
    """The sources, and what they say together of one shard."""

    def __init__(
        self,
        out: pathlib.Path,
        submissions: Sequence[journal.Submission],
        queue: engines.Queue,
        unknown: set[int],
        folder: store.Store | None,
    ) -> None:
        self.out, self.folder, self.queue, self.unknown = out, folder, queue, unknown
        self.attempts = journal.attempts(submissions)
        # Where each shard was handed over last, and where the scheduler still has it.
        self.latest: dict[int, tuple[journal.Submission, int]] = {}
        self.alive: dict[int, tuple[int, int]] = {}
        for one in submissions:
            for task, shards in enumerate(one.tasks):
                for shard in shards:
                    self.latest[shard] = one, task
                    if (one.number, task) in queue:
                        self.alive[shard] = one.number, task
        self.ends = {one.number: one.ends() for one in submissions}
        self.failures = {} if folder is None else folder.read_failures()
        self.taken: set[int] = set()
        if folder is not None and folder.claims_folder.is_dir():
            self.taken = set(Claims(folder.claims_folder).taken())
        # The files last, for the reason above.
        self.states = {} if folder is None else folder.states()
        self.working = self._working()

    def _working(self) -> set[int]:
        """Shards in work: claimed ones, and the first of a running task that has none yet."""
        found = set(self.taken)
        waiting: dict[tuple[int, int], list[int]] = {}
        for shard, place in self.alive.items():
            if self.states.get(shard) != "done" and self.queue[place].running:
                waiting.setdefault(place, []).append(shard)
        for shards in waiting.values():
            if found.isdisjoint(shards):
                found.add(min(shards))
        return found

    def shard(self, index: int) -> Shard:
        """What is known of one shard."""
        state, detail = self._state(index)
        return Shard(index, state, detail, self.attempts[index])

    def _state(self, index: int) -> tuple[State, str]:
        known = self.states.get(index)
        if known == "done":
            return "done", ""
        if known == "foreign" and self.folder is not None:
            return "foreign", self.folder.complaint(index)
        if index in self.working:
            return "running", ""
        if index in self.alive:
            return "queued", self._waits_for(self.queue[self.alive[index]])
        if known == "damaged" and self.folder is not None:
            return "failed", self.folder.complaint(index)
        if index not in self.latest:
            return ("failed", self.failures[index]["error"]) if index in self.failures else _NEW
        return self._ended(index, *self.latest[index])

    def _waits_for(self, alive: Alive) -> str:
        return "" if alive.running else alive.why

    def _ended(self, index: int, one: journal.Submission, task: int) -> tuple[State, str]:
        """A shard whose last task the scheduler does not know, and that is not done."""
        if one.number in self.unknown:
            return "queued", "not known"
        failure = self.failures.get(index)
        if failure is not None and failure.get("time", "") >= one.created[:19]:
            return "failed", failure["error"]
        end = self.ends[one.number].get(task)
        if one.cancelled:
            return "stopped", "cancelled"
        if end is not None:
            return end["state"], end["error"]
        if task not in one.jobs:
            return _NEW
        return "lost", last_line(log_of(one, task)) or "it left no log"

    def stored(self) -> tuple[int, float]:
        """Decisions that are stored, and the seconds of work that went into them."""
        if self.folder is None:
            return 0, 0.0
        facts = self.folder.all_facts()
        metas = [
            self.folder.read_meta(index)
            for index in map(shard_files.number, shard_files.names(self.out / "checkpoints"))
            if index is not None and index not in facts
        ]
        held = [*facts.values(), *(meta for meta in metas if meta is not None)]
        return sum(one["decisions"] for one in held), sum(one["seconds"] for one in held)


_NEW: tuple[State, str] = ("missing", "")


def log_of(submission: journal.Submission, task: int) -> pathlib.Path:
    """Where a task's log is."""
    if submission.engine == "slurm":
        return submission.logs / f"{submission.jobs.get(task)}_0_log.out"
    return submission.logs / f"{task}.log"


def last_line(path: pathlib.Path) -> str:
    """The last line of a log that says something; "" where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    # Tracebacks underline with marks alone.
    lines = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))]
    telling = [line for line in lines if not any(words in line for words in _TRAILERS)]
    return (telling or lines or [""])[-1]
