"""Figures as PNG bytes: curves of regret, its parts, hits and latency."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from polar_jax import labels, statistics, summary
from polar_jax.lanes import Results

_DPI = 220
_FONT = 8.0
_WIDTH = 7.4  # inches; two columns of a paper
_GREY = "#555555"
# Curves are drawn from here on; the first few requests are noise.
_FIRST_ROUND = 10
_PARTS = (
    # Routing without its forced share, so that the bars add up to the regret.
    ("routing", "#0072B2"),
    ("forced exploration", "#56B4E9"),
    ("caching", "#E69F00"),
    ("switching", "#D55E00"),
)


def regret_png(results: Results) -> bytes:
    """Mean regret and loss to full memory against requests, with 95 % bands.

    Args:
      results: what was run.

    Returns:
      A PNG. Both axes of values are linear near 0, so that regret may change sign.
    """
    figure = Figure(figsize=(_WIDTH, 3.7), dpi=_DPI)
    panels = (
        ("regret", "Regret against the best static set"),
        ("loss_to_full", "Loss to full memory"),
    )
    ends = [_ends(results, name) for name, _ in panels]
    # Room for the widest name beside each panel; letters are about 0.6 of their height wide.
    letters = max(len(text) for labelled in ends for text, _ in labelled.values())
    names = (0.6 * _FONT * letters / 72.0 + 0.15) / _WIDTH
    ticks = 0.095
    width = (1.0 - 2.0 * (ticks + names)) / 2.0
    for number, (name, title) in enumerate(panels):
        left = ticks + number * (width + names + ticks)
        axes = figure.add_axes((left, 0.115, width, 0.815))
        curves = {
            policy: statistics.estimate(result.curves[name])
            for policy, result in results.policies.items()
        }
        _curves(axes, results.curve_round, curves)
        _label_ends(axes, ends[number], gap=1.25 * _FONT / 72.0 / (0.815 * figure.get_figheight()))
        axes.set_title(title, fontsize=_FONT + 1, loc="left")
        axes.set_ylabel("cumulative, units of utility", fontsize=_FONT)
    return _png(figure)


def _ends(results: Results, name: str) -> dict[str, tuple[str, float]]:
    """The text and the height of the label of every curve."""
    heights = {
        policy: float(result.curves[name][:, -1].mean())
        for policy, result in results.policies.items()
    }
    return {
        policy: (f"{labels.label(policy).name} {summary.number(height)}", height)
        for policy, height in heights.items()
    }


def _curves(axes: Axes, rounds: np.ndarray, curves: dict[str, statistics.Estimate]) -> None:
    axes.set_xscale("log")
    _signed_log_scale(axes, rounds, curves)
    axes.axhline(0.0, color="#999999", linewidth=0.6, zorder=1)
    for policy, curve in curves.items():
        look = labels.label(policy)
        axes.plot(
            rounds,
            curve.mean,
            color=look.colour,
            linewidth=1.4,
            linestyle=(0, look.dashes) if look.dashes else "-",
            zorder=3,
        )
        if np.isfinite(curve.half_width).all():
            axes.fill_between(
                rounds, curve.low, curve.high, color=look.colour, alpha=0.18, linewidth=0, zorder=2
            )
    last = int(rounds[-1])
    axes.set_xlim(min(_FIRST_ROUND, max(1, last // 2)), max(last, 2))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.set_xlabel("requests served", fontsize=_FONT)
    _plain(axes)


def _signed_log_scale(
    axes: Axes, rounds: np.ndarray, curves: dict[str, statistics.Estimate]
) -> None:
    """A logarithmic axis that is linear around 0, where any curve comes near it."""
    shown = rounds >= min(_FIRST_ROUND, rounds[-1])
    means = np.concatenate([curve.mean[shown] for curve in curves.values()])
    lowest = float(means.min())
    extent = max(float(np.abs(means).max()), 1e-9)
    if lowest > extent / 1e4:
        # The linear part lies below the axis: slopes can be read as on any logarithmic one.
        axes.set_yscale("symlog", linthresh=lowest / 2.0)
        axes.set_ylim(lowest * 0.75, extent * 1.6)
        return
    wanted = np.clip(np.quantile(np.abs(means), 0.2), extent / 300.0, extent / 10.0)
    axes.set_yscale("symlog", linthresh=float(10.0 ** np.floor(np.log10(wanted))), linscale=0.5)


def _label_ends(axes: Axes, ends: dict[str, tuple[str, float]], *, gap: float) -> None:
    """Names the curves at their right end, in order, moved apart where they would overlap."""
    order = sorted(ends, key=lambda policy: ends[policy][1])
    points = axes.transData.transform([(1.0, ends[policy][1]) for policy in order])
    heights = axes.transAxes.inverted().transform(points)[:, 1].tolist()
    for policy, height, place in zip(order, heights, spread(heights, gap=gap), strict=True):
        look = labels.label(policy)
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
            ends[policy][0],
            transform=axes.transAxes,
            color=_darker(look.colour),
            fontsize=_FONT - 0.5,
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


def parts_png(comparison: summary.Comparison) -> bytes:
    """The parts of every policy's regret, stacked; negative parts point left.

    Args:
      comparison: the summary of a run.

    Returns:
      A PNG.
    """
    shown = comparison.policies[::-1]
    figure = Figure(figsize=(_WIDTH, 0.95 + 0.24 * len(shown)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(shown))
    values = np.array([_parts(policy) for policy in shown])
    positive, negative = np.zeros(len(shown)), np.zeros(len(shown))
    for (name, colour), part in zip(_PARTS, values.T, strict=True):
        start = np.where(part >= 0.0, positive, negative)
        axes.barh(rows, part, left=start, color=colour, height=0.68, label=name, linewidth=0)
        positive += np.maximum(part, 0.0)
        negative += np.minimum(part, 0.0)
    totals = [float(policy.figures["regret"].mean) for policy in shown]
    for row, (total, end) in enumerate(zip(totals, positive.tolist(), strict=True)):
        axes.text(end, row, f"  {summary.number(total)}", va="center", fontsize=_FONT, color=_GREY)
    axes.plot(totals, rows, "|", color="black", markersize=7, label="regret (sum)")
    axes.axvline(0.0, color="#999999", linewidth=0.6)
    axes.set_yticks(rows, [labels.label(policy.name).name for policy in shown])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.set_xlabel("regret at the horizon, units of utility", fontsize=_FONT)
    axes.margins(x=0.09)
    figure.legend(fontsize=_FONT, frameon=False, loc="outside upper center", ncols=5)
    _plain(axes)
    axes.tick_params(axis="y", length=0)
    return _png(figure)


def _parts(policy: summary.PolicySummary) -> tuple[float, float, float, float]:
    part = {name: float(one.mean) for name, one in policy.figures.items()}
    forced = part["regret_forced"]
    return (
        part["regret_routing"] - forced,
        forced,
        part["regret_caching"],
        part["regret_switching"],
    )


def serving_png(comparison: summary.Comparison) -> bytes:
    """Hit rate, and latency per request from page-ins and from other loads.

    Args:
      comparison: the summary of a run.

    Returns:
      A PNG.
    """
    shown = comparison.policies[::-1]
    figure = Figure(figsize=(_WIDTH, 0.95 + 0.24 * len(shown)), dpi=_DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(shown))

    def column(name: str, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        means = np.array([float(policy.figures[name].mean) for policy in shown])
        widths = np.array([float(policy.figures[name].half_width) for policy in shown])
        return scale * means, scale * np.nan_to_num(widths)

    hits, width = column("hit_rate", 100.0)
    errors = {"elinewidth": 0.8, "ecolor": "#333333"}
    left.barh(rows, hits, xerr=width, color="#0072B2", height=0.68, error_kw=errors)
    left.set_xlabel("requests served without a page-in, %", fontsize=_FONT)
    left.set_xlim(0.0, 100.0)
    paging, width = column("paging_ms_per_request")
    switching, _ = column("switching_ms_per_request")
    right.barh(rows, paging, color="#E69F00", height=0.68, label="page-ins (requests wait)")
    right.barh(
        rows, switching, left=paging, color="#D55E00", height=0.68, label="loads between requests"
    )
    right.errorbar(paging, rows, xerr=width, fmt="none", **errors)
    right.set_xlabel("latency, ms per request", fontsize=_FONT)
    figure.legend(fontsize=_FONT, frameon=False, loc="outside upper right", ncols=2)
    left.set_yticks(rows, [labels.label(policy.name).name for policy in shown])
    for axes in (left, right):
        _plain(axes)
        axes.tick_params(axis="y", length=0)
    return _png(figure)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=_FONT, colors=_GREY)
    axes.grid(axis="both", color="#e6e6e6", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")


def _tick(value: float) -> str:
    return f"{value:,.6g}".replace("-", "\N{MINUS SIGN}")


def _darker(colour: str) -> str:
    """A colour dark enough for text on white."""
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    luminance = (0.299 * channels[0] + 0.587 * channels[1] + 0.114 * channels[2]) / 255.0
    factor = min(1.0, 0.5 / max(luminance, 1e-6))
    return "#" + "".join(f"{int(channel * factor):02x}" for channel in channels)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()
