"""From rows to answers: means per configuration, who wins where, and ratios to the best.

A combination is one value of every axis but the policy. Oracles are never ranked.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from polar_jax import labels, statistics, tables
from polar_jax.policies import ORACLES
from polar_jax.statistics import Estimate
from polar_jax.sweep import bootstrap

SYNTHETIC = "synthetic:"
NEAR = 1.1  # what counts as near the best, as a ratio of losses
# Options that only some streams read; others are named without them.
READ_BY = {
    "period": ("rotating",),
    "segments": ("sticky", "drifting"),
    "stay": ("sticky", "drifting"),
}
TITLES = {
    "num_adapters": "adapters N",
    "cache_slots": "cache slots K",
    "capacity_bytes": "capacity in bytes",
    "context_dim": "context features d",
    "horizon": "requests T",
    "price_per_ms": "price per ms",
    "costs": "paging costs",
    "tier": "paging tier",
    "alpha": "confidence factor alpha",
    "epoch_length": "epoch length of POLAR",
    "window": "contexts of a replan",
    "ridge": "ridge",
    "noise": "reward noise",
    "zipf": "Zipf exponent",
    "theta_spread": "spread of adapters",
    "spread": "spread of contexts",
    "base_seed": "base seed",
    "environment": "stream",
}


class Axis(NamedTuple):
    """One axis of a sweep that is not the policy; zipped options are one axis."""

    column: str  # of the grid's table
    title: str  # for people
    values: tuple[Any, ...]  # those that have rows, in order
    numbers: tuple[float, ...] | None  # where they stand on a line; None for words

    def name(self, value: object) -> str:
        """One value for people, with what it is a value of where it would not say."""
        if isinstance(value, str) and self.numbers is None:
            return value
        short = self.title.split()[-1] if self.title in _LETTERED else self.title
        return f"{short} = {self.number(value)}"

    def number(self, value: object) -> str:
        """One value for people, alone."""
        if self.numbers is None or value not in self.values:
            return shown(value)
        return shown(self.numbers[self.values.index(value)])


_LETTERED = tuple(TITLES[name] for name in (*tables.SIZES, "alpha"))


class Grid(NamedTuple):
    """A sweep's rows with its axes."""

    table: pl.DataFrame  # without curves
    axes: tuple[Axis, ...]
    policies: tuple[str, ...]  # oracles last
    learnt: tuple[str, ...]
    chosen_on: int | None  # first seeds that choose the best, the others judge; None: all do both

    def axis(self, column: str) -> Axis | None:
        """The axis of that column, or None."""
        return next((axis for axis in self.axes if axis.column == column), None)

    def place(self, where: dict[str, Any], skip: Iterable[str] = ()) -> str:
        """A combination for people, without the axes in `skip`."""
        named = [axis.name(where[axis.column]) for axis in self.axes if axis.column in where]
        names = [axis.column for axis in self.axes if axis.column in where]
        left = set(skip)
        return ", ".join(text for name, text in zip(names, named, strict=True) if name not in left)


class Ratio(NamedTuple):
    """Loss to full memory over the best learnt policy's, with bootstrap 95 % limits."""

    value: float
    low: float
    high: float


class Winner(NamedTuple):
    """Who wins at one combination, on the seeds that all its learnt policies have.

    Where the grid says which seeds choose, `best`, `tied` and `second` come from those and
    everything else from the other seeds, so a ratio may be below 1 there.
    """

    where: dict[str, Any]  # by axis column
    seeds: int  # that margins and ratios are of
    best: str
    tied: tuple[str, ...]  # the best and all with exactly its mean
    second: str | None
    margin: Estimate | None  # loss to full memory of the second minus the best's, paired
    level: tuple[str, ...]  # others that the seeds cannot tell from the best
    ratios: dict[str, Ratio]  # of every learnt policy
    missing: tuple[str, ...]  # learnt policies without rows here

    @property
    def contested(self) -> bool:
        """Whether there was anybody to win against."""
        return len(self.ratios) > 1

    @property
    def told_apart(self) -> bool:
        """Whether the best's margin to the second is more than chance."""
        return self.margin is not None and float(self.margin.low) > 0.0


