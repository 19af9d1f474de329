"""Residency rules where adapters differ in size: a miss evicts until it fits, or is not let in."""

from dataclasses import dataclass, field

import numpy as np

from . import experts, ridge
from .data import Bools, Floats, ReferenceProblem, ReferenceSettings
from .sized import Bytes, bytes_of, set_with, victims


class Rule:
    """One admission rule; `order` says who leaves first, `serve` moves the set."""

    def __init__(self, problem: ReferenceProblem, settings: ReferenceSettings) -> None:
        self.held, self.cost = bytes_of(problem), problem.paging_cost
        self.relative = np.array([self.held.relative(i) for i in range(len(self.cost))])
        self.settings = settings
        self.number = np.zeros(len(self.cost))  # what the rule keeps per adapter

    def observe(self, action: int, estimates: ridge.Estimates) -> None:
        """Looks at a request before the set changes."""

    def order(self) -> Floats:
        """`[N]`: the least leaves first."""
        return self.number

    def admits(self, action: int, gone: list[int]) -> bool:
        """Whether a missed adapter enters for those who would leave."""
        del action, gone
        return True

    def evict(self, gone: list[int], resident: Bools) -> None:
        """Books that the residents `gone` leave `resident` `[N]`, in this order."""

    def use(self, t: int, action: int, hit: bool) -> None:
        """Books the use of an adapter that is resident now, or was served without."""

    def serve(self, t: int, action: int, estimates: ridge.Estimates, resident: Bools) -> int:
        """One request; changes `resident` `[N]` in place and returns the loads."""
        self.observe(action, estimates)
        hit = bool(resident[action])
        gone = [] if hit else victims(self.held, resident, action, self.order())
        enters = not hit and gone is not None and self.admits(action, gone)
        if enters and gone is not None:
            self.evict(gone, resident)
            resident[gone] = False
            resident[action] = True
        self.use(t, action, hit)
        return int(enters)


class LeastRecentlyUsed(Rule):
    """LRU."""

    def __init__(self, problem: ReferenceProblem, settings: ReferenceSettings) -> None:
        super().__init__(problem, settings)
        self.number -= 1

    def use(self, t: int, action: int, hit: bool) -> None:
        """A choice is a use, whether or not the adapter could be let in."""
        del hit
        self.number[action] = t


class LeastFrequentlyUsed(Rule):
    """LFU."""

    def use(self, t: int, action: int, hit: bool) -> None:
        """Counts choices since the start."""
        del t, hit
        self.number[action] += 1


class GreedyDualSizeFrequency(Rule):
    """GDSF: the clock follows every victim."""

    def __init__(self, problem: ReferenceProblem, settings: ReferenceSettings) -> None:
        super().__init__(problem, settings)
        self.uses, self.clock = np.zeros(len(self.cost)), 0.0

    def evict(self, gone: list[int], resident: Bools) -> None:
        """Each victim is at least as old as the one before."""
        del resident
        for out in gone:
            self.clock = float(self.number[out])

    def use(self, t: int, action: int, hit: bool) -> None:
        """Uses count from the entry."""
        del t
        self.uses[action] = self.uses[action] + 1 if hit else 1
        self.number[action] = (
            self.clock + self.uses[action] * self.cost[action] / self.relative[action]
        )


class Landlord(Rule):
    """Rent in proportion to size, until those who cannot pay make room."""

    def order(self) -> Floats:
        """Credit per size."""
        return self.number / self.relative

    def evict(self, gone: list[int], resident: Bools) -> None:
        """Charges everyone who is still there what the next to leave has left."""
        left = resident.copy()
        for out in gone:
            rent = self.number[out] / self.relative[out]
            for i in np.flatnonzero(left):
                self.number[i] = max(0.0, self.number[i] - rent * self.relative[i])
            left[out] = False

    def use(self, t: int, action: int, hit: bool) -> None:
        """Full credit."""
        del t, hit
        self.number[action] = self.cost[action]


class ProbableCost(Rule):
    """FastLibra's, per size."""

    def observe(self, action: int, estimates: ridge.Estimates) -> None:
        """Every probability decays."""
        del action, estimates
        self.number *= 2.0 ** (-1.0 / self.settings.use_half_life)

    def order(self) -> Floats:
        """What absence would cost, per size."""
        return self.number * self.cost / self.relative

    def use(self, t: int, action: int, hit: bool) -> None:
        """Counts the use."""
        del t, hit
        self.number[action] += 1.0 - 2.0 ** (-1.0 / self.settings.use_half_life)


class ResidencyValue(Rule):
    """POLAR-A: a newcomer must be worth all who leave for it."""

    def observe(self, action: int, estimates: ridge.Estimates) -> None:
        """Credits the adapter that looks best."""
        del action
        best = int(np.argmax(estimates.mean))
        saving = float(estimates.mean[best] - np.max(estimates.mean - self.cost))
        self.number *= 2.0 ** (-1.0 / self.settings.half_life)
        self.number[best] += max(0.0, saving)

    def order(self) -> Floats:
        """Value per size."""
        return self.number / self.relative

    def admits(self, action: int, gone: list[int]) -> bool:
        """Not for the loss of more than it brings."""
        return bool(self.number[action] >= sum(self.number[out] for out in gone))


