"""One shard while it runs: taken up where it was left, checkpointed, stored."""

import time
from typing import TYPE_CHECKING, Any, Protocol

import jax

from polar_jax import lanes, processes, programs
from polar_jax.lane_calls import Shape
from polar_jax.sweep import claims, rows, store, together
from polar_jax.sweep.plan import Plan, Shard

if TYPE_CHECKING:
    import pyarrow


class Worker(Protocol):
    """The process's part in a sweep that the shard belongs to: `run` has it."""

    plan: Plan
    folder: store.Store
    options: Any  # run.Options
    stop: Any  # run.Stop
    too_big: set[Shape]
    compiling: float
    storing: float

    def report(self, phase: str, made: int, note: str) -> None:
        """Tells how far it is."""
        ...


class ShardRun:
    """One shard while it runs: the engine's watch."""

    def __init__(self, worker: Worker, shard: Shard, claim: claims.Claim) -> None:
        self.worker, self.shard, self.claim = worker, shard, claim
        self.folder = worker.folder
        self.tables: list[pyarrow.Table] = []  # rows of finished batches
        self.parts = 0  # how many of them are stored, as parts
        self.kept = 0  # batches that the stored parts hold
        self.batch = 0
        self.before = 0.0  # seconds of earlier processes
        self.began = self.saved = time.perf_counter()
        self.decisions_before = 0
        self.error: Exception | None = None  # kept until all processes have stopped
        self._told_due = False

    def execute(self) -> None:
        """Runs the shard from where it was left, and stores it."""
        resume = self._resume()
        together.begin(self.shard.index, self.batch, resume)
        try:
            self._batches(resume)
        except lanes.StoppedError:
            if self.error is not None:
                raise self.error from None
            self.worker.stop.requested |= processes.count() > 1
            raise
        self._store()

    def _batches(self, resume: lanes.Snapshot | None) -> None:
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
                self._keep(None)
                raise lanes.StoppedError
            if self.due():
                self._keep(None)

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
        options, platform = self.worker.options, jax.devices()[0].platform
        return lanes.run_many(
            experiments,
            num_devices=options.num_devices,
            chunk_rounds=programs.chunk_of_full_tiles(experiments[0], platform),
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
                    self._keep(None)
                raise lanes.StoppedError
            self.worker.report("compiling", self.decisions_before, f"{step.done}/{step.total}")
            return
        self.worker.report("running", self.decisions_before + step.done, str(self.shard.index))

    def stopping(self) -> bool:
        """Whether to stop now: whether any process wants to, where several compute together."""
        mine = self.worker.stop.requested or self.error is not None
        stopping, self._told_due = processes.any_of((mine, self._is_due()))
        return stopping

    def due(self) -> bool:
        """Whether a checkpoint's interval has passed, as all processes were told."""
        return self._told_due if processes.count() > 1 else self._is_due()

    def _is_due(self) -> bool:
        return time.perf_counter() - self.saved >= self.worker.options.checkpoint_seconds

    def save(self, snapshot: lanes.Snapshot) -> None:
        """Stores the lanes in progress, and the rows that no part holds yet."""
        self._keep(snapshot)

    def _keep(self, snapshot: lanes.Snapshot | None) -> None:
        """Stores a checkpoint; where others are in the same call, they stop before an error."""
        if processes.count() == 1:
            self._checkpoint(snapshot)
        elif self.error is None:
            try:
                self._checkpoint(snapshot)
            except Exception as error:  # Whatever it is, raised once all have stopped.
                self.error = error

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
