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

from polar_jax.controllers import exchange, leaving, swap
from polar_jax.types import Admission, AdmitInputs, Controller, Room


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
      least: `[N, E']` bool, the member of each set that is worth least; where adapters differ
        in size `[N, N, E']`, the members (second axis) that make room for each adapter.

    Returns:
      `[N, E']`: for the best resident its lead over the second of `base` and the
      residents, for adapters outside their lead over `base` and the residents but the
      least, else 0.
    """
    inside = jnp.where(sets, q[:, None], -jnp.inf)
    largest, leader = _first_max(inside)
    second = jnp.max(jnp.where(leader, -jnp.inf, inside), axis=0)
    lead = jnp.maximum(largest - jnp.maximum(second, base), 0.0)
    if least.ndim == 3:
        kept = jnp.max(jnp.where(least, -jnp.inf, inside[None, :, :]), axis=1)
        beyond = jnp.maximum(q[:, None] - jnp.maximum(kept, base), 0.0)
    else:
        kept = jnp.where(jnp.any(leader & least, axis=0), second, largest)
        beyond = jnp.maximum(q[:, None] - jnp.maximum(kept, base)[None, :], 0.0)
    return jnp.where(sets, jnp.where(leader, lead[None, :], 0.0), beyond)


def makes_room(room: Room, priority: Array, sets: Array) -> Array:
    """Who makes room for every adapter in every virtual cache, the least priority first.

    Args:
      room: sizes and capacity.
      priority: `[N, E']`; ties to the lowest index.
      sets: `[N, E']` bool, sets that fit.

    Returns:
      `[N, N, E']` bool, incoming by leaving; all leave for an adapter that never fits.
    """
    size = jnp.where(sets, room.size[:, None], 0)  # [N, E']
    need = room.size[:, None] - (room.capacity - jnp.sum(size, axis=0, dtype=jnp.int32))[None, :]
    rows = _rows(sets.shape[0])
    earlier = (priority[:, None, :] < priority[None, :, :]) | (
        (priority[:, None, :] == priority[None, :, :]) & (rows < rows.T)[:, :, None]
    )
    freed = jnp.sum(jnp.where(earlier, size[:, None, :], 0), axis=0, dtype=jnp.int32)
    return sets[None, :, :] & (freed[None, :, :] < need[:, None, :])


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


def _follow_sized_values(
    state: ExpertState,
    room: Room,
    value: Array,
    route: Array,
    top: Array,
    shortfall: Array,
    top_cost: Array,
) -> tuple[Array, Array, Array]:
    """`_follow_values` where adapters differ in size.

    A newcomer's value must reach that of all who make room for it, the least value per size
    first.
    """
    sets = state.sets[:, :-1]
    out = makes_room(room, value / room.relative[:, None], sets)
    never = room.size > room.capacity
    lost = jnp.sum(jnp.where(out, value[None, :, :], jnp.zeros_like(value)[None, :, :]), axis=1)
    worthy = (value >= lost) & ~never[:, None]
    missed = _at(route, sets.astype(jnp.int32)) == 0
    swap_missed = missed & jnp.any(route & worthy, axis=0)
    outside = ~jnp.any(top[:, None] & sets, axis=0)
    wanted = ~missed & outside
    grown = jnp.where(wanted, shortfall, 0.0)[None, :]
    deficit = state.deficit + jnp.where(top[:, None], grown, 0.0)
    ripe = _at(jnp.broadcast_to(top[:, None], value.shape), deficit) >= top_cost
    buy = wanted & ripe & jnp.any(top[:, None] & worthy, axis=0)
    incoming = jnp.where(buy[None, :], top[:, None], route)
    leaves = jnp.any(incoming[:, None, :] & out, axis=0)
    sets = jnp.where((swap_missed | buy)[None, :], (sets & ~leaves) | incoming, sets)
    deficit = jnp.where(top[:, None] & buy[None, :], 0.0, deficit)
    return sets, jnp.where(buy, top_cost, 0.0), deficit


def _follow_lru(state: ExpertState, route: Array, room: Room | None) -> tuple[Array, Array]:
    """Moves the LRU expert: its `[N]` set and last uses after using `route` (one-hot)."""
    lru_set = state.sets[:, -1]
    if room is not None:
        used, missed = jnp.argmax(route).astype(jnp.int32), ~jnp.any(route & lru_set)
        leaves, enters = leaving(room, state.last_use, lru_set, used, missed)
        moved = exchange(lru_set, used, leaves, enters)
        return moved, jnp.where(route, state.clock, state.last_use)
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
    shortest, room = state.value[:, 0], inputs.room

    def outgoing(resident: Array) -> tuple[Array, Array]:
        """Who leaves first, or all who may where sizes differ; and whether that is enough."""
        removable = resident & ~best_set
        if room is not None:
            # The followed set fits, and all that is kept beside the newcomer is part of it.
            return removable, jnp.ones((), bool)
        candidates = jnp.where(removable, shortest, jnp.inf)
        return jnp.argmin(candidates).astype(jnp.int32), jnp.any(removable)

    def replaced(resident: Array, incoming: Array, out: Array, allowed: Array) -> Array:
        if room is None:
            return swap(resident, incoming, out, allowed)
        order = shortest / room.relative
        leaves, enters = leaving(room, order, resident, incoming, allowed, out)
        return exchange(resident, incoming, leaves, enters)

    adapter = inputs.adapter
    out, removable = outgoing(inputs.resident)
    paid = ~inputs.resident[adapter] & best_set[adapter] & removable
    resident = replaced(inputs.resident, adapter, out, paid)

    def value_of(members: Array) -> Array:
        return jnp.max(jnp.where(members, q, q - inputs.paging_cost))

    gain = value_of(best_set) - value_of(resident)
    wanted = ~resident[route] & best_set[route] & (gain > 0.0)
    here = jnp.arange(q.shape[0], dtype=jnp.int32) == route
    deficit = state.real_deficit + jnp.where(here & wanted, gain, 0.0)
    ripe = wanted & (deficit[route] >= inputs.switch_cost[route])
    out, removable = outgoing(resident)
    buy = ripe & removable
    resident = replaced(resident, route, out, buy)
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
    if inputs.room is None:
        _, least = _first_max(jnp.where(value_sets, -value, -jnp.inf))
    else:
        least = makes_room(inputs.room, value / inputs.room.relative[:, None], value_sets)
    value = value + marginal_savings(q, base, value_sets, least)
    top_cost = jnp.sum(jnp.where(top, inputs.paging_cost, jnp.zeros_like(q)))
    moves = value, route[:, :-1], top, shortfall[:-1], top_cost
    if inputs.room is None:
        sets, bought, deficit = _follow_values(state, *moves)
    else:
        sets, bought, deficit = _follow_sized_values(state, inputs.room, *moves)
    lru_set, last_use = _follow_lru(state, route[:, -1], inputs.room)
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
