"""Which adapter serves a request: the indices and the forcing rules (sections 3, 5, 6)."""

from dataclasses import dataclass

import numpy as np

from .data import Bools, Floats, Ints, ReferenceProblem, ReferenceRounds, ReferenceSettings
from .ridge import Estimates, penalised

EPOCH_POLICIES = ("polar", "polar_plus", "polar_plus_no_forced")
SUBMODULAR_POLICIES = ("polar_oexp",)
ADMISSION_POLICIES = (
    *("lru", "lfu", "gdsf", "polar_admit"),
    *("landlord", "arc", "lecar", "fastlibra"),
)
EXPERT_POLICIES = (
    "polar_experts",
    "no_forced",
    "cost_blind",
    "epsilon_greedy",
    "lin_ts",
    "random",
)
FIXED_POLICIES = ("static", "no_cache", "full_cache", "oracle_cache", "oracle")
POLICIES = (
    EPOCH_POLICIES + SUBMODULAR_POLICIES + ADMISSION_POLICIES + EXPERT_POLICIES + FIXED_POLICIES
)
BLIND_FORCING = ("polar_plus", "polar_admit")
RELEVANT_FORCING = ("polar_experts", "cost_blind")


@dataclass(frozen=True)
class Choice:
    """A routing rule applied to one request."""

    action: int
    scores: Floats | None  # [N]; None where the rule names one adapter and nothing is close


def best_of(scores: Floats) -> Choice:
    """The adapter with the largest of `scores` `[N]`, ties to the lowest index."""
    return Choice(int(np.argmax(scores)), scores)


def router_choice(
    policy: str,
    t: int,
    estimates: Estimates,
    resident: Bools,
    rounds: ReferenceRounds,
    problem: ReferenceProblem,
    settings: ReferenceSettings,
) -> Choice:
    """The choice where no forcing applies.

    Args:
      policy: name of the policy.
      t: the round, from 0.
      estimates: of this request, before its update.
      resident: `[N]`.
      rounds: the stream, for the policies with randomness of their own and the oracle.
      problem: costs.
      settings: constants.

    Returns:
      The choice and the scores it was best of.
    """
    cost = problem.paging_cost
    uniform_adapter = int(rounds.policy_bits[t, 1]) % len(cost)
    if policy == "random":
        return Choice(uniform_adapter, None)
    if policy == "epsilon_greedy":
        if (int(rounds.policy_bits[t, 0]) >> 8) * 2.0**-24 < settings.epsilon:
            return Choice(uniform_adapter, None)
        return best_of(penalised(estimates.mean, cost, resident))
    if policy == "lin_ts":
        scale = settings.alpha if settings.thompson_scale is None else settings.thompson_scale
        sampled = estimates.mean + scale * estimates.width * rounds.thompson_normal[t]
        return best_of(penalised(sampled, cost, resident))
    if policy == "oracle":
        return best_of(penalised(rounds.utility[t], cost, resident))
    if policy == "cost_blind":
        return best_of(estimates.optimistic)
    return best_of(penalised(estimates.optimistic, cost, resident))


def blind_forcing(pulls: Ints, quota: int) -> Choice | None:
    """POLAR+'s rule: the least-chosen adapter while anyone is owed a choice.

    Args:
      pulls: `[N]` choices before this request.
      quota: `n_m`.

    Returns:
      The forced choice, or None.
    """
    least = int(np.argmin(pulls))
    return Choice(least, None) if pulls[least] < quota else None


def relevant_forcing(
    optimistic: Floats, pulls: Ints, price: Floats, quota: int, margin: float
) -> tuple[Choice, float] | None:
    """POLAR-E's rule: an adapter that is owed a choice, where it may be the best.

    Args:
      optimistic: `[N]` optimistic estimates, cost left out.
      pulls: `[N]` choices before this request.
      price: `[N]` what a choice would cost in paging now, units of utility.
      quota: `n_m`.
      margin: how far below the best estimate it may be.

    Returns:
      The candidate and its slack (forced where `slack >= 0`), or None if nobody is owed.
    """
    starved = pulls * np.maximum(1.0, price) < quota
    if not np.any(starved):
        return None
    owed = np.where(starved, optimistic, -np.inf)
    candidate = best_of(owed)
    slack = float(owed[candidate.action] - (np.max(optimistic) - margin))
    return candidate, slack


def forced_choice(
    policy: str, estimates: Estimates, price: Floats, quota: int, settings: ReferenceSettings
) -> Choice | None:
    """The forced choice of this request under the policy's rule, or None."""
    if policy in BLIND_FORCING:
        return blind_forcing(estimates.pulls, quota)
    if policy in RELEVANT_FORCING:
        found = relevant_forcing(
            estimates.optimistic, estimates.pulls, price, quota, settings.margin
        )
        return found[0] if found is not None and found[1] >= 0 else None
    return None
