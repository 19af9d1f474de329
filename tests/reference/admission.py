"""Admission on a miss: LRU, LFU, GDSF and the residency value of POLAR-A (sections 5, 6).

The rules of the caching literature beside these are in `eviction`.

A rule is asked for the `victim` of a request and told with `settle` what was evicted, which in
a replay is what the engine evicted. `NO_VICTIM` means that the set stays as it is.
"""

from typing import Protocol

import numpy as np

from .data import Bools, Floats, Ints, ReferenceProblem, ReferenceSettings
from .ridge import Estimates

NO_VICTIM = -1


class AdmissionRule(Protocol):
    """State of one rule; `observe`, `victim`, `settle` once per request, in this order."""

    def observe(self, estimates: Estimates) -> None:
        """Looks at the request, before the set changes."""
        ...

    def victim(self, action: int, resident: Bools) -> int:
        """The resident that a miss of `action` replaces."""
        ...

    def explains(self, action: int, resident: Bools, evicted: int, tolerance: float) -> bool:
        """Whether evicting `evicted` is the rule, up to rounding."""
        ...

    def settle(self, t: int, action: int, hit: bool, evicted: int) -> None:
        """Books the use of `action` in round `t` and the eviction."""
        ...


def least_resident(priority: Floats | Ints, resident: Bools) -> int:
    """The resident with the least `priority` `[N]`, lowest index on ties."""
    members = np.flatnonzero(resident)
    return int(members[np.argmin(priority[members])]) if len(members) else NO_VICTIM


class LeastRecentlyUsed:
    """LRU: a miss always enters and replaces the least recently chosen."""

    def __init__(self, num_adapters: int) -> None:
        self.last_use = np.full(num_adapters, -1, np.int64)

    def observe(self, estimates: Estimates) -> None:
        """LRU does not look at estimates."""
        del estimates

    def victim(self, action: int, resident: Bools) -> int:
        """The resident whose last use is the oldest."""
        return NO_VICTIM if resident[action] else least_resident(self.last_use, resident)

    def explains(self, action: int, resident: Bools, evicted: int, tolerance: float) -> bool:
        """Times of use are integers: only the rule's own victim is right."""
        del tolerance
        return evicted == self.victim(action, resident)

    def settle(self, t: int, action: int, hit: bool, evicted: int) -> None:
        """A choice, hit or miss, is a use."""
        del hit, evicted
        self.last_use[action] = t


class LeastFrequentlyUsed:
    """LFU: a miss always enters and replaces the least often chosen."""

    def __init__(self, num_adapters: int) -> None:
        self.uses = np.zeros(num_adapters, np.int64)

    def observe(self, estimates: Estimates) -> None:
        """Takes the counts of choices before this request."""
        self.uses = estimates.pulls

    def victim(self, action: int, resident: Bools) -> int:
        """The resident with the fewest choices since the start."""
        return NO_VICTIM if resident[action] else least_resident(self.uses, resident)

    def explains(self, action: int, resident: Bools, evicted: int, tolerance: float) -> bool:
        """Counts are integers: only the rule's own victim is right."""
        del tolerance
        return evicted == self.victim(action, resident)

    def settle(self, t: int, action: int, hit: bool, evicted: int) -> None:
        """The router's own counts are used; nothing to keep."""
        del t, action, hit, evicted


