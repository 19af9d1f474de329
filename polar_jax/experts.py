"""POLAR-E: virtual caches compete, the real one follows the best and rents or buys.

Source: `docs/model.md`, section "POLAR-E". Costs are known and utilities are modelled,
so the loss of any residency rule can be estimated on every request. `E` experts are one
value cache per half-life and one LRU cache, the last. Arrays over experts are laid out
`[N, E]`: reductions over adapters then run along the outer axis, which processors
vectorise.
"""

import functools
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax import Array

from polar_jax.controllers import swap
from polar_jax.types import Admission, AdmitInputs, Controller


class ExpertParams(flax.struct.PyTreeNode):
    """Traced constants of POLAR-E's controller."""

    value_decay: Array | np.ndarray  # [E-1], factor of the values per request, 2^(-1/half-life)
    score_half_life: Array | float  # [], of the experts' losses at first, requests
    score_growth: Array | float  # [], what the half-life grows by per request
    beta_max: Array | float  # [], largest beta_v, units of utility


class ExpertState(flax.struct.PyTreeNode):
    """What the virtual caches remember; columns are experts, the last one is LRU."""

    sets: Array  # [N, E] bool, virtual resident sets
    loss: Array  # [E], decayed estimated loss W_e, above the least
    value: Array  # [N, E-1], decayed marginal savings v
    deficit: Array  # [N, E-1], what routing around an adapter has cost, D_h
    last_use: Array  # [N] int32, of the LRU expert
    clock: Array  # [] int32, requests served so far
    real_deficit: Array  # [N], the same as deficit for the real cache, D


def init(*, num_adapters: int, resident: Array, dtype: Any, num_values: int) -> ExpertState:
    """Every virtual cache starts as the real one, with no score.

    Args:
      num_adapters: `N`.
      resident: `[N]` bool, the first set.
      dtype: floating dtype of scores and values.
      num_values: number of value experts, `E - 1`.
    """
    return ExpertState(
        sets=jnp.broadcast_to(resident[:, None], (num_adapters, num_values + 1)),
        loss=jnp.zeros((num_values + 1,), dtype),
        value=jnp.zeros((num_adapters, num_values), dtype),
        deficit=jnp.zeros((num_adapters, num_values), dtype),
        last_use=jnp.full((num_adapters,), -1, jnp.int32),
        clock=jnp.zeros((), jnp.int32),
        real_deficit=jnp.zeros((num_adapters,), dtype),
    )


def _rows(num_adapters: int) -> Array:
    return jnp.arange(num_adapters, dtype=jnp.int32)[:, None]


def _first_max(values: Array) -> tuple[Array, Array]:
    """Largest of each column and a `[N, E]` mask of its first occurrence."""
    largest = jnp.max(values, axis=0)
    rows = _rows(values.shape[0])
    first = jnp.min(jnp.where(values == largest[None, :], rows, values.shape[0]), axis=0)
    return largest, rows == first[None, :]


def _at(mask: Array, values: Array) -> Array:
    """`[E]` entries of `values` `[N, E]` where `mask` is set (one per column)."""
    return jnp.sum(jnp.where(mask, values, jnp.zeros_like(values)), axis=0)


def optimistic_means(beta_max: Array | float, inputs: AdmitInputs) -> Array:
    """`[N]` utilities `q_i = mean_i + beta_v width_i` the virtual caches reckon with."""
    scores = inputs.scores
    return scores.mean + jnp.minimum(scores.beta, beta_max) * scores.width


