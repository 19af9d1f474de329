"""`polar-jax compare`: paired differences of two result folders, row by row."""

import math
from typing import Any, NamedTuple

import polars as pl
from rich.console import Console
from rich.table import Table

from polar_jax import statistics, summary, tables
from polar_jax.statistics import Estimate

FIGURES = ("regret", "loss_to_full", "hit_rate", "paging_ms_per_request")
MOST_LINES = 40
_OPEN = "default"  # a setting that was left open
# What rows are not matched on: results, and how they were come by.
_RESULTS = {
    *tables.FIGURES,
    "oracle_exact",
    "curve_round",
    "curve_regret",
    "curve_loss_to_full",
    "configuration",
    "run_horizon",
    "padded_adapters",
    "padded_dim",
    "mean_paging_cost",
}


class Difference(NamedTuple):
    """One configuration that both folders hold."""

    where: dict[str, Any]  # policy and the columns that both tables share, without the seed
    seeds: int
    figures: dict[str, Estimate]  # right minus left, by name in FIGURES
    left: dict[str, float]  # means
    right: dict[str, float]

    @property
    def clearness(self) -> float:
        """How clearly the two differ: largest `|difference| / half interval` of all figures.

        Infinite where every seed differs by the same amount, or one seed differs at all.
        """
        return max(_clearness(one) for one in self.figures.values())

    @property
    def told_apart(self) -> bool:
        """Whether the interval of a figure excludes 0; never so for one seed."""
        return self.seeds > 1 and self.clearness > 1.0


class Comparison(NamedTuple):
    """Two tables of rows, matched."""

    keys: tuple[str, ...]  # columns that rows were matched on, policy and seed included
    ignored: tuple[str, ...]  # axes that only one of the two has
    differences: tuple[Difference, ...]  # clearest first
    matched: int
    identical: int  # matched rows whose shared figures agree to the last bit
    only_left: int
    only_right: int
    differing: tuple[str, ...] = ()  # options that no row has a column of, from `pairing`


def compare(left: pl.DataFrame, right: pl.DataFrame) -> Comparison:
    """Matches rows on policy, seed and all columns of settings that both tables have.

    Args:
      left: rows of a sweep, or of the `results.parquet` of a run.
      right: the same.

    Returns:
      The comparison; differences are right minus left, seed by seed.

    Raises:
      ValueError: if no row matches, or rows match several.
    """
    shared = [name for name in left.columns if name in right.columns and name not in _RESULTS]
    either = dict.fromkeys((*left.columns, *right.columns))
    ignored = tuple(name for name in either if name not in shared and name not in _RESULTS)
    figures = [n for n in tables.FIGURES if n in left.columns and n in right.columns]
    lacking = [name for name in ("policy", "seed", *FIGURES) if name not in (*shared, *figures)]
    if lacking:
        raise ValueError(f"both tables need the columns {', '.join(lacking)}; one has not.")
    left, right = (_keyed(one, shared, figures) for one in (left, right))
    for side, one in (("first", left), ("second", right)):
        _check_distinct(one, shared, side, ignored)
    both = left.join(right, on=shared, how="inner", suffix="_right").sort(shared)
    if both.is_empty():
        raise ValueError(f"no row of one matches a row of the other: {_why(left, right, shared)}.")
    # Equal figures subtract to 0; bits are compared, so that NaN equals itself.
    bits = [pl.col(name).eq_missing(pl.col(f"{name}_right")) for name in figures]
    keys = [name for name in shared if name != "seed"]
    found = [
        _difference(dict(zip(keys, key, strict=True)), rows)
        for key, rows in both.partition_by(keys, as_dict=True, maintain_order=True).items()
    ]
    return Comparison(
        keys=tuple(shared),
        ignored=ignored,
        differences=tuple(sorted(found, key=lambda one: -one.clearness)),
        matched=both.height,
        identical=both.select(pl.all_horizontal(bits).sum()).item(),
        only_left=left.height - both.height,
        only_right=right.height - both.height,
    )


def _keyed(table: pl.DataFrame, keys: list[str], figures: list[str]) -> pl.DataFrame:
    """Keys and figures alone; whole numbers of any width are one kind, as are floats."""
    return table.select(
        *(
            # Joins take NaN for equal to NaN, but no null for equal to a null.
            pl.col(name).cast(pl.Float64).fill_null(math.nan)
            if table[name].dtype.is_numeric()
            else pl.col(name).cast(pl.String).fill_null(_OPEN)
            for name in keys
        ),
        *(pl.col(name).cast(pl.Float64) for name in figures),
    )


