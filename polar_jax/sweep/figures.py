"""Figures of a sweep as PNG bytes: small multiples, maps of winners, and cost against K."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    NullFormatter,
    NullLocator,
    SymmetricalLogLocator,
)

from polar_jax import drawing, labels
from polar_jax.policies import ORACLES
from polar_jax.sweep import studies
from polar_jax.sweep.slots import Knee
from polar_jax.sweep.studies import Axis, Grid, Layout, Winner

LABEL_GAP = 1.25 * drawing.FONT / 72.0  # inches that one label at a line's end needs
_LEVEL = "#ffffff"
_WORST = 3.0  # ratio to the best from which cells are equally dark
_RATIOS = LinearSegmentedColormap.from_list("ratios", ["#ffffff", "#f6c89a", "#d55e00", "#7a2e00"])
MOST_CELLS = 60  # rows that a table of ratios may have and still be read


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
      A PNG; means with 95 % bands, bands missing for one seed.
    """
    scale = 1.0 / pl.col("horizon") if per_request else pl.lit(1.0)
    rows = summary.with_columns(
        *((pl.col(f"{figure_name}_{end}") * scale).alias(end) for end in ("mean", "low", "high"))
    )
    lay = studies.layout(grid, [axis.column])
    rows = rows.filter(*(pl.col(name).eq_missing(pl.lit(v)) for name, v in lay.held.items()))
    kept = _panel_filter(lay)
    rows = rows.filter(kept) if kept is not None else rows
    direct = _labels_fit(lay, len(grid.policies))
    height = max(2.1, LABEL_GAP * len(grid.policies) + 0.3) if direct else 2.0
    figure, panels = _panels(lay, height)
    for number, row in enumerate(panels):
        shown = [_here(rows, lay, number * len(row) + column)["mean"] for column in range(len(row))]
        _y_scale(row, np.concatenate([one.to_numpy() for one in shown]))
    for line, axes in enumerate(one for row in panels for one in row):
        here = _here(rows, lay, line)
        _x_scale(axes, axis, panels.shape[1])
        ends = {}
        for policy in grid.policies:
            mine = _along(here.filter(pl.col("policy") == policy), axis)
            if mine.height:
                # Many bands on top of each other would hide the lines.
                _line(axes, mine, policy, band=0.13 if len(grid.policies) <= 8 else 0.06)
                ends[policy] = (labels.label(policy).name, float(mine["mean"][-1]))
        if direct:
            drawing.label_ends(axes, ends, gap=LABEL_GAP / height)
        drawing.plain(axes)
    _titles(figure, panels, lay, axis.title, words(figure_name, per_request=per_request))
    if not direct:
        _policy_legend(figure, grid.policies)
    return drawing.png(figure)


def words(name: str, *, per_request: bool = False) -> str:
    """A figure's name for people, from its column."""
    if name == "loss_to_full":
        text = "loss to full memory"
    elif name.startswith("regret_"):
        text = f"regret, part of {name.removeprefix('regret_')}"
    else:
        text = name.replace("_", " ")
    return f"{text} per request" if per_request else text


def _labels_fit(lay: Layout, policies: int) -> bool:
    """Whether names fit beside the lines: two panels at most, or few lines in a row of three."""
    columns = 1 if lay.columns is None else len(lay.columns[1])
    rows = 1 if lay.rows is None else len(lay.rows[1])
    return rows * policies <= 25 and (columns <= 2 or (columns == 3 and policies <= 6))


