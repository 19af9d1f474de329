"""The static oracle `C*`: the best resident set for the whole horizon."""

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import cache_search, cache_value, capacity
from polar_jax.types import Room

# Subsets up to which the oracle enumerates them all.
EXACT_ORACLE_SUBSETS = 5_000
# Contexts that the oracle's value is estimated on.
ORACLE_CONTEXTS = 4_096


def oracle_is_exact(
    num_adapters: int, cache_slots: int, memory: capacity.Memory | None = None
) -> bool:
    """Whether `static_oracle` enumerates every subset, so that `C*` is the best one."""
    if memory is not None:
        return bool(oracle_fitting_sets(memory, num_adapters).complete)
    return cache_search.num_subsets(num_adapters, cache_slots) <= EXACT_ORACLE_SUBSETS


def oracle_subsets(
    num_adapters: int, cache_slots: int, padded_adapters: int
) -> cache_search.SubsetTable:
    """The subsets that the oracle tries: all, or none above 5,000."""
    return cache_search.subset_table(
        num_adapters, cache_slots, limit=EXACT_ORACLE_SUBSETS, padded_adapters=padded_adapters
    )


def oracle_fitting_sets(held: capacity.Memory, padded_adapters: int) -> cache_search.SubsetTable:
    """`oracle_subsets` where adapters differ in size: sets to which nothing can be added."""
    return cache_search.fitting_table(
        held, limit=EXACT_ORACLE_SUBSETS, padded_adapters=padded_adapters, maximal=True
    )


def static_oracle(
    utility: Array,
    paging_cost: Array,
    weight: Array,
    *,
    cache_slots: int | None = None,
    memory: capacity.Memory | None = None,
) -> Array:
    """`C* = argmax_{|C| <= K} mean_x f_x(C)`, exact up to 5,000 subsets.

    Above that, greedy and swap local search: regret against it is then a lower bound.

    Args:
      utility: `[m, N]` expected utilities on a sample of contexts.
      paging_cost: `[N]`.
      weight: `[m]` weight of each context, at least 0.
      cache_slots: `K`, static.
      memory: sizes and capacity in place of `cache_slots`, static.

    Returns:
      `[N]` bool set.

    Raises:
      ValueError: for anything but exactly one of `cache_slots` and `memory`.
    """
    num_adapters = paging_cost.shape[0]
    active = jnp.ones(paging_cost.shape, bool)
    if cache_slots is not None and memory is None:
        table, slots, room = (
            oracle_subsets(num_adapters, cache_slots, num_adapters),
            cache_slots,
            None,
        )
    elif memory is not None and cache_slots is None:
        table, slots = oracle_fitting_sets(memory, num_adapters), capacity.most_at_once(memory)
        room = jax.tree.map(jnp.asarray, capacity.room(memory, num_adapters, utility.dtype))
    else:
        raise ValueError(f"give one of cache_slots and memory, got {cache_slots} and {memory}.")
    return oracle_of(utility, paging_cost, weight, active, jnp.int32(slots), table, room)


def oracle_of(
    utility: Array,
    paging_cost: Array,
    weight: Array,
    active: Array,
    cache_slots: Array,
    table: cache_search.SubsetTable,
    room: Room | None = None,
) -> Array:
    """`static_oracle` where the number of slots and the subsets are data.

    Args:
      utility: `[m, N]`, `-inf` for adapters that only fill up a shape.
      paging_cost: `[N]`.
      weight: `[m]`.
      active: `[N]` bool, False for such adapters.
      cache_slots: `[]` int32, `K`.
      table: its subsets, listed up to 5,000.
      room: what limits the set where sizes differ.

    Returns:
      `[N]` bool set.
    """
    problem = cache_value.cache_problem(
        utility,
        paging_cost,
        jnp.zeros_like(paging_cost),
        jnp.zeros(paging_cost.shape, bool),
        cache_slots,
        weight=weight,
        rounds=jnp.ones((), utility.dtype),
        active=active,
        room=room,
    )
    return cache_search.exact_or_local(problem, table)
