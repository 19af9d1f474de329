"""Runs a sweep's shards: claimed, checkpointed, resumed, one result file each."""

import dataclasses
import pathlib
import random
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from polar_jax import lanes, manifest, processes
from polar_jax.lane_calls import Shape
from polar_jax.sweep import claims as claims_
from polar_jax.sweep import shard_files, store, together
from polar_jax.sweep.plan import Plan
from polar_jax.sweep.shard_run import ShardRun

CHECKPOINT_SECONDS = 20.0
# How soon a process without a shard of its own looks again: at first, and at last.
_PATIENCE_SECONDS, _MOST_PATIENCE_SECONDS = 1.0, 10.0
# Shards of others whose owners it looks at each time.
_MOST_OF_OTHERS = 8
# How often what others have stored is counted, for the progress shown.
_LOOK_SECONDS = 10.0


class Progress(NamedTuple):
    """What a progress callback receives."""

    phase: str  # "compiling", "running", "waiting", "shard" (one ended) or "failed"
    shards_done: int
    shards: int
    decisions: int  # of this sweep, in this process's share, stored or made by now
    total: int
    note: str  # of the shard in work: what is compiled, or the error


class Outcome(NamedTuple):
    """How a call ended."""

    done: int  # shards that are stored
    shards: int  # shards of this process's share
    failed: dict[int, str]  # shard to its error
    stopped: bool  # asked to stop
    decisions: int  # made by this call
    seconds: float
    storing_seconds: float  # of them, spent on checkpoints and result files
    compiling_seconds: float


@dataclasses.dataclass
class Stop:
    """Set by a signal handler; asked between calls."""

    requested: bool = False


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, none of which changes a result.

    Attributes:
      num_devices: at most so many; all where None.
      memory_limit: bytes per device; most of what it has where None.
      checkpoint_seconds: work that may be lost.
      part: `(i, n)`: only shards `i` modulo `n`; all where None.
      order: shards in the order to try them; theirs where None.
      others: whether to look after shards outside `order` too: to judge every file of the
        folder, and to remove what killed processes left. One of many tasks does not.
    """

    num_devices: int | None = None
    memory_limit: int | None = None
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    part: tuple[int, int] | None = None
    order: Sequence[int] | None = None
    others: bool = True

    def shards(self, plan: Plan) -> list[int]:
        """This process's share, in the order to try them."""
        order = range(len(plan.shards)) if self.order is None else self.order
        if self.part is None:
            return list(order)
        own, count = self.part
        return [index for index in order if index % count == own]


def describe(plan: Plan, num_devices: int | None) -> dict[str, Any]:
    """The manifest of a sweep.

    Args:
      plan: what will run.
      num_devices: devices in use; all where None.

    Returns:
      Plain values, ready for JSON.
    """
    return {
        "schema": store.SCHEMA,
        **plan.spec.describe(),
        "decisions": plan.decisions,
        **manifest.surroundings(),
        "num_devices": num_devices or len(jax.devices()),
        "shard_seconds": plan.shard_seconds,
        "num_shards": len(plan.shards),
        "plan_hash": plan.plan_hash,
        "read_off": plan.num_read_off,
        "linear_benchmarks": plan.num_linear_benchmarks,
        "file_hashes": plan.spec.file_hashes,
        "buckets": [
            {
                "environment": sorted({one.experiment.environment.name for one in bucket.cells}),
                "num_adapters": _values(bucket.cells, "num_adapters"),
                "cache_slots": _values(bucket.cells, "cache_slots"),
                "context_dim": _values(bucket.cells, "context_dim"),
                "padded_adapters": bucket.shape.num_adapters,
                "padded_dim": bucket.shape.context_dim,
                "padding": bucket.padding,
                "tile": bucket.tile,
                "configurations": sum(
                    1 + len(entry.read_off) for one in bucket.cells for entry in one.entries
                ),
                "programs": list(bucket.programs),
            }
            for bucket in plan.buckets
        ],
    }


def _values(cells: Sequence[Any], name: str) -> list[int]:
    return sorted({getattr(cell.experiment.problem, name) for cell in cells})


def execute(
    plan: Plan,
    out: pathlib.Path,
    options: Options,
    progress: Callable[[Progress], None],
    stop: Stop,
) -> Outcome:
    """Runs what is missing; several processes on one folder share the work.

    Args:
      plan: what to run.
      out: the sweep's folder, new or of the same plan.
      options: how.
      progress: called after each step.
      stop: asked between compiled calls; then the shard in work is checkpointed.

    Returns:
      How it ended. Failed shards do not stop the others; the next call tries them again.

    Raises:
      StoreError: if the folder holds another sweep.
      OSError: if the disk is full or the folder cannot be written.
      LostError: if a process that computes with this one has ended.
    """
    described = describe(plan, options.num_devices)
    folder = store.create_or_open(out, {"created": manifest.now(), **described})
    if options.others:
        folder.sweep_leftovers()
    worker = _Worker(plan, folder, options, progress, stop)
    with claims_.Claims(folder.claims_folder) as claims:
        worker.work(claims)
    together.end(stopped=stop.requested)
    if options.others and not stop.requested and len(folder.stored()) >= len(plan.shards):
        states = folder.states(len(plan.shards), whole=False)
        if all(state == "done" for state in states.values()):
            folder.tidy()
    return worker.outcome()


