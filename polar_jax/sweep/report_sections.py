"""The sections of a sweep's report as HTML: who wins, axes, exponents, slots."""

import itertools

import numpy as np

from polar_jax import html, labels
from polar_jax.policies import ORACLES
from polar_jax.summary import number
from polar_jax.sweep import (
    figures,
    findings,
    fit_figures,
    layouts,
    report_tables,
    slots,
    studies,
    winner_figures,
    words,
)
from polar_jax.sweep.exponents import FIGURES
from polar_jax.sweep.findings import Study

_MOST_SENTENCES = 12  # on knees, before only those of the figure are told
MOST_ROWS = 30  # combinations that are a table; more are a map
MAIN = ("regret", "loss_to_full")
_FITTED_IN_ORDER = (*MAIN, *(name for name in FIGURES if name not in MAIN))
_MOST_MEANS = 400
_MOST_OPEN = 100  # rows of a table that is open at once
_DASH = "\N{EN DASH}"


def answer(found: Study, pngs: dict[str, bytes]) -> str:
    """Who wins where: the verdict, tables, and maps of those in `pngs`, which are by name."""
    verdict = words.verdict(found.winners, found.records, found.grid)
    if not found.records:
        return _alone(found, verdict)
    parts = ["<h2>Where each policy wins</h2>", f'<p class="verdict">{html.text(verdict)}</p>']
    parts.append(_records(found))
    if len(found.winners) <= MOST_ROWS:
        parts.append(_winners(found))
    if "winners" in pngs:
        lay = layouts.layout(found.grid, [a.column for a in winner_figures.map_axes(found.grid)])
        caption = (
            "The best learnt policy by loss to full memory, and what the second loses more. "
            "Hatched: the 95 % interval of the paired margin to the second contains 0. "
        )
        parts.append(html.figure(pngs["winners"], caption + words.held(found.grid, lay)))
    if "ratios" in pngs:
        caption = (
            "Loss to full memory over that of the best learnt policy; bold: the best. Bootstrap "
            "95 % limits are in ratios.csv."
        )
        parts.append(html.figure(pngs["ratios"], caption))
    parts.append(
        f'<p class="small">Oracles are never ranked. {words.judged(found.grid)} Limits are '
        "percentiles of 2,000 resamples of whole seeds, the same for all policies. All "
        "combinations are in <code>winners.csv</code>.</p>"
    )
    return "\n".join(parts)


def _alone(found: Study, verdict: str) -> str:
    """Without policies to compare: where along its axis the only one loses least, and means."""
    if len(found.grid.learnt) == 1 and found.x is not None:
        counts = studies.least(found.summary, found.grid, found.x)
        verdict += f" {words.least(counts, found.x)}"
    shown = min(found.summary.height, _MOST_MEANS)
    summary = f"Means over seeds with 95 % intervals, {shown} of {found.summary.height} rows"
    rows = list(itertools.islice(report_tables.mean_rows(found.summary, found.grid), shown))
    opened = " open" * (len(rows) <= _MOST_OPEN)
    return "\n".join(
        (
            "<h2>What was measured</h2>",
            f'<p class="verdict">{html.text(verdict)}</p>',
            f"<details{opened}><summary>{summary}; all are in <code>summary.csv</code></summary>",
            html.table(report_tables.MEAN_HEADINGS, rows) + "</details>",
        )
    )


def _records(found: Study) -> str:
    headings = (
        "policy",
        "best in",
        "of it beyond<br>chance",
        "within 10 %<br>of the best",
        "its upper 95 %<br>limit too",
        "worst excess",
        "where",
    )
    rows = []
    for one in found.records:
        worst = words.percent(one.worst) if np.isfinite(one.worst) else "best loses nothing"
        cells = (
            f"{html.swatch(one.policy)}{html.text(labels.label(one.policy).name)}",
            f"{one.best} of {one.of}" + f" ({one.shared} tied)" * bool(one.shared),
            str(one.clear),
            f"{one.near} of {one.of}",
            f"{one.surely} of {one.of}",
            worst,
            html.text(found.grid.place(one.worst_where) or _DASH) if one.worst > 1.0 else _DASH,
        )
        rows.append(html.row(cells))
    return html.table(headings, rows)


