"""The figure of a scaling study: means on logarithmic axes, fits, and theory's slopes."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from polar_jax import drawing, labels
from polar_jax.sweep import layouts, panels, studies, words
from polar_jax.sweep.exponents import Fit

_DASHES = ((6.0, 2.0), (1.0, 1.5), (6.0, 2.0, 1.0, 2.0), (3.0, 3.0))
MOST_GROUPS = 3  # rows of panels
_BELOW = 0.75  # how far below a line theory's slope is drawn, so that neither hides the other


def exponents_png(fits: Sequence[Fit], columns: Sequence[str], axis: str) -> bytes:
    """Means against the scaling axis on logarithmic axes, with fits and theory's slopes.

    Args:
      fits: from `scaling.study`; those without a slope are left out.
      columns: the figures to draw, a column of panels each.
      axis: the column that was fitted along.

    Returns:
      A PNG: points with 95 % normal intervals, fitted slopes over the range that they were
      fitted on, thin `A + B x^p` over all points, and theory's slopes a little below the
      lowest line they hold for.
    """
    fitted = [one for one in fits if one.slope is not None and one.figure in columns]
    groups = layouts.thinned(list(dict.fromkeys(one.group for one in fitted)), MOST_GROUPS)
    most = max(len([one for one in fitted if one.figure == name]) for name in columns)
    height = max(2.3, panels.LABEL_GAP * most / max(len(groups), 1) + 0.3)
    slopes = sorted({one.theory[0] for one in fitted if one.theory and one.group in groups})
    styles = dict(zip(slopes, itertools.cycle(_DASHES), strict=False))
    size = (drawing.WIDTH, 0.6 + 0.2 * bool(styles) + height * len(groups))
    figure = Figure(figsize=size, dpi=drawing.DPI, layout="constrained")
    cells = figure.subplots(len(groups), len(columns), squeeze=False, sharex=True)
    for row, group in enumerate(groups):
        for column, name in enumerate(columns):
            axes = cells[row, column]
            here = [one for one in fitted if one.figure == name and one.group == group]
            _fits(axes, here, styles, panels.LABEL_GAP / height)
            place = ", ".join(f"{key.replace('_', ' ')} {studies.shown(v)}" for key, v in group)
            heading = words.figure(name)
            title = f"{heading}\n{place}" if place else heading
            axes.set_title(title, fontsize=drawing.FONT, loc="left")
            drawing.plain(axes)
    for axes in cells[-1]:
        axes.set_xlabel(studies.TITLES.get(axis, axis), fontsize=drawing.FONT)
    figure.supylabel("mean over seeds, units of utility", fontsize=drawing.FONT)
    if styles:
        # Below the panels: inside them, points and lines may lie anywhere.
        figure.legend(
            handles=[_theory_line([], [], slope, styles) for slope in styles],
            loc="outside lower center",
            ncols=len(styles),
            fontsize=drawing.FONT,
            frameon=False,
            handlelength=4,
        )
    return drawing.png(figure)


def _fits(
    axes: Axes, fits: Sequence[Fit], styles: dict[float, tuple[float, ...]], gap: float
) -> None:
    axes.set(xscale="log", yscale="log" if fits else "linear")
    if not fits:
        axes.set_yticks([])
        drawing.note(axes, "not fitted")
    ends = []
    for one in sorted(fits, key=lambda one: float(one.mean[-1])):
        look = labels.label(one.policy)
        bars = 1.96 * one.error
        axes.errorbar(one.x, one.mean, bars, fmt="o", color=look.colour, ms=2.6, elinewidth=0.8)
        if one.slope is None or one.span is None:
            continue
        span = np.array(one.span)
        style = (0, look.dashes) if look.dashes else "-"
        axes.plot(span, one.line_at(span), color=look.colour, linewidth=1.3, linestyle=style)
        slope = f"{one.slope.estimate:.2f}".replace("-", "\N{MINUS SIGN}")
        ends.append(drawing.End(one.policy, f"{look.name} {slope}", float(one.mean[-1])))
        if one.power is not None:
            x = np.geomspace(one.x[0], one.x[-1], 60)
            axes.plot(x, one.power.at(x), color=look.colour, linewidth=0.5)
    _theory(axes, fits, styles)
    for side in (axes.xaxis, axes.yaxis) if fits else ():
        drawing.log_ticks(side)
    drawing.label_ends(axes, ends, gap=gap)


def _theory(axes: Axes, fits: Sequence[Fit], styles: dict[float, tuple[float, ...]]) -> None:
    """One line per exponent of theory, a little below the lowest line that it is for."""
    drawn: set[float] = set()
    limits = axes.get_ylim()
    for one in sorted(fits, key=lambda one: float(one.mean[-1])):
        if one.theory is None or one.span is None or one.theory[0] in drawn:
            continue
        slope = one.theory[0]
        drawn.add(slope)
        x = np.array(one.span)
        y = _BELOW * one.mean[-1] * (x / x[-1]) ** slope
        axes.add_line(_theory_line(x, y, slope, styles))
        limits = (min(limits[0], 0.8 * float(y.min())), max(limits[1], 1.2 * float(y.max())))
    axes.set_ylim(limits)


def _theory_line(
    x: ArrayLike, y: ArrayLike, slope: float, styles: dict[float, tuple[float, ...]]
) -> Line2D:
    return Line2D(
        np.asarray(x),
        np.asarray(y),
        color="#444444",
        linewidth=0.9,
        dashes=styles[slope],
        zorder=5,
        label=f"theory: slope {slope:g}",
    )