class GreedyDualSizeFrequency:
    """GDSF: priority = clock + frequency * cost / size, refreshed at each use."""

    def __init__(self, paging_cost: Floats, size: Floats) -> None:
        self.worth = paging_cost / size
        self.frequency = np.zeros(len(paging_cost))
        self.priority = np.zeros(len(paging_cost))
        self.clock = 0.0

    def observe(self, estimates: Estimates) -> None:
        """GDSF does not look at estimates."""
        del estimates

    def victim(self, action: int, resident: Bools) -> int:
        """The resident with the least priority."""
        return NO_VICTIM if resident[action] else least_resident(self.priority, resident)

    def explains(self, action: int, resident: Bools, evicted: int, tolerance: float) -> bool:
        """Any resident whose priority ties with the least."""
        expected = self.victim(action, resident)
        if NO_VICTIM in (expected, evicted):
            return evicted == expected
        least = float(self.priority[expected])
        return bool(self.priority[evicted] <= least + tolerance * max(1.0, abs(least)))

    def settle(self, t: int, action: int, hit: bool, evicted: int) -> None:
        """Refreshes the priority of a hit, or enters the admitted adapter."""
        del t
        if hit:
            self.frequency[action] += 1
        elif evicted != NO_VICTIM:
            # The clock moves first: the newcomer is as young as its victim was old.
            self.clock = float(self.priority[evicted])
            self.frequency[action] = 1
        else:
            return
        self.priority[action] = self.clock + self.frequency[action] * self.worth[action]


class ResidencyValue:
    """POLAR-A: a decayed estimate of what having each adapter resident would save.

    Beside the value itself it keeps the range that the value may have in an engine whose
    rounding breaks near-ties of `argmax mean` the other way; `explains` judges by that range.
    """

    def __init__(self, paging_cost: Floats, half_life: float, tolerance: float = 0.0) -> None:
        self.paging_cost = paging_cost
        self.decay = 2.0 ** (-1.0 / half_life)
        self.tolerance = tolerance
        self.value = np.zeros(len(paging_cost))
        self.low = np.zeros(len(paging_cost))
        self.high = np.zeros(len(paging_cost))

    def observe(self, estimates: Estimates) -> None:
        """Credits the adapter that looks best with what its residence would save."""
        mean = estimates.mean
        best = int(np.argmax(mean))
        saving = max(0.0, float(mean[best] - np.max(mean - self.paging_cost)))
        for values in (self.value, self.low, self.high):
            values *= self.decay
        self.value[best] += saving
        # Exactly equal means belong to adapters never chosen: the lowest takes the credit.
        rivals = (mean >= mean[best] - self.tolerance) & (mean != mean[best])
        self.high[rivals] += saving
        self.high[best] += saving
        if not np.any(rivals):
            self.low[best] += saving

    def victim(self, action: int, resident: Bools) -> int:
        """The resident of least value, if `action` is worth as much."""
        out = NO_VICTIM if resident[action] else least_resident(self.value, resident)
        return out if out != NO_VICTIM and self.value[action] >= self.value[out] else NO_VICTIM

    def explains(self, action: int, resident: Bools, evicted: int, tolerance: float) -> bool:
        """Whether some values within the range make this eviction the rule."""
        if resident[action] or not np.any(resident):
            return evicted == NO_VICTIM
        # Each past request's saving may be off by the tolerance, and their errors add up.
        slack = tolerance / (1.0 - self.decay)
        least_high = float(np.min(self.high[resident]))
        if evicted == NO_VICTIM:
            return bool(self.low[action] < least_high + slack)
        admitted = self.high[action] >= self.low[evicted] - slack
        return bool(admitted and self.low[evicted] <= least_high + slack)

    def settle(self, t: int, action: int, hit: bool, evicted: int) -> None:
        """Values do not depend on the set; nothing to keep."""
        del t, action, hit, evicted


def new_rule(
    policy: str, problem: ReferenceProblem, settings: ReferenceSettings, tolerance: float = 0.0
) -> AdmissionRule | None:
    """The rule of an admission policy, None for others; `tolerance` matters to replays only."""
    if policy == "lru":
        return LeastRecentlyUsed(len(problem.paging_cost))
    if policy == "lfu":
        return LeastFrequentlyUsed(len(problem.paging_cost))
    if policy == "gdsf":
        return GreedyDualSizeFrequency(problem.paging_cost, problem.size)
    if policy == "polar_admit":
        return ResidencyValue(problem.paging_cost, settings.half_life, tolerance)
    return None
