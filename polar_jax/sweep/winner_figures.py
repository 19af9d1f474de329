"""Figures of who wins: a map over two axes, and a table of ratios to the best."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from polar_jax import drawing, labels
from polar_jax.sweep import layouts, panels, studies
from polar_jax.sweep.studies import Axis, Grid, Winner

_LEVEL = "#ffffff"
_WORST = 3.0  # ratio to the best from which cells are equally dark
_RATIOS = LinearSegmentedColormap.from_list("ratios", ["#ffffff", "#f6c89a", "#d55e00", "#7a2e00"])
_TABLE_DPI = 150  # text alone is sharp enough, and half the bytes
MOST_CELLS = 60  # rows that a table of ratios may have and still be read


def winners_png(winners: Sequence[Winner], grid: Grid) -> bytes:
    """A map of the best learnt policy over the two longest axes, panels for two others.

    Args:
      winners: from `studies.winners`, contested.
      grid: the sweep; two or more axes have several values.

    Returns:
      A PNG. Hatched cells: the seeds cannot tell the best from the second.
    """
    across, up = map_axes(grid)
    lay = layouts.layout(grid, [across.column, up.column])
    height = 0.45 + 0.24 * len(up.values)
    room = drawing.WIDTH / (
        len(across.values) * (1 if lay.columns is None else len(lay.columns[1]))
    )
    figure, cells = panels.make(lay, max(height, 1.2))
    names = [name for name in grid.learnt if any(one.best == name for one in winners)]
    for number, axes in enumerate(one for row in cells for one in row):
        wanted = panels.values(lay, number) | lay.held
        for one in winners:
            if all(one.where[name] == value for name, value in wanted.items()):
                at = across.values.index(one.where[across.column])
                _cell(axes, at, up.values.index(one.where[up.column]), one, room=room)
        axes.set_xlim(-0.5, len(across.values) - 0.5)
        axes.set_ylim(-0.5, len(up.values) - 0.5)
        _value_ticks(axes, across, up, room)
    panels.titles(figure, cells, lay, across.title, up.title)
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
    text = f"{percent:+.0f} %" if percent < 999.5 else ">999 %"
    axes.text(
        x,
        y,
        "tie" if len(winner.tied) > 1 else text.replace("-", "\N{MINUS SIGN}"),
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
      winners: from `studies.winners`, contested, at most `MOST_CELLS`.
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
    figure = Figure(figsize=size, dpi=_TABLE_DPI, layout="constrained")
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
