"""`metrics.chunk_sums` as a native call: each round's figures, added in float64 where they fall."""

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import metrics
from polar_jax.draws import BLOCK
from polar_jax.types import Decisions, LaneInputs, Rounds


def chunk_sums(
    rounds: Rounds,
    decisions: Decisions,
    inputs: LaneInputs,
    oracle_set: Array,
    backlog_ms: Array,
    interval: Array,
    *,
    num_intervals: int,
) -> tuple[Array, Array]:
    """`metrics.chunk_sums`: same arguments, same results but for rounding.

    Where requests have times XLA measures how long they wait, each for the one before.
    """
    dtype = rounds.utility.dtype
    drawn = metrics.drawn_latency(rounds, decisions, inputs)
    nothing = jnp.zeros((1,), dtype)
    num_blocks = interval.shape[0] // BLOCK
    call = jax.ffi.ffi_call(
        "polar_sums_f64" if dtype == jnp.float64 else "polar_sums_f32",
        jax.ShapeDtypeStruct((num_blocks, num_intervals, len(metrics.PARTS)), dtype),
        vmap_method="broadcast_all",
    )
    sums = call(
        rounds.utility,
        nothing if rounds.benchmark is None else rounds.benchmark,
        nothing if drawn is None else drawn,
        *(decisions.adapter, decisions.forced, decisions.resident),
        *(decisions.switch_cost, decisions.switch_ms, decisions.loads),
        jnp.stack([inputs.paging_cost.astype(dtype), inputs.paging_ms.astype(dtype)]),
        oracle_set,
        jnp.where(inputs.counted, interval, -1),
        predicted=rounds.benchmark is not None,
        drawn=drawn is not None,
    )
    if rounds.arrival_gap is None:
        return sums, backlog_ms
    parts, backlog_ms = metrics.round_parts(rounds, decisions, inputs, oracle_set, backlog_ms)
    waiting = slice(metrics.PARTS.index("waiting_ms"), metrics.PARTS.index("waiting_ms") + 1)
    waited = metrics.interval_sums(parts[:, waiting], interval, num_intervals=num_intervals)
    return sums.at[:, :, waiting].set(waited), backlog_ms
