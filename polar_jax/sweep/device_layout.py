"""How processes share the devices of a machine: one per device, one over all, or in between.

A shard's numbers are the same either way: devices get whole tiles, whoever drives them. What
differs is how long they idle. A process over several devices leaves some idle in every batch that
has not as many tiles; many processes leave some idle once fewer shards than processes are left.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from polar_jax.sweep.plan import Batch, Plan

# Closer than this is a tie: an estimate's own error is larger.
_TIE = 0.02


class Layout(NamedTuple):
    """Processes on one machine, and how well they use it."""

    processes: int
    devices: int  # that each drives
    busy: float  # share of the devices' time that work takes, at most 1


def layouts(plan: Plan, num_devices: int) -> list[Layout]:
    """Every way to share some devices, by devices per process.

    Args:
      plan: what would run.
      num_devices: devices of the machine, at least 1.
    """
    tiles = {bucket.shape: bucket.tile for bucket in plan.buckets}
    found = []
    for each in (size for size in range(1, num_devices + 1) if num_devices % size == 0):
        seconds = [
            sum(
                _seconds(one, tiles[one.cells[0].experiment.compiled_shape], each)
                for one in batches
            )
            for batches in (shard.batches for shard in plan.shards)
        ]
        whole = _makespan(seconds, num_devices // each)
        found.append(Layout(num_devices // each, each, plan.seconds / (whole * num_devices)))
    return found


def choose(plan: Plan, num_devices: int) -> tuple[Layout, str]:
    """The layout that idles least, and why.

    Among equals, accelerators get a process each, which loses least when one ends; cores get one
    process, which compiles and holds everything once.

    Args:
      plan: what would run.
      num_devices: devices of the machine, at least 1.

    Returns:
      `(the layout, a sentence)`.
    """
    found = layouts(plan, num_devices)
    best = max(one.busy for one in found)
    good = [one for one in found if one.busy >= best - _TIE]
    chosen = good[-1] if plan.platform == "cpu" else good[0]
    if num_devices == 1:
        return chosen, "one process on the one device"
    others = [one for one in (found[0], found[-1]) if one.devices != chosen.devices]
    told = "; ".join(f"{_named(one)} {one.busy:.0%}" for one in others)
    said = f"{_named(chosen)}: busy {chosen.busy:.0%} of the time"
    return chosen, f"{said} ({told})" if told else said


def _named(layout: Layout) -> str:
    if layout.processes == 1:
        return f"one process over all {layout.devices} devices"
    each = "one device" if layout.devices == 1 else f"{layout.devices} devices"
    return f"{layout.processes} processes of {each} each"


def _seconds(batch: Batch, tile: int, devices: int) -> float:
    """Time of a batch on some devices, each as fast as the machine of the plan's constants."""
    lanes = len(batch.cells) * (batch.seeds[1] - batch.seeds[0])
    tiles = -(-lanes // tile)
    return batch.seconds * -(-tiles // devices) / tiles


def _makespan(seconds: Sequence[float], processes: int) -> float:
    """When the last of some shards ends, each taken by the first process that is free."""
    free = [0.0] * processes
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)