def marginal_savings(q: Array, base: Array, sets: Array, least: Array) -> Array:
    """What each adapter's residency adds to the value of this request.

    Members and adapters outside are credited with what they add to the same set, the one
    without its least valuable member, so that the two compare as the swap would have it.
    Credited against the whole set, an adapter outside is never worth the only slot.

    Args:
      q: `[N]` utilities.
      base: `[]` value with nothing resident, `max_i (q_i - c_i)`.
      sets: `[N, E']` bool.
      least: `[N, E']` bool, the member of each set that is worth least.

    Returns:
      `[N, E']`: for the best resident its lead over the second of `base` and the
      residents, for adapters outside their lead over `base` and the residents but the
      least, else 0.
    """
    inside = jnp.where(sets, q[:, None], -jnp.inf)
    largest, leader = _first_max(inside)
    second = jnp.max(jnp.where(leader, -jnp.inf, inside), axis=0)
    lead = jnp.maximum(largest - jnp.maximum(second, base), 0.0)
    kept = jnp.where(jnp.any(leader & least, axis=0), second, largest)
    beyond = jnp.maximum(q[:, None] - jnp.maximum(kept, base)[None, :], 0.0)
    return jnp.where(sets, jnp.where(leader, lead[None, :], 0.0), beyond)


def score_decay(params: ExpertParams, clock: Array, dtype: Any = jnp.float32) -> Array:
    """`[]` factor `rho` of the experts' losses: their memory is a share of the past.

    With a fixed memory the scores of nearly equal experts never settle, and on a stream
    that never changes the real cache would follow their noise for ever.
    """
    share = jnp.asarray(params.score_growth, dtype) * clock.astype(dtype)
    return jnp.exp2(-1.0 / jnp.maximum(jnp.asarray(params.score_half_life, dtype), share))


def _follow_values(
    state: ExpertState, value: Array, route: Array, top: Array, shortfall: Array, top_cost: Array
) -> tuple[Array, Array, Array]:
    """Moves the value experts' virtual caches.

    Args:
      state: before the request.
      value: `[N, E-1]` after the request's savings.
      route: `[N, E-1]` one-hot of the adapter each expert would have used.
      top: `[N]` one-hot of the best adapter.
      shortfall: `[E-1]` what each lost by not using the best.
      top_cost: `[]` paging cost of the best adapter.

    Returns:
      `([N, E-1] sets, [E-1] cost of bought loads, [N, E-1] deficits)`.
    """
    sets = state.sets[:, :-1]
    floor, out = _first_max(jnp.where(sets, -value, -jnp.inf))
    least = -floor  # infinite where no adapter is resident: nothing can be swapped
    missed = _at(route, sets.astype(jnp.int32)) == 0
    swap_missed = missed & (_at(route, value) >= least)
    outside = ~jnp.any(top[:, None] & sets, axis=0)
    wanted = ~missed & outside
    grown = jnp.where(wanted, shortfall, 0.0)[None, :]
    deficit = state.deficit + jnp.where(top[:, None], grown, 0.0)
    top_value = _at(jnp.broadcast_to(top[:, None], value.shape), value)
    ripe = _at(jnp.broadcast_to(top[:, None], value.shape), deficit) >= top_cost
    buy = wanted & ripe & (top_value >= least)
    incoming = jnp.where(buy[None, :], top[:, None], route)
    moved = (sets & ~out) | incoming
    sets = jnp.where((swap_missed | buy)[None, :], moved, sets)
    deficit = jnp.where(top[:, None] & buy[None, :], 0.0, deficit)
    return sets, jnp.where(buy, top_cost, 0.0), deficit


def _follow_lru(state: ExpertState, route: Array) -> tuple[Array, Array]:
    """Moves the LRU expert: its `[N]` set and last uses after using `route` (one-hot)."""
    lru_set = state.sets[:, -1]
    oldest = jnp.where(lru_set, state.last_use, jnp.iinfo(jnp.int32).max)
    out = jnp.arange(route.shape[0], dtype=jnp.int32) == jnp.argmin(oldest).astype(jnp.int32)
    swappable = ~jnp.any(route & lru_set) & jnp.any(lru_set)
    moved = jnp.where(swappable, (lru_set & ~out) | route, lru_set)
    return moved, jnp.where(route, state.clock, state.last_use)