class Record(NamedTuple):
    """How one policy did over all combinations."""

    policy: str
    best: int
    shared: int  # best, with exactly the mean of another
    clear: int  # best, and told apart from the second
    near: int  # within 10 % of the best
    surely: int  # the upper 95 % limit too
    of: int
    worst: float  # largest ratio to the best
    worst_where: dict[str, Any]


def shown(value: object) -> str:
    """A value of an axis for people: thousands separated, no trailing zeros."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "default" if value is None else str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"


def grid(table: pl.DataFrame, manifest: dict[str, Any]) -> Grid:
    """Finds the axes of a sweep in its rows.

    Args:
      table: a row per lane, the contract's columns; at least one row.
      manifest: what the sweep was made with; `axes` names the columns.

    Returns:
      The grid.

    Raises:
      ValueError: if there are no rows.
    """
    if table.is_empty():
        raise ValueError("there are no rows to report on; run the sweep first.")
    named = [e for e in own_axes(table, manifest["axes"]) if e["name"] != "policy"]
    blocks: dict[object, list[str]] = {}
    for entry in named:
        block = entry["name"] if entry.get("zipped") is None else int(entry["zipped"])
        blocks.setdefault(block, []).append(entry["name"])
    axes = []
    table = table.drop("curve_round", "curve_regret", "curve_loss_to_full", strict=False)
    for columns in blocks.values():
        if len(columns) > 1 and not _told_by_one(table, columns):
            table, columns = _joined(table, columns), [", ".join(columns)]
        axes.append(_axis(table, columns))
    found = table["policy"].unique().to_list()
    order = [name for name in labels.LABELS if name in found]
    order += sorted(set(found) - set(order))
    policies = sorted(order, key=lambda name: name in ORACLES)
    learnt = tuple(name for name in policies if name not in ORACLES)
    chosen_on = (manifest.get("report") or {}).get("chosen_on")
    return Grid(table, tuple(axes), tuple(policies), learnt, chosen_on)


def _told_by_one(table: pl.DataFrame, columns: list[str]) -> bool:
    """Whether a block of zipped options is numbers, one of which tells all its steps apart."""
    steps = table.select(columns).n_unique()
    return all(table[name].dtype.is_numeric() for name in columns) and steps == max(
        table[name].n_unique() for name in columns
    )


def own_axes(table: pl.DataFrame, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A manifest's axes without those that are zipped with the policies, one value each.

    Args:
      table: a row per lane.
      entries: the manifest's `axes`.

    Returns:
      The entries left; what is a constant of each policy is no axis.
    """
    block = next((e.get("zipped") for e in entries if e["name"] == "policy"), None)
    along = [e["name"] for e in entries if block is not None and e.get("zipped") == block]
    if not along or table.select(along).n_unique() > table["policy"].n_unique():
        return list(entries)
    return [e for e in entries if e["name"] == "policy" or e["name"] not in along]


def _axis(table: pl.DataFrame, columns: list[str]) -> Axis:
    """The axis of one column; others of its block move along with it."""
    column = max(columns, key=lambda name: table[name].n_unique())
    values = table[column].unique(maintain_order=True).to_list()
    numbers: dict[Any, float] | None = None
    if table[column].dtype.is_numeric() and None not in values:
        numbers = {value: float(value) for value in values}
    elif all(str(value).startswith(SYNTHETIC) for value in values):
        numbers = {value: float(str(value).removeprefix(SYNTHETIC)) for value in values}
    if numbers is not None:
        values = sorted(values, key=lambda value: numbers[value])
    title = TITLES.get(column, column.replace("_", " "))
    if column == "costs" and numbers is not None:
        title = "paging cost"
    return Axis(
        column, title, tuple(values), None if numbers is None else tuple(numbers[v] for v in values)
    )


