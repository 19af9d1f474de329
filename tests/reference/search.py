"""The value of a resident set and the solvers that look for a good one (section 4)."""

import itertools
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from .data import Bools, Floats

IMPROVEMENT = 1e-6  # Relative growth of G below which two sets count as equally good.

Solver: TypeAlias = Callable[[Floats, Floats, Floats, Floats, Bools, int, float], Bools]


def weighted_mean(values: Floats, weight: Floats) -> float:
    """Mean of `values` `[M]` under `weight` `[M]`; 0 where nothing has weight."""
    total = float(np.sum(weight))
    return float(np.sum(weight * values)) / total if total > 0 else 0.0


def baseline(utility: Floats, paging_cost: Floats) -> Floats:
    """`b_x`: the best of each context with nothing resident.

    Args:
      utility: `[M, N]`.
      paging_cost: `[N]`.

    Returns:
      `[M]`.
    """
    return np.max(utility - paging_cost[None], axis=1)


def served_value(resident: Bools, utility: Floats, paging_cost: Floats) -> Floats:
    """`f_x(C)`: the value of each context under perfect routing.

    Args:
      resident: `[N]`.
      utility: `[M, N]`.
      paging_cost: `[N]`.

    Returns:
      `[M]`.
    """
    value = baseline(utility, paging_cost)
    for i in np.flatnonzero(resident):
        value = np.maximum(value, utility[:, i])
    return value


def load_cost(resident: Bools, resident_now: Bools, switch_cost: Floats) -> float:
    """Sum of `s_i` over the adapters that `resident` adds to `resident_now`."""
    return float(np.sum(switch_cost[resident & ~resident_now]))


def objective(
    resident: Bools,
    utility: Floats,
    weight: Floats,
    paging_cost: Floats,
    switch_cost: Floats,
    resident_now: Bools,
    rounds: float,
) -> float:
    """`G(C)`: value over the rounds to amortise, less the cost of loads.

    Args:
      resident: `[N]` the set `C`.
      utility: `[M, N]` predicted utilities of the sample.
      weight: `[M]` weights of the sampled contexts (0 for unused rows).
      paging_cost: `[N]`.
      switch_cost: `[N]`.
      resident_now: `[N]` the set now.
      rounds: the rounds to amortise over.

    Returns:
      `G(C)`.
    """
    value = weighted_mean(served_value(resident, utility, paging_cost), weight)
    return rounds * value - load_cost(resident, resident_now, switch_cost)


def marginal_gain(
    adapter: int, covered: Floats, utility: Floats, weight: Floats, rounds: float
) -> float:
    """What one more resident adapter adds to the value part of `G`.

    Args:
      adapter: the adapter to add.
      covered: `[M]` value of each context under the set so far.
      utility: `[M, N]`.
      weight: `[M]`.
      rounds: the rounds to amortise over.

    Returns:
      The gain, exactly 0 where the adapter is nowhere better.
    """
    return rounds * weighted_mean(np.maximum(utility[:, adapter] - covered, 0.0), weight)


def top_k(
    utility: Floats,
    weight: Floats,
    paging_cost: Floats,
    switch_cost: Floats,
    resident_now: Bools,
    cache_slots: int,
    rounds: float,
) -> Bools:
    """The adapters with the largest gains on their own; overlap is ignored.

    A non-resident whose gain does not pay for its load is left out, as in `greedy`.
    """
    num_adapters = utility.shape[1]
    alone = baseline(utility, paging_cost)
    score = np.full(num_adapters, -np.inf)
    for i in range(num_adapters):
        gain = marginal_gain(i, alone, utility, weight, rounds)
        net = gain if resident_now[i] else gain - switch_cost[i]
        if resident_now[i] or net > 0:
            score[i] = net
    chosen = np.zeros(num_adapters, bool)
    for i in np.argsort(-score, kind="stable")[:cache_slots]:
        chosen[i] = score[i] > -np.inf
    return chosen


