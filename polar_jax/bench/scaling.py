"""How the cost of a decision grows with adapters, features, lanes and rounds, one at a time."""

import csv
import io
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from polar_jax import drawing, kernels, labels, lanes
from polar_jax.bench import arithmetic, baselines, engine, record, runs
from polar_jax.bench.arithmetic import Sample
from polar_jax.bench.limits import Machine
from polar_jax.bench.runs import Plan, Report, Row

BASE = 15, 16  # the shape that the others are varied round
BASE_LANES = 64
COLUMNS = (
    *("axis", "value", "num_adapters", "context_dim", "lanes", "rounds", "group", "name"),
    *("decisions_per_second", "ns_per_decision", "floor_ns", "spread", "skipped"),
)
AXES = {
    "num_adapters": "adapters N",
    "context_dim": "features d",
    "lanes": "lanes",
    "horizon": "rounds of a run T, set-up included",
}
_STEPS = 1_000
_MARKERS = {"xla": "o", "native": "s", "pallas": "^", "blocked": "v"}


class Sweep(NamedTuple):
    """Values of each axis."""

    num_adapters: Sequence[int] = (4, 15, 64, 256)
    context_dim: Sequence[int] = (4, 8, 16, 32, 64)
    lanes: Sequence[int] = (1, 16, 64, 256, 1_024)
    horizon: Sequence[int] = (1_024, 4_096, 16_384, 65_536)


SMALL = Sweep((4, 15), (8, 16), (16, 64), (1_024, 2_048))


class Point(NamedTuple):
    """A measured point of an axis."""

    axis: str
    value: int
    row: Row


def measure(plan: Plan, sweep: Sweep, machine: Machine, report: Report) -> list[Point]:
    """Measures every axis in turn.

    Args:
      plan: its shapes and lanes are replaced by those of each axis.
      sweep: the values.
      machine: its limits are measured in between.
      report: told what is in work, and how many steps of how many are done.
    """
    n, d = BASE
    base = plan._replace(lane_counts=(BASE_LANES,), compare=False)
    plans = {
        "num_adapters": base._replace(shapes=[(value, d) for value in sweep.num_adapters]),
        "context_dim": base._replace(shapes=[(n, value) for value in sweep.context_dim]),
        "lanes": base._replace(shapes=[BASE], lane_counts=sweep.lanes),
    }
    points = []
    for number, (axis, one) in enumerate(plans.items()):
        cases = runs.measure(one, machine, _part(report, number))
        for case in cases:
            value = {"num_adapters": case.shape[0], "context_dim": case.shape[1]}
            points += [Point(axis, value.get(axis, case.lanes), row) for row in case.rows]
    return points + _horizons(plan, sweep.horizon, _part(report, len(plans)))


def _part(report: Report, number: int) -> Report:
    """Reports one axis as its share of all of them."""

    def share(label: str, done: int, total: int) -> None:
        whole = _STEPS * number + _STEPS * done // max(total, 1)
        report(label, whole, _STEPS * len(AXES))

    return share


def _horizons(plan: Plan, horizons: Sequence[int], report: Report) -> list[Point]:
    """Whole runs of different length, what they do once included."""
    platform = jax.devices()[0].platform
    shape = lanes.Shape(*BASE)
    filled = engine.filled_lanes(shape, BASE_LANES, platform)
    kernel = kernels.chosen(platform)
    points = []
    for policy, horizon in itertools.product(plan.policies, horizons):
        row = Row("everything", policy, *BASE, BASE_LANES, filled, all_cores=True, rounds=horizon)
        row.requests_per_read = kernels.requests_per_read(engine.taken(kernel, policy, BASE))
        points.append(Point("horizon", horizon, row))
    taken, total = itertools.count(1), len(points) * (plan.repeats + 1)

    def run(point: Point) -> Sample:
        exp = engine.experiment(shape, [point.row.name], num_lanes=BASE_LANES, horizon=point.value)
        results = lanes.run(exp, chunk_rounds=plan.rounds)
        report(f"{point.value:,} rounds", next(taken), total)
        return Sample(results.num_decisions, results.run_seconds)

    for point in points:
        run(point)  # Compiles and warms up.
    samples = arithmetic.interleaved(points, plan.repeats, run)
    for point, found in zip(points, samples, strict=True):
        point.row.samples = found
    return points


