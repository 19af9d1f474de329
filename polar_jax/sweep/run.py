"""Runs a sweep's shards: claimed, checkpointed, resumed, one result file each."""

import dataclasses
import pathlib
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from polar_jax import lanes, manifest
from polar_jax.lane_calls import Shape
from polar_jax.sweep import claims as claims_
from polar_jax.sweep import rows, store
from polar_jax.sweep.plan import Plan, Shard

if TYPE_CHECKING:
    import pyarrow

CHECKPOINT_SECONDS = 20.0
# How often a process without a shard of its own looks again.
_PATIENCE_SECONDS = 1.0


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
    """
    described = describe(plan, options.num_devices)
    folder = store.create_or_open(out, {"created": manifest.now(), **described})
    if options.others:
        folder.sweep_leftovers()
    worker = _Worker(plan, folder, options, progress, stop)
    with claims_.Claims(folder.claims_folder) as claims:
        worker.work(claims)
    if (
        options.others
        and not stop.requested
        and all(state == "done" for state in folder.states(len(plan.shards)).values())
    ):
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
        self.failed: dict[int, str] = {}
        self.too_big: set[Shape] = set()  # sizes whose tile needs more memory than is allowed
        self.began = time.perf_counter()
        self.made = 0
        self.storing = self.compiling = 0.0
        self.stored = 0  # decisions of stored shards in this share

    def work(self, claims: claims_.Claims) -> None:
        """Takes one missing shard after the other until none is left."""
        while not self.stop.requested:
            missing = self._missing()
            if not missing:
                return
            taken = False
            for index in missing:
                if self.stop.requested:
                    return
                if not self._is_too_big(index):
                    taken |= self._try(index, claims)
            if not taken:
                self._wait()

    def _states(self) -> dict[int, store.State]:
        """What is known of this process's share."""
        if self.options.others:
            return self.folder.states(len(self.plan.shards))
        return {index: self.folder.state(index) for index in self.share}

    def _missing(self) -> list[int]:
        states = self._states()
        foreign = [index for index in self.share if states[index] == "foreign"]
        if foreign:
            raise store.StoreError(self.folder.complaint(foreign[0]))
        done = [index for index in self.share if states[index] == "done"]
        self.stored = sum(self.plan.shards[index].decisions for index in done)
        return [
            index
            for index in self.share
            if states[index] != "done" and index not in self.failed and not self._is_too_big(index)
        ]

    def _is_too_big(self, index: int) -> bool:
        return not self.too_big.isdisjoint(self.plan.shards[index].shapes)

    def _wait(self) -> None:
        """Waits while others work on what is left, until they end or their leases do."""
        self.report("waiting", 0, "for shards that other processes work on")
        until = time.perf_counter() + _PATIENCE_SECONDS
        while time.perf_counter() < until and not self.stop.requested:
            time.sleep(0.05)

    def _try(self, index: int, claims: claims_.Claims) -> bool:
        """Runs a shard if nobody else does; whether it was ours."""
        claim = claims.try_claim(index)
        if claim is None:
            return False
        with claim:
            # Its last owner may have ended between our look and our claim.
            if self.folder.state(index) == "done":
                return True
            shard = self.plan.shards[index]
            try:
                _ShardRun(self, shard, claim).execute()
                if self.folder.state(index) != "done":
                    # Trying again would end in the same way, for ever.
                    raise store.StoreError(self.folder.complaint(index))
            except lanes.StoppedError:
                return True
            except (store.NoSpaceError, KeyboardInterrupt, SystemExit):
                raise
            except Exception as error:
                self._fail(index, error)
                return True
        self.stored += shard.decisions
        self.made += shard.decisions
        self.report("shard", 0, str(index))
        return True

    def _fail(self, index: int, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        self.failed[index] = text
        self.folder.record_failure(index, text, traceback.format_exc())
        self.report("failed", 0, f"shard {index}: {text}")

    def report(self, phase: str, made: int, note: str) -> None:
        """Tells how far this process's share is; `made` decisions of the shard in work."""
        done = sum(self.folder.shard_path(index).exists() for index in self.share)
        total = sum(self.plan.shards[index].decisions for index in self.share)
        self.progress(
            Progress(phase, done, len(self.share), min(self.stored + made, total), total, note)
        )

    def outcome(self) -> Outcome:
        """How the call ended."""
        states = self._states()
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


class _ShardRun:
    """One shard while it runs: the engine's watch."""

    def __init__(self, worker: _Worker, shard: Shard, claim: claims_.Claim) -> None:
        self.worker, self.shard, self.claim = worker, shard, claim
        self.folder = worker.folder
        self.tables: list[pyarrow.Table] = []  # rows of finished batches
        self.parts = 0  # how many of them are stored, as parts
        self.kept = 0  # batches that the stored parts hold
        self.batch = 0
        self.before = 0.0  # seconds of earlier processes
        self.began = self.saved = time.perf_counter()
        self.decisions_before = 0

    def execute(self) -> None:
        """Runs the shard from where it was left, and stores it."""
        resume = self._resume()
        while self.batch < len(self.shard.batches):
            batch = self.shard.batches[self.batch]
            try:
                results = self._run(batch.experiments(), resume)
            except MemoryError:
                # Shards of these sizes share their programs, and would all fail alike.
                self.worker.too_big.add(batch.cells[0].experiment.compiled_shape)
                raise
            resume = None
            self.tables.append(rows.table(self.worker.plan, batch, results))
            self.worker.compiling += results[0].compile_seconds
            self.decisions_before += batch.decisions
            self.batch += 1
            if self.stopping():
                self._checkpoint(None)
                raise lanes.StoppedError
            if self.due():
                self._checkpoint(None)
        self._store()

    def _resume(self) -> lanes.Snapshot | None:
        """Takes up what an earlier process left of this shard."""
        found = self.folder.read_checkpoint(self.shard.index)
        parts = None
        if found is not None:
            parts = self.folder.read_parts(self.shard.index, found[1]["batch"])
        if found is None or parts is None:
            # What is left of it must not be taken for a part of what is made now.
            self.folder.drop_checkpoint(self.shard.index)
            return None
        arrays, meta = found
        self.batch, self.before = meta["batch"], meta["seconds"]
        self.decisions_before = sum(batch.decisions for batch in self.shard.batches[: self.batch])
        self.tables, self.parts, self.kept = parts, len(parts), self.batch
        return lanes.Snapshot(meta["position"], arrays) if meta["position"] else None

    def _run(
        self, experiments: list[lanes.Experiment], resume: lanes.Snapshot | None
    ) -> list[lanes.Results]:
        options = self.worker.options
        return lanes.run_many(
            experiments,
            num_devices=options.num_devices,
            memory_limit=options.memory_limit,
            progress=self._progress,
            watch=self,
            resume=resume,
        )

    def _progress(self, step: lanes.Progress) -> None:
        if step.phase == "compiling":
            if self.stopping():
                # A stored state of this batch stays valid: nothing was computed since.
                if self.kept < self.batch:
                    self._checkpoint(None)
                raise lanes.StoppedError
            self.worker.report("compiling", self.decisions_before, f"{step.done}/{step.total}")
            return
        self.worker.report("running", self.decisions_before + step.done, str(self.shard.index))

    def stopping(self) -> bool:
        """Whether to stop now."""
        return self.worker.stop.requested

    def due(self) -> bool:
        """Whether a checkpoint's interval has passed."""
        return time.perf_counter() - self.saved >= self.worker.options.checkpoint_seconds

    def save(self, snapshot: lanes.Snapshot) -> None:
        """Stores the lanes in progress, and the rows that no part holds yet."""
        self._checkpoint(snapshot)

    def _checkpoint(self, snapshot: lanes.Snapshot | None) -> None:
        began = time.perf_counter()
        self._check_ours()
        if self.kept < self.batch:
            part = _joined(self.tables[self.parts :])
            self.folder.write_part(self.shard.index, self.parts, part, (self.kept, self.batch))
            self.tables[self.parts :] = [part]
            self.parts, self.kept = self.parts + 1, self.batch
        meta = {
            "batch": self.batch,
            "decisions": self.decisions_before + self._decisions_in(snapshot),
            "position": {} if snapshot is None else snapshot.position,
            "seconds": self._seconds(),
        }
        arrays = {} if snapshot is None else snapshot.arrays
        self.folder.write_checkpoint(self.shard.index, arrays, meta)
        self.saved = time.perf_counter()
        self.worker.storing += self.saved - began

    def _check_ours(self) -> None:
        """Ends this process's part where another one took the claim, as it looked dead."""
        if not self.claim.still_ours():
            raise lanes.StoppedError

    def _decisions_in(self, snapshot: lanes.Snapshot | None) -> int:
        """Decisions that a snapshot of the batch in work holds, whole chunks."""
        if snapshot is None:
            return 0
        batch, position = self.shard.batches[self.batch], snapshot.position
        horizon = batch.cells[0].experiment.problem.horizon
        lanes_ = len(batch.cells) * (batch.seeds[1] - batch.seeds[0])
        done = min(position["lanes"], lanes_)
        flying = min(position["flight"] * position["width"], lanes_ - done)
        served = done * horizon + flying * min(position["first_round"], horizon)
        return served * batch.decisions // (lanes_ * horizon)

    def _seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def _store(self) -> None:
        began = time.perf_counter()
        index = self.shard.index
        self._check_ours()
        table = _joined(self.tables)
        if table.num_rows != self.shard.rows:
            self.folder.drop_checkpoint(index)
            raise store.StoreError(
                f"shard {index} has {table.num_rows} rows in place of {self.shard.rows}; it starts "
                "again."
            )
        tiles = {
            bucket.tile
            for bucket in self.worker.plan.buckets
            for batch in self.shard.batches
            if batch.cells[0].experiment.compiled_shape == bucket.shape
        }
        facts = {"seconds": self._seconds(), "decisions": self.shard.decisions}
        if len(tiles) == 1:
            facts["tile"] = tiles.pop()
        self.folder.write_shard(index, table, facts)
        self.folder.clear_failure(index)
        self.folder.drop_checkpoint(index)
        self.worker.storing += time.perf_counter() - began


def _joined(tables: "list[pyarrow.Table]") -> "pyarrow.Table":
    import pyarrow

    plain = [table.replace_schema_metadata(None) for table in tables]
    return pyarrow.concat_tables(plain).combine_chunks()