def _check_distinct(
    table: pl.DataFrame, keys: list[str], side: str, ignored: tuple[str, ...]
) -> None:
    """Refuses rows that the shared columns do not tell apart."""
    if table.select(keys).is_duplicated().any():
        why = "it holds rows twice"
        if ignored:
            why = f"they differ in a column that the other table has not ({', '.join(ignored)})"
        raise ValueError(
            f"several rows of the {side} table have the same {', '.join(keys)}: {why}."
        )


def _why(left: pl.DataFrame, right: pl.DataFrame, keys: list[str]) -> str:
    """Which columns have no value in common, or that only their combinations differ."""
    lines = []
    for name in keys:
        here, there = ([_value(v) for v in one[name].unique().sort()] for one in (left, right))
        if not set(here) & set(there):
            lines.append(f"{name} is {_some(here)} in one and {_some(there)} in the other")
    if lines:
        return "; ".join(lines)
    return f"each of {', '.join(keys)} has values in common, but no combination of them"


def _some(values: list[str]) -> str:
    return ", ".join(values[:3]) + ", ..." * (len(values) > 3) if values else "empty"


def _value(value: object) -> str:
    if isinstance(value, float):
        return _OPEN if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _difference(where: dict[str, Any], rows: pl.DataFrame) -> Difference:
    left = {name: rows[name].to_numpy() for name in FIGURES}
    right = {name: rows[f"{name}_right"].to_numpy() for name in FIGURES}
    return Difference(
        where=where,
        seeds=rows.height,
        figures={n: statistics.paired_difference(right[n], left[n]) for n in FIGURES},
        left={name: float(one.mean()) for name, one in left.items()},
        right={name: float(one.mean()) for name, one in right.items()},
    )


def _clearness(one: Estimate) -> float:
    size, wide = abs(float(one.mean)), float(one.half_width)
    if size == 0.0:
        return 0.0
    return size / wide if wide > 0.0 else math.inf


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Prints the differences, clearest first, at most 40 of them.

    Args:
      console: where to.
      comparison: from `compare`.
    """
    found = comparison.differences
    moved = [one for one in found if one.clearness > 0.0]
    if moved:
        console.print(_table(moved[:MOST_LINES]))
    for line in notes(comparison):
        console.print(line, style="dim")


def notes(comparison: Comparison) -> list[str]:
    """What a reader of the table has to know."""
    found = comparison.differences
    moved = sum(one.clearness > 0.0 for one in found)
    clear = sum(one.told_apart for one in found)
    lines = [
        f"{comparison.identical:,} of {comparison.matched:,} matched rows agree to the last bit."
    ]
    if moved:
        lines.append(
            f"{moved:,} of {len(found):,} configurations differ; in {clear:,} the interval of a "
            f"figure excludes 0 ({len(FIGURES)} figures each; of their intervals 1 in 20 does so "
            "by chance)."
        )
        lines.append("Second minus first on the same seeds, with half of the 95 % interval.")
    if moved > MOST_LINES:
        lines.append(f"{moved - MOST_LINES:,} more differ less clearly and are not shown.")
    for count, side in ((comparison.only_left, "first"), (comparison.only_right, "second")):
        if count:
            lines.append(f"{count:,} rows of the {side} have no match.")
    lines += [f"{one}." for one in comparison.differing]
    if comparison.ignored:
        lines.append(f"Not matched on {', '.join(comparison.ignored)}: only one has it.")
    return lines


def _table(shown: list[Difference]) -> Table:
    """One line per configuration; settings that all lines share are left out."""
    keys = [
        name
        for name in shown[0].where
        if name != "policy" and len({one.where[name] for one in shown}) > 1
    ]
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    for name in ("policy", *keys):
        table.add_column(name.replace("_", "\n"), no_wrap=True)
    for name in ("seeds", "regret", "loss to\nfull memory", "hit rate\n%", "paging\nms/req."):
        table.add_column(name, justify="right", no_wrap=True)
    for one in shown:
        cells = [_cell(one.figures[name], 100.0 if name == "hit_rate" else 1.0) for name in FIGURES]
        where = [_value(one.where[name]) for name in ("policy", *keys)]
        style = "bold" if one.told_apart else None
        table.add_row(*where, str(one.seeds), *cells, style=style)
    return table


def _cell(one: Estimate, scale: float) -> str:
    mean, wide = scale * float(one.mean), scale * float(one.half_width)
    if mean == 0.0 and not wide > 0.0:
        return "="
    text = ("+" if mean > 0.0 else "") + summary.number(mean)
    return text if math.isnan(wide) else f"{text} ± {summary.number(wide)}"