def _joined(table: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Adds one column of words for a block of zipped options."""
    rows = table.select(columns).unique(maintain_order=True)
    full = [", ".join(_member(name, row[name]) for name in columns) for row in rows.to_dicts()]
    brief = [
        ", ".join(
            _member(name, row[name])
            for name in columns
            if name not in READ_BY or row.get("environment", "") in ("", *READ_BY[name])
        )
        for row in rows.to_dicts()
    ]
    words = brief if len(set(brief)) == len(full) else full
    named = dict(zip(rows.rows(), words, strict=True))
    column = [named[row] for row in table.select(columns).rows()]
    return table.with_columns(pl.Series(", ".join(columns), column))


def _member(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    return f"{TITLES.get(name, name.replace('_', ' '))} {shown(value)}"


def summaries(grid: Grid) -> pl.DataFrame:
    """Every configuration's figures over seeds.

    Args:
      grid: the rows.

    Returns:
      A row per configuration: axes, `policy`, sizes, `seeds`, and per figure `_mean`,
      `_error` and the ends `_low` and `_high` of the 95 % interval (null for one seed).
    """
    keys = list(dict.fromkeys([axis.column for axis in grid.axes] + ["policy", *tables.SIZES]))
    # Options that move along with an axis are the same for all rows of a configuration.
    along = [name for name in grid.table.columns if name not in keys and name not in _NOT_AXES]
    means = [pl.col(name).cast(pl.Float64).mean().alias(f"{name}_mean") for name in tables.FIGURES]
    errors = [
        (pl.col(name).cast(pl.Float64).std() / pl.len().sqrt()).alias(f"{name}_error")
        for name in tables.FIGURES
    ]
    first = [pl.col(name).first() for name in along]
    if "configuration" in grid.table.columns:
        first.append(pl.col("configuration").first())
    out = grid.table.group_by(keys, maintain_order=True).agg(
        *first, pl.len().alias("seeds"), *means, *errors
    )
    counts = out["seeds"].to_list()
    factor = {n: statistics.t_quantile(n - 1) if n > 1 else float("nan") for n in set(counts)}
    wide = pl.Series("wide", [factor[n] for n in counts])
    out = out.with_columns(
        *((pl.col(f"{n}_mean") - wide * pl.col(f"{n}_error")).alias(f"{n}_low") for n in _F),
        *((pl.col(f"{n}_mean") + wide * pl.col(f"{n}_error")).alias(f"{n}_high") for n in _F),
    )
    ends = [f"{name}_{part}" for name in _F for part in ("mean", "error", "low", "high")]
    return out.select(*[name for name in out.columns if name not in ends], *ends)


_F = tables.FIGURES
_NOT_AXES = {*tables.COLUMNS, "configuration", "run_horizon", "padded_adapters", "padded_dim"} | {
    "mean_paging_cost"
}


def winners(grid: Grid) -> list[Winner]:
    """The best learnt policy of every combination, by loss to full memory.

    Args:
      grid: the rows.

    Returns:
      One winner per combination with a seed that all its learnt policies share, in the
      order of the axes' values.
    """
    columns = [axis.column for axis in grid.axes]
    rows = grid.table.filter(pl.col("policy").is_in(grid.learnt))
    rows = rows.select(*columns, "policy", "seed", "loss_to_full")
    if rows.is_empty():
        return []
    parts = rows.partition_by(columns, as_dict=True) if columns else {(): rows}
    places = [{value: n for n, value in enumerate(axis.values)} for axis in grid.axes]
    order = sorted(parts, key=lambda key: [p[v] for p, v in zip(places, key, strict=True)])
    found = [_winner(dict(zip(columns, key, strict=True)), parts[key], grid) for key in order]
    return [winner for winner in found if winner is not None]


def by_seed(rows: pl.DataFrame, key: str, value: str) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """One column as a matrix, on the seeds that all of its columns have.

    Args:
      rows: at most one row per seed and value of `key`.
      key: the column whose values become columns.
      value: the column of figures.

    Returns:
      The values of `key`, `[S, P]` figures in that order and the `[S]` seeds; `S` may be 0.

    Raises:
      ValueError: if several rows have one seed and one value of `key`.
    """
    if rows.select("seed", key).is_duplicated().any():
        raise ValueError(
            f"several rows have the same seed and {key}, so an axis that tells them apart is "
            "missing from the manifest."
        )
    names = rows[key].unique(maintain_order=True).to_list()
    wide = rows.pivot(key, index="seed", values=value)
    matrix = wide.select(pl.exclude("seed")).to_numpy().astype(np.float64)
    whole = np.isfinite(matrix).all(axis=1)
    return names, matrix[whole], wide["seed"].to_numpy()[whole]


def _winner(where: dict[str, Any], rows: pl.DataFrame, grid: Grid) -> Winner | None:
    names, loss, seeds = by_seed(rows, "policy", "loss_to_full")
    learnt = grid.learnt
    choosing = seeds < (np.inf if grid.chosen_on is None else grid.chosen_on)
    judged = loss if grid.chosen_on is None else loss[~choosing]
    # A sweep that is not done may have seeds of one kind alone.
    if not choosing.any() or not judged.shape[0]:
        return None
    means, loss = loss[choosing].mean(axis=0), judged
    # Ties go to the policy that is listed first, whatever order the rows are in.
    order = sorted(range(len(names)), key=lambda n: (float(means[n]), learnt.index(names[n])))
    best = order[0]
    gaps = {n: statistics.paired_difference(loss[:, n], loss[:, best]) for n in order[1:]}
    return Winner(
        where=where,
        seeds=loss.shape[0],
        best=names[best],
        tied=tuple(names[n] for n in order if means[n] == means[best]),
        second=names[order[1]] if len(order) > 1 else None,
        margin=gaps[order[1]] if len(order) > 1 else None,
        level=tuple(names[n] for n, gap in gaps.items() if not float(gap.low) > 0.0),
        ratios={names[n]: ratio for n, ratio in enumerate(_ratios(loss, best))},
        missing=tuple(name for name in learnt if name not in names),
    )


def resampled(values: np.ndarray) -> np.ndarray:
    """Means over 2,000 resamples of whole seeds; the same resamples for every call.

    Args:
      values: `[S, ...]`, one row per seed.

    Returns:
      `[2000, ...]` means.
    """
    seeds = values.shape[0]
    means = bootstrap.weights(seeds) @ values.reshape(seeds, -1)
    return means.reshape(-1, *values.shape[1:])


def _ratios(loss: np.ndarray, best: int) -> list[Ratio]:
    """Ratios to column `best` of `[S, P]` losses; equal losses of 0 have ratio 1."""

    def divide(means: np.ndarray) -> np.ndarray:
        base = means[..., best : best + 1]
        equal = means == base
        safe = np.where(equal | (base <= 0.0), 1.0, base)
        return np.where(equal, 1.0, np.where(base > 0.0, means / safe, np.inf))

    value = divide(loss.mean(axis=0))
    if loss.shape[0] == 1:
        return [Ratio(float(one), float("nan"), float("nan")) for one in value]
    # The order statistics themselves: interpolation is not defined beside infinity.
    low, high = np.quantile(divide(resampled(loss)), [0.025, 0.975], axis=0, method="nearest")
    return [Ratio(*map(float, one)) for one in zip(value, low, high, strict=True)]


def records(winners: Sequence[Winner]) -> list[Record]:
    """Every learnt policy over all combinations of two or more, most often best first.

    Args:
      winners: from `winners`.
    """
    contested = [winner for winner in winners if winner.contested]
    names = list(dict.fromkeys(name for winner in contested for name in winner.ratios))
    found = []
    for name in names:
        here = [winner for winner in contested if name in winner.ratios]
        worst = max(here, key=lambda winner: winner.ratios[name].value)
        won = [winner for winner in here if name in winner.tied]
        found.append(
            Record(
                policy=name,
                best=len(won),
                shared=sum(len(winner.tied) > 1 for winner in won),
                clear=sum(winner.told_apart for winner in won),
                near=sum(winner.ratios[name].value <= NEAR for winner in here),
                surely=sum(winner.ratios[name].high <= NEAR for winner in here),
                of=len(here),
                worst=worst.ratios[name].value,
                worst_where=worst.where,
            )
        )
    return sorted(found, key=lambda one: (-one.best, -one.near, one.worst))


def least(summary: pl.DataFrame, grid: Grid, axis: Axis) -> list[tuple[Any, int]]:
    """At which values of an axis the loss per request of the first learnt policy is least.

    Args:
      summary: from `summaries`.
      grid: the rows.
      axis: one of its axes.

    Returns:
      Values, and in how many combinations of the other axes each has the least mean; most
      often first.
    """
    others = [one.column for one in grid.axes if one.column != axis.column]
    mine = summary.filter(policy=grid.learnt[0])
    ranked = mine.sort(pl.col("loss_to_full_mean") / pl.col("horizon"), maintain_order=True)
    best = ranked.unique(others, keep="first", maintain_order=True) if others else ranked.head(1)
    counts = best[axis.column].value_counts().rows()
    return sorted(counts, key=lambda one: (-one[1], axis.values.index(one[0])))
