"""Figures as PNG bytes: curves of regret, its parts, hits and latency."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from polar_jax import drawing, labels, statistics, summary
from polar_jax.lanes import Results

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
    figure = Figure(figsize=(drawing.WIDTH, 3.7), dpi=drawing.DPI)
    panels = (
        ("regret", "Regret against the best static set"),
        ("loss_to_full", "Loss to full memory"),
    )
    ends = [_ends(results, name) for name, _ in panels]
    # Room for the widest name beside each panel; letters are about 0.6 of their height wide.
    letters = max(len(end.text) for labelled in ends for end in labelled)
    names = (0.6 * drawing.FONT * letters / 72.0 + 0.15) / drawing.WIDTH
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
        drawing.label_ends(
            axes, ends[number], gap=1.25 * drawing.FONT / 72.0 / (0.815 * figure.get_figheight())
        )
        axes.set_title(title, fontsize=drawing.FONT + 1, loc="left")
        axes.set_ylabel("cumulative, units of utility", fontsize=drawing.FONT)
    return drawing.png(figure)


def _ends(results: Results, name: str) -> list[drawing.End]:
    """The label of every curve."""
    heights = {
        policy: float(result.curves[name][:, -1].mean())
        for policy, result in results.policies.items()
    }
    return [
        drawing.End(policy, f"{labels.label(policy).name} {summary.number(height)}", height)
        for policy, height in heights.items()
    ]


def _curves(axes: Axes, rounds: np.ndarray, curves: dict[str, statistics.Estimate]) -> None:
    axes.set_xscale("log")
    shown = rounds >= min(_FIRST_ROUND, rounds[-1])
    means = np.concatenate([curve.mean[shown] for curve in curves.values()])
    drawing.signed_log_scale(axes, means)
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
        axis.set_major_formatter(FuncFormatter(lambda value, _: drawing.tick(value)))
    axes.set_xlabel("requests served", fontsize=drawing.FONT)
    drawing.plain(axes)


def parts_png(comparison: summary.Comparison) -> bytes:
    """The parts of every policy's regret, stacked; negative parts point left.

    Args:
      comparison: the summary of a run.

    Returns:
      A PNG.
    """
    shown = comparison.policies[::-1]
    figure = Figure(
        figsize=(drawing.WIDTH, 0.95 + 0.24 * len(shown)), dpi=drawing.DPI, layout="constrained"
    )
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
        axes.text(
            end,
            row,
            f"  {summary.number(total)}",
            va="center",
            fontsize=drawing.FONT,
            color=drawing.GREY,
        )
    axes.plot(totals, rows, "|", color="black", markersize=7, label="regret (sum)")
    axes.axvline(0.0, color="#999999", linewidth=0.6)
    axes.set_yticks(rows, [labels.label(policy.name).name for policy in shown])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.tick(value)))
    axes.set_xlabel("regret at the horizon, units of utility", fontsize=drawing.FONT)
    axes.margins(x=0.09)
    figure.legend(fontsize=drawing.FONT, frameon=False, loc="outside upper center", ncols=5)
    drawing.plain(axes)
    axes.tick_params(axis="y", length=0)
    return drawing.png(figure)


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
    figure = Figure(
        figsize=(drawing.WIDTH, 0.95 + 0.24 * len(shown)), dpi=drawing.DPI, layout="constrained"
    )
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(len(shown))

    def column(name: str, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        means = np.array([float(policy.figures[name].mean) for policy in shown])
        widths = np.array([float(policy.figures[name].half_width) for policy in shown])
        return scale * means, scale * np.nan_to_num(widths)

    hits, width = column("hit_rate", 100.0)
    errors = {"elinewidth": 0.8, "ecolor": "#333333"}
    left.barh(rows, hits, xerr=width, color="#0072B2", height=0.68, error_kw=errors)
    left.set_xlabel("requests served without a page-in, %", fontsize=drawing.FONT)
    left.set_xlim(0.0, 100.0)
    paging, width = column("paging_ms_per_request")
    switching, _ = column("switching_ms_per_request")
    right.barh(rows, paging, color="#E69F00", height=0.68, label="page-ins (requests wait)")
    right.barh(
        rows, switching, left=paging, color="#D55E00", height=0.68, label="loads between requests"
    )
    right.errorbar(paging, rows, xerr=width, fmt="none", **errors)
    right.set_xlabel("latency, ms per request", fontsize=drawing.FONT)
    figure.legend(fontsize=drawing.FONT, frameon=False, loc="outside upper right", ncols=2)
    left.set_yticks(rows, [labels.label(policy.name).name for policy in shown])
    for axes in (left, right):
        drawing.plain(axes)
        axes.tick_params(axis="y", length=0)
    return drawing.png(figure)
