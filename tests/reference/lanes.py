"""One lane, free running: the order of events of section 1 around every policy."""

import math

import numpy as np

from . import epochs, eviction, ridge, routing, sized, sized_rules
from .admission import NO_VICTIM
from .data import (
    Bools,
    ReferenceLane,
    ReferenceProblem,
    ReferenceRounds,
    ReferenceSettings,
)
from .experts import ExpertController
from .online_submodular import SlotLearners


def first_set(policy: str, problem: ReferenceProblem, oracle_set: Bools | None) -> Bools:
    """`C_1`: the first `K` adapters, or the set that the policy holds for good.

    Args:
      policy: name of the policy.
      problem: costs and slots.
      oracle_set: `[N]`, needed by `oracle_cache` and `oracle`.

    Returns:
      `[N]`.
    """
    num_adapters = len(problem.paging_cost)
    if policy == "no_cache":
        return np.zeros(num_adapters, bool)
    if policy == "full_cache":
        return np.ones(num_adapters, bool)
    if policy in ("oracle_cache", "oracle"):
        if oracle_set is None:
            raise ValueError(f"{policy} needs oracle_set, got None.")
        return np.asarray(oracle_set, bool).copy()
    if problem.capacity_bytes is not None:
        return sized.first_set(sized.bytes_of(problem))
    return np.arange(num_adapters) < problem.cache_slots


def reward_of(rounds: ReferenceRounds, t: int, action: int) -> float:
    """What round `t` shows of the chosen adapter: a noisy utility, or 0/1."""
    total = float(rounds.utility[t, action] + rounds.noise[t])
    return float(math.floor(total)) if rounds.binary_reward else total


def round_quotas(horizon: int, problem: ReferenceProblem, settings: ReferenceSettings) -> list[int]:
    """`n_m` of every round."""
    return epochs.quotas(
        *(horizon, settings.first_epoch, settings.quota_scale),
        *(problem.cache_slots, len(problem.paging_cost)),
    )


def epoch_ends(policy: str, horizon: int, settings: ReferenceSettings) -> dict[int, int]:
    """Replanning rounds of the policy, with the lengths of the epochs that follow."""
    if policy == "polar" or policy in routing.SUBMODULAR_POLICIES:
        return epochs.fixed_epoch_ends(horizon, settings.epoch_length)
    if policy in routing.EPOCH_POLICIES:
        return epochs.doubling_epoch_ends(horizon, settings.first_epoch)
    return {}


def new_learners(
    policy: str,
    resident: Bools,
    problem: ReferenceProblem,
    settings: ReferenceSettings,
    horizon: int,
) -> SlotLearners | None:
    """The learners of a submodular policy that starts from `resident` `[N]`, None for others."""
    submodular = policy in routing.SUBMODULAR_POLICIES
    return SlotLearners(resident, problem, settings, horizon) if submodular else None


def empty_lane(horizon: int, resident: Bools, model: ridge.RidgeModel) -> ReferenceLane:
    """A record of `horizon` rounds, still to be filled; shares the statistics of `model`."""
    return ReferenceLane(
        actions=np.zeros(horizon, np.int64),
        forced=np.zeros(horizon, bool),
        resident=np.zeros((horizon, len(resident)), bool),
        switching=np.zeros(horizon),
        loads=np.zeros(horizon, np.int64),
        switching_ms=np.zeros(horizon),
        final_resident=resident,
        theta_hat=model.theta_hat,
        pulls=model.pulls,
    )


def book_unpaid(lane: ReferenceLane, t: int, entered: list[int], problem: ReferenceProblem) -> None:
    """Books loads of `entered` that no request has paid for to round `t`."""
    for adapter in entered:
        lane.switching[t] += problem.switch_cost[adapter]
        lane.switching_ms[t] += problem.paging_ms[adapter]


