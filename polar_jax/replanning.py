"""Replanning at epoch boundaries: what POLAR and POLAR+ optimise, and by which search."""

import functools
from collections.abc import Callable

from jax import Array

from polar_jax import cache_search, cache_value
from polar_jax.types import ReplanInputs

# Subsets up to which a controller enumerates them all.
EXACT_CONTROLLER_SUBSETS = 2_000

SEARCHES: dict[str, Callable[[cache_value.CacheProblem], Array]] = {
    "top_k": cache_search.top_k,
    "greedy": cache_search.greedy,
    "distorted_greedy": cache_search.distorted_greedy,
    "local_search": cache_search.local_search,
}


def _replan(
    inputs: ReplanInputs, *, search: Callable[[cache_value.CacheProblem], Array], optimistic: bool
) -> Array:
    problem = cache_value.cache_problem(
        inputs.optimistic if optimistic else inputs.mean,
        inputs.paging_cost,
        inputs.switch_cost,
        inputs.resident,
        inputs.cache_slots,
        weight=inputs.weight,
        rounds=inputs.amortised_rounds,
    )
    return search(problem)


@functools.cache
def replanner(
    search: str, *, optimistic: bool, num_adapters: int, cache_slots: int
) -> Callable[[ReplanInputs], Array]:
    """A replanning rule; equal arguments give the same function object.

    Args:
      search: a key of `SEARCHES`, or "exact", which falls back to "local_search" above
        2,000 subsets.
      optimistic: plan on `mean + beta * width` (POLAR) or on means (POLAR+).
      num_adapters: `N`.
      cache_slots: `K`; read by "exact" alone.

    Returns:
      `[N]` bool set from `ReplanInputs`.

    Raises:
      ValueError: for an unknown search.
    """
    if search == "exact":
        subsets = cache_search.num_subsets(num_adapters, cache_slots)
        if subsets <= EXACT_CONTROLLER_SUBSETS:
            # The engine's sets are always full, so smaller sets cannot win.
            found = functools.partial(cache_search.exact, cache_slots=cache_slots)
            return functools.partial(_replan, search=found, optimistic=optimistic)
        search = "local_search"
    if search not in SEARCHES:
        raise ValueError(f"search must be one of {['exact', *SEARCHES]}, got {search!r}.")
    return functools.partial(_replan, search=SEARCHES[search], optimistic=optimistic)
