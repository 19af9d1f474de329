"""Regret in its parts, loss to full memory, hits, latencies; sums over curve intervals.

Everything is computed from expected utilities, never from noisy rewards, for a whole
chunk at once. Sums over one chunk are short enough for float32; the host adds chunks
in float64. Definitions: `docs/model.md`, "Benchmarks".
"""

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import paging
from polar_jax.draws import BLOCK
from polar_jax.linalg import HIGHEST
from polar_jax.types import Decisions, LaneInputs, Rounds

# Columns of `round_parts`, in order.
PARTS = (
    "regret",
    "regret_routing",
    "regret_forced",
    "regret_caching",
    "regret_switching",
    "loss_to_full",
    "net_utility",
    "page_ins",
    "paging_ms",
    "switching_ms",
    "loads",
    "waiting_ms",
)


def round_parts(
    rounds: Rounds,
    decisions: Decisions,
    inputs: LaneInputs,
    oracle_set: Array,
    backlog_ms: Array,
) -> tuple[Array, Array]:
    """What each round contributed to every figure.

    Args:
      rounds: `n` rounds.
      decisions: what the lane did in them.
      inputs: the lane's costs and latencies.
      oracle_set: `[N]` bool, the static oracle `C*`.
      backlog_ms: `[]` milliseconds that loads were still to take when the request before
        these rounds was served.

    Returns:
      `([n, len(PARTS)], backlog after the last round)`. The regret is `routing + caching +
      switching` up to rounding.
    """
    cost, utility = inputs.paging_cost, rounds.utility
    adapters = jnp.arange(cost.shape[0], dtype=jnp.int32)
    used = adapters[None, :] == decisions.adapter[:, None]
    served = jnp.where(decisions.resident, utility, utility - cost[None, :])
    gained = jnp.sum(jnp.where(used, served, 0.0), axis=1)
    missed = ~jnp.any(used & decisions.resident, axis=1)
    with_oracle = _known_value(rounds, cost, oracle_set[None, :])
    with_set = _known_value(rounds, cost, decisions.resident)
    with_all = _known_value(rounds, cost, jnp.ones_like(oracle_set)[None, :])
    routing = with_set - gained
    net = gained - decisions.switch_cost
    latency = drawn_latency(rounds, decisions, inputs)
    if latency is None:
        latency = jnp.sum(jnp.where(used, inputs.paging_ms[None, :], 0.0), axis=1)
    paging_ms = jnp.where(missed, latency, 0.0)
    waiting_ms, backlog_ms = _waiting(rounds, paging_ms + decisions.switch_ms, backlog_ms)
    columns = {
        "regret": with_oracle - net,
        "regret_routing": routing,
        "regret_forced": jnp.where(decisions.forced, routing, 0.0),
        "regret_caching": with_oracle - with_set,
        "regret_switching": decisions.switch_cost,
        "loss_to_full": with_all - net,
        "net_utility": net,
        "page_ins": missed.astype(utility.dtype),
        "paging_ms": paging_ms,
        "switching_ms": decisions.switch_ms,
        "loads": decisions.loads.astype(utility.dtype),
        "waiting_ms": waiting_ms,
    }
    return jnp.stack([columns[name] for name in PARTS], axis=1), backlog_ms


def drawn_latency(rounds: Rounds, decisions: Decisions, inputs: LaneInputs) -> Array | None:
    """`[n]` milliseconds that paging the chosen adapters in would take, drawn per round.

    Args:
      rounds: `n` rounds.
      decisions: what the lane did in them.
      inputs: the lane's latencies.

    Returns:
      None where latencies are not drawn: `inputs.paging_ms` has them.
    """
    if inputs.samples_ms.shape[1] == 0:
        return None
    draw = jax.vmap(paging.draw_ms, (None, None, 0, 0))
    drawn = draw(inputs.samples_ms, inputs.sample_count, decisions.adapter, rounds.latency_uniform)
    return drawn.astype(rounds.utility.dtype)


def _known_value(rounds: Rounds, paging_cost: Array, resident: Array) -> Array:
    """`[n]` what perfect routing gets with some sets `[n or 1, N]`.

    It knows the utilities, or the benchmark's predictions of them: then what counts is the
    utility of the adapter that they choose.
    """
    penalty = jnp.where(resident, 0.0, paging_cost[None, :])
    if rounds.benchmark is None:
        return jnp.max(rounds.utility - penalty, axis=1)
    adapters = jnp.arange(paging_cost.shape[0], dtype=jnp.int32)
    best = jax.lax.argmax(rounds.benchmark - penalty, 1, jnp.int32)
    chosen = best[:, None] == adapters[None, :]
    return jnp.sum(jnp.where(chosen, rounds.utility - penalty, 0.0), axis=1)


def _waiting(rounds: Rounds, load_ms: Array, backlog_ms: Array) -> tuple[Array, Array]:
    """How long each request waited for the loads before it (Lindley's recursion).

    Loads take place one after the other; what arrives meanwhile waits, hit or miss.

    Args:
      rounds: `n` rounds.
      load_ms: `[n]` milliseconds of loading that each caused.
      backlog_ms: `[]` what was left when the request before was served.

    Returns:
      `([n] milliseconds, backlog after the last)`; zeros where requests have no times.
    """
    if rounds.arrival_gap is None:
        return jnp.zeros_like(load_ms), backlog_ms

    def serve(backlog: Array, one: tuple[Array, Array]) -> tuple[Array, Array]:
        gap, load = one
        waiting = jnp.maximum(backlog - gap, 0.0)
        return waiting + load, waiting

    backlog_ms, waiting_ms = jax.lax.scan(serve, backlog_ms, (rounds.arrival_gap, load_ms))
    return waiting_ms, backlog_ms


def interval_sums(parts: Array, interval: Array, *, num_intervals: int) -> Array:
    """Sums of `parts` over the intervals between curve marks, block by block.

    One sum per block, not per chunk: the host adds blocks in order, so that the length
    of a chunk changes no bit.

    Args:
      parts: `[n, F]`, `n` a multiple of `BLOCK`.
      interval: `[n]` int32 interval of each round; -1 leaves the round out.
      num_intervals: how many intervals there are.

    Returns:
      `[n / BLOCK, num_intervals, F]`.
    """
    intervals = jnp.arange(num_intervals, dtype=jnp.int32)
    member = interval.reshape(-1, 1, BLOCK) == intervals[None, :, None]
    # Rounds past the horizon hold no decision; they are excluded before the product,
    # where a zero weight would still let a NaN through.
    valid = jnp.where((interval >= 0)[:, None], parts, 0.0).reshape(-1, BLOCK, parts.shape[1])
    return jnp.einsum("bpn,bnf->bpf", member.astype(parts.dtype), valid, precision=HIGHEST)


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
    """The figures of a chunk, summed block by block over the intervals between curve marks.

    Args:
      rounds: `n` rounds, a multiple of `BLOCK`.
      decisions: what the lane did in them.
      inputs: the lane's costs and latencies.
      oracle_set: `[N]` bool, the static oracle `C*`.
      backlog_ms: `[]` milliseconds of loading left before these rounds.
      interval: `[n]` int32 interval of each round; -1 leaves the round out.
      num_intervals: how many intervals there are.

    Returns:
      `([n / BLOCK, num_intervals, len(PARTS)], backlog after the last round)`.
    """
    parts, backlog_ms = round_parts(rounds, decisions, inputs, oracle_set, backlog_ms)
    return interval_sums(parts, interval, num_intervals=num_intervals), backlog_ms