class Cache:
    """The slow timescale of one lane: owns the resident set and changes it by the policy."""

    def __init__(
        self,
        policy: str,
        rounds: ReferenceRounds,
        problem: ReferenceProblem,
        settings: ReferenceSettings,
        resident: Bools,
    ) -> None:
        self.policy, self.rounds, self.problem, self.settings = policy, rounds, problem, settings
        self.resident = resident  # [N], changed in place
        self.ends = epoch_ends(policy, len(rounds.context), settings)
        self.rule = eviction.new_rule(policy, rounds, problem, settings, resident)
        self.learners = new_learners(policy, resident, problem, settings, len(rounds.context))
        self.experts = (
            ExpertController(resident, problem, settings)
            if policy in routing.EXPERT_POLICIES
            else None
        )

    def after_choice(
        self, lane: ReferenceLane, t: int, action: int, estimates: ridge.Estimates
    ) -> None:
        """Step 3: admission, with the statistics before this round's update."""
        if self.rule is not None:
            self.rule.observe(estimates)
            hit = bool(self.resident[action])
            out = self.rule.victim(action, self.resident)
            self.rule.settle(t, action, hit, out)
            if out != NO_VICTIM:
                self.resident[out], self.resident[action] = False, True
                lane.loads[t] += 1
        if self.learners is not None:
            self.learners.observe(estimates.value)
        if self.experts is not None:
            change = self.experts.serve(t, action, estimates.value, self.resident)
            lane.loads[t] += change.loads
            book_unpaid(lane, t, change.bought, self.problem)

    def planned(self, t: int, model: ridge.RidgeModel) -> Bools:
        """The set `[N]` for the epoch after round `t`."""
        if self.learners is not None:
            self.learners.draw(self.rounds.slot_gumbel[t])
            return self.learners.chosen()
        plan = epochs.replan_problem(
            self.policy,
            t,
            self.ends[t],
            model,
            self.resident.copy(),
            self.rounds,
            self.problem,
            self.settings,
        )
        return epochs.solve_replan(plan, self.problem.cache_slots)

    def after_update(self, lane: ReferenceLane, t: int, model: ridge.RidgeModel) -> None:
        """Step 5: the replan at an epoch's end, booked to the next round."""
        if t not in self.ends:
            return
        planned = self.planned(t, model)
        entered = [int(i) for i in np.flatnonzero(planned & ~self.resident)]
        lane.loads[t + 1] += len(entered)
        book_unpaid(lane, t + 1, entered, self.problem)
        self.resident[:] = planned


class SizedCache(Cache):
    """The slow timescale where adapters differ in size."""

    def __init__(
        self,
        policy: str,
        rounds: ReferenceRounds,
        problem: ReferenceProblem,
        settings: ReferenceSettings,
        resident: Bools,
    ) -> None:
        super().__init__("static", rounds, problem, settings, resident)
        self.policy, self.ends = policy, epoch_ends(policy, len(rounds.context), settings)
        self.sized_rule = (
            sized_rules.RULES[policy](problem, settings) if policy in sized_rules.RULES else None
        )
        if policy in routing.EXPERT_POLICIES:
            self.experts = sized_rules.SizedExperts(resident, problem, settings)

    def after_choice(
        self, lane: ReferenceLane, t: int, action: int, estimates: ridge.Estimates
    ) -> None:
        """Step 3: a miss evicts until it fits."""
        super().after_choice(lane, t, action, estimates)
        if self.sized_rule is not None:
            lane.loads[t] += self.sized_rule.serve(t, action, estimates, self.resident)

    def planned(self, t: int, model: ridge.RidgeModel) -> Bools:
        """The set `[N]` for the epoch after round `t`."""
        now = self.resident.copy()
        asked = self.policy, t, self.ends[t], model, now, self.rounds, self.problem, self.settings
        name = "greedy" if self.policy == "polar" else self.settings.solver_plus
        plan = epochs.replan_problem(*asked)
        return sized.SOLVERS[name](plan, sized.bytes_of(self.problem))


def run_lane(
    policy: str,
    rounds: ReferenceRounds,
    problem: ReferenceProblem,
    settings: ReferenceSettings,
    *,
    oracle_set: Bools | None = None,
) -> ReferenceLane:
    """Runs one policy over one stream of requests.

    Args:
      policy: one of `routing.POLICIES`.
      rounds: the stream.
      problem: costs and slots.
      settings: constants.
      oracle_set: `[N]`, for `oracle_cache` and `oracle`.

    Returns:
      Everything the policy did.
    """
    if policy not in routing.POLICIES:
        raise ValueError(f"policy must be one of {routing.POLICIES}, got {policy!r}.")
    horizon, context_dim = rounds.context.shape
    model = ridge.new_model(len(problem.paging_cost), context_dim, settings)
    resident = first_set(policy, problem, oracle_set)
    kind = Cache if problem.capacity_bytes is None else SizedCache
    cache = kind(policy, rounds, problem, settings, resident)
    lane = empty_lane(horizon, resident, model)
    owed = round_quotas(horizon, problem, settings)
    for t in range(horizon):
        lane.resident[t] = resident
        context = rounds.context[t]
        estimates = ridge.estimate(model, context, settings)
        price = np.where(resident, 0.0, problem.paging_cost)
        choice = routing.forced_choice(policy, estimates, price, owed[t], settings)
        lane.forced[t] = choice is not None
        if choice is None:
            choice = routing.router_choice(
                policy, t, estimates, resident, rounds, problem, settings
            )
        lane.actions[t] = choice.action
        cache.after_choice(lane, t, choice.action, estimates)
        ridge.update(model, context, choice.action, reward_of(rounds, t, choice.action))
        cache.after_update(lane, t, model)
    return lane