RULES: dict[str, type[Rule]] = {
    "lru": LeastRecentlyUsed,
    "lfu": LeastFrequentlyUsed,
    "gdsf": GreedyDualSizeFrequency,
    "landlord": Landlord,
    "fastlibra": ProbableCost,
    "polar_admit": ResidencyValue,
}


def credits_by_size(
    resident: Bools, value: Floats, cost: Floats, density: Floats, held: Bytes
) -> Floats:
    """`[N]` marginal savings: outsiders are compared with the set without who leaves for them."""
    base = float(np.max(value - cost))
    credit = np.zeros(len(value))
    for i in np.flatnonzero(~resident):
        gone = victims(held, resident, int(i), density)
        kept = resident.copy()
        kept[np.flatnonzero(resident) if gone is None else gone] = False
        credit[i] = max(0.0, value[i] - max([base, *value[kept]]))
    if np.any(resident):
        best = int(np.argmax(np.where(resident, value, -np.inf)))
        others = max([base, *(value[i] for i in np.flatnonzero(resident) if i != best)])
        credit[best] = max(0.0, value[best] - others)
    return credit


@dataclass
class ValueExpert:
    """A virtual cache run by residency values of one half-life."""

    half_life: float
    resident: Bools
    held: Bytes
    values: Floats = field(default_factory=lambda: np.zeros(0))
    deficits: Floats = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        self.relative = np.array([self.held.relative(i) for i in range(len(self.resident))])
        self.values, self.deficits = np.zeros(len(self.resident)), np.zeros(len(self.resident))

    def let_in(self, adapter: int) -> bool:
        """Lets an adapter in if it is worth all who leave for it."""
        gone = victims(self.held, self.resident, adapter, self.values / self.relative)
        if gone is None or self.values[adapter] < sum(self.values[out] for out in gone):
            return False
        self.resident[gone] = False
        self.resident[adapter] = True
        return True

    def serve(self, value: Floats, cost: Floats) -> float:
        """Sees one request; returns the price of a virtual load that no miss has paid for."""
        routed = experts.virtual_action(self.resident, value, cost)
        reached = experts.virtual_value(self.resident, value, cost)
        top = int(np.argmax(value))
        self.values *= 2.0 ** (-1.0 / self.half_life)
        density = self.values / self.relative
        self.values += credits_by_size(self.resident, value, cost, density, self.held)
        if not self.resident[routed]:
            self.let_in(routed)
            return 0.0
        if self.resident[top]:
            return 0.0
        self.deficits[top] += value[top] - reached
        if self.deficits[top] >= cost[top] and self.let_in(top):
            self.deficits[top] = 0.0
            return float(cost[top])
        return 0.0


class SizedExperts(experts.ExpertController):
    """POLAR-E's virtual caches and its real one, by size."""

    def __init__(
        self, resident: Bools, problem: ReferenceProblem, settings: ReferenceSettings
    ) -> None:
        super().__init__(resident, problem, settings)
        self.held = bytes_of(problem)
        self.by_size = [ValueExpert(h, resident.copy(), self.held) for h in settings.half_lives]

    def virtual_sets(self) -> list[Bools]:
        """The experts' sets in the order of their scores."""
        return [*(expert.resident for expert in self.by_size), self.recency.resident]

    def run_experts(self, t: int, value: Floats) -> None:
        """Scores every expert on this request, then lets it change its own set."""
        best_possible = float(np.max(value))
        decay = 2.0 ** (-1.0 / max(self.score_half_life, self.score_growth * t))
        for e, resident in enumerate(self.virtual_sets()):
            loss = best_possible - experts.virtual_value(resident, value, self.cost)
            self.losses[e] = decay * self.losses[e] + loss
        for e, expert in enumerate(self.by_size):
            self.losses[e] += expert.serve(value, self.cost)
        used = experts.virtual_action(self.recency.resident, value, self.cost)
        if not self.recency.resident[used]:
            gone = victims(self.held, self.recency.resident, used, self.recency.last_use)
            if gone is not None:
                self.recency.resident[gone] = False
                self.recency.resident[used] = True
        self.recency.last_use[used] = t

    def enter(self, resident: Bools, adapter: int, followed: Bools) -> bool:
        """Lets an adapter into the real set in place of residents that are not followed."""
        first = self.by_size[0]
        order = first.values / first.relative
        gone = victims(self.held, resident, adapter, order, resident & ~followed)
        if gone is None:
            return False
        resident[gone] = False
        resident[:] = set_with(resident, adapter)
        return True

    def serve(self, t: int, action: int, value: Floats, resident: Bools) -> experts.SetChange:
        """Moves the real set towards the best expert's, in place."""
        self.run_experts(t, value)
        followed = self.virtual_sets()[int(np.argmin(self.losses))]
        change = experts.SetChange()
        if not resident[action] and followed[action] and self.enter(resident, action, followed):
            change.loads += 1
        wanted = experts.virtual_action(followed, value, self.cost)
        missed = experts.virtual_value(followed, value, self.cost) - experts.virtual_value(
            resident, value, self.cost
        )
        if resident[wanted] or not followed[wanted] or missed <= 0:
            return change
        self.deficits[wanted] += missed
        if self.deficits[wanted] >= self.switch_cost[wanted]:
            if self.enter(resident, wanted, followed):
                change.loads += 1
                change.bought.append(wanted)
            self.deficits[wanted] = 0.0
        return change
