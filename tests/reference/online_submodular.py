"""Online submodular maximisation (Streeter and Golovin 2008): one Hedge learner per slot."""

import math

import numpy as np

from .data import Bools, Floats, ReferenceProblem, ReferenceSettings


def savings(members: list[int], value: Floats, cost: Floats) -> float:
    """`f(S)`, what a request is worth with `members` resident.

    Args:
      members: the set.
      value: `[N]` estimates `q`.
      cost: `[N]` paging costs.
    """
    return max([float(np.max(value - cost)), *(float(value[i]) for i in members)])


class SlotLearners:
    """`K` learners, and the members that they drew for the present epoch, in slot order."""

    def __init__(
        self,
        resident: Bools,
        problem: ReferenceProblem,
        settings: ReferenceSettings,
        horizon: int,
    ) -> None:
        self.cost, self.num_adapters = problem.paging_cost, len(problem.paging_cost)
        self.members = [int(i) for i in np.flatnonzero(resident)]
        slots = min(problem.cache_slots, self.num_adapters)
        self.total = np.zeros((slots, self.num_adapters))  # rate times gains so far
        length = settings.epoch_length or math.ceil(math.sqrt(horizon))
        epochs = math.ceil(horizon / length)
        scale = min(1.0, math.sqrt(2.0 * slots * math.log(self.num_adapters) / epochs))
        largest = float(np.max(self.cost))
        self.rate = settings.hedge_scale * scale / (length * largest) if largest > 0 else 0.0

    def observe(self, value: Floats) -> None:
        """Every learner sees what each adapter would have added to the slots before its own."""
        for k in range(min(len(self.total), len(self.members))):
            before = savings(self.members[:k], value, self.cost)
            for i in range(self.num_adapters):
                gain = savings([*self.members[:k], i], value, self.cost) - before
                self.total[k, i] += self.rate * gain

    def draw(self, gumbel: Floats, within: Bools | None = None) -> float:
        """Draws the members of the next epoch by perturbed maxima.

        Args:
          gumbel: `[N, N]`, slot by adapter.
          within: `[N]` an engine's set; then only its members are drawn.

        Returns:
          By how much the worst drawn score is below the best that was free.
        """
        self.members, worst = [], 0.0
        for k in range(len(self.total)):
            score = self.total[k] + gumbel[k]
            score[self.members] = -np.inf
            allowed = score if within is None else np.where(within, score, -np.inf)
            drawn = int(np.argmax(allowed))
            worst = max(worst, float(np.max(score) - allowed[drawn]))
            self.members.append(drawn)
        return worst

    def chosen(self) -> Bools:
        """The drawn members as a set `[N]`."""
        resident = np.zeros(self.num_adapters, bool)
        resident[self.members] = True
        return resident
