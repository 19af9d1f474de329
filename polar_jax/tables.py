"""Results as figures per lane: the columns of `results.parquet`."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polar_jax.lanes import PolicyResult, Results
from polar_jax.policies import Problem

if TYPE_CHECKING:
    import pyarrow

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
    "waiting_ms_per_request",
    "page_ins",
    "loads",
)
_COUNTS = ("page_ins", "loads")
SIZES = ("num_adapters", "cache_slots", "context_dim", "horizon")
# In files of problems with a capacity in bytes alone, after the sizes.
CAPACITY = "capacity_bytes"
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
        "waiting_ms_per_request": totals["waiting_ms"] / horizon,
    }
    return {name: derived[name] if name in derived else totals[name] for name in FIGURES}


def columns(
    policy: str,
    result: PolicyResult,
    *,
    sizes: Problem,
    seeds: Sequence[int],
    oracle_exact: bool,
    curve_round: np.ndarray,
) -> dict[str, Any]:
    """One policy's rows: the columns of `COLUMNS`, one entry per seed.

    Args:
      policy: its name.
      result: what it did, on `S` seeds.
      sizes: the problem.
      seeds: the seeds, in the order of the result.
      oracle_exact: whether the static oracle is the best of all sets.
      curve_round: `[P]` rounds of the curves.

    Returns:
      A list or array of `S` per column; curves are `[S, P]`. With a memory also `CAPACITY`.
    """
    found: dict[str, Any] = {"policy": [policy] * len(seeds), "seed": np.asarray(seeds, np.int64)}
    for name in SIZES:
        found[name] = np.full(len(seeds), getattr(sizes, name), np.int64)
    if sizes.memory is not None:
        found[CAPACITY] = np.full(len(seeds), sizes.memory.capacity_bytes, np.int64)
    for name, values in figures(result, sizes.horizon).items():
        found[name] = np.rint(values).astype(np.int64) if name in _COUNTS else values
    found["oracle_exact"] = np.full(len(seeds), oracle_exact)
    found["curve_round"] = np.tile(curve_round.astype(np.int64), (len(seeds), 1))
    found["curve_regret"] = result.curves["regret"]
    found["curve_loss_to_full"] = result.curves["loss_to_full"]
    return found


def arrow(blocks: Sequence[dict[str, Any]]) -> "pyarrow.Table":
    """Blocks of rows with equal columns as one table; `[S, P]` arrays become lists."""
    import pyarrow  # Slow to load, and no part of the engine.

    def column(values: Any) -> Any:
        if not isinstance(values, np.ndarray) or values.ndim == 1:
            return pyarrow.array(values)
        ends = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
        return pyarrow.ListArray.from_arrays(ends, values.reshape(-1))

    parts = [
        pyarrow.table({name: column(values) for name, values in block.items()}) for block in blocks
    ]
    return pyarrow.concat_tables(parts).combine_chunks()


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
    import pyarrow.parquet

    blocks = [
        columns(
            policy,
            result,
            sizes=problem,
            seeds=seeds,
            oracle_exact=results.oracle_exact,
            curve_round=results.curve_round,
        )
        for policy, result in results.policies.items()
    ]
    pyarrow.parquet.write_table(arrow(blocks), path)
