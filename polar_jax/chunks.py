"""Chunks: how many rounds one compiled call serves, and what happens within them.

Work is counted in numbers of precision matrices that serving would read: a decision of a
lane reads `N d^2` of them.
"""

import numpy as np

from polar_jax import cache_search, draws, epochs, kernels, replanning
from polar_jax.lane_calls import Experiment, Shape
from polar_jax.policies import Policy, Problem
from polar_jax.types import ChunkClock

# Rounds per compiled call: whole blocks, and short enough to answer Ctrl-C at once.
MAX_ROUNDS = 4 * draws.BLOCK
# So many times as many where a tile is nearly empty and a kernel leaves out what fills it: what a
# call costs beside its lanes is then a good part of a run. Kernels that serve the whole tile gain
# nothing, would answer Ctrl-C late, and sum a whole chunk up after a short run. A chunk's arrays
# have room for the whole tile, in so many bytes at most.
_LONGER = {"native": 16}
LONGEST = MAX_ROUNDS * max(_LONGER.values())
_CHUNK_BYTES = 2**28
# Work of all lanes of a device that one call may hold: about a second.
_CALL_WORK = {"cpu": 1e10}
_CALL_WORK_ACCELERATOR = 1e13
# Measured against a decision's: the widths of a sampled context, a refresh, an adapter's
# gain on a context, a pair's in a local search, a member of a listed subset.
_WIDTHS, _REFRESH, _GAIN, _PAIR, _MEMBER = 1.8, 14.0, 3.4, 4.0, 4.2


def replan_work(policy: Policy, shape: Shape) -> float:
    """Work of one replan of one lane, its refresh included.

    Args:
      policy: whose controller replans.
      shape: sizes that the program is compiled for.
    """
    n, d = shape
    controller, problem = policy.rule.controller, policy.problem
    work = _REFRESH * n * d**3
    if controller.optimistic:
        work += policy.rule.window * _WIDTHS * n * d**2
    held = problem.differing
    if held is not None and controller.search:
        return work + policy.rule.window * _sized_search_work(controller.search, n, problem)
    return work + policy.rule.window * _search_work(
        controller.search, n, problem.num_adapters, problem.cache_slots
    )


def _sized_search_work(search: str, padded: int, problem: Problem) -> float:
    """`_search_work` where adapters differ in size: greedy begins twice, moves thrice."""
    greedy = 2.0 * _GAIN * padded * problem.cache_slots
    if search not in ("exact", "local_search"):
        return greedy
    table = None
    if search == "exact" and problem.differing is not None:
        table = replanning.controller_fitting_sets(problem.differing, padded)
    if table is not None and table.complete:
        return _MEMBER * float(table.num_subsets) * float(table.num_members)
    return greedy + 3.0 * _PAIR * padded**2


def _search_work(search: str, padded: int, num_adapters: int, cache_slots: int) -> float:
    """Work of a search of `replanning.SEARCHES` per sampled context; 0 for none."""
    subsets = cache_search.num_subsets(num_adapters, cache_slots)
    if search == "exact" and subsets <= replanning.EXACT_CONTROLLER_SUBSETS:
        return _MEMBER * subsets * cache_slots
    if search in ("exact", "local_search"):
        return _PAIR * padded**2
    return _GAIN * padded * cache_slots if search else 0.0


def chunk_rounds(
    experiment: Experiment, tile: int, platform: str, *, lanes: int | None = None
) -> int:
    """Rounds per compiled call, whole blocks, so that a call takes about a second at most.

    One block is the least, however often it replans.

    Args:
      experiment: what will run; those that run side by side have equal chunks.
      tile: lanes that one device runs side by side.
      platform: "cpu", "gpu" or "tpu".
      lanes: how many of a tile's lanes count, at most; all where None.
    """
    budget = _CALL_WORK.get(platform, _CALL_WORK_ACCELERATOR) / tile
    rounds = MAX_ROUNDS
    n, d = experiment.compiled_shape
    spare = tile // max(1, min(lanes or tile, tile))
    longest = MAX_ROUNDS
    if spare > 1:
        longest *= min(spare, *(_LONGER.get(name, 1) for name in _kernels(experiment, platform)))
    # Not of the horizon: runs that differ in length alone are to share programs.
    while 2 * rounds <= longest and 2 * rounds * tile * round_bytes(n, d) <= _CHUNK_BYTES:
        rounds *= 2
    while rounds > draws.BLOCK and budget < max(
        _call_work(policy, experiment.compiled_shape, rounds) for policy in experiment.policies
    ):
        rounds //= 2
    return rounds


def _kernels(experiment: Experiment, platform: str) -> set[str]:
    """The kernels that serve an experiment's policies."""
    asked, shape = kernels.chosen(platform), experiment.compiled_shape
    sized = experiment.problem.differing is not None
    rules = [policy.rule for policy in experiment.policies]
    return {kernels.taken(asked, rule, shape, sized=sized) for rule in rules}


def round_bytes(num_adapters: int, context_dim: int) -> int:
    """Estimated bytes of a round of one lane: context, utilities, decision."""
    return 4 * (3 * num_adapters + 2 * context_dim + 16)


def _call_work(policy: Policy, shape: Shape, rounds: int) -> float:
    """Work of the longest call of one lane."""
    served = rounds * shape.num_adapters * shape.context_dim**2
    return served + _most_replans(policy, rounds) * replan_work(policy, shape)


def _most_replans(policy: Policy, rounds: int) -> int:
    """Replans of the chunk that has most of them."""
    last = policy.schedule.boundaries[policy.schedule.replans]
    return int(np.unique(last // rounds, return_counts=True)[1].max()) if last.size else 0


def picks_of_chunk(sampled: np.ndarray, first_round: int, chunk: int) -> tuple[np.ndarray, int]:
    """Which rounds of a chunk the oracle samples, padded to the chunk, and how many.

    Args:
      sampled: rounds of the sample, increasing, counted from 0.
      first_round: rounds before the chunk.
      chunk: its rounds.
    """
    inside = (sampled >= first_round) & (sampled < first_round + chunk)
    picks = sampled[inside] - first_round
    return np.pad(picks, (0, chunk - picks.size)).astype(np.int32), picks.size


def chunk_clocks(experiment: Experiment, first_round: int, chunk: int) -> list[ChunkClock]:
    """The clock of every policy for one chunk."""
    horizon = experiment.problem.horizon
    marks = epochs.curve_rounds(horizon, experiment.shorter_horizons)
    return [
        epochs.chunk_clock(
            policy.schedule, marks, first_round=first_round, num_rounds=chunk, horizon=horizon
        )
        for policy in experiment.policies
    ]
