"""What the figures of a sweep share: grids of panels, lines with bands, legends."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polar_jax import drawing, labels
from polar_jax.policies import ORACLES
from polar_jax.sweep.layouts import Layout

LABEL_GAP = 1.25 * drawing.FONT / 72.0  # inches that one label at a line's end needs
_DOTTED = (0.0, (1.0, 1.4))


def make(lay: Layout, height: float) -> tuple[Figure, np.ndarray]:
    """An empty grid of panels.

    Args:
      lay: which axes are columns and rows.
      height: inches of one row.

    Returns:
      The figure and its `[rows, columns]` axes; a row shares its scale.
    """
    columns = 1 if lay.columns is None else len(lay.columns[1])
    rows = 1 if lay.rows is None else len(lay.rows[1])
    width = drawing.WIDTH if columns > 1 else 0.72 * drawing.WIDTH
    figure = Figure(figsize=(width, 0.75 + height * rows), dpi=drawing.DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=True, sharey="row")


def values(lay: Layout, panel: int) -> dict[str, Any]:
    """What a panel, counted line by line, is of: a value by column."""
    columns = 1 if lay.columns is None else len(lay.columns[1])
    found = {}
    for side, at in ((lay.rows, panel // columns), (lay.columns, panel % columns)):
        if side is not None:
            found[side[0].column] = side[1][at]
    return found


def line(
    axes: Axes,
    rows: pl.DataFrame,
    policy: str,
    *,
    width: float = 1.3,
    band: float = 0.13,
    dotted: bool = False,
) -> None:
    """One policy's means with their band.

    Args:
      axes: where to draw.
      rows: columns `x`, `mean`, `low` and `high`, in the order of `x`.
      policy: whose they are.
      width: of the line, in points.
      band: opacity of the band, 0 for none; there is none where an end is not known.
      dotted: dotted with open markers, whatever the policy's own style; the second value of
        an axis that styles tell.
    """
    look = labels.label(policy)
    x = rows["x"].to_numpy()
    axes.plot(
        x,
        rows["mean"].to_numpy(),
        color=look.colour,
        linewidth=width * (0.7 if policy in ORACLES else 1.0),
        linestyle=_DOTTED if dotted else _style(policy),
        marker="o",
        markersize=3.2 if dotted else 2.2,
        markerfacecolor="white" if dotted else look.colour,
        zorder=2 if policy in ORACLES else 3,
    )
    low, high = (rows[end].cast(pl.Float64).to_numpy() for end in ("low", "high"))
    if band and np.isfinite(low).all() and np.isfinite(high).all():
        axes.fill_between(x, low, high, color=look.colour, alpha=band, linewidth=0, zorder=1)


def _style(policy: str) -> Literal["-"] | tuple[float, tuple[float, ...]]:
    dashes = labels.label(policy).dashes
    return (0.0, dashes) if dashes else "-"


def titles(figure: Figure, panels: np.ndarray, lay: Layout, below: str, beside: str) -> None:
    """Names a grid's axes, rows and columns.

    Args:
      figure: from `make`.
      panels: its axes.
      lay: what they are of.
      below: what the horizontal axes show.
      beside: what the vertical axes show.
    """
    figure.supylabel(beside, fontsize=drawing.FONT)
    for number, row in enumerate(panels):
        if lay.rows is not None:
            row[0].set_ylabel(lay.rows[0].name(lay.rows[1][number]), fontsize=drawing.FONT)
    for number, axes in enumerate(panels[-1]):
        axes.set_xlabel(below, fontsize=drawing.FONT)
        if lay.columns is not None:
            title = lay.columns[0].name(lay.columns[1][number])
            panels[0][number].set_title(title, fontsize=drawing.FONT, loc="left")


def policy_legend(figure: Figure, policies: Iterable[str]) -> None:
    """A legend of policies below a figure."""
    from matplotlib.lines import Line2D

    handles = []
    for policy in policies:
        look = labels.label(policy)
        handles.append(Line2D([], [], color=look.colour, linestyle=_style(policy), label=look.name))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        # Many names hold long ones: six columns of them are wider than the page.
        ncols=min(6 if len(handles) <= 12 else 5, len(handles)),
        fontsize=drawing.FONT,
        frameon=False,
        handlelength=2.6,
    )