def _winners(found: Study) -> str:
    """A row per combination: who wins, by what margin, and every ratio with its limits."""
    names = [one.policy for one in found.records]
    headings = (
        "combination",
        "best",
        "second",
        "margin, 95 % interval",
        "beyond<br>chance",
        *(html.text(labels.label(name).name) for name in names),
    )
    rows = []
    for one in found.winners:
        margin, told = _DASH, _DASH
        if one.margin is not None:
            margin = number(one.margin.mean)
            if not np.isnan(one.margin.half_width):
                margin += f" [{number(one.margin.low)}, {number(one.margin.high)}]"
                told = "yes" if one.told_apart else "no"
            if len(one.tied) > 1:
                margin = "exact tie"
        best = " = ".join(html.text(labels.label(name).name) for name in one.tied)
        if not one.contested:
            best = f"only {best}"
        cells = (
            html.text(found.grid.place(one.where) or "all rows"),
            html.swatch(one.best) + best,
            html.text(labels.label(one.second).name) if one.second else _DASH,
            margin,
            told,
            *(report_tables.ratio_text(one.ratios.get(name)) for name in names),
        )
        rows.append(html.row(cells))
    return (
        "<p>Margin: loss to full memory of the second minus the best's, seed by seed. On the "
        "right: loss to full memory over the best's, with bootstrap 95 % limits.</p>"
        + html.table(headings, rows)
    )


def axes(found: Study, pngs: dict[str, bytes]) -> str:
    """A figure per numeric axis, that of the study before the others, which follow by length."""
    parts = []
    for axis in sorted(
        findings.long_axes(found.grid), key=lambda axis: (axis != found.x, -len(axis.values))
    ):
        png = pngs.get(f"axis_{axis.column}")
        if png is not None:
            lay = figures.axis_layout(found.grid, axis)
            caption = (
                f"{words.measured(axis)[2]} Means over seeds"
                f"{' with 95 % bands' * figures.banded(found.grid)}"
                f"{', oracles thin' * any(p in ORACLES for p in found.grid.policies)}. "
            )
            if lay.rows is not None:
                caption += "Each row of panels has a scale of its own. "
            parts.append(f"<h2>Along {html.text(axis.title)}</h2>")
            parts.append(html.figure(png, caption + words.held(found.grid, lay)))
    return "\n".join(parts)


def exponents(found: Study, pngs: dict[str, bytes]) -> str:
    """Fits against theory, and what was left out of them; empty without a scaling axis."""
    if not found.fits:
        return ""
    parts = ["<h2>Exponents against theory</h2>"]
    caption = (
        "Points: means with 95 % intervals. Coloured lines: slopes fitted over the range that "
        "they span, given beside the names; thin: A + B x^p over all points. Grey lines: slopes of "
        "theory, drawn a little below the lowest policy that each holds for."
    )
    groups = len({one.group for one in found.fits if one.slope is not None})
    if groups > fit_figures.MOST_GROUPS:
        caption += f" {fit_figures.MOST_GROUPS} of {groups} combinations have panels."
    parts += [html.figure(pngs[n], caption) for n in ("exponents", "exponents_parts") if n in pngs]
    for name in _FITTED_IN_ORDER:
        fits = [one for one in found.fits if one.figure == name and one.slope is not None]
        if not fits:
            continue
        rows = html.table(report_tables.FIT_HEADINGS, [report_tables.fit_row(f) for f in fits])
        # The parts explain the whole; they are there for who asks.
        summary = f"<summary>{html.text(words.figure(name))}</summary>"
        opened = " open" * (name in MAIN)
        parts.append(f"<details{opened}>{summary}{rows}</details>")
    left = [f"<li>{html.text(line)}</li>" for line in report_tables.left_out(found.fits)]
    if left:
        parts.append(
            f"<details><summary>What was left out of the fits, and why ({len(left)})</summary>"
            f'<ul class="small">{"".join(left)}</ul></details>'
        )
    return "\n".join(parts)


def slots_that_pay(found: Study, pngs: dict[str, bytes]) -> str:
    """How many slots pay off; empty where no knee was looked for."""
    if not found.knees:
        return ""
    drawn, lay = findings.shown_knees(found)
    shown = found.knees if len(found.knees) <= _MOST_SENTENCES else drawn
    items = "".join(
        f"<li>{html.text(slots.sentence(knee, found.grid, found.price))}</li>" for knee in shown
    )
    parts = [f"<h2>How many slots pay off</h2>\n<ul>{items}</ul>"]
    if "slots" in pngs:
        caption = (
            f"Bold: the best policy, with its 95 % band. Dashed: the knee; grey: 95 % of resampled "
            f"seeds have it there. {slots.DEFINITION}. {words.held(found.grid, lay)}"
        )
        parts.append(html.figure(pngs["slots"], caption))
    parts.append(
        "<p>What one more slot saves per request, with the best policy: a slot pays where its "
        "own price per request is below. 95 % intervals over seeds.</p>"
    )
    headings = (
        "combination",
        "slots",
        "saved per slot,<br>utility",
        "saved per slot,<br>ms paging",
    )
    rows = [
        html.row(cells) for knee in drawn for cells in report_tables.saving_cells(knee, found.grid)
    ]
    parts.append(html.table(headings, rows))
    parts.append('<p class="small">All combinations are in <code>slots.csv</code>.</p>')
    return "\n".join(parts)
