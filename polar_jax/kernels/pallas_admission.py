"""The admission rules as masked vector operations, for use inside a Pallas kernel.

Triton has no gather, no scatter, no slices and no `any`: an adapter is a one-hot mask here,
an entry a masked sum. Rules and ties are those of `controllers.py` and `experts.py`, slots
only. Sizes are padded to powers of two; what fills up is never resident and never chosen.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from polar_jax import controllers, experts
from polar_jax.types import Controller


class Seen(NamedTuple):
    """A served request as an admission rule sees it."""

    optimistic: Callable[[Array], Array]  # limit of beta to [N] `mean + min(beta, limit) width`
    mean: Array  # [N]
    here: Array  # [N] one-hot of the adapter that served the request
    resident: Array  # [N] bool, the set while it was served
    paging_cost: Array  # [N]
    switch_cost: Array  # [N]
    size: Array  # [N]


AdmitFn = Callable[[Any, Any, Seen], tuple[Any, Array, Array]]


def holds(mask: Array, axis: int = 0) -> Array:
    """Whether any entry is set along an axis."""
    return jnp.max(mask.astype(jnp.int32), axis=axis) > 0


def entry(here: Array, values: Array) -> Array:
    """The `[]` entry of `values` `[N]` where `here` is set; columns of `[N, E]` likewise."""
    return jnp.sum(jnp.where(here, values, jnp.zeros_like(values)), axis=0, dtype=values.dtype)


def _ids(size: int) -> Array:
    return jnp.arange(size, dtype=jnp.int32)


def one_hot(index: Array, size: int) -> Array:
    """`[size]` bool, set at `index`."""
    return _ids(size) == index.astype(jnp.int32)


def _least(priority: Array, resident: Array) -> tuple[Array, Array]:
    """One-hot of the resident with the least priority, and if there is one."""
    top = jnp.iinfo(priority.dtype).max if jnp.issubdtype(priority.dtype, jnp.integer) else jnp.inf
    masked = jnp.where(resident, priority, jnp.asarray(top, priority.dtype))
    return one_hot(jnp.argmin(masked), resident.shape[0]), holds(resident)


def _swapped(resident: Array, incoming: Array, outgoing: Array, allowed: Array) -> Array:
    return jnp.where(allowed, (resident & ~outgoing) | incoming, resident)


def _on_miss(seen: Seen, priority: Array, worthy: Array | bool = True) -> Array:
    """`controllers.admit_on_miss`: the `[N]` set for the next round."""
    outgoing, some = _least(priority, seen.resident)
    missed = ~holds(seen.here & seen.resident)
    return _swapped(seen.resident, seen.here, outgoing, missed & some & worthy)


def _keep(params: Any, state: Any, seen: Seen) -> tuple[Any, Array, Array]:
    del params
    return state, seen.resident, jnp.zeros_like(seen.resident)


def _lru(params: Any, state: Any, seen: Seen) -> tuple[Any, Array, Array]:
    del params
    resident = _on_miss(seen, state.priority)
    touched = jnp.where(seen.here, state.clock, state.priority)
    state = state.replace(priority=touched, clock=state.clock + 1)
    return state, resident, jnp.zeros_like(resident)


def _lfu(params: Any, state: Any, seen: Seen) -> tuple[Any, Array, Array]:
    del params
    counted = state.priority + seen.here.astype(jnp.int32)
    resident = _on_miss(seen, counted)
    state = state.replace(priority=counted, clock=state.clock + 1)
    return state, resident, jnp.zeros_like(resident)


def _gdsf(params: Any, state: Any, seen: Seen) -> tuple[Any, Array, Array]:
    del params
    resident = _on_miss(seen, state.priority)
    outgoing, some = _least(state.priority, seen.resident)
    hit = holds(seen.here & seen.resident)
    clock = jnp.where(hit | ~some, state.clock, entry(outgoing, state.priority))
    uses = jnp.where(hit, entry(seen.here, state.uses) + 1.0, 1.0)
    cost, size = entry(seen.here, seen.paging_cost), entry(seen.here, seen.size)
    state = state.replace(
        priority=jnp.where(seen.here, clock + uses * cost / size, state.priority),
        uses=jnp.where(seen.here, uses, state.uses),
        clock=clock,
    )
    return state, resident, jnp.zeros_like(resident)


def _residency_value(params: Any, state: Any, seen: Seen) -> tuple[Any, Array, Array]:
    best = one_hot(jnp.argmax(seen.mean), seen.mean.shape[0])
    saving = jnp.max(seen.mean) - jnp.max(seen.mean - seen.paging_cost)
    gained = jnp.where(best, jnp.maximum(saving, 0.0), 0.0)
    value = params.decay * state.priority + gained
    outgoing, _ = _least(value, seen.resident)
    worthy = entry(seen.here, value) >= entry(outgoing, value)
    resident = _on_miss(seen, value, worthy)
    return state.replace(priority=value), resident, jnp.zeros_like(resident)


def _first_max(values: Array) -> tuple[Array, Array]:
    """Largest of each column and a `[N, E]` mask of its first occurrence."""
    largest = jnp.max(values, axis=0)
    rows = jnp.broadcast_to(_ids(values.shape[0])[:, None], values.shape)
    first = jnp.min(jnp.where(values == largest[None, :], rows, values.shape[0]), axis=0)
    return largest, rows == first[None, :]


def _least_members(value: Array, sets: Array) -> tuple[Array, Array]:
    """`[E]` least value in each set, infinite where it is empty, and its `[N, E]` mask."""
    floor, out = _first_max(jnp.where(sets, -value, -jnp.inf))
    return -floor, out


def _marginal_savings(q: Array, base: Array, sets: Array, least: Array) -> Array:
    """`experts.marginal_savings`."""
    inside = jnp.where(sets, q[:, None], -jnp.inf)
    largest, leader = _first_max(inside)
    second = jnp.max(jnp.where(leader, -jnp.inf, inside), axis=0)
    lead = jnp.maximum(largest - jnp.maximum(second, base), 0.0)
    kept = jnp.where(holds(leader & least), second, largest)
    beyond = jnp.maximum(q[:, None] - jnp.maximum(kept, base)[None, :], 0.0)
    return jnp.where(sets, jnp.where(leader, lead[None, :], 0.0), beyond)


def _follow_values(
    state: Any, value: Array, route: Array, top: Array, shortfall: Array, top_cost: Array
) -> tuple[Array, Array, Array]:
    """Moves every column as a value expert: `([N, E] sets, [E] costs, [N, E] deficits)`."""
    sets, top = state.sets, jnp.broadcast_to(top[:, None], state.sets.shape)
    least, out = _least_members(value, sets)
    missed = ~holds(route & sets)
    swap_missed = missed & (entry(route, value) >= least)
    wanted = ~missed & ~holds(top & sets)
    grown = jnp.where(wanted, shortfall, 0.0)[None, :]
    deficit = state.deficit + jnp.where(top, grown, 0.0)
    ripe = entry(top, deficit) >= top_cost
    buy = wanted & ripe & (entry(top, value) >= least)
    moved = (sets & ~out) | jnp.where(buy[None, :], top, route)
    sets = jnp.where((swap_missed | buy)[None, :], moved, sets)
    deficit = jnp.where(top & buy[None, :], 0.0, deficit)
    return sets, jnp.where(buy, top_cost, 0.0), deficit


def _follow_lru(state: Any, lru_set: Array, route: Array) -> tuple[Array, Array]:
    """Moves the LRU expert: its `[N]` set and last uses after using `route` (one-hot)."""
    out, some = _least(state.last_use, lru_set)
    moved = _swapped(lru_set, route, out, ~holds(route & lru_set) & some)
    return moved, jnp.where(route, state.clock, state.last_use)


def _follow_best(
    state: Any, seen: Seen, q: Array, best_set: Array, route: Array
) -> tuple[Array, Array, Array]:
    """Moves the real cache: `([N] real deficits, [N] set, [N] bool bought)`."""
    first = jnp.broadcast_to(_ids(state.value.shape[1])[None, :] == 0, state.value.shape)
    shortest = jnp.sum(jnp.where(first, state.value, 0.0), axis=1)

    def outgoing(resident: Array) -> tuple[Array, Array]:
        return _least(shortest, resident & ~best_set)

    out, removable = outgoing(seen.resident)
    paid = ~holds(seen.here & seen.resident) & holds(seen.here & best_set) & removable
    resident = _swapped(seen.resident, seen.here, out, paid)

    def value_of(members: Array) -> Array:
        return jnp.max(jnp.where(members, q, q - seen.paging_cost))

    gain = value_of(best_set) - value_of(resident)
    wanted = ~holds(route & resident) & holds(route & best_set) & (gain > 0.0)
    deficit = state.real_deficit + jnp.where(route & wanted, gain, 0.0)
    ripe = wanted & (entry(route, deficit) >= entry(route, seen.switch_cost))
    out, removable = outgoing(resident)
    buy = ripe & removable
    resident = _swapped(resident, route, out, buy)
    return jnp.where(route & ripe, 0.0, deficit), resident, route & buy


def _experts(params: Any, state: Any, seen: Seen, *, num_values: int) -> tuple[Any, Array, Array]:
    """`experts.admit`: columns below `num_values` are value experts, the next one is LRU."""
    columns = _ids(state.loss.shape[0])
    of_value, known = columns < num_values, columns <= num_values
    lru = jnp.broadcast_to((columns == num_values)[None, :], state.sets.shape)
    q = seen.optimistic(params.beta_max)
    net = q - seen.paging_cost
    base, size = jnp.max(net), q.shape[0]
    value_of_set, route = _first_max(jnp.where(state.sets, q[:, None], net[:, None]))
    top = one_hot(jnp.argmax(q), size)
    shortfall = jnp.max(q) - value_of_set
    loss = experts.score_decay(params, state.clock, q.dtype) * state.loss + shortfall
    value = params.value_decay[None, :] * state.value
    _, least = _least_members(value, state.sets)
    value = value + _marginal_savings(q, base, state.sets, least)
    value = jnp.where(of_value[None, :], value, 0.0)
    top_cost = entry(top, seen.paging_cost)
    sets, bought, deficit = _follow_values(state, value, route, top, shortfall, top_cost)
    lru_set, last_use = _follow_lru(state, holds(state.sets & lru, 1), holds(route & lru, 1))
    sets = jnp.where(of_value[None, :], sets, lru & lru_set[:, None])
    loss = loss + jnp.where(of_value, bought, 0.0)
    loss = jnp.where(known, loss - jnp.min(jnp.where(known, loss, jnp.inf)), 0.0)
    state = state.replace(
        sets=sets,
        loss=loss,
        value=value,
        deficit=jnp.where(of_value[None, :], deficit, 0.0),
        last_use=last_use,
        clock=state.clock + 1,
    )
    leader = one_hot(jnp.argmin(jnp.where(known, loss, jnp.inf)), columns.shape[0])
    best_set = holds(sets & leader[None, :], 1)
    best_route = one_hot(jnp.argmax(jnp.where(best_set, q, net)), size)
    deficit, resident, bought = _follow_best(state, seen, q, best_set, best_route)
    return state.replace(real_deficit=deficit), resident, bought


_PLAIN: tuple[tuple[Controller, AdmitFn], ...] = (
    (controllers.fixed(), _keep),
    (controllers.lru(), _lru),
    (controllers.lfu(), _lfu),
    (controllers.gdsf(), _gdsf),
    (controllers.residency_value(), _residency_value),
)


def masked_rule(controller: Controller, memory: Any = None) -> AdmitFn | None:
    """The masked form of a controller's `admit`, None where there is none.

    Args:
      controller: the controller.
      memory: what it remembers, with sizes as they are before padding; POLAR-E's tells
        how many experts there are.
    """
    if controller.admit == experts.admit:
        num_values = 0 if memory is None else memory.value.shape[1]
        return functools.partial(_experts, num_values=num_values)
    found = [rule for known, rule in _PLAIN if known.admit == controller.admit]
    return found[0] if found else None
