"""Whether the rows of two result folders may be paired: the options that neither varies."""

import json
import pathlib
from typing import Any, NamedTuple

import polars as pl

from polar_jax.config import MEASURED_COSTS, MEASURED_TIERS, RunConfig
from polar_jax.sweep import grid, manifests, store, studies, table

# What requests, adapters and costs are drawn with: a seed is another one where they differ.
# Not the reward noise, a factor of draws that stay the same, nor the price, one of costs.
_DRAWN_WITH = (
    "base_seed",
    "environment",
    "clusters",
    "zipf",
    "spread",
    "theta_spread",
    "stay",
    "segments",
    "period",
    "paging",
    "costs",
    "tier",
)
_SIDES = ("first", "second")
# Sizes, policies and seeds are columns of every row.
_IN_ROWS = ("num_adapters", "cache_slots", "context_dim", "horizon", "policy", "seeds")


class Folder(NamedTuple):
    """The rows of a result folder, and the options that all of them share."""

    rows: pl.DataFrame
    fixed: dict[str, Any]  # by column; without those that rows have a column of


def read(path: pathlib.Path) -> Folder:
    """Reads the folder of a run or of a sweep.

    Args:
      path: the folder.

    Returns:
      Its rows and options.

    Raises:
      ValueError: if its manifest is missing or cannot be read.
      StoreError: if it holds no results.
    """
    rows = table.load(path)
    if (path / table.RUN_RESULTS).is_file():
        fixed = _run_options(path / manifests.NAME)
    else:
        fixed = store.open_existing(path).manifest["fixed"]
    fixed = {grid.column(name): value for name, value in fixed.items()}
    if not {"costs", "paging"} & {*fixed, *rows.columns}:
        fixed["costs"] = MEASURED_COSTS
    if fixed.get("costs") == MEASURED_COSTS and "tier" not in {*fixed, *rows.columns}:
        fixed["tier"] = MEASURED_TIERS[0]
    options = {name: getattr(RunConfig, name) for name in grid.KINDS}
    known = {grid.column(name): value for name, value in options.items()} | fixed
    left = (name for name in known if name not in _IN_ROWS and name not in rows.columns)
    return Folder(rows, {name: known[name] for name in left})


def _run_options(path: pathlib.Path) -> dict[str, Any]:
    try:
        options = json.loads(path.read_bytes())["options"]
    except FileNotFoundError:
        raise ValueError(f"{str(path)!r} is missing: rows alone do not tell their seeds.") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{str(path)!r} is damaged: it has no options.") from None
    return {name: options[name] for name in grid.KINDS if options.get(name) is not None}


def paired(left: Folder, right: Folder) -> tuple[Folder, Folder, list[str]]:
    """Checks that seeds mean the same in both, and gives both the columns that one varies.

    Args:
      left: one folder.
      right: the other.

    Returns:
      Both, with a column for every option that the other has a column of; and a line per
      option that differs and draws nothing, such as `alpha 0.5 in the first, 1 in the second`.

    Raises:
      ValueError: if they differ in an option that requests, adapters or costs are drawn with.
    """
    lines = []
    for name in sorted({*left.fixed} & {*right.fixed}, key=_order):
        values = (left.fixed[name], right.fixed[name])
        if values[0] == values[1]:
            continue
        words = [
            f"{studies.shown(value)} in the {side}"
            for value, side in zip(values, _SIDES, strict=True)
        ]
        if name in _DRAWN_WITH and _reads(left, name) and _reads(right, name):
            raise ValueError(
                f"rows cannot be paired by seed, as {name} is {words[0]} and {words[1]}: the same "
                "seed draws other requests, adapters or costs."
            )
        lines.append(f"{name} {words[0]}, {words[1]}")
    return _widened(left, right), _widened(right, left), lines


def _order(name: str) -> tuple[int, str]:
    """What decides first: a paging file stands in place of costs."""
    return (_DRAWN_WITH.index(name) if name in _DRAWN_WITH else len(_DRAWN_WITH)), name


def _reads(folder: Folder, name: str) -> bool:
    """Whether the streams of a folder read an option."""
    readers = studies.READ_BY.get(name)
    if readers is None:
        return True
    if "environment" in folder.rows.columns:
        return bool(folder.rows["environment"].is_in(readers).any())
    return folder.fixed["environment"] in readers


def _widened(folder: Folder, other: Folder) -> Folder:
    """A folder with what is fixed in it as columns, where the other varies it."""
    columns = [
        pl.lit(value, dtype=other.rows[name].dtype).alias(name)
        for name, value in folder.fixed.items()
        if name in other.rows.columns
    ]
    return folder._replace(rows=folder.rows.with_columns(columns))
