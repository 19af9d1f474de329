"""The facility-location value of a resident set, and what a search may need of it.

`f_x(C) = max(b_x, max_{i in C} u_i(x))` with `b_x = max_i (u_i(x) - c_i)`; savings are
`f_x(C) - b_x`. See `docs/model.md`, "Benchmarks" and "Cache optimisation".
"""

import flax.struct
import jax.numpy as jnp
from jax import Array

from polar_jax.linalg import HIGHEST
from polar_jax.types import Room


class CacheProblem(flax.struct.PyTreeNode):
    """One cache optimisation: `m` sampled contexts, `N` adapters.

    The objective of a set is `sum_x weight_x max_{i in C} saving_{x,i}` less the load
    cost of its members: section 4's `G` up to a constant that no set can change.
    """

    saving: Array  # [m, N], max(0, utility - base): what residency saves on a context
    weight: Array  # [m], rounds that each context stands for
    load_cost: Array  # [N], cost of loading an adapter, 0 for those resident now
    resident: Array  # [N] bool, the set now
    cache_slots: Array  # [] int32
    floor: Array  # [], G of the empty set, in the same units as the objective
    room: Room | None = None  # what limits the set where sizes differ, in place of the slots


def base_value(utility: Array, paging_cost: Array) -> Array:
    """`b_x`, the value of each context with nothing resident.

    Args:
      utility: `[..., N]`.
      paging_cost: `[N]`.

    Returns:
      `[...]`.
    """
    return jnp.max(utility - jnp.broadcast_to(paging_cost, utility.shape), axis=-1)


def set_value(utility: Array, paging_cost: Array, resident: Array) -> Array:
    """`f_x(C)`: the value of each context under perfect routing.

    Args:
      utility: `[..., N]`.
      paging_cost: `[N]`.
      resident: `[..., N]` or `[N]` bool.

    Returns:
      `[...]`.
    """
    cost = jnp.broadcast_to(paging_cost, utility.shape)
    members = jnp.broadcast_to(resident, utility.shape)
    return jnp.max(jnp.where(members, utility, utility - cost), axis=-1)


def cache_problem(
    utility: Array,
    paging_cost: Array,
    switch_cost: Array,
    resident: Array,
    cache_slots: Array,
    *,
    weight: Array,
    rounds: Array,
    active: Array | None = None,
    room: Room | None = None,
) -> CacheProblem:
    """States the choice of a resident set as a `CacheProblem`.

    Args:
      utility: `[m, N]` (estimated) utilities on a sample of contexts.
      paging_cost: `[N]`.
      switch_cost: `[N]` cost of a load; zeros leave the switching term out.
      resident: `[N]` bool, the set now.
      cache_slots: `[]` int32 `K`, in `[0, N]`.
      weight: `[m]` weights of the contexts, at least 0; they are normalised.
      rounds: `[]` rounds over which the loads are amortised.
      active: `[N]` bool, False for adapters that only fill up a shape and may not be chosen
        (their utilities are `-inf`); all may where None.
      room: sizes and capacity where adapters differ in size (`capacity.room`); `cache_slots` is
        then how many fit at once at most, and `resident` must fit.

    Returns:
      The problem, whose objective is in units of utility over `rounds` rounds.
    """
    base = base_value(utility, paging_cost)
    total = jnp.maximum(jnp.sum(weight), 1.0)
    scaled = weight * (rounds / total)
    load_cost = jnp.where(resident, jnp.zeros_like(switch_cost), switch_cost)
    if active is not None:
        load_cost = jnp.where(active, load_cost, jnp.inf)
    return CacheProblem(
        saving=jnp.maximum(utility - base[:, None], 0.0),
        weight=scaled,
        load_cost=load_cost,
        resident=resident,
        cache_slots=jnp.asarray(cache_slots, jnp.int32),
        floor=jnp.dot(base, scaled, precision=HIGHEST),
        room=room,
    )


def covered(problem: CacheProblem, members: Array) -> Array:
    """`[m]` saving of every context with the set `members` `[N]` bool resident."""
    return jnp.max(jnp.where(members[None, :], problem.saving, 0.0), axis=1)


def objective(problem: CacheProblem, members: Array) -> Array:
    """`[]` objective of the set `members` `[N]` bool: savings less load costs."""
    gained = jnp.dot(covered(problem, members), problem.weight, precision=HIGHEST)
    return gained - jnp.sum(jnp.where(members, problem.load_cost, 0.0))


def tie_tolerance(problem: CacheProblem, value: Array) -> Array:
    """`[]` objective difference below which two sets count as equal: `1e-6 |G|`."""
    return 1e-6 * jnp.abs(value + problem.floor)


def marginal_gains(problem: CacheProblem, cover: Array) -> Array:
    """`[N]` savings that each adapter adds to contexts covered by `cover` `[m]`."""
    beyond = jnp.maximum(problem.saving - cover[:, None], 0.0)
    return jnp.einsum("m,mn->n", problem.weight, beyond, precision=HIGHEST)


def swap_values(problem: CacheProblem, members: Array) -> Array:
    """`[N, N]` objective after removing the row's adapter and adding the column's.

    `-inf` where the row's is no member of `members` `[N]` bool, or the column's is one.

    Removing an adapter changes only the contexts that it leads, so all pairs come from
    one matrix product (Schubert and Rousseeuw 2021, for k-medoids).
    """
    adapters = jnp.arange(members.shape[0])
    inside = jnp.where(members[None, :], problem.saving, 0.0)
    top, leader = jnp.max(inside, axis=1), jnp.argmax(inside, axis=1)
    leads = leader[:, None] == adapters[None, :]
    second = jnp.max(jnp.where(leads, 0.0, inside), axis=1)
    with_leader = jnp.maximum(problem.saving, top[:, None])
    without = jnp.maximum(problem.saving, second[:, None])
    lost = problem.weight[:, None] * (without - with_leader)
    kept = jnp.einsum("m,mn->n", problem.weight, with_leader, precision=HIGHEST)
    change = jnp.einsum("mo,mi->oi", leads.astype(lost.dtype), lost, precision=HIGHEST)
    loads = jnp.sum(jnp.where(members, problem.load_cost, 0.0))
    paid = loads - problem.load_cost[:, None] + problem.load_cost[None, :]
    valid = members[:, None] & ~members[None, :]
    return jnp.where(valid, kept[None, :] + change - paid, -jnp.inf)