def _follow_best(
    state: ExpertState, inputs: AdmitInputs, q: Array, best_set: Array, route: Array
) -> tuple[Array, Array, Admission]:
    """Moves the real cache towards the best expert's set.

    Args:
      state: with the virtual caches moved.
      inputs: the request.
      q: `[N]` utilities.
      best_set: `[N]` bool, the best expert's set.
      route: `[]` int32, the adapter that `best_set` would use on this request.

    Returns:
      `([N] real deficits, [] bool whether a load was bought, the admission)`.
    """
    shortest = state.value[:, 0]

    def outgoing(resident: Array) -> tuple[Array, Array]:
        removable = resident & ~best_set
        candidates = jnp.where(removable, shortest, jnp.inf)
        return jnp.argmin(candidates).astype(jnp.int32), jnp.any(removable)

    adapter = inputs.adapter
    out, removable = outgoing(inputs.resident)
    paid = ~inputs.resident[adapter] & best_set[adapter] & removable
    resident = swap(inputs.resident, adapter, out, paid)

    def value_of(members: Array) -> Array:
        return jnp.max(jnp.where(members, q, q - inputs.paging_cost))

    gain = value_of(best_set) - value_of(resident)
    wanted = ~resident[route] & best_set[route] & (gain > 0.0)
    here = jnp.arange(q.shape[0], dtype=jnp.int32) == route
    deficit = state.real_deficit + jnp.where(here & wanted, gain, 0.0)
    ripe = wanted & (deficit[route] >= inputs.switch_cost[route])
    out, removable = outgoing(resident)
    buy = ripe & removable
    resident = swap(resident, route, out, buy)
    deficit = jnp.where(here & ripe, 0.0, deficit)
    return deficit, buy, Admission(resident=resident, bought=here & buy)


def admit(
    params: ExpertParams, state: ExpertState, inputs: AdmitInputs
) -> tuple[ExpertState, Admission]:
    """One request of POLAR-E's controller: score the experts, move them, follow the best.

    Args:
      params: constants.
      state: what the virtual caches remember.
      inputs: the served request with the statistics from before its update.

    Returns:
      `(new state, admission)`; the admission's loads are either paid for by the
      request's own miss or bought.
    """
    q = optimistic_means(params.beta_max, inputs)
    net = q - inputs.paging_cost
    base = jnp.max(net)
    reach = jnp.where(state.sets, q[:, None], net[:, None])
    value_of_set, route = _first_max(reach)
    adapters = jnp.arange(q.shape[0], dtype=jnp.int32)
    best_q = jnp.max(q)
    top = adapters == jnp.argmax(q).astype(jnp.int32)
    shortfall = best_q - value_of_set
    loss = score_decay(params, state.clock, q.dtype) * state.loss + shortfall

    value_sets = state.sets[:, :-1]
    value = jnp.asarray(params.value_decay, q.dtype)[None, :] * state.value
    _, least = _first_max(jnp.where(value_sets, -value, -jnp.inf))
    value = value + marginal_savings(q, base, value_sets, least)
    top_cost = jnp.sum(jnp.where(top, inputs.paging_cost, jnp.zeros_like(q)))
    sets, bought, deficit = _follow_values(
        state, value, route[:, :-1], top, shortfall[:-1], top_cost
    )
    lru_set, last_use = _follow_lru(state, route[:, -1])
    sets = jnp.concatenate([sets, lru_set[:, None]], axis=1)
    loss = loss.at[:-1].add(bought)
    # Only differences count; sums over a long memory would not resolve them in float32.
    loss = loss - jnp.min(loss)
    state = state.replace(
        sets=sets,
        loss=loss,
        value=value,
        deficit=deficit,
        last_use=last_use,
        clock=state.clock + 1,
    )
    leader = jnp.arange(loss.shape[0], dtype=jnp.int32) == jnp.argmin(loss).astype(jnp.int32)
    best_set = jnp.any(sets & leader[None, :], axis=1)
    best_route = jnp.argmax(jnp.where(best_set, q, net)).astype(jnp.int32)
    real_deficit, _, admission = _follow_best(state, inputs, q, best_set, best_route)
    return state.replace(real_deficit=real_deficit), admission


@functools.cache
def experts(*, num_values: int = 3) -> Controller:
    """POLAR-E's controller with `num_values` value experts and one LRU expert.

    The half-lives are data (`ExpertParams`), shortest first.
    """
    return Controller(init=functools.partial(init, num_values=num_values), admit=admit, replan=None)