def greedy(
    utility: Floats,
    weight: Floats,
    paging_cost: Floats,
    switch_cost: Floats,
    resident_now: Bools,
    cache_slots: int,
    rounds: float,
) -> Bools:
    """Largest net marginal gain first; never below the set now. Ties to the lowest index."""
    num_adapters = utility.shape[1]
    chosen = np.zeros(num_adapters, bool)
    for _ in range(cache_slots):
        covered = served_value(chosen, utility, paging_cost)
        best, best_score = -1, -np.inf
        for i in range(num_adapters):
            if chosen[i]:
                continue
            score = marginal_gain(i, covered, utility, weight, rounds)
            if not resident_now[i]:
                score -= switch_cost[i]
                if score <= 0:
                    continue
            if score > best_score:
                best, best_score = i, score
        if best < 0:
            break
        chosen[best] = True
    terms = (utility, weight, paging_cost, switch_cost, resident_now, rounds)
    if objective(chosen, *terms) < objective(resident_now, *terms):
        return resident_now.copy()
    return chosen


def distorted_greedy(
    utility: Floats,
    weight: Floats,
    paging_cost: Floats,
    switch_cost: Floats,
    resident_now: Bools,
    cache_slots: int,
    rounds: float,
) -> Bools:
    """Distorted greedy of Harshaw et al. (2019): early gains count for less."""
    num_adapters = utility.shape[1]
    chosen = np.zeros(num_adapters, bool)
    for step in range(1, cache_slots + 1):
        distortion = (1.0 - 1.0 / cache_slots) ** (cache_slots - step)
        covered = served_value(chosen, utility, paging_cost)
        best, best_score = -1, 0.0
        for i in range(num_adapters):
            if chosen[i]:
                continue
            price = 0.0 if resident_now[i] else switch_cost[i]
            score = distortion * marginal_gain(i, covered, utility, weight, rounds) - price
            if score > best_score:
                best, best_score = i, score
        if best >= 0:
            chosen[best] = True
    return chosen


def swaps(resident: Bools) -> Iterator[Bools]:
    """All exchanges of one member for one non-member: lowest out first, then lowest in."""
    for out in np.flatnonzero(resident):
        for into in np.flatnonzero(~resident):
            swapped = resident.copy()
            swapped[out], swapped[into] = False, True
            yield swapped


def climb(resident: Bools, score: Callable[[Bools], float]) -> Bools:
    """Takes the best swap of `resident` `[N]` until none improves `score` enough."""
    current, current_score = resident.copy(), score(resident)
    while True:
        best, best_score = current, -np.inf
        for candidate in swaps(current):
            candidate_score = score(candidate)
            if candidate_score > best_score:
                best, best_score = candidate, candidate_score
        if best_score - current_score <= IMPROVEMENT * abs(current_score):
            return current
        current, current_score = best, best_score


def local_search(
    utility: Floats,
    weight: Floats,
    paging_cost: Floats,
    switch_cost: Floats,
    resident_now: Bools,
    cache_slots: int,
    rounds: float,
) -> Bools:
    """Best swaps from the greedy set and from the set now; the better end, greedy's on a tie."""

    def score(resident: Bools) -> float:
        return objective(resident, utility, weight, paging_cost, switch_cost, resident_now, rounds)

    start = greedy(utility, weight, paging_cost, switch_cost, resident_now, cache_slots, rounds)
    from_greedy = climb(start, score)
    from_now = climb(resident_now, score)
    return from_now if score(from_now) > score(from_greedy) else from_greedy


def exact(
    utility: Floats,
    weight: Floats,
    paging_cost: Floats,
    switch_cost: Floats,
    resident_now: Bools,
    cache_slots: int,
    rounds: float,
) -> Bools:
    """The best of all sets of `cache_slots` adapters.

    Smaller sets are not listed: while the set now is full, members of it fill free slots for
    nothing. Among sets that are equally good the fewest loads win, then the first in order.
    """
    num_adapters = utility.shape[1]
    candidates = []
    scores = []
    for members in itertools.combinations(range(num_adapters), cache_slots):
        resident = np.zeros(num_adapters, bool)
        resident[list(members)] = True
        candidates.append(resident)
        scores.append(
            objective(resident, utility, weight, paging_cost, switch_cost, resident_now, rounds)
        )
    best_score = max(scores)
    chosen, fewest = candidates[0], num_adapters + 1
    for resident, score in zip(candidates, scores, strict=True):
        loads = int(np.sum(resident & ~resident_now))
        if score >= best_score - IMPROVEMENT * abs(best_score) and loads < fewest:
            chosen, fewest = resident, loads
    return chosen


SOLVERS: dict[str, Solver] = {
    "top_k": top_k,
    "greedy": greedy,
    "distorted_greedy": distorted_greedy,
    "local_search": local_search,
    "exact": exact,
}
