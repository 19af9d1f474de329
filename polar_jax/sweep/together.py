"""Shards that several processes compute together (`--distributed`).

Process 0 leads: it alone claims, reads and writes files, and tells the others which shard is next
and from where it goes on. All run the same calls on their own devices' tiles, and ask one another
after each whether to stop. What goes wrong on one process ends the run of all: a shard's next
owner goes on from its checkpoint.
"""

import io
import json
from typing import Any, Protocol

import jax
import numpy as np

from polar_jax import lanes, manifest, processes, processors, programs
from polar_jax.sweep.plan import Plan

_META = "meta"
_MOST_BYTES = 2**14  # of what processes compare


class Options(Protocol):
    """How to run, as `run.Options`."""

    @property
    def num_devices(self) -> int | None:
        """At most so many devices."""
        ...

    @property
    def memory_limit(self) -> int | None:
        """Bytes per device."""
        ...


class Stop(Protocol):
    """Set by a signal handler, as `run.Stop`."""

    requested: bool


def check_alike(plan: Plan) -> None:
    """Sees that all processes would compute the same bits.

    Args:
      plan: this process's.

    Raises:
      ValueError: if they differ, on all of them.
    """
    if processes.count() == 1:
        return
    here = manifest.surroundings()
    machine = here["machine"]
    mine: dict[str, Any] = {
        "the spec": plan.spec.describe()["spec_hash"][:12],
        "the plan": plan.plan_hash[:12],
        "jaxlib": here["versions"]["jaxlib"],
        "the number of devices": jax.local_device_count(),
        **{name: machine[name] for name in ("device_kind", "kernel", "code", "compiler")},
    }
    if machine["code"] == processors.NATIVE:
        mine |= {name: machine[name] for name in ("cpu", "instruction_set")}
    data = json.dumps(mine).encode()[:_MOST_BYTES].ljust(_MOST_BYTES)
    everybody = [json.loads(row.tobytes()) for row in processes.gather(np.frombuffer(data, "u1"))]
    for number, other in enumerate(everybody):
        for name, value in everybody[0].items():
            if other[name] != value:
                raise ValueError(
                    f"--distributed needs processes that are alike: {name} is {value} in process "
                    f"0 and {other[name]} in process {number}."
                )


def begin(index: int, batch: int, resume: lanes.Snapshot | None) -> None:
    """Tells the others to run a shard; for process 0.

    Args:
      index: the shard.
      batch: its first batch to run.
      resume: where that batch goes on.
    """
    if processes.count() == 1:
        return
    position = None if resume is None else resume.position
    meta = {"shard": index, "batch": batch, "position": position}
    _tell(meta, {} if resume is None else resume.arrays)


def end(*, stopped: bool) -> None:
    """Tells the others that there is nothing more to do; for process 0."""
    if processes.count() > 1:
        _tell({"stopped": stopped}, {})


def _tell(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    held = io.BytesIO()
    named: dict[str, Any] = {_META: np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays}
    np.savez(held, **named)
    processes.tell(held.getvalue())


def follow(plan: Plan, options: Options, stop: Stop) -> bool:
    """What the processes that do not lead do until process 0 ends the run.

    Args:
      plan: equal to process 0's.
      options: equal to process 0's.
      stop: asked between compiled calls.

    Returns:
      Whether the run was stopped.

    Raises:
      LostError: if a process has ended.
    """
    while True:
        with np.load(io.BytesIO(processes.tell(None))) as told:
            meta = json.loads(told[_META].tobytes())
            arrays = {name: told[name] for name in told.files if name != _META}
        if "shard" not in meta:
            return bool(meta["stopped"])
        resume = None if meta["position"] is None else lanes.Snapshot(meta["position"], arrays)
        follower = _Follower(stop)
        try:
            for batch in plan.shards[meta["shard"]].batches[meta["batch"] :]:
                experiments, platform = batch.experiments(), jax.devices()[0].platform
                lanes.run_many(
                    experiments,
                    num_devices=options.num_devices,
                    chunk_rounds=programs.chunk_of_full_tiles(experiments[0], platform),
                    memory_limit=options.memory_limit,
                    progress=follower.progress,
                    watch=follower,
                    resume=resume,
                )
                resume = None
                if follower.stopping():
                    break
        except (lanes.StoppedError, MemoryError):
            # Process 0 has met the same, and says what comes next.
            continue


class _Follower:
    """The engine's watch in a process that does not lead: it does what process 0 does."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._due = False

    def stopping(self) -> bool:
        """Whether any process wants to stop."""
        stopping, self._due = processes.any_of((self._stop.requested, False))
        return stopping

    def due(self) -> bool:
        """Whether process 0 stores a checkpoint."""
        return self._due

    def save(self, snapshot: lanes.Snapshot) -> None:
        """Nothing: process 0 stores it."""

    def progress(self, step: lanes.Progress) -> None:
        """Asks whether to stop where process 0 does."""
        if step.phase == "compiling" and self.stopping():
            raise lanes.StoppedError