def scaling_csv(points: Sequence[Point], machine: Machine) -> bytes:
    """A line per point, the columns `COLUMNS`."""
    out = io.StringIO(newline="")
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(COLUMNS)
    for axis, value, row in points:
        found = record.standing(row, machine)
        measured: tuple[Any, ...] = ("", "", "", "")
        if row.rate is not None:
            floor = "" if found is None else f"{found.floor_ns:.3f}"
            spread = f"{arithmetic.spread(row.samples):.3f}"
            measured = f"{row.rate:.1f}", f"{1e9 / row.rate:.3f}", floor, spread
        shape = row.num_adapters, row.context_dim, row.lanes, row.rounds
        lines.writerow((axis, value, *shape, row.group, row.name, *measured, row.skipped))
    return out.getvalue().encode()


def scaling_png(points: Sequence[Point], machine: Machine) -> bytes:
    """Nanoseconds per decision along every axis, logarithmic, with the machine's floor."""
    figure = Figure(figsize=(drawing.WIDTH, 5.6), dpi=drawing.DPI)
    for number, (axis, title) in enumerate(AXES.items()):
        left = 0.125 + 0.495 * (number % 2)
        axes = figure.add_axes((left, 0.61 - 0.43 * (number // 2), 0.365, 0.33))
        _panel(axes, [point for point in points if point.axis == axis], machine)
        axes.set_title(title, fontsize=drawing.FONT + 1, loc="left")
        axes.set_ylabel("ns per decision", fontsize=drawing.FONT)
    lines: dict[Any, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        lines |= dict(zip(names, handles, strict=True))
    figure.legend(
        lines.values(),
        lines.keys(),
        ncols=4,
        loc="lower center",
        fontsize=drawing.FONT - 0.5,
        frameon=False,
    )
    return drawing.png(figure)


def _panel(axes: Axes, points: Sequence[Point], machine: Machine) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    named: dict[str, list[Point]] = {}
    for point in points:
        if point.row.rate is not None:
            named.setdefault(f"{point.row.group}: {point.row.name}", []).append(point)
    floors: dict[int, float] = {}
    for name, found in named.items():
        costs = [1e9 / (point.row.rate or math.nan) for point in found]
        values = [point.value for point in found]
        axes.plot(values, costs, label=name, **_look(found[0].row))
        for point in found:
            standing = record.standing(point.row, machine)
            if standing is not None and point.row.group == "kernel":
                known = floors.get(point.value, math.inf)
                floors[point.value] = min(known, standing.floor_ns)
    if floors:
        values = sorted(floors)
        costs = [floors[value] for value in values]
        axes.plot(values, costs, ":", color=drawing.GREY, linewidth=1.0, label="machine's floor")
    if not named:
        drawing.note(axes, "nothing was measured")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.tick(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.tick(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    drawing.plain(axes)
    # A decade at least, so that an axis of powers of ten has two ticks.
    low, high = axes.get_ylim()
    axes.set_ylim(10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high)))


def _look(row: Row) -> dict[str, Any]:
    """Colours say the policy, lines what was measured of it, markers by which kernel."""
    if row.name == baselines.REFERENCE:
        return {"color": drawing.GREY, "linestyle": "-.", "marker": ".", "linewidth": 1.0}
    kernel, _, policy = row.name.rpartition(", ")
    return {
        "color": labels.label(policy).colour,
        "linestyle": "-" if row.group == "kernel" else "--",
        "linewidth": 1.2,
        "marker": _MARKERS.get(kernel, "."),
        "markersize": 4.0,
        "markerfacecolor": "white" if kernel == "xla" else None,
    }
