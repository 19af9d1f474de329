"""Figures of a sweep along its axes as PNG bytes: small multiples, and cost against K."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    SymmetricalLogLocator,
)

from polar_jax import drawing, labels
from polar_jax.sweep import layouts, panels, words
from polar_jax.sweep.layouts import Layout
from polar_jax.sweep.slots import Knee
from polar_jax.sweep.studies import Axis, Grid

_MOST_BANDED = 12
_MOST_STYLED = 4  # policies, beyond which line styles are theirs


def axis_png(
    summary: pl.DataFrame, grid: Grid, axis: Axis, figure_name: str, *, per_request: bool
) -> bytes:
    """One figure against one axis: a line per policy, panels for up to two other axes.

    Args:
      summary: from `studies.summaries`.
      grid: the sweep.
      axis: what to draw along; its values are numbers.
      figure_name: a name in `tables.FIGURES`.
      per_request: divide by the horizon.

    Returns:
      A PNG; means with 95 % bands, which are missing for one seed and many policies.
    """
    scale = 1.0 / pl.col("horizon") if per_request else pl.lit(1.0)
    rows = summary.with_columns(
        *((pl.col(f"{figure_name}_{end}") * scale).alias(end) for end in ("mean", "low", "high"))
    )
    lay = axis_layout(grid, axis)
    rows = rows.filter(*(pl.col(name).eq_missing(pl.lit(v)) for name, v in lay.held.items()))
    kept = _panel_filter(lay)
    rows = rows.filter(kept) if kept is not None else rows
    count = len(grid.policies) * (1 if lay.styles is None else 2)
    direct = _labels_fit(lay, count) and (lay.styles is None or len(grid.policies) == 1)
    height = max(2.1, panels.LABEL_GAP * count + 0.3) if direct else 2.0
    figure, cells = panels.make(lay, height)
    for number, row in enumerate(cells):
        shown = [_here(rows, lay, number * len(row) + column)["mean"] for column in range(len(row))]
        _y_scale(row, np.concatenate([one.to_numpy() for one in shown]))
    named: list[tuple[Axes, list[drawing.End]]] = []
    for panel, axes in enumerate(one for row in cells for one in row):
        _x_scale(axes, axis, cells.shape[1])
        named.append((axes, _lines(axes, _here(rows, lay, panel), grid, axis, lay.styles)))
        if not named[-1][1]:
            drawing.note(axes, "no rows here")
        drawing.plain(axes)
    # Last, as panels of a row share a scale that each of them may still have widened.
    for axes, ends in named if direct else ():
        drawing.label_ends(axes, ends, gap=panels.LABEL_GAP / height)
    beside = words.figure(figure_name, per_request=per_request)
    panels.titles(figure, cells, lay, axis.title, beside)
    if not direct:
        panels.policy_legend(figure, grid.policies)
    return drawing.png(figure)


def axis_layout(grid: Grid, axis: Axis) -> Layout:
    """Panels, styles and held values of the figure along an axis."""
    # Colours tell policies; a few of them can do without line styles of their own.
    return layouts.layout(grid, [axis.column], styled=len(grid.policies) <= _MOST_STYLED)


def banded(grid: Grid) -> bool:
    """Whether lines have bands: many on top of each other would hide the lines."""
    return len(grid.policies) <= _MOST_BANDED


def _lines(
    axes: Axes, rows: pl.DataFrame, grid: Grid, axis: Axis, styles: Axis | None
) -> list[drawing.End]:
    """Draws the lines of one panel; returns what they are called."""
    ends = []
    for policy in grid.policies:
        mine = rows.filter(pl.col("policy") == policy)
        for value in (None,) if styles is None else styles.values:
            same = pl.lit(True) if styles is None else _is(styles, value)
            line = _along(mine.filter(same), axis)
            if line.is_empty():
                continue
            band = (0.13 if len(grid.policies) <= 8 else 0.06) * banded(grid)
            dotted = styles is not None and value == styles.values[1]
            panels.line(axes, line, policy, band=band, dotted=dotted)
            text = labels.label(policy).name if styles is None else styles.name(value)
            ends.append(drawing.End(policy, text, float(line["mean"][-1])))
    return ends


def _labels_fit(lay: Layout, lines: int) -> bool:
    """Whether names fit beside the lines: two panels at most, or few lines in a row of three."""
    columns = 1 if lay.columns is None else len(lay.columns[1])
    rows = 1 if lay.rows is None else len(lay.rows[1])
    return rows * lines <= 25 and (columns <= 2 or (columns == 3 and lines <= 6))


def _is(axis: Axis, value: object) -> pl.Expr:
    """Which rows have a value of an axis."""
    return pl.col(axis.column).eq_missing(pl.lit(value))


def _panel_filter(lay: Layout) -> pl.Expr | None:
    kept = [pl.any_horizontal(_is(axis, value) for value in values) for axis, values in _sides(lay)]
    return pl.all_horizontal(kept) if kept else None


def _sides(lay: Layout) -> list[tuple[Axis, tuple[Any, ...]]]:
    return [side for side in (lay.columns, lay.rows) if side is not None]


def _here(rows: pl.DataFrame, lay: Layout, panel: int) -> pl.DataFrame:
    """The rows of one panel, counted line by line."""
    columns = 1 if lay.columns is None else len(lay.columns[1])
    for side, at in ((lay.rows, panel // columns), (lay.columns, panel % columns)):
        if side is not None:
            rows = rows.filter(_is(side[0], side[1][at]))
    return rows


def _along(rows: pl.DataFrame, axis: Axis) -> pl.DataFrame:
    numbers = dict(zip(axis.values, axis.numbers or (), strict=True))
    at = [numbers[value] for value in rows[axis.column].to_list()]
    return rows.with_columns(pl.Series("x", at, pl.Float64)).sort("x")


def _x_scale(axes: Axes, axis: Axis, columns: int) -> None:
    x = np.array(axis.numbers, np.float64)
    if x.min() > 0.0 and x.max() / x.min() > 10.0:
        axes.set_xscale("log")
        axes.set_xlim(float(x.min()), float(x.max()))
    elif x.size > 1:
        axes.set_xlim(float(x.min()), float(x.max()))
    if x.min() == 0.0 and x.size > 2 and x.max() / np.sort(x)[1] > 10.0:
        axes.set_xscale("symlog", linthresh=float(np.sort(x)[1]), linscale=0.5)
    if x.size <= 5 or (x.size <= 16 and x.min() > 0.0 and x.max() < 100.0 * x.min()):
        axes.xaxis.set_major_locator(FixedLocator(_apart(axes, x, columns)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.tick(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _apart(axes: Axes, x: np.ndarray, columns: int) -> list[float]:
    """The values whose ticks stand far enough from their neighbours; both ends are kept."""
    x = np.sort(x)
    places = np.asarray(axes.xaxis.get_transform().transform(x))
    widest = max(len(drawing.tick(float(value))) for value in x)
    # Inches of the widest label and a gap, over those of a panel.
    share = (0.065 * widest + 0.08) * columns / (0.8 * drawing.WIDTH)
    least = share * max(float(places[-1] - places[0]), 1e-12)
    kept = [x.size - 1]
    for n in range(x.size - 2, -1, -1):
        if places[kept[-1]] - places[n] > least and (n == 0 or places[n] - places[0] > least):
            kept.append(n)
    return [float(x[n]) for n in kept]


def _y_scale(row: Sequence[Axes] | np.ndarray, means: np.ndarray) -> None:
    """Linear within a decade; logarithmic beyond, through zero where signs change."""
    axes = row[0]
    values = means[np.isfinite(means)]
    if not values.size:
        axes.set_yticks([])
        return
    least, most = float(values.min()), float(values.max())
    wide = least <= 0.0 or most > 10.0 * least
    if wide and np.unique(np.abs(values)).size > 2:
        drawing.signed_log_scale(axes, values)
        axes.yaxis.set_minor_locator(NullLocator())
        if least > 0.0 and most < 300.0 * least:
            steps = SymmetricalLogLocator(base=10.0, linthresh=least / 2.0, subs=[1.0, 2.0, 5.0])
            axes.yaxis.set_major_locator(steps)
        if least < 0.0:
            for one in row:
                one.axhline(0.0, color="#999999", linewidth=0.6, zorder=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.tick(value)))


def slots_png(knees: Sequence[Knee], grid: Grid, policies: Sequence[str]) -> bytes:
    """Loss and paging per request against K; a column of panels per knee, the best bold.

    Args:
      knees: one to four, from `slots.knees`.
      grid: the sweep.
      policies: whose curves to draw.

    Returns:
      A PNG.
    """
    size = (drawing.WIDTH if len(knees) > 1 else 0.72 * drawing.WIDTH, 5.0)
    figure = Figure(figsize=size, dpi=drawing.DPI, layout="constrained")
    cells = figure.subplots(2, len(knees), squeeze=False, sharex=True)
    alike = {
        name
        for name in knees[0].where
        if len(knees) > 1 and len({str(one.where[name]) for one in knees}) == 1
    }
    for column, knee in enumerate(knees):
        for row, name in enumerate(("loss", "paging_ms")):
            axes = cells[row, column]
            for policy in policies:
                if policy in knee.curves:
                    _slots_line(axes, knee, policy, name)
            if knee.knee is not None and knee.pays:
                axes.axvspan(knee.low, knee.high, color="#eeeeee", zorder=0)
                axes.axvline(knee.knee, color="#333333", linewidth=0.8, dashes=(4, 2), zorder=2)
            axes.set_ylim(bottom=0.0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            drawing.plain(axes)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.tick(value)))
        top = cells[0, column]
        if knee.knee is not None and knee.pays:
            text = f" knee K = {knee.knee}"
            top.annotate(
                text,
                (knee.knee, 0.97),
                xycoords=("data", "axes fraction"),
                fontsize=drawing.FONT,
                va="top",
            )
        top.set_title(grid.place(knee.where, alike), fontsize=drawing.FONT, loc="left")
        cells[1, column].set_xlabel("cache slots K", fontsize=drawing.FONT)
    cells[0, 0].set_ylabel("loss to full memory\nper request", fontsize=drawing.FONT)
    cells[1, 0].set_ylabel("paging, ms per request", fontsize=drawing.FONT)
    panels.policy_legend(figure, policies)
    return drawing.png(figure)


def _slots_line(axes: Axes, knee: Knee, policy: str, name: str) -> None:
    curve = knee.curves[policy]
    one = curve.loss if name == "loss" else curve.paging_ms
    rows = pl.DataFrame({"x": curve.slots, "mean": one.mean, "low": one.low, "high": one.high})
    best = policy == knee.best
    panels.line(axes, rows, policy, width=2.2 if best else 0.9, band=0.2 if best else 0.0)
