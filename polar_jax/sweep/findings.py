"""What a report shows of a sweep, worked out once: figures and sections read it."""

from typing import Any, NamedTuple

import polars as pl

from polar_jax import tables
from polar_jax.config import RunConfig
from polar_jax.sweep import scaling, slots, studies
from polar_jax.sweep.exponents import Fit
from polar_jax.sweep.slots import Knee
from polar_jax.sweep.studies import Grid, Record, Winner


class Study(NamedTuple):
    """Everything that a report shows, worked out once."""

    grid: Grid
    summary: pl.DataFrame  # a row per configuration
    winners: list[Winner]
    records: list[Record]
    knees: list[Knee]
    fits: list[Fit]
    price: float | None  # per millisecond where it is no axis


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
    price = manifest["fixed"].get("price_per_ms", RunConfig.price_per_ms)
    return Study(
        grid=grid,
        summary=studies.summaries(grid),
        winners=winners,
        records=studies.records(winners),
        knees=slots.knees(grid),
        fits=_fits(grid, manifest),
        price=None if grid.axis("price_per_ms") is not None else float(price),
    )


def _fits(grid: Grid, manifest: dict[str, Any]) -> list[Fit]:
    if not manifest.get("scaling"):
        return []
    axis = scaling.axis_column(manifest["scaling"]["axis"])
    if axis not in grid.table.columns:
        return []
    entries = manifest["axes"]
    block = next((e.get("zipped") for e in entries if e["name"] == axis), None)
    # What moves along with the scaling axis would leave one point to each fit.
    by = [e["name"] for e in entries if block is None or e.get("zipped") != block]
    columns = {"policy", "seed", *tables.SIZES, *tables.FIGURES, *by}
    arrays = {name: grid.table[name].to_numpy() for name in columns}
    stream = manifest["fixed"].get("environment", RunConfig.environment)
    return scaling.study(arrays, axis, by=by, stream=str(stream))


def long_axes(grid: Grid) -> list[studies.Axis]:
    """The axes that have several values."""
    return [axis for axis in grid.axes if len(axis.values) > 1]


def shown_knees(found: Study) -> list[Knee]:
    """A knee per price (or per value of the longest other axis), all else held."""
    if not found.knees:
        return []
    drawn = {slots.AXIS}
    price = next((a for n in ("price_per_ms", "costs") if (a := found.grid.axis(n))), None)
    if price is None:
        lay = studies.layout(found.grid, drawn)
        side = lay.columns
    else:
        side = (price, studies.thinned(price.values, 4))
    others = [axis for axis in found.grid.axes if axis.column not in drawn]
    fixed = {
        axis.column: axis.values[0 if axis.numbers is None else (len(axis.values) - 1) // 2]
        for axis in others
        if side is None or axis.column != side[0].column
    }
    kept = [k for k in found.knees if all(k.where[name] == v for name, v in fixed.items())]
    if side is None:
        return kept[:1] or found.knees[:1]
    return [k for k in kept if k.where[side[0].column] in side[1]] or found.knees[:1]
