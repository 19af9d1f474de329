"""The report's tables: as CSV frames, and as HTML rows; and the facts of the run."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from polar_jax import html, labels
from polar_jax.summary import number
from polar_jax.sweep import studies, words
from polar_jax.sweep.bootstrap import Interval
from polar_jax.sweep.exponents import AXES, Fit
from polar_jax.sweep.slots import Knee
from polar_jax.sweep.studies import Grid, Ratio, Winner
from polar_jax.sweep.words import Facts

_DASH = "\N{EN DASH}"
FIT_HEADINGS = (
    "policy",
    "at",
    "slope, last decade",
    "fitted over",
    "theory",
    "p of A + B x<sup>p</sup>",
    "A",
    "B",
    "curvature",
    "p, A, B and<br>curvature over",
    "spread between<br>instances",
    "points<br>left out",
)

MEAN_HEADINGS = (
    "policy",
    "combination",
    "loss to full memory<br>per request",
    "regret<br>per request",
    "hit rate, %",
    "paging, ms<br>per request",
    "loads, ms<br>per request",
)
_SUMS = ("loss_to_full", "regret")  # over a run; the others are means per request
_MEANS = (
    ("loss_to_full", 1.0),
    ("regret", 1.0),
    ("hit_rate", 100.0),
    ("paging_ms_per_request", 1.0),
    ("switching_ms_per_request", 1.0),
)


def frames(
    summary: pl.DataFrame, winners: Sequence[Winner], knees: Sequence[Knee], fits: Sequence[Fit]
) -> dict[str, pl.DataFrame]:
    """The tables that are written beside the page, by the names of their files.

    Args:
      summary: from `studies.summaries`.
      winners: from `studies.winners`.
      knees: from `slots.knees`.
      fits: from `scaling.study`.
    """
    whole = {"summary": summary.select(pl.exclude(_nested(summary)))}
    if any(one.contested for one in winners):
        whole["winners"] = pl.DataFrame([_winner_row(one) for one in winners])
        whole["ratios"] = pl.DataFrame(list(_ratio_rows(winners)), infer_schema_length=None)
    if knees:
        whole["slots"] = pl.DataFrame(
            [row for one in knees for row in _slot_rows(one)], infer_schema_length=None
        )
    if fits:
        whole["exponents"] = pl.DataFrame(
            [_fit_values(one) for one in fits], infer_schema_length=None
        )
    return whole


def _nested(frame: pl.DataFrame) -> list[str]:
    return [name for name, kind in frame.schema.items() if kind.is_nested()]


def _winner_row(one: Winner) -> dict[str, Any]:
    margin = one.margin
    return one.where | {
        "seeds": one.seeds,
        "best": one.best,
        "tied": " ".join(one.tied),
        "second": one.second,
        "margin": None if margin is None else float(margin.mean),
        "margin_low": None if margin is None else float(margin.low),
        "margin_high": None if margin is None else float(margin.high),
        "beyond_chance": one.told_apart,
        "not_told_apart": " ".join(one.level),
        "missing": " ".join(one.missing),
    }


def _ratio_rows(winners: Iterable[Winner]) -> Iterator[dict[str, Any]]:
    for one in winners:
        for policy, ratio in one.ratios.items():
            yield (
                one.where
                | {"policy": policy, "best": one.best}
                | {
                    "ratio": ratio.value,
                    "ratio_low": ratio.low,
                    "ratio_high": ratio.high,
                }
            )


def _slot_rows(knee: Knee) -> Iterator[dict[str, Any]]:
    for policy, curve in knee.curves.items():
        for n, count in enumerate(curve.slots.tolist()):
            best = policy == knee.best
            step = best and n + 1 < curve.slots.size
            yield knee.where | {
                "policy": policy,
                "cache_slots": count,
                "best": best,
                "knee": knee.knee if best else None,
                "knee_low": knee.low if best else None,
                "knee_high": knee.high if best else None,
                "loss_per_request": float(curve.loss.mean[n]),
                "loss_per_request_error": float(curve.loss.error[n]),
                "paging_ms_per_request": float(curve.paging_ms.mean[n]),
                "paging_ms_per_request_error": float(curve.paging_ms.error[n]),
                "saved_per_slot": float(knee.saving.mean[n]) if step else None,
                "saved_per_slot_error": float(knee.saving.error[n]) if step else None,
                "saved_ms_per_slot": float(knee.saving_ms.mean[n]) if step else None,
            }


def _fit_values(one: Fit) -> dict[str, Any]:
    known = one.theory
    row: dict[str, Any] = {"policy": one.policy, "figure": one.figure, "axis": one.axis}
    row |= dict(one.group) | {"seeds": one.seeds}
    power = one.power
    for name, found in (
        ("slope", one.slope),
        ("power", power.exponent if power else None),
        ("offset", power.offset if power else None),
        ("factor", power.factor if power else None),
        ("curvature", one.curvature),
    ):
        row[name] = found.estimate if found else None
        row[f"{name}_low"] = found.low if found else None
        row[f"{name}_high"] = found.high if found else None
    return row | {
        "fitted_from": one.span[0] if one.span else None,
        "fitted_to": one.span[1] if one.span else None,
        "points_from": float(one.x[0]) if one.x.size else None,
        "points_to": float(one.x[-1]) if one.x.size else None,
        "verdict": one.verdict,
        "theory": known[0] if known else None,
        "theory_from": known[1] if known else None,
        "spread": one.spread,
        "points": int(one.x.size),
        "left_out": len(one.skipped),
        "why_not": one.why_not,
    }


def ratio_text(ratio: Ratio | None) -> str:
    """A ratio to the best with its limits, a dash where there is none."""
    if ratio is None:
        return _DASH
    text = _ratio(ratio.value)
    if math.isnan(ratio.low) or ratio.value == ratio.low == ratio.high:
        return text
    return f'{text} <span class="part">[{_ratio(ratio.low)}, {_ratio(ratio.high)}]</span>'


def _ratio(value: float) -> str:
    return "\N{INFINITY}" if math.isinf(value) else f"{value:.2f}"


def _interval(found: Interval | None, text: Callable[[float], str] = "{:.2f}".format) -> str:
    """An estimate with its interval, a dash where the data determine none."""
    if found is None or math.isnan(found.estimate):
        return _DASH
    ends = [
        "-" * (end < 0) + "\N{INFINITY}" if math.isinf(end) else text(end)
        for end in (found.low, found.high)
    ]
    return f"{text(found.estimate)} [{ends[0]}, {ends[1]}]".replace("-", "\N{MINUS SIGN}")


def _amount(value: float) -> str:
    """A number of any size: three digits, or all before the point."""
    return f"{value:,.0f}" if 100.0 <= abs(value) < 1e9 else f"{value:.3g}"


def _range(axis: str, first: float, last: float) -> str:
    return f"{AXES[axis]} {studies.shown(first)} to {studies.shown(last)}"


def mean_rows(summary: pl.DataFrame, grid: Grid) -> Iterator[str]:
    """A row of means per configuration, under `MEAN_HEADINGS`, in the order of the axes.

    Args:
      summary: from `studies.summaries`.
      grid: the rows.
    """
    axes = [(axis.column, {value: n for n, value in enumerate(axis.values)}) for axis in grid.axes]
    order = [*axes, ("policy", {name: n for n, name in enumerate(grid.policies)})]
    for one in sorted(summary.to_dicts(), key=lambda row: [at[row[name]] for name, at in order]):
        place = grid.place({name: one[name] for name, _ in axes}) or "all rows"
        cells = [
            f"{html.swatch(one['policy'])}{html.text(labels.label(one['policy']).name)}",
            html.text(place),
        ]
        for name, scale in _MEANS:
            factor = scale / one["horizon"] if name in _SUMS else scale
            half = factor * (one[f"{name}_high"] - one[f"{name}_mean"] if one["seeds"] > 1 else 0)
            text = _brief(factor * one[f"{name}_mean"])
            cells.append(f"{text} ± {_brief(half)}" if one["seeds"] > 1 else text)
        yield html.row(cells)


def fit_row(one: Fit) -> str:
    """One fit as a row of the table under `FIT_HEADINGS`."""
    theory = _DASH
    if one.theory is not None:
        theory = f'<span title="{html.text(one.theory[1])}">{one.theory[0]:g}</span>'
    span, power = one.span or (math.nan, math.nan), one.power
    bend = _interval(one.curvature)
    if one.verdict:
        bend += f"<br>{html.text(one.verdict)}"
    cells = (
        f"{html.swatch(one.policy)}{html.text(labels.label(one.policy).name)}",
        html.text(_group(one) or _DASH),
        _interval(one.slope),
        _range(one.axis, *span),
        theory,
        _interval(power.exponent if power else None),
        _interval(power.offset if power else None, _amount),
        _interval(power.factor if power else None, _amount),
        bend,
        _range(one.axis, one.x[0], one.x[-1]) if power else _DASH,
        f"{100.0 * one.spread:.0f} %",
        str(len(one.skipped)) if one.skipped else _DASH,
    )
    return html.row(cells)


def _group(one: Fit) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {studies.shown(v)}" for name, v in one.group)


def left_out(fits: Sequence[Fit]) -> list[str]:
    """Fits that were refused and points that were not used, each with its reason.

    Equal reasons of several policies and figures are one line.
    """
    reasons: dict[str, list[str]] = {}
    for one in fits:
        letter, place = AXES[one.axis], _group(one)
        who = f"{labels.label(one.policy).name}, {words.figure(one.figure)}"
        where = f" ({place})" if place else ""
        if one.slope is None:
            reasons.setdefault(f"not fitted{where}: {one.why_not}", []).append(who)
        for at, why in one.skipped if one.slope is not None else ():
            line = f"{letter} = {studies.shown(at)} left out{where}: {why}"
            reasons.setdefault(line, []).append(who)
    most = 3
    return [
        f"{'; '.join(who[:most])}{f' and {len(who) - most} more' * (len(who) > most)}: {reason}"
        for reason, who in reasons.items()
    ]


def saving_cells(knee: Knee, grid: Grid) -> Iterator[tuple[str, ...]]:
    """What each further slot saves with the best policy, as cells of a table's rows."""
    counts = knee.curves[knee.best].slots.tolist()
    place = html.text(grid.place(knee.where) or "all rows")
    name = html.text(labels.label(knee.best).name)
    for n, (first, last) in enumerate(itertools.pairwise(counts)):
        cells = []
        for one in (knee.saving, knee.saving_ms):
            text = _brief(one.mean[n])
            if not np.isnan(one.half_width[n]):
                text += f" ± {_brief(one.half_width[n])}"
            cells.append(text)
        head = f"{html.swatch(knee.best)}{place}, {name}" if n == 0 else ""
        mark = " (knee)" if first == knee.knee else ""
        yield (head, f"{first} to {last}{mark}", *cells)


