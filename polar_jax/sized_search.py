"""Searches for a resident set of adapters that differ in size: `top_k`, `greedy`, `local_search`.

`cache_search` calls them where a problem has a `room`; sizes and capacity are data. With equal
sizes each finds what its namesake for slots finds. Guarantees: `docs/model.md`, "Adapters of
different size".
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax.cache_value import (
    CacheProblem,
    covered,
    marginal_gains,
    objective,
    swap_values,
    tie_tolerance,
)
from polar_jax.types import Room


def room_of(problem: CacheProblem) -> Room:
    """The room of a problem with sizes.

    Raises:
      ValueError: for a problem with slots.
    """
    if problem.room is None:
        raise ValueError("the problem must have a room, got one with slots.")
    return problem.room


def free_units(room: Room, members: Array) -> Array:
    """`[]` int32 units that the set `members` `[N]` bool, which fits, leaves free."""
    return room.capacity - jnp.sum(jnp.where(members, room.size, 0), dtype=jnp.int32)


def top_k(problem: CacheProblem) -> Array:
    """Adapters by their gain alone per size, each that fits beside those before it.

    Args:
      problem: the cache problem, with a room.

    Returns:
      `[N]` bool set; ties to the lowest index.
    """
    room = room_of(problem)
    num_adapters = problem.load_cost.shape[0]
    gains = marginal_gains(problem, jnp.zeros_like(problem.weight)) - problem.load_cost
    order = jnp.argsort(-(gains / room.relative), stable=True)

    def step(place: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        members, left = carry
        adapter = order[place]
        fits = room.size[adapter] <= left
        return members.at[adapter].set(fits), left - jnp.where(fits, room.size[adapter], 0)

    nothing = jnp.zeros_like(problem.resident), room.capacity
    return jax.lax.fori_loop(0, num_adapters, step, nothing)[0]


def _grown(problem: CacheProblem, start: Array) -> Array:
    """Adds the adapter with the largest gain per size that fits, until none does or gains."""
    room = room_of(problem)
    adapters = jnp.arange(start.shape[0])

    def step(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        members, cover, left = carry
        gains = marginal_gains(problem, cover) - problem.load_cost
        allowed = ~members & (room.size <= left) & (problem.resident | (gains > 0.0))
        best = jnp.argmax(jnp.where(allowed, gains / room.relative, -jnp.inf))
        chosen = (adapters == best) & jnp.any(allowed)
        added = jnp.max(jnp.where(chosen[None, :], problem.saving, 0.0), axis=1)
        left = left - jnp.sum(jnp.where(chosen, room.size, 0), dtype=jnp.int32)
        return members | chosen, jnp.maximum(cover, added), left

    begin = start, covered(problem, start), free_units(room, start)
    return jax.lax.fori_loop(0, problem.cache_slots, step, begin)[0]


def _starts(problem: CacheProblem) -> Array:
    """`[2, N]` the set grown from nothing, and that grown from the best adapter alone."""
    room = room_of(problem)
    nothing = jnp.zeros_like(problem.resident)
    gains = marginal_gains(problem, jnp.zeros_like(problem.weight)) - problem.load_cost
    allowed = (room.size <= room.capacity) & (problem.resident | (gains > 0.0))
    best = jnp.argmax(jnp.where(allowed, gains, -jnp.inf))
    alone = (jnp.arange(gains.shape[0]) == best) & jnp.any(allowed)
    return jax.lax.map(functools.partial(_grown, problem), jnp.stack([nothing, alone]))


def greedy(problem: CacheProblem) -> Array:
    """Largest gain per size first, or the best adapter alone and then so, whichever is better.

    What does not fit is skipped. Half of `1 - 1/e` of the best savings where loads are free
    (Lin and Bilmes 2010; Khuller, Moss and Naor 1999). As with slots, adapters outside the
    present set with no positive gain are skipped, what room is left keeps present members, and
    the present set is returned where it is better.

    Args:
      problem: the cache problem, with a room.

    Returns:
      `[N]` bool set; ties to the lowest index.
    """
    dense, led = _starts(problem)
    members = jnp.where(objective(problem, led) > objective(problem, dense), led, dense)
    worse = objective(problem, members) < objective(problem, problem.resident)
    return jnp.where(worse, problem.resident, members)


def _move_values(problem: CacheProblem, members: Array) -> Array:
    """`[N N + 2 N]` objective after each move: swaps by row, then additions, then removals.

    `-inf` for moves that do not fit.
    """
    room = room_of(problem)
    free = free_units(room, members)
    fits = room.size[None, :] <= free + jnp.where(members, room.size, 0)[:, None]
    swaps = jnp.where(fits, swap_values(problem, members), -jnp.inf)
    now, cover = objective(problem, members), covered(problem, members)
    joined = now + marginal_gains(problem, cover) - problem.load_cost
    additions = jnp.where(~members & (room.size <= free), joined, -jnp.inf)
    # With nobody to come in, only the contexts that the member leads lose anything.
    inside = jnp.where(members[None, :], problem.saving, 0.0)
    leads = jnp.argmax(inside, axis=1)[:, None] == jnp.arange(members.shape[0])[None, :]
    second = jnp.max(jnp.where(leads, 0.0, inside), axis=1)
    lost = jnp.sum(jnp.where(leads, (problem.weight * (cover - second))[:, None], 0.0), axis=0)
    removals = jnp.where(members, now - lost + problem.load_cost, -jnp.inf)
    return jnp.concatenate([swaps.reshape(-1), additions, removals])


def _improved(problem: CacheProblem, start: Array) -> Array:
    """Best moves from `start` until none improves the objective."""
    num_adapters = start.shape[0]
    adapters = jnp.arange(num_adapters)

    def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        members, _ = carry
        values = _move_values(problem, members)
        best = jnp.argmax(values)
        single = best - num_adapters * num_adapters  # From 0 where no two are exchanged.
        incoming = jnp.where(single < 0, best % num_adapters, single)
        outgoing = jnp.where(single < 0, best // num_adapters, single - num_adapters)
        moved = (members & (adapters != outgoing)) | (adapters == incoming)
        # As with slots: judged by the objective, whose sums are the same for every set.
        now, then = objective(problem, members), objective(problem, moved)
        better = jnp.isfinite(jnp.max(values)) & (then > now + tie_tolerance(problem, now))
        return jnp.where(better, moved, members), better

    going = jnp.ones((), bool)
    return jax.lax.while_loop(lambda carry: carry[1], step, (start, going))[0]


def local_search(problem: CacheProblem) -> Array:
    """Best swaps, additions and removals that fit, until none improves.

    From both of greedy's sets and from the present one; a move must grow `G` by more than
    `1e-6 |G|`.

    Args:
      problem: the cache problem, with a room.

    Returns:
      `[N]` bool set, at least as good as its starts; the first of equal ends wins.
    """
    starts = jnp.concatenate([_starts(problem), problem.resident[None, :]])
    ends = jax.lax.map(functools.partial(_improved, problem), starts)
    values = jax.lax.map(functools.partial(objective, problem), ends)
    return ends[jnp.argmax(values)]
