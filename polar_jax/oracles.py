"""The static oracle `C*`: the best resident set for the whole horizon."""

import jax.numpy as jnp
from jax import Array

from polar_jax import cache_search, cache_value

# Subsets up to which the oracle enumerates them all.
EXACT_ORACLE_SUBSETS = 5_000
# Contexts that the oracle's value is estimated on.
ORACLE_CONTEXTS = 4_096


def oracle_is_exact(num_adapters: int, cache_slots: int) -> bool:
    """Whether `static_oracle` enumerates every subset, so that `C*` is the best one."""
    return cache_search.num_subsets(num_adapters, cache_slots) <= EXACT_ORACLE_SUBSETS


def oracle_subsets(
    num_adapters: int, cache_slots: int, padded_adapters: int
) -> cache_search.SubsetTable:
    """The subsets that the oracle tries: all, or none above 5,000."""
    return cache_search.subset_table(
        num_adapters, cache_slots, limit=EXACT_ORACLE_SUBSETS, padded_adapters=padded_adapters
    )


def static_oracle(utility: Array, paging_cost: Array, weight: Array, *, cache_slots: int) -> Array:
    """`C* = argmax_{|C| <= K} mean_x f_x(C)`, exact up to 5,000 subsets.

    Above that, greedy and swap local search: regret against it is then a lower bound.

    Args:
      utility: `[m, N]` expected utilities on a sample of contexts.
      paging_cost: `[N]`.
      weight: `[m]` weight of each context, at least 0.
      cache_slots: `K`, static.

    Returns:
      `[N]` bool set.
    """
    table = oracle_subsets(paging_cost.shape[0], cache_slots, paging_cost.shape[0])
    active = jnp.ones(paging_cost.shape, bool)
    return oracle_of(utility, paging_cost, weight, active, jnp.int32(cache_slots), table)


def oracle_of(
    utility: Array,
    paging_cost: Array,
    weight: Array,
    active: Array,
    cache_slots: Array,
    table: cache_search.SubsetTable,
) -> Array:
    """`static_oracle` where the number of slots and the subsets are data.

    Args:
      utility: `[m, N]`, `-inf` for adapters that only fill up a shape.
      paging_cost: `[N]`.
      weight: `[m]`.
      active: `[N]` bool, False for such adapters.
      cache_slots: `[]` int32, `K`.
      table: its subsets, listed up to 5,000.

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
    )
    return cache_search.exact_or_local(problem, table)
