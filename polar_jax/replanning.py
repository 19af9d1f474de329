"""Replanning at epoch boundaries: what POLAR and POLAR+ optimise, and by which search."""

import functools
from collections.abc import Callable

from jax import Array

from polar_jax import cache_search, cache_value, capacity, checks
from polar_jax.types import ReplanInputs

# Subsets up to which a controller enumerates them all.
EXACT_CONTROLLER_SUBSETS = 2_000

_Search = Callable[[cache_value.CacheProblem, cache_search.SubsetTable], Array]


def _ignoring_subsets(search: Callable[[cache_value.CacheProblem], Array]) -> _Search:
    return lambda problem, _: search(problem)


SEARCHES: dict[str, _Search] = {
    "top_k": _ignoring_subsets(cache_search.top_k),
    "greedy": _ignoring_subsets(cache_search.greedy),
    "distorted_greedy": _ignoring_subsets(cache_search.distorted_greedy),
    "local_search": _ignoring_subsets(cache_search.local_search),
    # The engine's sets are always full, so smaller sets cannot win.
    "exact": cache_search.exact_or_local,
}


def _replan(inputs: ReplanInputs, *, search: _Search, optimistic: bool) -> Array:
    problem = cache_value.cache_problem(
        inputs.optimistic if optimistic else inputs.mean,
        inputs.paging_cost,
        inputs.switch_cost,
        inputs.resident,
        inputs.cache_slots,
        weight=inputs.weight,
        rounds=inputs.amortised_rounds,
        active=inputs.active,
        room=inputs.room,
    )
    return search(problem, inputs.subsets)


def controller_subsets(
    num_adapters: int, cache_slots: int, padded_adapters: int
) -> cache_search.SubsetTable:
    """The subsets that "exact" tries: all, or none above 2,000, where it searches locally."""
    return cache_search.subset_table(
        num_adapters,
        cache_slots,
        limit=EXACT_CONTROLLER_SUBSETS,
        padded_adapters=padded_adapters,
    )


def controller_fitting_sets(
    held: capacity.Memory, padded_adapters: int
) -> cache_search.SubsetTable:
    """`controller_subsets` where adapters differ in size: all that fit, or none above 2,000."""
    return cache_search.fitting_table(
        held, limit=EXACT_CONTROLLER_SUBSETS, padded_adapters=padded_adapters, maximal=False
    )


@functools.cache
def replanner(search: str, *, optimistic: bool) -> Callable[[ReplanInputs], Array]:
    """A replanning rule; equal arguments give the same function object.

    Args:
      search: a key of `SEARCHES`; "exact" is "local_search" above 2,000 subsets.
      optimistic: plan on `mean + beta * width` (POLAR) or on means (POLAR+).

    Returns:
      `[N]` bool set from `ReplanInputs`.

    Raises:
      ValueError: for an unknown search.
    """
    checks.one_of("search", search, SEARCHES)
    return functools.partial(_replan, search=SEARCHES[search], optimistic=optimistic)
