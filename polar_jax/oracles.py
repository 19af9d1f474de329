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
    num_adapters = paging_cost.shape[0]
    problem = cache_value.cache_problem(
        utility,
        paging_cost,
        jnp.zeros_like(paging_cost),
        jnp.zeros((num_adapters,), bool),
        jnp.int32(cache_slots),
        weight=weight,
        rounds=jnp.ones((), utility.dtype),
    )
    if oracle_is_exact(num_adapters, cache_slots):
        return cache_search.exact(problem, cache_slots=cache_slots)
    return cache_search.local_search(problem)