def _panels(lay: Layout, height: float) -> tuple[Figure, np.ndarray]:
    columns = 1 if lay.columns is None else len(lay.columns[1])
    rows = 1 if lay.rows is None else len(lay.rows[1])
    width = drawing.WIDTH if columns > 1 else 0.72 * drawing.WIDTH
    figure = Figure(figsize=(width, 0.75 + height * rows), dpi=drawing.DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row")


def _panel_filter(lay: Layout) -> pl.Expr | None:
    kept = [
        pl.any_horizontal(pl.col(a.column).eq_missing(pl.lit(value)) for value in values)
        for a, values in _sides(lay)
    ]
    return pl.all_horizontal(kept) if kept else None


def _sides(lay: Layout) -> list[tuple[Axis, tuple[Any, ...]]]:
    return [side for side in (lay.columns, lay.rows) if side is not None]


def _here(rows: pl.DataFrame, lay: Layout, panel: int) -> pl.DataFrame:
    """The rows of one panel, counted line by line."""
    columns = 1 if lay.columns is None else len(lay.columns[1])
    for side, at in ((lay.rows, panel // columns), (lay.columns, panel % columns)):
        if side is not None:
            rows = rows.filter(pl.col(side[0].column).eq_missing(pl.lit(side[1][at])))
    return rows


def _along(rows: pl.DataFrame, axis: Axis) -> pl.DataFrame:
    numbers = dict(zip(axis.values, axis.numbers or (), strict=True))
    at = [numbers[value] for value in rows[axis.column].to_list()]
    return rows.with_columns(pl.Series("x", at, pl.Float64)).sort("x")


def _line(
    axes: Axes, rows: pl.DataFrame, policy: str, *, width: float = 1.3, band: float = 0.13
) -> None:
    look = labels.label(policy)
    x = rows["x"].to_numpy()
    axes.plot(
        x,
        rows["mean"].to_numpy(),
        color=look.colour,
        linewidth=width * (0.7 if policy in ORACLES else 1.0),
        linestyle=(0, look.dashes) if look.dashes else "-",
        marker="o",
        markersize=2.2,
        zorder=2 if policy in ORACLES else 3,
    )
    low, high = (rows[end].cast(pl.Float64).to_numpy() for end in ("low", "high"))
    if band and np.isfinite(low).all() and np.isfinite(high).all():
        axes.fill_between(x, low, high, color=look.colour, alpha=band, linewidth=0, zorder=1)


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
    least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    wide = least <= 0.0 or most > 10.0 * least
    if values.size and wide and np.unique(np.abs(values)).size > 2:
        drawing.signed_log_scale(axes, values)
        axes.yaxis.set_minor_locator(NullLocator())
        if least > 0.0 and most < 300.0 * least:
            steps = SymmetricalLogLocator(base=10.0, linthresh=least / 2.0, subs=[1.0, 2.0, 5.0])
            axes.yaxis.set_major_locator(steps)
        if least < 0.0:
            for one in row:
                one.axhline(0.0, color="#999999", linewidth=0.6, zorder=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.tick(value)))


def _titles(figure: Figure, panels: np.ndarray, lay: Layout, below: str, beside: str) -> None:
    figure.supylabel(beside, fontsize=drawing.FONT)
    for number, row in enumerate(panels):
        if lay.rows is not None:
            row[0].set_ylabel(lay.rows[0].name(lay.rows[1][number]), fontsize=drawing.FONT)
    for number, axes in enumerate(panels[-1]):
        axes.set_xlabel(below, fontsize=drawing.FONT)
        if lay.columns is not None:
            title = lay.columns[0].name(lay.columns[1][number])
            panels[0][number].set_title(title, fontsize=drawing.FONT, loc="left")


def _policy_legend(figure: Figure, policies: Iterable[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for policy in policies:
        look = labels.label(policy)
        style = (0, look.dashes) if look.dashes else "-"
        handles.append(Line2D([], [], color=look.colour, linestyle=style, label=look.name))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(6, len(handles)),
        fontsize=drawing.FONT,
        frameon=False,
        handlelength=2.6,
    )


def winners_png(winners: Sequence[Winner], grid: Grid) -> bytes:
    """A map of the best learnt policy over the two longest axes, panels for two others.

    Args:
      winners: from `studies.winners`.
      grid: the sweep; two or more axes have several values.

    Returns:
      A PNG. Hatched cells: the seeds cannot tell the best from the second.
    """
    across, up = map_axes(grid)
    lay = studies.layout(grid, [across.column, up.column])
    height = 0.45 + 0.24 * len(up.values)
    room = drawing.WIDTH / (
        len(across.values) * (1 if lay.columns is None else len(lay.columns[1]))
    )
    figure, panels = _panels(lay, max(height, 1.2))
    names = [name for name in grid.learnt if any(one.best == name for one in winners)]
    for number, axes in enumerate(one for row in panels for one in row):
        wanted = _panel_values(lay, number) | lay.held
        for one in winners:
            if all(one.where[name] == value for name, value in wanted.items()):
                at = across.values.index(one.where[across.column])
                _cell(axes, at, up.values.index(one.where[up.column]), one, room=room)
        axes.set_xlim(-0.5, len(across.values) - 0.5)
        axes.set_ylim(-0.5, len(up.values) - 0.5)
        _value_ticks(axes, across, up, room)
    _titles(figure, panels, lay, across.title, up.title)
    handles = [Patch(color=labels.label(n).colour, label=labels.label(n).name) for n in names]
    if not all(one.told_apart for one in winners):
        words = "margin may be chance"
        handles.append(Patch(facecolor="#bbbbbb", hatch="/////", edgecolor=_LEVEL, label=words))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=5,
        fontsize=drawing.FONT,
        frameon=False,
    )
    return drawing.png(figure)


def map_axes(grid: Grid) -> tuple[Axis, Axis]:
    """The axes of a map of winners, the longest across, the next one up."""
    order = sorted(grid.axes, key=lambda axis: -len(axis.values))
    return order[0], order[1]


def _panel_values(lay: Layout, panel: int) -> dict[str, Any]:
    columns = 1 if lay.columns is None else len(lay.columns[1])
    found = {}
    for side, at in ((lay.rows, panel // columns), (lay.columns, panel % columns)):
        if side is not None:
            found[side[0].column] = side[1][at]
    return found


def _cell(axes: Axes, x: int, y: int, winner: Winner, *, room: float) -> None:
    """A winner's cell, with its margin to the second where `room` inches hold the text."""
    colour = labels.label(winner.best).colour
    hatch = None if winner.told_apart else "/////"
    box = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor=_LEVEL, hatch=hatch)
    axes.add_patch(box)
    box.set_linewidth(0.8)
    if winner.second is None or room < 0.42:
        return
    percent = 100.0 * (winner.ratios[winner.second].value - 1.0)
    axes.text(
        x,
        y,
        f"+{percent:.0f} %" if percent < 999.5 else ">999 %",
        ha="center",
        va="center",
        fontsize=drawing.FONT - 1.5,
        color="#222222",
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.0},
    )


def _value_ticks(axes: Axes, across: Axis, up: Axis, room: float) -> None:
    """Values beside the cells, `room` inches each across; as many as do not touch."""
    widest = max(len(across.number(value)) for value in across.values)
    fit = max(2, int(room * len(across.values) / (0.075 * widest + 0.1)))
    for axis, side, most in ((across, axes.xaxis, fit), (up, axes.yaxis, 12)):
        most = most if axis.numbers else 12
        kept = range(0, len(axis.values), -(-len(axis.values) // most))
        words = [axis.number(axis.values[n]) for n in kept]
        side.set_ticks(list(kept), words)
    axes.tick_params(labelsize=drawing.FONT - 1, length=0, colors=drawing.GREY)
    if across.numbers is None:
        for label in axes.get_xticklabels():
            label.set(rotation=35, rotation_mode="anchor", horizontalalignment="right")
    for spine in axes.spines.values():
        spine.set_visible(False)


def ratios_png(winners: Sequence[Winner], records: Sequence[studies.Record], grid: Grid) -> bytes:
    """Loss to full memory of every learnt policy over the best's, a row per combination.

    Args:
      winners: from `studies.winners`, at most `MOST_CELLS`.
      records: from `studies.records`; their order is that of the columns.
      grid: the sweep.

    Returns:
      A PNG.
    """
    names = [one.policy for one in records]
    ratio = np.array(
        [[w.ratios[n].value if n in w.ratios else np.nan for n in names] for w in winners]
    )
    # Wider than a page where there are many policies, so that no two numbers touch.
    size = (drawing.WIDTH + 0.3 * max(len(names) - 13, 0), 1.0 + 0.17 * len(winners))
    figure = Figure(figsize=size, dpi=drawing.DPI, layout="constrained")
    axes = figure.subplots()
    norm = Normalize(0.0, float(np.log(_WORST)))
    bounded = np.log(np.clip(ratio, 1.0, 1e9))
    axes.imshow(bounded, cmap=_RATIOS, norm=norm, aspect="auto")
    small = drawing.FONT - (1.0 if len(names) <= 13 else 1.5)
    for (row, column), value in np.ndenumerate(ratio):
        if np.isfinite(value):
            best = names[column] in winners[row].tied
            fill = to_rgb(_RATIOS(norm(min(float(bounded[row, column]), norm.vmax or 1.0))))
            dark = sum(w * c for w, c in zip((0.299, 0.587, 0.114), fill, strict=True)) < 0.5
            axes.text(
                column,
                row,
                f"{value:.2f}" if value < 99.5 else ">99",
                ha="center",
                va="center",
                fontsize=small,
                color="white" if dark else "#222222",
                fontweight="bold" if best else "normal",
            )
    axes.set_xticks(range(len(names)), [labels.label(n).name for n in names])
    axes.set_yticks(range(len(winners)), [grid.place(one.where) or "all" for one in winners])
    axes.xaxis.tick_top()
    axes.tick_params(labelsize=drawing.FONT - 0.5, length=0, colors=drawing.GREY)
    axes.tick_params(axis="x", rotation=45 if len(names) > 7 else 0)
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("left" if len(names) > 7 else "center")
        label.set_rotation_mode("anchor")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawing.png(figure)


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
    panels = figure.subplots(2, len(knees), squeeze=False, sharex=True)
    differing = {
        name for name in knees[0].where if len({str(one.where[name]) for one in knees}) == 1
    }
    for column, knee in enumerate(knees):
        for row, name in enumerate(("loss", "paging_ms")):
            axes = panels[row, column]
            for policy in policies:
                if policy in knee.curves:
                    _slots_line(axes, knee, policy, name)
            if knee.knee is not None and knee.pays:
                axes.axvspan(knee.low, knee.high, color="#eeeeee", zorder=0)
                axes.axvline(knee.knee, color="#333333", linewidth=0.8, dashes=(4, 2), zorder=2)
            axes.set_ylim(bottom=0.0)
            drawing.plain(axes)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.tick(value)))
        top = panels[0, column]
        if knee.knee is not None and knee.pays:
            text = f" knee K = {knee.knee}"
            top.annotate(
                text,
                (knee.knee, 0.97),
                xycoords=("data", "axes fraction"),
                fontsize=drawing.FONT,
                va="top",
            )
        top.set_title(grid.place(knee.where, differing), fontsize=drawing.FONT, loc="left")
        panels[1, column].set_xlabel("cache slots K", fontsize=drawing.FONT)
    panels[0, 0].set_ylabel("loss to full memory\nper request", fontsize=drawing.FONT)
    panels[1, 0].set_ylabel("paging, ms per request", fontsize=drawing.FONT)
    _policy_legend(figure, policies)
    return drawing.png(figure)


def _slots_line(axes: Axes, knee: Knee, policy: str, name: str) -> None:
    curve = knee.curves[policy]
    one = curve.loss if name == "loss" else curve.paging_ms
    rows = pl.DataFrame({"x": curve.slots, "mean": one.mean, "low": one.low, "high": one.high})
    best = policy == knee.best
    _line(axes, rows, policy, width=2.2 if best else 0.9, band=0.2 if best else 0.0)