def _brief(value: float) -> str:
    """A figure for people that may be small: two digits below 0.1."""
    text = number(value) if abs(value) >= 0.1 else f"{value:.2g}"
    return text.replace("-", "\N{MINUS SIGN}")


def section(grid: Grid, manifest: dict[str, Any], facts: Facts) -> str:
    """What ran where, how long, in which programs, and the specification.

    Args:
      grid: the rows.
      manifest: what the sweep was made with.
      facts: how it stands.

    Returns:
      HTML.
    """
    machine, git = manifest["machine"], manifest["git"]
    commit = "none" if git is None else git["commit"][:12] + " (modified)" * bool(git["modified"])
    seconds = facts["seconds"]
    speed = words.large(facts["decisions"] / seconds) if seconds > 0.0 else _DASH
    rows: dict[str, Any] = {
        "created": manifest["created"],
        "shards done": f"{facts['shards_done']:,} of {facts['shards_total']:,}",
        "decisions": words.large(facts["decisions"]),
        "seconds in shards": f"{seconds:,.1f}",
        "decisions per second": speed,
        "CPU": machine["cpu"],
        "instructions": machine.get("instruction_set", _DASH),
        "compiled for": machine.get("code", _DASH),
        "devices": f"{manifest['num_devices']} x {machine['device_kind']}",
        "versions": ", ".join(f"{name} {value}" for name, value in manifest["versions"].items()),
        "git commit": commit,
        "specification": manifest["spec_hash"][:12],
        **{words.column(n).replace("_", " "): v for n, v in manifest["fixed"].items()},
    }
    lines = "\n".join(
        f"<div><span>{html.text(name)}</span><span>{html.text(html.plain(value))}</span></div>"
        for name, value in rows.items()
    )
    said = _notes(grid)
    if manifest.get("linear_benchmarks"):
        said.append(
            f"In {manifest['linear_benchmarks']:,} configurations perfect routing knows what the "
            "best linear policy in hindsight expects, cross-fitted: regret and loss may be "
            "negative there, and net utility is the figure to read."
        )
    notes = "".join(f"<li>{html.text(line)}</li>" for line in said)
    return "\n".join(
        (
            "<h2>How to read this</h2>",
            f"<ul>{notes}</ul>",
            f'<h2>Run facts</h2>\n<div class="parameters">\n{lines}\n</div>',
            _buckets(manifest["buckets"]),
            "<details><summary>The specification</summary>"
            f"<pre>{html.text(manifest['spec_text'])}</pre></details>",
        )
    )


