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
    oracle_set: np.ndarray  # [S, N] bool, the static oracle; N as compiled
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


def at_horizon(
    result: PolicyResult, curve_round: np.ndarray, horizon: int
) -> tuple[PolicyResult, np.ndarray]:
    """A result as it stood after fewer rounds.

    Args:
      result: of a longer run.
      curve_round: `[P]` rounds of its curves, `horizon` among them.
      horizon: rounds, counted from 1.

    Returns:
      `(the result without rounds and decisions, its curve rounds)`.
    """
    count = int(np.searchsorted(curve_round, horizon)) + 1
    curves = {name: values[:, :count] for name, values in result.curves.items()}
    totals = {name: values[:, -1] for name, values in curves.items()}
    return PolicyResult(totals, curves, None, None), curve_round[:count]


def _join(waves: list[np.ndarray], lanes: slice) -> np.ndarray:
    """Waves joined along lanes, copies that filled the last tile and others' lanes dropped."""
    return np.concatenate(waves)[lanes]


def _join_chunks(waves: list[list[Any]], lanes: slice, horizon: int) -> Any:
    """Chunks of every wave joined along rounds, then waves along lanes."""
    whole = [jax.tree.map(lambda *x: np.concatenate(x, 1), *chunks) for chunks in waves]
    return jax.tree.map(lambda *x: _join(list(x), lanes)[:, :horizon], *whole)


def _policy_result(
    waves: list[Wave], policy: int, lanes: slice, marks: np.ndarray, rounds: Any
) -> PolicyResult:
    sums = _join([wave.sums[policy] for wave in waves], lanes)[:, : marks.size]
    running = np.cumsum(sums, axis=1)
    decisions = None
    if rounds is not None:
        chunks = [wave.decisions[policy] for wave in waves]
        decisions = _join_chunks(chunks, lanes, int(marks[-1]))
    return PolicyResult(
        totals={part: running[:, -1, j] for j, part in enumerate(metrics.PARTS)},
        curves={part: running[:, :, j] for j, part in enumerate(metrics.PARTS)},
        rounds=rounds,
        decisions=decisions,
    )


def results_of(
    waves: list[Wave], lanes: slice, *, names: list[str], marks: np.ndarray, **facts: Any
) -> Results:
    """The results of one experiment from the waves that ran it.

    Args:
      waves: what the waves left.
      lanes: the experiment's lanes among theirs.
      names: its policies, in the order of each wave's lists.
      marks: `[P]` curve rounds, the last of which is `T`.
      **facts: the other fields of `Results`.

    Returns:
      The results.
    """
    horizon = int(marks[-1])
    rounds = None
    if waves[0].rounds:
        rounds = _join_chunks([wave.rounds for wave in waves], lanes, horizon)
    oracle_set = _join([wave.oracle_set for wave in waves], lanes)
    return Results(
        policies={
            name: _policy_result(waves, i, lanes, marks, rounds) for i, name in enumerate(names)
        },
        curve_round=marks,
        oracle_set=oracle_set,
        paging_cost=_join([wave.paging_cost for wave in waves], lanes),
        paging_ms=_join([wave.paging_ms for wave in waves], lanes),
        num_decisions=len(names) * len(oracle_set) * horizon,
        **facts,
    )
