"""Landlord, ARC, LeCaR and FastLibra's rule, with lists, after the papers' pseudocode.

`settle` is told whom the engine evicted and moves the memory accordingly, so that a replay
follows the engine where rounding decides between two victims.
"""

import numpy as np

from . import admission
from .admission import NO_VICTIM, AdmissionRule, least_resident
from .data import Bools, Floats, ReferenceProblem, ReferenceRounds, ReferenceSettings
from .ridge import Estimates


class Landlord:
    """Credit `c_i` at every use; a miss charges rent until a resident cannot pay."""

    def __init__(self, paging_cost: Floats, resident: Bools) -> None:
        self.paging_cost = paging_cost
        self.credit = {int(i): 0.0 for i in np.flatnonzero(resident)}

    def observe(self, estimates: Estimates) -> None:
        """Landlord does not look at estimates."""
        del estimates

    def victim(self, action: int, resident: Bools) -> int:
        """The first of the residents with the least credit."""
        if resident[action] or not self.credit:
            return NO_VICTIM
        least = min(self.credit.values())
        return min(i for i, credit in self.credit.items() if credit == least)

    def explains(self, action: int, resident: Bools, evicted: int, tolerance: float) -> bool:
        """Any resident whose credit ties with the least."""
        expected = self.victim(action, resident)
        if NO_VICTIM in (expected, evicted):
            return evicted == expected
        return self.credit[evicted] <= self.credit[expected] + tolerance

    def settle(self, t: int, action: int, hit: bool, evicted: int) -> None:
        """Takes the rent, and gives the adapter in use its full credit."""
        del t
        if evicted != NO_VICTIM:
            rent = self.credit.pop(evicted)
            for i in self.credit:
                self.credit[i] = max(0.0, self.credit[i] - rent)
        if hit or evicted != NO_VICTIM:
            self.credit[action] = float(self.paging_cost[action])


class AdaptiveReplacement:
    """ARC(c) of Megiddo and Modha, figure 4; a list's least recently used end is its front."""

    def __init__(self, resident: Bools, cache_slots: int) -> None:
        self.c = cache_slots
        self.t1 = [int(i) for i in np.flatnonzero(resident)]
        self.t2: list[int] = []
        self.b1: list[int] = []
        self.b2: list[int] = []
        self.p = 0.0

    def observe(self, estimates: Estimates) -> None:
        """ARC does not look at estimates."""
        del estimates

    def adapted(self, x: int) -> float:
        """The target after a miss of `x`."""
        if x in self.b1:
            step = 1.0 if len(self.b1) >= len(self.b2) else len(self.b2) / len(self.b1)
            return min(float(self.c), self.p + step)
        if x in self.b2:
            step = 1.0 if len(self.b2) >= len(self.b1) else len(self.b1) / len(self.b2)
            return max(0.0, self.p - step)
        return self.p

    def replaced(self, x: int, p: float) -> int:
        """The page that REPLACE(x, p) demotes."""
        if self.t1 and ((x in self.b2 and len(self.t1) == p) or len(self.t1) > p):
            return self.t1[0]
        return self.t2[0]

    def only_in_t1(self, x: int) -> bool:
        """Case IV, A, second branch: `T1` fills the cache and its oldest page is forgotten."""
        return x not in self.b1 and x not in self.b2 and len(self.t1) == self.c

    def victim(self, action: int, resident: Bools) -> int:
        """Whom the miss of `action` demotes."""
        if resident[action] or not np.any(resident):
            return NO_VICTIM
        if self.only_in_t1(action):
            return self.t1[0]
        return self.replaced(action, self.adapted(action))

    def explains(self, action: int, resident: Bools, evicted: int, tolerance: float) -> bool:
        """The rule's own victim, or the other list's where `|T1|` is as good as `p`."""
        expected = self.victim(action, resident)
        if evicted == expected:
            return True
        if NO_VICTIM in (expected, evicted) or self.only_in_t1(action):
            return False
        tied = abs(len(self.t1) - self.adapted(action)) <= tolerance
        return tied and evicted in (*self.t1[:1], *self.t2[:1])

    def settle(self, t: int, action: int, hit: bool, evicted: int) -> None:
        """ARC(c) for the request `action`, with REPLACE having demoted `evicted`."""
        del t
        if hit:
            # In a replay of another policy's sets a resident may be in neither list.
            for held in (self.t1, self.t2):
                held[:] = [i for i in held if i != action]
            self.t2.append(action)
            return
        if evicted == NO_VICTIM:
            return
        self.p = self.adapted(action)
        remembered = not self.only_in_t1(action)
        into = self.t1
        if action in self.b1 or action in self.b2:
            (self.b1 if action in self.b1 else self.b2).remove(action)
            into = self.t2
        elif len(self.t1) + len(self.b1) == self.c:
            del self.b1[:1]
        elif len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2) == 2 * self.c:
            del self.b2[0]
        leaves, ghosts = (self.t1, self.b1) if evicted in self.t1 else (self.t2, self.b2)
        leaves.remove(evicted)
        if remembered:
            ghosts.append(evicted)
        into.append(action)


