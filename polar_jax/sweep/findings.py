"""What a report shows of a sweep, worked out once: figures and sections read it."""

from typing import Any, NamedTuple

import polars as pl

from polar_jax import tables
from polar_jax.config import RunConfig
from polar_jax.sweep import layouts, scaling, slots, studies, words
from polar_jax.sweep.exponents import Fit
from polar_jax.sweep.layouts import Layout
from polar_jax.sweep.slots import Knee
from polar_jax.sweep.studies import Axis, Grid, Record, Winner


class Study(NamedTuple):
    """Everything that a report shows, worked out once."""

    grid: Grid
    summary: pl.DataFrame  # a row per configuration
    winners: list[Winner]
    records: list[Record]
    knees: list[Knee]
    fits: list[Fit]
    x: Axis | None  # of numbers, that the study is about
    price: float | None  # per millisecond where it is no axis and makes the costs


def study(table: pl.DataFrame, manifest: dict[str, Any]) -> Study:
    """Works out what a report shows.

    Args:
      table: a row per lane.
      manifest: what the sweep was made with.

    Returns:
      The study.

    Raises:
      ValueError: if there are no rows.
    """
    grid = studies.grid(table, manifest)
    winners = studies.winners(grid)
    fixed = manifest["fixed"]
    price: float | None = float(fixed.get("price_per_ms", RunConfig.price_per_ms))
    if str(fixed.get("costs")).startswith(studies.SYNTHETIC) or grid.axis("price_per_ms"):
        price = None
    return Study(
        grid=grid,
        summary=studies.summaries(grid),
        winners=winners,
        records=studies.records(winners),
        knees=slots.knees(grid),
        fits=_fits(grid, manifest),
        x=_x(grid, manifest),
        price=price,
    )


def _x(grid: Grid, manifest: dict[str, Any]) -> Axis | None:
    """The axis that `[report] x` names, or that of numbers with most values."""
    named = words.column((manifest.get("report") or {}).get("x") or "")
    numeric = [axis for axis in long_axes(grid) if axis.numbers is not None]
    return max(numeric, key=lambda axis: (axis.column == named, len(axis.values)), default=None)


def _fits(grid: Grid, manifest: dict[str, Any]) -> list[Fit]:
    if not manifest.get("scaling"):
        return []
    axis = scaling.axis_column(manifest["scaling"]["axis"])
    if axis not in grid.table.columns:
        return []
    by, along = _beside(studies.own_axes(grid.table, manifest["axes"]), axis)
    columns = {"policy", "seed", "mean_paging_cost", *tables.SIZES, *tables.FIGURES, *by, *along}
    arrays = {name: grid.table[name].to_numpy() for name in columns}
    return scaling.study(arrays, axis, by=by, along=along, fixed=manifest["fixed"])


def _beside(entries: list[dict[str, Any]], axis: str) -> tuple[list[str], list[str]]:
    """The other axes: those that groups have one value of each, and those that move with it."""
    own = next((entry for entry in entries if entry["name"] == axis), {})
    block = [
        entry
        for entry in entries
        if own.get("zipped") is not None and entry["zipped"] == own["zipped"] and entry is not own
    ]
    steps = set(zip(*(entry["values"] for entry in (own, *block)), strict=True)) if block else ()
    others = [entry["name"] for entry in block if entry["name"] != "policy"]
    # Where steps share a value of the axis, the others of the block tell them apart.
    if len(steps) > len(set(own.get("values", ()))):
        return [entry["name"] for entry in entries], []
    return [entry["name"] for entry in entries if entry["name"] not in others], others


def long_axes(grid: Grid) -> list[studies.Axis]:
    """The axes that have several values."""
    return [axis for axis in grid.axes if len(axis.values) > 1]


def shown_knees(found: Study) -> tuple[list[Knee], Layout]:
    """A knee per price (or per value of the longest other axis), all else held.

    Args:
      found: from `study`.

    Returns:
      One to four knees, or none where there are none, and what is held: a combination that
      has a knee.
    """
    drawn = {slots.AXIS}
    price = next((a for n in ("price_per_ms", "costs") if (a := found.grid.axis(n))), None)
    side = layouts.layout(found.grid, drawn).columns
    axis = price if price is not None and len(price.values) > 1 else side and side[0]
    if axis:
        having = {knee.where[axis.column] for knee in found.knees}
        side = (axis, layouts.thinned([v for v in axis.values if v in having], 4))
    among = [k for k in found.knees if side is None or k.where[side[0].column] in side[1]]
    others = [
        axis
        for axis in found.grid.axes
        if axis.column not in drawn and (side is None or axis.column != side[0].column)
    ]
    held = layouts.middle(others, [tuple(k.where[a.column] for a in others) for k in among])
    kept = [k for k in among if all(k.where[name] == value for name, value in held.items())]
    return kept, Layout(side, None, held)
