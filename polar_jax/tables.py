"""Results as figures per lane: the columns of `results.parquet`."""

import pathlib
from collections.abc import Sequence

import numpy as np

from polar_jax.lanes import PolicyResult, Results
from polar_jax.policies import Problem

# Figures per lane, in the order of the file. Sums over the run unless the name says
# otherwise; `net_utility` is the mean per request.
FIGURES = (
    "regret",
    "regret_routing",
    "regret_forced",
    "regret_caching",
    "regret_switching",
    "loss_to_full",
    "net_utility",
    "hit_rate",
    "paging_ms_per_request",
    "switching_ms_per_request",
    "page_ins",
    "loads",
)
SIZES = ("num_adapters", "cache_slots", "context_dim", "horizon")
COLUMNS = (
    "policy",
    "seed",
    *SIZES,
    *FIGURES,
    "oracle_exact",
    "curve_round",
    "curve_regret",
    "curve_loss_to_full",
)


def figures(result: PolicyResult, horizon: int) -> dict[str, np.ndarray]:
    """One policy's figures, by name in `FIGURES`.

    Args:
      result: what the policy did.
      horizon: `T`.

    Returns:
      `[S]` float64 each, one per seed.
    """
    totals = result.totals
    derived = {
        "net_utility": totals["net_utility"] / horizon,
        "hit_rate": 1.0 - totals["page_ins"] / horizon,
        "paging_ms_per_request": totals["paging_ms"] / horizon,
        "switching_ms_per_request": totals["switching_ms"] / horizon,
    }
    return {name: derived[name] if name in derived else totals[name] for name in FIGURES}


def write_parquet(
    path: pathlib.Path, results: Results, problem: Problem, seeds: Sequence[int]
) -> None:
    """Writes a row per lane; the columns are `COLUMNS`.

    Args:
      path: the file.
      results: what was run.
      problem: its sizes.
      seeds: its seeds, in the order of the results.
    """
    import pyarrow  # Slow to load, and no part of the engine.
    import pyarrow.parquet

    num_seeds = len(seeds)
    whole = {"page_ins", "loads"}
    columns: dict[str, list[object]] = {name: [] for name in COLUMNS}
    for policy, result in results.policies.items():
        per_lane = figures(result, problem.horizon)
        columns["policy"] += [policy] * num_seeds
        columns["seed"] += [int(seed) for seed in seeds]
        for name in SIZES:
            columns[name] += [getattr(problem, name)] * num_seeds
        for name, values in per_lane.items():
            columns[name] += (
                np.rint(values).astype(np.int64) if name in whole else values
            ).tolist()
        columns["oracle_exact"] += [results.oracle_exact] * num_seeds
        columns["curve_round"] += [results.curve_round.tolist()] * num_seeds
        columns["curve_regret"] += result.curves["regret"].tolist()
        columns["curve_loss_to_full"] += result.curves["loss_to_full"].tolist()
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
