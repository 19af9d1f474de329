"""A paging file as a figure: load times against size, or adapter by adapter."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polar_jax import drawing
from polar_jax.paging_tools import summary
from polar_jax.paging_tools.summary import Row

# Okabe and Ito's, told apart by colour-blind eyes too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_NAMED = 40
_MIB = 2.0**20


def paging_png(found: Sequence[Row], title: str) -> bytes:
    """Medians with their quantiles, and the transfer models where sizes are known.

    Args:
      found: one or more figures per adapter and tier.
      title: over the figure.

    Returns:
      A PNG. Times are on a logarithmic axis where none is 0.
    """
    figure = Figure(figsize=(drawing.WIDTH, 4.2), dpi=drawing.DPI)
    axes = figure.add_axes((0.09, 0.13, 0.88, 0.78))
    by_size = len({row.size_bytes for row in found} - {None}) > 1
    by_size = by_size and all(row.size_bytes is not None for row in found)
    names = list(dict.fromkeys(row.adapter for row in found))
    places = {name: float(place) for place, name in enumerate(names)}
    for index, tier in enumerate(summary.tiers(found)):
        mine = [row for row in found if row.tier == tier]
        # A little apart, or the bars of tiers would hide one another.
        if by_size:
            across = [(row.size_bytes or 0) / _MIB * 1.025**index for row in mine]
        else:
            across = [places[row.adapter] + 0.08 * index for row in mine]
        _tier(axes, index, tier, across, mine)
    if by_size:
        _models(axes, found)
        axes.set_xscale("log")
        axes.set_xlabel("size of the adapter, MiB", fontsize=drawing.FONT)
        drawing.log_ticks(axes.xaxis)
    else:
        _names(axes, names)
    if all(row.low > 0 for row in found):
        axes.set_yscale("log")
        drawing.log_ticks(axes.yaxis)
    else:
        axes.set_ylim(bottom=0.0)
    axes.set_ylabel("milliseconds per load", fontsize=drawing.FONT)
    # Names come from files: a dollar sign is no formula.
    dashed = ": dashed, overhead + bytes / bandwidth, fitted to medians" if by_size else ""
    axes.set_title(title.replace("$", r"\$") + dashed, fontsize=drawing.FONT + 1, loc="left")
    axes.legend(fontsize=drawing.FONT, frameon=False)
    drawing.plain(axes)
    return drawing.png(figure)


def _tier(axes: Axes, index: int, tier: str, across: Sequence[float], mine: Sequence[Row]) -> None:
    """One tier's medians, and bars to the quantiles."""
    medians = np.array([row.median for row in mine])
    # Rounding may put a quantile of equal values past the median.
    below = np.maximum(medians - [row.low for row in mine], 0.0)
    above = np.maximum([row.high for row in mine] - medians, 0.0)
    axes.errorbar(
        across,
        medians,
        yerr=[below, above],
        fmt=_MARKS[index % len(_MARKS)],
        color=_COLOURS[index % len(_COLOURS)],
        markersize=4.5,
        elinewidth=1.0,
        label=f"{tier.replace('$', chr(92) + '$')} (median, 10 to 90 %)",
    )


def _models(axes: Axes, found: Sequence[Row]) -> None:
    """The fitted lines, dashed, in their tiers' colours."""
    order = summary.tiers(found)
    for tier, fit in summary.fits(found).items():
        sizes = [float(row.size_bytes or 0) for row in found if row.tier == tier]
        along = np.geomspace(min(sizes), max(sizes), 100)
        axes.plot(
            along / _MIB,
            fit.model.milliseconds(along),
            color=_COLOURS[order.index(tier) % len(_COLOURS)],
            linewidth=1.0,
            linestyle="--",
        )


def _names(axes: Axes, names: Sequence[str]) -> None:
    if len(names) > _MOST_NAMED:
        axes.set_xlabel(f"{len(names):,} adapters in the order of the file", fontsize=drawing.FONT)
        return
    short = [name if len(name) <= 24 else name[:21] + "..." for name in names]
    axes.set_position((0.09, 0.32, 0.88, 0.59))
    axes.set_xticks(
        range(len(names)), [name.replace("$", r"\$") for name in short], rotation=60, ha="right"
    )
