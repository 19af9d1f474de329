"""What a run returns, and how sums over chunks and waves become figures.

A wave is one tile on every device; a chunk's sums arrive per curve interval.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from polar_jax import metrics
from polar_jax.types import Decisions, Rounds


class PolicyResult(NamedTuple):
    """One policy's figures, float64 on the host; `S` seeds, `P` curve rounds."""

    totals: dict[str, np.ndarray]  # [S] sums over the run, by name in metrics.PARTS
    curves: dict[str, np.ndarray]  # [S, P] running sums, by name in metrics.PARTS
    rounds: Rounds | None  # [S, T, ...] only where decisions were kept
    decisions: Decisions | None  # [S, T, ...] only where they were kept


class Results(NamedTuple):
    """What `lanes.run` returns, seeds in the order they were asked for."""

    policies: dict[str, PolicyResult]
    curve_round: np.ndarray  # [P] int64, counted from 1
    oracle_set: np.ndarray  # [S, N] bool, the static oracle
    oracle_exact: bool
    paging_cost: np.ndarray  # [S, N] units of utility
    paging_ms: np.ndarray  # [S, N] mean milliseconds
    tile: int
    num_devices: int
    compile_seconds: float
    run_seconds: float
    num_decisions: int


class Progress(NamedTuple):
    """What a progress callback receives."""

    phase: str  # "compiling" or "running"
    done: int  # programs or decisions
    total: int


class Wave(NamedTuple):
    """What one wave of `L` lanes left on the host; lists have one entry per policy."""

    oracle_set: np.ndarray  # [L, N] bool
    paging_cost: np.ndarray  # [L, N]
    paging_ms: np.ndarray  # [L, N]
    sums: list[np.ndarray]  # [L, intervals, parts] float64
    rounds: list[Rounds]  # one per chunk, [L, n, ...], only where decisions are kept
    decisions: list[list[Decisions]]  # one per chunk, likewise


def join(waves: list[np.ndarray], num_seeds: int) -> np.ndarray:
    """Waves of lanes joined along lanes, copies that filled the last tile dropped."""
    return np.concatenate(waves)[:num_seeds]


def _join_chunks(waves: list[list[Any]], num_seeds: int, horizon: int) -> Any:
    """Chunks of every wave joined along rounds, then waves along lanes."""
    whole = [jax.tree.map(lambda *x: np.concatenate(x, 1), *chunks) for chunks in waves]
    return jax.tree.map(lambda *x: join(list(x), num_seeds)[:, :horizon], *whole)


def policy_results(
    names: list[str], waves: list[Wave], marks: np.ndarray, *, num_seeds: int, horizon: int
) -> dict[str, PolicyResult]:
    """Totals and curves of every policy.

    Args:
      names: the policies, in the order of each wave's lists.
      waves: what the waves left.
      marks: `[P]` curve rounds.
      num_seeds: lanes to keep.
      horizon: `T`.

    Returns:
      A result per policy.
    """
    kept = bool(waves[0].rounds)
    rounds = None
    if kept:
        rounds = _join_chunks([wave.rounds for wave in waves], num_seeds, horizon)
    results = {}
    for i, name in enumerate(names):
        sums = join([wave.sums[i] for wave in waves], num_seeds)[:, : marks.size]
        running = np.cumsum(sums, axis=1)
        decisions = None
        if kept:
            decisions = _join_chunks([wave.decisions[i] for wave in waves], num_seeds, horizon)
        results[name] = PolicyResult(
            totals={part: running[:, -1, j] for j, part in enumerate(metrics.PARTS)},
            curves={part: running[:, :, j] for j, part in enumerate(metrics.PARTS)},
            rounds=rounds,
            decisions=decisions,
        )
    return results
