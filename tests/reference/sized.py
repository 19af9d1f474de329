"""Adapters of different size: what fits, the searches by density, eviction until it fits.

Bytes are Python's whole numbers, sets are looked at one by one: nothing is rounded.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .data import Bools, Floats, ReferenceProblem
from .epochs import Replan
from .search import IMPROVEMENT, baseline, marginal_gain, objective, served_value

MOST_REPLANNED, MOST_STATIC = 2000, 5000  # Sets that `exact` lists at most: replans, C*.


@dataclass(frozen=True)
class Bytes:
    """Sizes and a capacity."""

    size: tuple[int, ...]
    capacity: int

    def used(self, resident: Bools) -> int:
        """Bytes of a set `[N]`."""
        return sum(self.size[i] for i in np.flatnonzero(resident))

    def fits(self, resident: Bools) -> bool:
        """Whether a set `[N]` is within the capacity."""
        return self.used(resident) <= self.capacity

    def relative(self, adapter: int) -> float:
        """An adapter's size over the smallest."""
        return self.size[adapter] / min(self.size)


def bytes_of(problem: ReferenceProblem) -> Bytes:
    """The sizes of a problem that has some."""
    if problem.capacity_bytes is None:
        raise ValueError("the problem must have a capacity, got slots.")
    return Bytes(problem.size_bytes, problem.capacity_bytes)


def first_set(held: Bytes) -> Bools:
    """`C_1`: the adapters in order, each that still fits."""
    resident = np.zeros(len(held.size), bool)
    for i in range(len(held.size)):
        resident[i] = True
        resident[i] = held.fits(resident)
    return resident


def all_sets(held: Bytes) -> Iterator[Bools]:
    """Every set that fits: most members first, then in lexicographic order."""
    num_adapters = len(held.size)
    for count in range(num_adapters, -1, -1):
        for members in itertools.combinations(range(num_adapters), count):
            resident = np.zeros(num_adapters, bool)
            resident[list(members)] = True
            if held.fits(resident):
                yield resident


def is_maximal(resident: Bools, held: Bytes) -> bool:
    """Whether nothing fits beside a set."""
    left = held.capacity - held.used(resident)
    return all(held.size[i] > left for i in np.flatnonzero(~resident))


def set_with(resident: Bools, adapter: int) -> Bools:
    """A set with one more adapter."""
    larger = resident.copy()
    larger[adapter] = True
    return larger


def value_of(plan: Replan, resident: Bools) -> float:
    """`G` of a set."""
    terms = plan.utility, plan.weight, plan.paging_cost, plan.switch_cost, plan.resident_now
    return objective(resident, *terms, plan.rounds)


def net_gain(plan: Replan, adapter: int, covered: Floats) -> float:
    """What one more adapter adds to `G`."""
    gain = marginal_gain(adapter, covered, plan.utility, plan.weight, plan.rounds)
    return gain - (0.0 if plan.resident_now[adapter] else float(plan.switch_cost[adapter]))


def grown(plan: Replan, held: Bytes, start: Bools) -> Bools:
    """Adds what gains most per size and fits, until nothing does."""
    chosen = start.copy()
    while True:
        covered = served_value(chosen, plan.utility, plan.paging_cost)
        best, best_density = -1, -np.inf
        for i in np.flatnonzero(~chosen):
            gain = net_gain(plan, int(i), covered)
            if not held.fits(set_with(chosen, int(i))) or (gain <= 0 and not plan.resident_now[i]):
                continue
            if gain / held.relative(int(i)) > best_density:
                best, best_density = int(i), gain / held.relative(int(i))
        if best < 0:
            return chosen
        chosen[best] = True


def starts(plan: Replan, held: Bytes) -> list[Bools]:
    """Grown from nothing, and grown from the adapter that is best alone."""
    nothing = np.zeros(len(held.size), bool)
    covered = baseline(plan.utility, plan.paging_cost)
    best, best_gain = -1, -np.inf
    for i in range(len(held.size)):
        gain = net_gain(plan, i, covered)
        useful = gain > 0 or plan.resident_now[i]
        if held.size[i] <= held.capacity and useful and gain > best_gain:
            best, best_gain = i, gain
    alone = nothing if best < 0 else set_with(nothing, best)
    return [grown(plan, held, nothing), grown(plan, held, alone)]


