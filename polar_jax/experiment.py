"""What `polar-jax run` does: policies on one configuration, a table, figures, a report."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from polar_jax import config as options
from polar_jax import (
    figures,
    lanes,
    manifest,
    report,
    store,
    summary,
    tables,
)
from polar_jax.config import RunConfig
from polar_jax.configured import Configured, configure, with_own_sizes

RESULTS_FILE, MANIFEST_FILE = "results.parquet", "manifest.json"
FIGURE_FILE, REPORT_FILE = "regret.png", "report.html"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked run that has its output folder.

    Attributes:
      config: the options.
      configured: what they mean for the engine.
      folder: the claimed output folder.
    """

    config: RunConfig
    configured: Configured
    folder: store.Folder

    @property
    def experiment(self) -> lanes.Experiment:
        """What the engine runs."""
        return self.configured.experiment


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
    options.check_environment(config)
    config = with_own_sizes(config)
    configured = configure(config)
    # Last, so that a bad option leaves no folder behind.
    folder = store.claim(config.out, overwrite=config.overwrite)
    return Prepared(config, configured, folder)


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
    details = manifest.build(prepared.config, prepared.configured, results)
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
    comparison = summary.compare(
        results, problem.horizon, linear_benchmark=prepared.configured.linear_benchmark
    )
    regret_png = figures.regret_png(results)
    store.write(folder, FIGURE_FILE, lambda path: path.write_bytes(regret_png))
    page = report.render(comparison, details, regret_png)
    store.write(folder, REPORT_FILE, lambda path: path.write_text(page, "utf-8"))


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
