"""What the figures of all reports share: scales, plain axes, labels at the ends of lines."""

import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from polar_jax import labels

DPI = 220
FONT = 8.0
WIDTH = 7.4  # inches; two columns of a paper
GREY = "#555555"
_SHORT = 50.0  # largest over smallest value of an axis that has ticks at 1, 2 and 5


def signed_log_scale(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic axis of values that is linear around 0, where any value comes near it.

    Args:
      axes: what to scale, before anything is drawn.
      values: everything that will be drawn, finite, any shape.
    """
    lowest = float(values.min())
    extent = max(float(np.abs(values).max()), 1e-9)
    if lowest > extent / 1e4:
        # The linear part lies below the axis: slopes can be read as on any logarithmic one.
        axes.set_yscale("symlog", linthresh=lowest / 2.0)
        axes.set_ylim(lowest * 0.75, extent * 1.6)
        return
    wanted = np.clip(np.quantile(np.abs(values), 0.2), extent / 300.0, extent / 10.0)
    axes.set_yscale("symlog", linthresh=float(10.0 ** np.floor(np.log10(wanted))), linscale=0.5)


class End(NamedTuple):
    """What a curve is called at its right end."""

    policy: str  # whose colour the text has
    text: str
    value: float  # that the curve ends at


def label_ends(axes: Axes, ends: Iterable[End], *, gap: float) -> None:
    """Names the curves at their right end, in order, moved apart where they would overlap.

    Args:
      axes: where the curves are.
      ends: of the curves; there may be none.
      gap: least distance of neighbours, as a fraction of the axes' height.
    """
    axes.get_ylim()  # Limits that are still to be worked out would move the lines.
    order = sorted(ends, key=lambda end: end.value)
    if not order:
        return
    points = axes.transData.transform([(1.0, end.value) for end in order])
    heights = axes.transAxes.inverted().transform(points)[:, 1].tolist()
    for end, height, place in zip(order, heights, spread(heights, gap=gap), strict=True):
        look = labels.label(end.policy)
        axes.plot(
            [1.005, 1.045, 1.07],
            [height, place, place],
            transform=axes.transAxes,
            color=look.colour,
            linewidth=1.0,
            clip_on=False,
        )
        axes.text(
            1.085,
            place,
            end.text,
            transform=axes.transAxes,
            color=darker(look.colour),
            fontsize=FONT - 0.5,
            va="center",
        )


def note(axes: Axes, text: str) -> None:
    """Says in the middle of an empty panel why nothing is drawn there."""
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        color=GREY,
        fontsize=FONT,
        ha="center",
        va="center",
    )


def spread(heights: Sequence[float], *, gap: float) -> list[float]:
    """Moves sorted label positions apart, as little as it takes.

    Args:
      heights: positions, ascending; 0 and 1 are the ends of the axis.
      gap: least distance of neighbours.

    Returns:
      Positions in the same order, at least `gap` apart and inside the axis where all fit.
    """
    # Pools of labels that touch: what they name, and where their middle stands.
    pools: list[tuple[list[float], float]] = []
    for height in heights:
        members = [height]
        middle = _inside(height, 1, gap)
        while pools and middle - pools[-1][1] < (len(members) + len(pools[-1][0])) * gap / 2:
            members = pools.pop()[0] + members
            middle = _inside(sum(members) / len(members), len(members), gap)
        pools.append((members, middle))
    return [
        middle + (place - (len(members) - 1) / 2) * gap
        for members, middle in pools
        for place in range(len(members))
    ]


def _inside(middle: float, count: int, gap: float) -> float:
    """The middle of `count` labels, moved so that they stay on the axis if they can."""
    half = min((count - 1) * gap / 2, 0.5)
    return min(max(middle, half), 1.0 - half)


def plain(axes: Axes) -> None:
    """Takes away what is no data: boxes, dark grids and large ticks."""
    axes.tick_params(labelsize=FONT, colors=GREY)
    axes.grid(axis="both", color="#e6e6e6", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")


def tick(value: float) -> str:
    """A number beside an axis."""
    text = f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:,.6g}"
    return text.replace("-", "\N{MINUS SIGN}")


def log_ticks(axis: Axis) -> None:
    """Numbers as people write them on a logarithmic axis; at 1, 2 and 5 on a short one.

    Args:
      axis: one of a figure whose limits are settled.
    """
    low, high = axis.get_view_interval()
    if high < _SHORT * low:  # powers of ten alone would leave one number
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(float(value))))
    axis.set_minor_formatter(NullFormatter())


def darker(colour: str) -> str:
    """A colour dark enough for text on white."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    luminance = (0.299 * channels[0] + 0.587 * channels[1] + 0.114 * channels[2]) / 255.0
    factor = min(1.0, 0.5 / max(luminance, 1e-6))
    return "#" + "".join(f"{int(channel * factor):02x}" for channel in channels)


def png(figure: Figure) -> bytes:
    """The bytes of a figure's PNG, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()
