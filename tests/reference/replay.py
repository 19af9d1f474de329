"""Judges an engine's own decisions: the reference's statistics, driven by its actions and sets.

In float32 one flipped near-tie sends two correct runs apart for good. Here nothing runs apart:
every decision is judged from the state that the engine's earlier decisions led to.
"""

import numpy as np

from . import epochs, eviction, lanes, ridge, routing, search
from .admission import NO_VICTIM, AdmissionRule
from .data import (
    Bools,
    Floats,
    Ints,
    ReferenceProblem,
    ReferenceRounds,
    ReferenceSettings,
    Replay,
)
from .online_submodular import SlotLearners
from .routing import Choice


def near_tie(scores: Floats, tolerance: float) -> bool:
    """Whether the two best of `scores` `[N]` are within `tolerance`."""
    ranked = np.sort(scores[np.isfinite(scores)])
    return len(ranked) > 1 and bool(ranked[-1] - ranked[-2] <= tolerance)


def judge_choice(replay: Replay, choice: Choice, action: int, tolerance: float) -> None:
    """Books how far `action` is from the best of the rule that applied, in place."""
    if choice.scores is None:
        gap = 0.0 if action == choice.action else np.inf
    else:
        gap = float(choice.scores[choice.action] - choice.scores[action])
        replay.action_near_ties += near_tie(choice.scores, tolerance)
    replay.worst_action_gap = max(replay.worst_action_gap, gap)


def forced_reading(
    policy: str,
    estimates: ridge.Estimates,
    price: Floats,
    quota: int,
    settings: ReferenceSettings,
    forced: bool,
    tolerance: float,
) -> tuple[Choice | None, bool]:
    """The forcing rule's choice in a round that the engine did, or did not, force.

    Args:
      policy: name of the policy.
      estimates: of the request, before its update.
      price: `[N]` what a choice would cost in paging now, units of utility.
      quota: `n_m`.
      settings: constants.
      forced: what the engine says.
      tolerance: how near its threshold the forcing condition may be judged either way.

    Returns:
      The forced choice (None where the engine did not force), and whether the engine's flag
      follows the rule.
    """
    if policy in routing.RELEVANT_FORCING:
        found = routing.relevant_forcing(
            estimates.optimistic, estimates.pulls, price, quota, settings.margin
        )
        if not forced:
            return None, found is None or found[1] < tolerance
        return (None, False) if found is None else (found[0], found[1] >= -tolerance)
    expected = routing.forced_choice(policy, estimates, price, quota, settings)
    return (expected if forced else None), forced == (expected is not None)


def judge_replan(replay: Replay, plan: epochs.Replan, planned: Bools, cache_slots: int) -> None:
    """Books what the engine's new set `planned` `[N]` loses on the reference's, in place."""
    terms = (
        plan.utility,
        plan.weight,
        plan.paging_cost,
        plan.switch_cost,
        plan.resident_now,
        plan.rounds,
    )
    best = search.objective(epochs.solve_replan(plan, cache_slots), *terms) / plan.rounds
    got = search.objective(planned, *terms) / plan.rounds
    replay.worst_replan_gap = max(replay.worst_replan_gap, (best - got) / max(1.0, abs(best)))
    replay.set_mismatches += int(np.sum(planned) > cache_slots)


def judge_admission(
    replay: Replay,
    rule: AdmissionRule,
    estimates: ridge.Estimates,
    t: int,
    action: int,
    sets: tuple[Bools, Bools],
    tolerance: float,
) -> None:
    """Judges the change of the set after round `t`, and tells the rule what was evicted.

    Args:
      replay: the record, changed in place.
      rule: the admission rule.
      estimates: of the request, before its update.
      t: the round.
      action: the engine's choice.
      sets: the engine's sets `[N]` before and after.
      tolerance: for priorities.
    """
    rule.observe(estimates)
    before, after = sets
    hit = bool(before[action])
    out, into = np.flatnonzero(before & ~after), np.flatnonzero(after & ~before)
    evicted = int(out[0]) if len(out) else NO_VICTIM
    one_for_one = list(into) == [action] and len(out) == 1
    unchanged = len(into) == 0 and len(out) == 0
    explained = (one_for_one or unchanged) and rule.explains(action, before, evicted, tolerance)
    replay.set_mismatches += not explained
    rule.settle(t, action, hit, evicted)


