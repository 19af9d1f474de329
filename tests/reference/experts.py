"""POLAR-E's controller: virtual caches keep score, the real one follows the best (section 5)."""

from dataclasses import dataclass, field

import numpy as np

from .admission import NO_VICTIM, least_resident
from .data import Bools, Floats, ReferenceProblem, ReferenceSettings
from .ridge import penalised


def virtual_action(resident: Bools, value: Floats, cost: Floats) -> int:
    """`a(S)`: where a router with the set `resident` `[N]` would send the request."""
    return int(np.argmax(penalised(value, cost, resident)))


def virtual_value(resident: Bools, value: Floats, cost: Floats) -> float:
    """`val(S)`: what that router would get."""
    return float(np.max(penalised(value, cost, resident)))


def exchange(resident: Bools, out: int, into: int) -> None:
    """Swaps `out` for `into`, in place."""
    resident[out], resident[into] = False, True


def marginal_credits(resident: Bools, value: Floats, cost: Floats, least: int) -> Floats:
    """What each adapter's residence saves on this request, given the rest of the set.

    Args:
      resident: `[N]`.
      value: `[N]` the optimistic estimates `q`.
      cost: `[N]` paging costs.
      least: the member that is worth least so far, `NO_VICTIM` for none.

    Returns:
      `[N]`: for a member, what would be lost without it; for others, what they would add
      to the set without `least`.
    """
    base = float(np.max(value - cost))
    ranked = sorted([base, *value[resident]], reverse=True)
    credit = np.zeros(len(value))
    others = max([base, *(value[i] for i in np.flatnonzero(resident) if i != least)])
    for i in range(len(value)):
        if not resident[i]:
            credit[i] = max(0.0, value[i] - others)
    if np.any(resident):
        best = int(np.argmax(np.where(resident, value, -np.inf)))
        if value[best] == ranked[0]:
            credit[best] = ranked[0] - ranked[1]
    return credit


@dataclass
class ValueExpert:
    """A virtual cache run by residency values of one half-life."""

    half_life: float
    resident: Bools  # [N]
    values: Floats  # [N], decayed marginal savings
    deficits: Floats  # [N], what routing around a wanted adapter has cost

    def serve(self, value: Floats, cost: Floats) -> float:
        """Sees one request; changes the virtual set.

        Args:
          value: `[N]` the optimistic estimates `q`.
          cost: `[N]` paging costs.

        Returns:
          The price of a virtual load that no virtual miss has paid for.
        """
        # The request is judged against the set as it was when the request came.
        routed = virtual_action(self.resident, value, cost)
        reached = virtual_value(self.resident, value, cost)
        top = int(np.argmax(value))
        self.values *= 2.0 ** (-1.0 / self.half_life)
        least = least_resident(self.values, self.resident)
        self.values += marginal_credits(self.resident, value, cost, least)
        out = least_resident(self.values, self.resident)
        if not self.resident[routed]:
            if out != NO_VICTIM and self.values[routed] >= self.values[out]:
                exchange(self.resident, out, routed)
            return 0.0
        if self.resident[top]:
            return 0.0
        self.deficits[top] += value[top] - reached
        if self.deficits[top] >= cost[top] and self.values[top] >= self.values[out]:
            exchange(self.resident, out, top)
            self.deficits[top] = 0.0
            return float(cost[top])
        return 0.0


@dataclass
class RecencyExpert:
    """A virtual LRU cache."""

    resident: Bools  # [N]
    last_use: Floats  # [N], -1 for never

    def serve(self, t: int, value: Floats, cost: Floats) -> None:
        """Sees the request of round `t`; a virtual miss replaces the least recently used."""
        routed = virtual_action(self.resident, value, cost)
        out = least_resident(self.last_use, self.resident)
        if not self.resident[routed] and out != NO_VICTIM:
            exchange(self.resident, out, routed)
        self.last_use[routed] = t


@dataclass
class SetChange:
    """What a round did to the real set."""

    loads: int = 0
    bought: list[int] = field(default_factory=list)  # adapters loaded without a request's money


class ExpertController:
    """The virtual caches, their scores, and the rent-or-buy deficits of the real cache."""

    def __init__(
        self, resident: Bools, problem: ReferenceProblem, settings: ReferenceSettings
    ) -> None:
        num_adapters = len(resident)
        self.cost = problem.paging_cost
        self.switch_cost = problem.switch_cost
        self.score_half_life = settings.score_half_life
        self.score_growth = settings.score_growth
        self.value_experts = [
            ValueExpert(h, resident.copy(), np.zeros(num_adapters), np.zeros(num_adapters))
            for h in settings.half_lives
        ]
        self.recency = RecencyExpert(resident.copy(), np.full(num_adapters, -1.0))
        self.losses = np.zeros(len(settings.half_lives) + 1)
        self.deficits = np.zeros(num_adapters)

    def virtual_sets(self) -> list[Bools]:
        """The experts' sets in the order of their scores."""
        return [*(expert.resident for expert in self.value_experts), self.recency.resident]

    def run_experts(self, t: int, value: Floats) -> None:
        """Scores every expert on this request, then lets it change its own set."""
        best_possible = float(np.max(value))
        score_decay = 2.0 ** (-1.0 / max(self.score_half_life, self.score_growth * t))
        for e, resident in enumerate(self.virtual_sets()):
            loss = best_possible - virtual_value(resident, value, self.cost)
            self.losses[e] = score_decay * self.losses[e] + loss
        for e, expert in enumerate(self.value_experts):
            self.losses[e] += expert.serve(value, self.cost)
        self.recency.serve(t, value, self.cost)

    def surplus(self, resident: Bools, followed: Bools) -> int:
        """The resident outside the followed set that is worth least at the short half-life."""
        return least_resident(self.value_experts[0].values, resident & ~followed)

    def serve(self, t: int, action: int, value: Floats, resident: Bools) -> SetChange:
        """Moves the real set towards the best expert's.

        Args:
          t: the round, from 0.
          action: the adapter that served the request.
          value: `[N]` the optimistic estimates `q`, before the update.
          resident: `[N]` the real set; changed in place.

        Returns:
          The entries into the set.
        """
        self.run_experts(t, value)
        followed = self.virtual_sets()[int(np.argmin(self.losses))]
        change = SetChange()
        out = self.surplus(resident, followed)
        if not resident[action] and followed[action] and out != NO_VICTIM:
            exchange(resident, out, action)
            change.loads += 1
        wanted = virtual_action(followed, value, self.cost)
        # Against the set as it is now: what the request itself has just loaded is not missed.
        missed = virtual_value(followed, value, self.cost) - virtual_value(
            resident, value, self.cost
        )
        if resident[wanted] or not followed[wanted] or missed <= 0:
            return change
        self.deficits[wanted] += missed
        if self.deficits[wanted] >= self.switch_cost[wanted]:
            out = self.surplus(resident, followed)
            if out != NO_VICTIM:
                exchange(resident, out, wanted)
                change.loads += 1
                change.bought.append(wanted)
            self.deficits[wanted] = 0.0
        return change