def _notes(grid: Grid) -> list[str]:
    table = grid.table
    lines = [
        "Loss to full memory is against every adapter resident and perfect routing; regret is "
        "against the best static set. Both count expected utilities over all requests of a "
        "simulation, in units of utility.",
        "± and bands are 95 % intervals of the mean over seeds (Student's t); policies share the "
        "requests of a seed, so differences are taken seed by seed.",
    ]
    if "oracle_exact" in table.columns:
        searched = table.filter(~pl.col("oracle_exact")).height
        lines.append(
            "The best static set was found among all sets in every row."
            if searched == 0
            else f"In {searched:,} of {table.height:,} rows there are too many sets to try them "
            "all: the best static set was searched for, and regret is a lower bound there."
        )
    if "run_horizon" in table.columns:
        read = table.filter(pl.col("run_horizon") != pl.col("horizon")).height
        if read:
            lines.append(
                f"{read:,} of {table.height:,} rows were read off a longer run of the same policy: "
                "its first requests are what a shorter run would have served, so rows of one seed "
                "at different horizons are not independent."
            )
    return lines


def _buckets(buckets: Sequence[dict[str, Any]]) -> str:
    headings = (
        "stream",
        "N",
        "d",
        "compiled<br>N x d",
        "tile",
        "configurations",
        "programs",
        "padding",
    )
    rows = [
        html.row(
            (
                html.text(one["environment"]),
                html.text(html.plain(one["num_adapters"])),
                html.text(html.plain(one["context_dim"])),
                f"{one['padded_adapters']} x {one['padded_dim']}",
                html.text(one["tile"]),
                f"{one['configurations']:,}",
                html.text(f"{len(one['programs'])}: {html.plain(one['programs'])}"),
                html.text(one["padding"]),
            )
        )
        for one in buckets
    ]
    return f"<p>Configurations that share compiled programs:</p>{html.table(headings, rows)}"
