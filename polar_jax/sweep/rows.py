"""From the engine's results to the rows of a shard; `docs/sweep_store.md` lists the columns."""

from typing import TYPE_CHECKING, Any

import numpy as np

from polar_jax import results as results_
from polar_jax import tables
from polar_jax.results import PolicyResult, Results
from polar_jax.sweep.plan import Batch, Cell, Plan

if TYPE_CHECKING:
    import pyarrow


def table(plan: Plan, batch: Batch, results: list[Results]) -> "pyarrow.Table":
    """A row per configuration and seed of a batch.

    Args:
      plan: the plan that the batch belongs to.
      batch: what was run.
      results: of each of its cells.

    Returns:
      The rows, configurations in the order of the batch.

    Raises:
      FloatingPointError: if a figure is not finite, naming the configuration.
    """
    blocks = []
    for cell, found in zip(batch.cells, results, strict=True):
        own = cell.experiment.problem.horizon
        for entry, result in zip(cell.entries, found.policies.values(), strict=True):
            for configuration, horizon in ((entry.own, own), *entry.read_off):
                shown, marks = result, found.curve_round
                if horizon != own:
                    shown, marks = results_.at_horizon(result, marks, horizon)
                block = _block(plan, batch, cell, found, configuration, shown, marks)
                _check_finite(plan, configuration, block)
                blocks.append(block)
    return tables.arrow(blocks)


def _block(
    plan: Plan,
    batch: Batch,
    cell: Cell,
    found: Results,
    configuration: int,
    result: PolicyResult,
    marks: np.ndarray,
) -> dict[str, Any]:
    """The rows of one configuration."""
    asked = plan.spec.configurations[configuration]
    problem, shape = cell.experiment.problem, cell.experiment.compiled_shape
    seeds = range(*batch.seeds)
    count = len(seeds)
    block = {
        "configuration": np.full(count, configuration, np.int64),
        **tables.columns(
            asked.config.policies[0],
            result,
            sizes=problem._replace(horizon=int(marks[-1])),
            seeds=seeds,
            oracle_exact=found.oracle_exact,
            curve_round=marks,
        ),
        "run_horizon": np.full(count, problem.horizon, np.int64),
        "padded_adapters": np.full(count, shape.num_adapters, np.int64),
        "padded_dim": np.full(count, shape.context_dim, np.int64),
        "mean_paging_cost": found.paging_cost[:, : problem.num_adapters].mean(axis=1, dtype=float),
    }
    for axis in plan.spec.axes:
        if axis.name not in block:
            block[axis.name] = [asked.values[axis.name]] * count
    return block


def _check_finite(plan: Plan, configuration: int, block: dict[str, Any]) -> None:
    bad = [name for name in tables.FIGURES if not np.isfinite(block[name]).all()]
    if bad:
        values = plan.spec.configurations[configuration].values
        raise FloatingPointError(
            f"{', '.join(bad)} of configuration {configuration} ({values}) are not finite: some "
            "option is too extreme for float32."
        )
