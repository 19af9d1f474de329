"""The best static set, the parts of the regret, and the counters (sections 1 and 2)."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import search
from .data import Bools, Floats, ReferenceLane, ReferenceProblem, ReferenceRounds

EXACT_SUBSETS = 5000  # More sets than this are searched greedily and by swaps.


def best_static_set(utility: Floats, paging_cost: Floats, cache_slots: int) -> tuple[Bools, bool]:
    """`C*`: the set that is best for good, under perfect routing.

    Args:
      utility: `[M, N]` expected utilities.
      paging_cost: `[N]`.
      cache_slots: `K`.

    Returns:
      `([N] the set, whether it is exact)`.
    """
    num_adapters = utility.shape[1]
    is_exact = math.comb(num_adapters, cache_slots) <= EXACT_SUBSETS
    solver = search.exact if is_exact else search.local_search
    nothing = np.zeros(num_adapters, bool)
    free = np.zeros(num_adapters)
    weight = np.ones(len(utility))
    chosen = solver(utility, weight, paging_cost, free, nothing, cache_slots, 1.0)
    return chosen, is_exact


def lane_metrics(
    lane: ReferenceLane, rounds: ReferenceRounds, problem: ReferenceProblem, oracle_set: Bools
) -> dict[str, NDArray[Any]]:
    """Per-round metrics of a lane.

    Args:
      lane: what a policy did.
      rounds: the stream it did it on.
      problem: costs.
      oracle_set: `[N]` the best static set.

    Returns:
      Arrays `[T]`: `regret` and its parts `routing` (of which `forced`), `caching`,
      `switching`; `loss_to_full`, `net_utility`, `hit`, `paging_ms`, `switching_ms`, `loads`.
    """
    horizon = len(lane.actions)
    cost = problem.paging_cost
    oracle_value = search.served_value(oracle_set, rounds.utility, cost)
    names = ("routing", "forced", "caching", "loss_to_full", "net_utility", "paging_ms")
    parts = {name: np.zeros(horizon) for name in names}
    hit = np.zeros(horizon, bool)
    for t in range(horizon):
        action = int(lane.actions[t])
        utility = rounds.utility[t]
        hit[t] = lane.resident[t, action]
        served = utility[action] - (0.0 if hit[t] else cost[action])
        possible = search.served_value(lane.resident[t], utility[None], cost)[0]
        parts["net_utility"][t] = served - lane.switching[t]
        parts["routing"][t] = possible - served
        parts["forced"][t] = possible - served if lane.forced[t] else 0.0
        parts["caching"][t] = oracle_value[t] - possible
        parts["loss_to_full"][t] = np.max(utility) - parts["net_utility"][t]
        parts["paging_ms"][t] = 0.0 if hit[t] else problem.paging_ms[action]
    return parts | {
        "regret": oracle_value - parts["net_utility"],
        "switching": lane.switching.copy(),
        "hit": hit,
        "switching_ms": lane.switching_ms.copy(),
        "loads": lane.loads.copy(),
    }
