"""Device memory that the buckets of a plan need."""

from collections.abc import Sequence

import jax

from polar_jax import lane_calls, lanes, programs
from polar_jax.sweep.plan import Batch, Plan


def per_bucket(plan: Plan, *, exact: bool, num_devices: int | None) -> list[int]:
    """Bytes on one device, per bucket.

    Args:
      plan: what would run.
      exact: compile every program and ask the compiler; else an estimate from shapes.
      num_devices: devices to plan for; all where None.
    """
    batches = [batch for shard in plan.shards for batch in shard.batches]
    needed = []
    for bucket in plan.buckets:
        own = [
            batch for batch in batches if batch.cells[0].experiment.compiled_shape == bucket.shape
        ]
        needed.append(max(_bytes(own, exact=exact, num_devices=num_devices)))
    return needed


def _bytes(batches: Sequence[Batch], *, exact: bool, num_devices: int | None) -> list[int]:
    platform = jax.devices()[0].platform
    if exact:
        kinds = {lane_calls.kinship(batch.cells[0].experiment): batch for batch in batches}
        return [
            lanes.memory(
                one.experiments(),
                num_devices=num_devices,
                chunk_rounds=programs.chunk_of_full_tiles(one.cells[0].experiment, platform),
            )
            for one in kinds.values()
        ]
    return [
        programs.estimated_bytes(
            batch.cells[0].experiment.compiled_shape,
            len(batch.cells[0].experiment.policies),
            platform,
        )
        for batch in batches
    ]
