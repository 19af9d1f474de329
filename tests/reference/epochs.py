"""Schedules: epoch ends, exploration quotas, and the replanning at an epoch's end."""

import math
from dataclasses import dataclass

import numpy as np

from . import ridge
from .data import Bools, Floats, ReferenceProblem, ReferenceRounds, ReferenceSettings
from .ridge import RidgeModel
from .search import SOLVERS, Solver


def fixed_epoch_ends(horizon: int, epoch_length: int | None) -> dict[int, int]:
    """Replanning rounds of POLAR.

    Args:
      horizon: `T`.
      epoch_length: `L`; None for `ceil(sqrt(T))`.

    Returns:
      The last round of each epoch but the run's own, and the length of the epoch that follows.
    """
    length = math.ceil(math.sqrt(horizon)) if epoch_length is None else epoch_length
    return {end: length for end in range(length - 1, horizon - 1, length)}


def doubling_epoch_ends(horizon: int, first_epoch: int) -> dict[int, int]:
    """Replanning rounds of POLAR+: epoch `m` has `first_epoch * 2^m` rounds.

    Args:
      horizon: `T`.
      first_epoch: length of epoch 0.

    Returns:
      The last round of each epoch but the run's own, and the length of the epoch that follows.
    """
    ends: dict[int, int] = {}
    length, end = first_epoch, first_epoch - 1
    while end < horizon - 1:
        length *= 2
        ends[end] = length
        end += length
    return ends


def quotas(
    horizon: int, first_epoch: int, quota_scale: float, cache_slots: int, num_adapters: int
) -> list[int]:
    """`n_m` of every round: the choices that each adapter is owed in its epoch."""
    owed: list[int] = []
    length = first_epoch
    while len(owed) < horizon:
        quota = math.ceil(quota_scale * math.sqrt(cache_slots * length) / num_adapters)
        owed.extend([quota] * length)
        length *= 2
    return owed[:horizon]


def amortised_rounds(served: int, horizon: int, next_length: int, amortise: float | None) -> float:
    """Rounds over which a load at a replan has to pay for itself."""
    if amortise is not None:
        return float(amortise)
    return float(min(horizon - served, 4 * next_length))


@dataclass
class ReservoirSample:
    """A sample of all contexts, filled by the slots that the rounds carry."""

    contexts: Floats  # [window, d]
    filled: Bools  # [window]


def sampled_contexts(rounds: ReferenceRounds, boundary: int, settings: ReferenceSettings) -> Floats:
    """Contexts that a replan after round `boundary` looks at.

    Args:
      rounds: the stream.
      boundary: the last round served.
      settings: window, and whether a reservoir replaces the latest contexts.

    Returns:
      `[M, d]`, `M <= window`.
    """
    if not settings.use_reservoir:
        return rounds.context[max(0, boundary + 1 - settings.window) : boundary + 1]
    sample = ReservoirSample(
        contexts=np.zeros((settings.window, rounds.context.shape[1])),
        filled=np.zeros(settings.window, bool),
    )
    for t in range(boundary + 1):
        slot = int(rounds.reservoir_slot[t])
        if slot >= 0:
            sample.contexts[slot] = rounds.context[t]
            sample.filled[slot] = True
    return sample.contexts[sample.filled]


@dataclass(frozen=True)
class Replan:
    """One replanning problem, as the solver and the objective take it."""

    utility: Floats  # [M, N]
    weight: Floats  # [M]
    paging_cost: Floats  # [N]
    switch_cost: Floats  # [N], as the objective sees it
    resident_now: Bools  # [N]
    rounds: float
    solver: Solver


def replan_problem(
    policy: str,
    boundary: int,
    next_length: int,
    model: RidgeModel,
    resident: Bools,
    rounds: ReferenceRounds,
    problem: ReferenceProblem,
    settings: ReferenceSettings,
) -> Replan:
    """The problem that a controller with epochs solves after round `boundary`.

    Args:
      policy: `polar` (optimistic, greedy), or one of the `polar_plus` family.
      boundary: the round just served; `model` includes its update.
      next_length: length of the epoch that starts now, not cut at the horizon.
      model: the router's statistics.
      resident: `[N]` the set now.
      rounds: the stream.
      problem: costs.
      settings: constants.

    Returns:
      The problem and its solver.
    """
    contexts = sampled_contexts(rounds, boundary, settings)
    if policy == "polar":
        utility, solver = ridge.optimistic_matrix(model, contexts, settings), SOLVERS["greedy"]
    else:
        utility, solver = ridge.means(model, contexts), SOLVERS[settings.solver_plus]
    switch_cost = problem.switch_cost * (1.0 if settings.switching_term else 0.0)
    horizon = len(rounds.context)
    return Replan(
        utility=utility,
        weight=np.ones(len(contexts)),
        paging_cost=problem.paging_cost,
        switch_cost=switch_cost,
        resident_now=resident,
        rounds=amortised_rounds(boundary + 1, horizon, next_length, settings.amortise),
        solver=solver,
    )


def solve_replan(plan: Replan, cache_slots: int) -> Bools:
    """The set `[N]` that the plan's solver chooses."""
    return plan.solver(
        plan.utility,
        plan.weight,
        plan.paging_cost,
        plan.switch_cost,
        plan.resident_now,
        cache_slots,
        plan.rounds,
    )