class LearningCache:
    """LeCaR: LRU and LFU evict by lot; a miss of what an expert evicted costs it weight."""

    def __init__(
        self, uniform: Floats, resident: Bools, cache_slots: int, settings: ReferenceSettings
    ) -> None:
        self.uniform, self.cache_slots, self.now = uniform, cache_slots, 0
        self.rate = settings.lecar_learning_rate
        self.discount = settings.lecar_discount ** (1.0 / max(1, cache_slots))
        self.used = {int(i): (-1, 0) for i in np.flatnonzero(resident)}  # last use, uses
        # Per expert, LRU and LFU: adapter -> (time of eviction, uses), oldest first.
        self.history: tuple[dict[int, tuple[int, int]], ...] = ({}, {})
        self.weight = [0.5, 0.5]

    def observe(self, estimates: Estimates) -> None:
        """LeCaR does not look at estimates."""
        del estimates

    def reweighted(self, action: int) -> list[float]:
        """The weights after a miss of `action`."""
        weight = list(self.weight)
        for expert in (0, 1):
            if action in self.history[expert]:
                age = self.now - self.history[expert][action][0]
                weight[expert] *= float(np.exp(-self.rate * self.discount**age))
        share = weight[0] / (weight[0] + weight[1])
        share = min(0.99, max(0.01, share))
        return [share, 1.0 - share]

    def candidates(self) -> tuple[int, int]:
        """Whom LRU and whom LFU would evict, lowest index on ties."""
        recency = min(self.used, key=lambda i: (self.used[i][0], i))
        frequency = min(self.used, key=lambda i: (self.used[i][1], i))
        return recency, frequency

    def victim(self, action: int, resident: Bools) -> int:
        """The victim of the expert on which the lot falls."""
        if resident[action] or not self.used:
            return NO_VICTIM
        recency, frequency = self.candidates()
        return recency if self.uniform[self.now] < self.reweighted(action)[0] else frequency

    def explains(self, action: int, resident: Bools, evicted: int, tolerance: float) -> bool:
        """The rule's own victim, or the other expert's where the lot is as good as tied."""
        expected = self.victim(action, resident)
        if evicted == expected or NO_VICTIM in (expected, evicted):
            return evicted == expected
        tied = abs(self.uniform[self.now] - self.reweighted(action)[0]) <= tolerance
        return bool(tied and evicted in self.candidates())

    def settle(self, t: int, action: int, hit: bool, evicted: int) -> None:
        """Moves weights, histories and uses."""
        uses = 0
        if hit:
            uses = self.used[action][1]
        elif evicted != NO_VICTIM:
            self.weight = self.reweighted(action)
            for history in self.history:
                uses += history.pop(action, (0, 0))[1]
            recency, frequency = self.candidates()
            if recency != frequency:
                history = self.history[0 if evicted == recency else 1]
                if len(history) == self.cache_slots:
                    del history[next(iter(history))]
                history[evicted] = (t, self.used[evicted][1])
            del self.used[evicted]
        if hit or evicted != NO_VICTIM:
            self.used[action] = (t, uses + 1)
        self.now = t + 1


class ProbableCost:
    """FastLibra's: evicts the least product of a decayed use probability and the cost."""

    def __init__(self, paging_cost: Floats, half_life: float) -> None:
        self.paging_cost = paging_cost
        self.decay = 2.0 ** (-1.0 / half_life)
        self.probability = np.zeros(len(paging_cost))

    def observe(self, estimates: Estimates) -> None:
        """A request has come: every probability decays, before anyone is evicted."""
        del estimates
        self.probability *= self.decay

    def victim(self, action: int, resident: Bools) -> int:
        """The resident whose absence would cost the least."""
        worth = self.probability * self.paging_cost
        return NO_VICTIM if resident[action] else least_resident(worth, resident)

    def explains(self, action: int, resident: Bools, evicted: int, tolerance: float) -> bool:
        """Any resident whose worth ties with the least, relative to its size."""
        expected = self.victim(action, resident)
        if NO_VICTIM in (expected, evicted):
            return evicted == expected
        worth = self.probability * self.paging_cost
        return bool(worth[evicted] <= worth[expected] * (1.0 + tolerance) + 1e-30)

    def settle(self, t: int, action: int, hit: bool, evicted: int) -> None:
        """Counts the use."""
        del t, hit, evicted
        self.probability[action] += 1.0 - self.decay


def new_rule(
    policy: str,
    rounds: ReferenceRounds,
    problem: ReferenceProblem,
    settings: ReferenceSettings,
    resident: Bools,
    tolerance: float = 0.0,
) -> AdmissionRule | None:
    """The rule of any admission policy, None for others.

    Args:
      policy: name of the policy.
      rounds: the stream, for LeCaR's lots.
      problem: costs and slots.
      settings: constants.
      resident: `[N]` the first set.
      tolerance: matters to replays only.
    """
    if policy == "landlord":
        return Landlord(problem.paging_cost, resident)
    if policy == "arc":
        return AdaptiveReplacement(resident, problem.cache_slots)
    if policy == "lecar":
        return LearningCache(rounds.expert_uniform, resident, problem.cache_slots, settings)
    if policy == "fastlibra":
        return ProbableCost(problem.paging_cost, settings.use_half_life)
    return admission.new_rule(policy, problem, settings, tolerance)