def first_best(plan: Replan, sets: Sequence[Bools]) -> Bools:
    """The best of some sets, the first of equal ones."""
    return sets[int(np.argmax([value_of(plan, one) for one in sets]))]


def greedy(plan: Replan, held: Bytes) -> Bools:
    """Density greedy or the best adapter alone, grown; never below the set now."""
    found = first_best(plan, starts(plan, held))
    worse = value_of(plan, found) < value_of(plan, plan.resident_now)
    return plan.resident_now.copy() if worse else found


def top_k(plan: Replan, held: Bytes) -> Bools:
    """Gains alone per size, in order, each that still fits."""
    covered = baseline(plan.utility, plan.paging_cost)
    density = [net_gain(plan, i, covered) / held.relative(i) for i in range(len(held.size))]
    chosen = np.zeros(len(held.size), bool)
    for i in np.argsort(-np.array(density), kind="stable"):
        chosen[i] = True
        chosen[i] = held.fits(chosen)
    return chosen


def moves(resident: Bools, held: Bytes) -> Iterator[Bools]:
    """Sets one move away that fit: exchanges, then additions, then removals."""
    inside, outside = np.flatnonzero(resident), np.flatnonzero(~resident)
    changes = [
        *((out, into) for out in inside for into in outside),
        *((None, into) for into in outside),
        *((out, None) for out in inside),
    ]
    for out, into in changes:
        moved = resident.copy()
        if out is not None:
            moved[out] = False
        if into is not None:
            moved[into] = True
        if held.fits(moved):
            yield moved


def climbed(plan: Replan, held: Bytes, start: Bools) -> Bools:
    """Takes the best move until none improves `G` enough."""
    current = start.copy()
    while True:
        around = list(moves(current, held))
        if not around:
            return current
        best, now = first_best(plan, around), value_of(plan, current)
        if value_of(plan, best) - now <= IMPROVEMENT * abs(now):
            return current
        current = best


def local_search(plan: Replan, held: Bytes) -> Bools:
    """The best end of the climbs from greedy's sets and from the set now."""
    begun = [*starts(plan, held), plan.resident_now]
    return first_best(plan, [climbed(plan, held, one) for one in begun])


def best_of(plan: Replan, sets: Sequence[Bools]) -> Bools:
    """The best of listed sets; among equal ones the fewest loads, then the first."""
    scores = np.array([value_of(plan, one) for one in sets])
    tied = np.flatnonzero(scores >= np.max(scores) - IMPROVEMENT * abs(np.max(scores)))
    loads = [int(np.sum(sets[i] & ~plan.resident_now)) for i in tied]
    return sets[int(tied[int(np.argmin(loads))])]


def exact(plan: Replan, held: Bytes) -> Bools:
    """The best of all sets that fit; a local search where there are too many."""
    listed = list(all_sets(held))
    return local_search(plan, held) if len(listed) > MOST_REPLANNED else best_of(plan, listed)


SOLVERS: dict[str, Callable[[Replan, Bytes], Bools]] = {
    "top_k": top_k,
    "greedy": greedy,
    "local_search": local_search,
    "exact": exact,
}


def best_static_set(utility: Floats, paging_cost: Floats, held: Bytes) -> tuple[Bools, bool]:
    """`C*` of `[M, N]` utilities, and whether every set was looked at."""
    nothing, free = np.zeros(len(held.size), bool), np.zeros(len(held.size))
    weight = np.ones(len(utility))
    plan = Replan(utility, weight, paging_cost, free, nothing, 1.0, lambda *_: nothing)
    full = [one for one in all_sets(held) if is_maximal(one, held)]
    if len(full) > MOST_STATIC:
        return local_search(plan, held), False
    return best_of(plan, full), True


def victims(
    held: Bytes, resident: Bools, incoming: int, order: Floats, removable: Bools | None = None
) -> list[int] | None:
    """Who leaves so that `incoming` fits: the least `order` `[N]` first; None if it cannot."""
    left = resident.copy()
    may_go = resident if removable is None else removable
    gone: list[int] = []
    while not held.fits(set_with(left, incoming)):
        rest = [int(i) for i in np.flatnonzero(may_go & left)]
        if not rest:
            return None
        out = min(rest, key=lambda i: (order[i], i))
        left[out] = False
        gone.append(out)
    return gone