def judge_draw(replay: Replay, learners: SlotLearners, gumbel: Floats, drawn: Bools) -> None:
    """Books how far an engine's draw `drawn` `[N]` is from the learners' own, in place."""
    replay.worst_replan_gap = max(replay.worst_replan_gap, learners.draw(gumbel, within=drawn))
    replay.set_mismatches += int(np.sum(drawn) != len(learners.members))


def judge_between_replans(replay: Replay, policy: str, before: Bools, after: Bools) -> None:
    """Counts a set `[N]` that changed with no replan; experts may swap, so only in size."""
    if policy in routing.EXPERT_POLICIES:
        kept = np.sum(before) == np.sum(after)
    else:
        kept = np.array_equal(before, after)
    replay.set_mismatches += int(not kept)


def replay_lane(
    policy: str,
    rounds: ReferenceRounds,
    problem: ReferenceProblem,
    settings: ReferenceSettings,
    *,
    actions: Ints,
    forced: Bools,
    resident: Bools,
    oracle_set: Bools | None = None,
    tolerance: float = 1e-4,
) -> Replay:
    """Drives the reference with an engine's decisions and judges each of them.

    The set after the last round is not judged, and expert policies' sets for their size alone.

    Args:
      policy: one of `routing.POLICIES`.
      rounds: the stream.
      problem: costs and slots.
      settings: constants.
      actions: `[T]` the engine's choices.
      forced: `[T]` its forcing flags.
      resident: `[T, N]` its sets while each request was served.
      oracle_set: `[N]`, for `oracle_cache` and `oracle`.
      tolerance: how far from the best a score may be, in units of utility.

    Returns:
      The worst gaps and the numbers of decisions that the rules do not explain.
    """
    horizon, context_dim = rounds.context.shape
    model = ridge.new_model(len(problem.paging_cost), context_dim, settings)
    ends = lanes.epoch_ends(policy, horizon, settings)
    owed = lanes.round_quotas(horizon, problem, settings)
    start = lanes.first_set(policy, problem, oracle_set)
    rule = eviction.new_rule(policy, rounds, problem, settings, start, tolerance)
    learners = lanes.new_learners(policy, start, problem, settings, horizon)
    replay = Replay(0.0, 0.0, 0, 0, int(not np.array_equal(start, resident[0])))
    for t in range(horizon):
        action, now = int(actions[t]), resident[t]
        after = resident[t + 1] if t + 1 < horizon else None
        estimates = ridge.estimate(model, rounds.context[t], settings)
        read = estimates, problem.paging_cost * ~now, owed[t], settings, bool(forced[t]), tolerance
        choice, flag_follows = forced_reading(policy, *read)
        replay.wrong_forced += not flag_follows
        routed = policy, t, estimates, now, rounds, problem, settings
        judge_choice(replay, choice or routing.router_choice(*routed), action, tolerance)
        if rule is not None and after is not None:
            judge_admission(replay, rule, estimates, t, action, (now, after), tolerance)
        ridge.update(model, rounds.context[t], action, lanes.reward_of(rounds, t, action))
        if learners is not None:
            learners.observe(estimates.value)
        if after is not None and t in ends and learners is not None:
            judge_draw(replay, learners, rounds.slot_gumbel[t], after)
        elif after is not None and t in ends:
            terms = policy, t, ends[t], model, now, rounds, problem, settings
            judge_replan(replay, epochs.replan_problem(*terms), after, problem.cache_slots)
        elif after is not None and rule is None:
            judge_between_replans(replay, policy, now, after)
    return replay