class _Worker:
    """One process's part in a sweep."""

    def __init__(
        self,
        plan: Plan,
        folder: store.Store,
        options: Options,
        progress: Callable[[Progress], None],
        stop: Stop,
    ) -> None:
        self.plan, self.folder, self.options = plan, folder, options
        self.progress, self.stop = progress, stop
        self.share = options.shards(plan)
        self.decisions = {index: plan.shards[index].decisions for index in self.share}
        self.total = sum(self.decisions.values())
        self.failed: dict[int, str] = {}
        self.too_big: set[Shape] = set()  # sizes whose tile needs more memory than is allowed
        self.began = self.looked = time.perf_counter()
        self.made = 0
        self.storing = self.compiling = 0.0
        self.states: dict[int, store.State] | None = None  # of the share, as last looked at
        self.last = -1  # the shard that this process had last
        self.patience = _PATIENCE_SECONDS

    def work(self, claims: claims_.Claims) -> None:
        """Takes one missing shard after the other until none is left."""
        while not self.stop.requested:
            missing = self._missing()
            if not missing:
                return
            if any(self._try(index, claims) for index in self._in_turn(missing)):
                self.patience = _PATIENCE_SECONDS
            elif not self.stop.requested:
                self._wait()

    def _missing(self) -> list[int]:
        """Shards to do; after the first look, only files that are new are read."""
        if self.states is None:
            self.states = self.folder.states(only=self.share)
        else:
            self._look_again()
        foreign = [index for index in self.share if self.states[index] == "foreign"]
        if foreign:
            raise store.StoreError(self.folder.complaint(foreign[0]))
        return [
            index
            for index in self.share
            if self.states[index] != "done"
            and index not in self.failed
            and not self._is_too_big(index)
        ]

    def _look_again(self) -> None:
        """Takes note of what others have stored, by the folders' lists of names."""
        if self.states is None:
            return
        self.looked = time.perf_counter()
        stored = self.folder.stored()
        new = [i for i in self.share if i in stored and self.states[i] in ("missing", "failed")]
        self.states |= self.folder.states(only=new)

    def _in_turn(self, missing: list[int]) -> Iterator[int]:
        """Missing shards in the order to try them: free ones first, then a few of others'.

        Those that follow the last one share its programs. Where others are at work, processes
        begin at different places: a thousand that all try one after the other would ask the disk
        a million times.
        """
        claimed = shard_files.numbers(self.folder.claims_folder)
        free = [index for index in missing if index not in claimed]
        busy = [index for index in missing if index in claimed]
        begin = 0
        if self.last + 1 in free:
            begin = free.index(self.last + 1)
        elif busy and free:
            begin = random.randrange(len(free))
        # An owner may be dead; which of many it is need not be known at once.
        some = random.sample(busy, min(len(busy), _MOST_OF_OTHERS))
        for index in (*free[begin:], *free[:begin], *some):
            if self.stop.requested:
                return
            if not self._is_too_big(index):
                yield index

    def _is_too_big(self, index: int) -> bool:
        return not self.too_big.isdisjoint(self.plan.shards[index].shapes)

    def _wait(self) -> None:
        """Waits while others work on what is left, until they end or their leases do."""
        self.report("waiting", 0, "for shards that other processes work on")
        until = time.perf_counter() + self.patience
        self.patience = min(2 * self.patience, _MOST_PATIENCE_SECONDS)
        while time.perf_counter() < until and not self.stop.requested:
            time.sleep(0.05)

    def _try(self, index: int, claims: claims_.Claims) -> bool:
        """Runs a shard if nobody else does or did; whether it was ours."""
        if self._state(index) in ("missing", "failed") and self.folder.shard_path(index).exists():
            return False
        claim = claims.try_claim(index)
        if claim is None:
            return False
        self.last = index
        with claim:
            # Its last owner may have ended between our look and our claim.
            if self.folder.state(index) == "done":
                return True
            try:
                ShardRun(self, self.plan.shards[index], claim).execute()
                if self.folder.state(index) != "done":
                    # Trying again would end in the same way, for ever.
                    raise store.StoreError(self.folder.complaint(index))
            except lanes.StoppedError:
                return True
            except (store.NoSpaceError, processes.LostError, KeyboardInterrupt, SystemExit):
                raise
            except Exception as error:
                self._fail(index, error)
                if processes.count() > 1 and not isinstance(error, MemoryError):
                    # The others may be anywhere in the shard.
                    raise
                return True
        if self.states is not None:
            self.states[index] = "done"
        self.made += self.decisions[index]
        self.report("shard", 0, str(index))
        return True

    def _state(self, index: int) -> str:
        return "missing" if self.states is None else self.states[index]

    def _fail(self, index: int, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        self.failed[index] = text
        self.folder.record_failure(index, text, traceback.format_exc())
        self.report("failed", 0, f"shard {index}: {text}")

    def report(self, phase: str, made: int, note: str) -> None:
        """Tells how far this process's share is; `made` decisions of the shard in work."""
        if time.perf_counter() - self.looked > _LOOK_SECONDS:
            self._look_again()
        done = [index for index in self.share if self._state(index) == "done"]
        stored = sum(self.decisions[index] for index in done)
        decisions = min(stored + made, self.total)
        self.progress(Progress(phase, len(done), len(self.share), decisions, self.total, note))

    def outcome(self) -> Outcome:
        """How the call ended."""
        states = self.folder.states(only=self.share)
        return Outcome(
            done=sum(states[index] == "done" for index in self.share),
            shards=len(self.share),
            failed=self.failed,
            stopped=self.stop.requested,
            decisions=self.made,
            seconds=time.perf_counter() - self.began,
            storing_seconds=self.storing,
            compiling_seconds=self.compiling,
        )
