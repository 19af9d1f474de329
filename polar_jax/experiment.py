"""What `polar-jax run` does: policies on one configuration, a table, figures, a report."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from polar_jax import config as options
from polar_jax import (
    environments,
    figures,
    io,
    lanes,
    manifest,
    paging,
    policies,
    report,
    store,
    summary,
    tables,
)
from polar_jax.config import RunConfig

RESULTS_FILE, MANIFEST_FILE = "results.parquet", "manifest.json"
FIGURE_FILE, REPORT_FILE = "regret.png", "report.html"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked run that has its output folder.

    Attributes:
      config: the options.
      experiment: what they mean for the engine.
      settings: constants of the policies.
      paging_origin: where the paging costs come from, for people.
      folder: the claimed output folder.
    """

    config: RunConfig
    experiment: lanes.Experiment
    settings: policies.Settings
    paging_origin: str
    folder: store.Folder


def prepare(config: RunConfig) -> Prepared:
    """Checks every option, reads the paging table, and claims the output folder.

    Args:
      config: the options.

    Returns:
      The run; `execute` runs it, `store.release` gives the folder back.

    Raises:
      ValueError: for an option or a file that cannot be used; nothing has been written.
      OSError: for a file that cannot be read or a folder that cannot be written.
    """
    options.check_numbers(config)
    problem = policies.Problem(config.adapters, config.slots, config.context_dim, config.horizon)
    names = options.policy_names(config, policies.NAMES)
    env = environments.environment(
        config.environment, num_clusters=config.clusters, num_segments=config.segments
    )
    settings = policies.Settings(
        alpha=config.alpha,
        ridge=config.ridge,
        beta=config.beta,
        # Rewards of 0 and 1 are 1/2-sub-Gaussian.
        sigma=0.5 if env.binary_reward else config.noise,
        epoch_length=config.epoch_length,
        switching_term=config.switching_term,
    )
    params = environments.environment_params(
        env,
        horizon=config.horizon,
        noise=config.noise,
        zipf=config.zipf,
        spread=config.spread,
        theta_spread=config.theta_spread,
        stay=config.stay,
        period=config.period,
    )
    costs, origin = _costs(config)
    experiment = lanes.Experiment(
        problem=problem,
        environment=env,
        environment_params=params,
        costs=costs,
        policies=[policies.policy(name, **problem._asdict(), settings=settings) for name in names],
        seeds=range(config.seeds),
        base_seed=config.seed,
    )
    # Last, so that a bad option leaves no folder behind.
    folder = store.claim(config.out, overwrite=config.overwrite)
    return Prepared(config, experiment, settings, origin, folder)


def _costs(config: RunConfig) -> tuple[lanes.Costs, str]:
    """The paging costs and where they come from."""
    mean = options.synthetic_mean(config)
    if mean is not None:
        costs = lanes.Costs(price_per_ms=config.price_per_ms, synthetic_mean=mean)
        return costs, f"synthetic, drawn per seed: {mean:g} * U(0.5, 1.5)"
    if config.paging is not None:
        table = io.read_paging_table(config.paging)
        held = len(table.adapters)
        if config.adapters > held:
            raise ValueError(
                f"--adapters must be in [1, {held}], as {str(config.paging)!r} holds {held} "
                f"adapters; got {config.adapters}."
            )
        table = paging.take(table, config.adapters)
        origin = f"file {str(config.paging)!r}, {len(table.adapters)} adapters"
    else:
        table = io.qwen_paging_table(config.adapters)
        origin = "measured: Qwen2.5-7B-Instruct LoRA adapters in vLLM 0.8.5 (arXiv:2508.08343)"
    worst = float(np.max(paging.paging_cost(table, config.price_per_ms)))
    if worst > options.MAX_COST:
        raise ValueError(
            f"--price-per-ms must keep every cost of a page-in at {options.MAX_COST:g} or below, "
            f"got {config.price_per_ms:g}, which makes one {worst:g}."
        )
    return lanes.Costs(price_per_ms=config.price_per_ms, table=table), origin


def execute(
    prepared: Prepared, progress: Callable[[lanes.Progress], None] | None = None
) -> lanes.Results:
    """Runs, and writes the table, the manifest, the figure and the report.

    Args:
      prepared: a run; its folder is released at the end, however that comes.
      progress: called after each step of the computation.

    Returns:
      The results. Each file is whole or absent, and the table is written first.
    """
    try:
        results = lanes.run(
            prepared.experiment, num_devices=prepared.config.devices, progress=progress
        )
        _write(prepared, results)
    finally:
        store.release(prepared.folder)
    return results


def run_experiment(
    config: RunConfig, progress: Callable[[lanes.Progress], None] | None = None
) -> lanes.Results:
    """Does what `polar-jax run` does; see `RunConfig` for the options.

    Args:
      config: the options.
      progress: called after each step of the computation.

    Returns:
      The results, which are also in the output folder.

    Raises:
      ValueError: for an option or a file that cannot be used; nothing has been written.
      OSError: for a file that cannot be read or a folder that cannot be written.
    """
    return execute(prepare(config), progress)


def _write(prepared: Prepared, results: lanes.Results) -> None:
    experiment, folder = prepared.experiment, prepared.folder
    problem, seeds = experiment.problem, experiment.seeds
    store.write(
        folder,
        RESULTS_FILE,
        lambda path: tables.write_parquet(path, results, problem, seeds),
    )
    # What described an earlier table must not stand beside this one.
    for stale in (MANIFEST_FILE, FIGURE_FILE, REPORT_FILE):
        store.remove(folder, stale)
    details = manifest.build(
        prepared.config, experiment, prepared.settings, results, prepared.paging_origin
    )
    store.write(folder, MANIFEST_FILE, lambda path: _write_json(path, details))
    unusable = [
        name
        for name, one in results.policies.items()
        if not all(np.isfinite(total).all() for total in one.totals.values())
    ]
    if unusable:
        raise FloatingPointError(
            f"figures of {', '.join(unusable)} are not finite, as some option is too extreme for "
            f"float32; {str(folder.path / RESULTS_FILE)!r} holds them, nothing was drawn."
        )
    comparison = summary.compare(results, problem.horizon)
    regret_png = figures.regret_png(results)
    store.write(folder, FIGURE_FILE, lambda path: path.write_bytes(regret_png))
    page = report.render(comparison, details, regret_png)
    store.write(folder, REPORT_FILE, lambda path: path.write_text(page, "utf-8"))


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
