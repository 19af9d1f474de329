"""The report of a sweep: one HTML page, its figures, and its tables as CSV."""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from polar_jax import html, labels, tables
from polar_jax.config import RunConfig
from polar_jax.policies import ORACLES
from polar_jax.summary import number
from polar_jax.sweep import figures, fit_figures, report_tables, scaling, slots, studies, words
from polar_jax.sweep.exponents import FIGURES, Fit
from polar_jax.sweep.slots import Knee
from polar_jax.sweep.studies import Grid, Record, Winner
from polar_jax.sweep.words import Facts

_MOST_SENTENCES = 12  # on knees, before only those of the figure are told
MOST_ROWS = 30  # combinations that are a table; more are a map
_FITTED = ("regret", "regret_routing", "regret_caching", "loss_to_full")
_MAIN = ("regret", "loss_to_full")
_FITTED_IN_ORDER = (*_MAIN, *(name for name in FIGURES if name not in _MAIN))
_DASH = "\N{EN DASH}"


class Study(NamedTuple):
    """Everything that a report shows, worked out once."""

    grid: Grid
    summary: pl.DataFrame  # a row per configuration
    winners: list[Winner]
    records: list[Record]
    knees: list[Knee]
    fits: list[Fit]
    price: float | None  # per millisecond where it is no axis


def study(table: pl.DataFrame, manifest: dict[str, Any]) -> Study:
    """Works out what a report shows.

    Args:
      table: a row per lane.
      manifest: what the sweep was made with.

    Returns:
      The study.

    Raises:
      ValueError: if there are no rows.
    """
    grid = studies.grid(table, manifest)
    winners = studies.winners(grid)
    price = manifest["fixed"].get("price_per_ms", RunConfig.price_per_ms)
    return Study(
        grid=grid,
        summary=studies.summaries(grid),
        winners=winners,
        records=studies.records(winners),
        knees=slots.knees(grid),
        fits=_fits(grid, manifest),
        price=None if grid.axis("price_per_ms") is not None else float(price),
    )


def _fits(grid: Grid, manifest: dict[str, Any]) -> list[Fit]:
    if not manifest.get("scaling"):
        return []
    axis = scaling.axis_column(manifest["scaling"]["axis"])
    if axis not in grid.table.columns:
        return []
    entries = manifest["axes"]
    block = next((e.get("zipped") for e in entries if e["name"] == axis), None)
    # What moves along with the scaling axis would leave one point to each fit.
    by = [e["name"] for e in entries if block is None or e.get("zipped") != block]
    columns = {"policy", "seed", *tables.SIZES, *tables.FIGURES, *by}
    arrays = {name: grid.table[name].to_numpy() for name in columns}
    stream = manifest["fixed"].get("environment", RunConfig.environment)
    return scaling.study(arrays, axis, by=by, stream=str(stream))


def render(table: pl.DataFrame, manifest: dict[str, Any], facts: Facts) -> str:
    """The whole page.

    Args:
      table: a row per lane, at least one.
      manifest: what the sweep was made with.
      facts: how it stands.

    Returns:
      HTML with style and figures inside, which refers to nothing outside.

    Raises:
      ValueError: if there are no rows.
    """
    found = study(table, manifest)
    return _page(found, draw(found), manifest, facts)


def write(
    out: pathlib.Path, table: pl.DataFrame, manifest: dict[str, Any], facts: Facts
) -> list[pathlib.Path]:
    """Writes the page, its figures and its tables; each file whole or not at all.

    Args:
      out: the sweep's folder.
      table: a row per lane, at least one.
      manifest: what the sweep was made with.
      facts: how it stands.

    Returns:
      What was written.

    Raises:
      ValueError: if there are no rows.
      OSError: if a file cannot be written.
    """
    found = study(table, manifest)
    pngs = draw(found)
    page = _page(found, pngs, manifest, facts).encode()
    frames = report_tables.frames(found.summary, found.winners, found.knees, found.fits)
    files = {out / "figures" / f"{name}.png": data for name, data in pngs.items()}
    for name, frame in frames.items():
        files[out / f"{name}.csv"] = frame.write_csv().encode()
    files[out / "report.html"] = page
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return list(files)


def draw(found: Study) -> dict[str, bytes]:
    """Every figure of the report, as PNG bytes by the name of its file.

    Args:
      found: from `study`.
    """
    grid, pngs = found.grid, {}
    if len(found.winners) > MOST_ROWS and len(_long_axes(grid)) > 1:
        pngs["winners"] = figures.winners_png(found.winners, grid)
    if len(found.records) > 1 and 1 < len(found.winners) <= figures.MOST_CELLS:
        pngs["ratios"] = figures.ratios_png(found.winners, found.records, grid)
    for axis in _long_axes(grid):
        if axis.numbers is not None:
            name, per_request, _ = words.measured(axis)
            pngs[f"axis_{axis.column}"] = figures.axis_png(
                found.summary, grid, axis, name, per_request=per_request
            )
    columns = [name for name in _FITTED if any(f.slope and f.figure == name for f in found.fits)]
    if columns:
        axis = found.fits[0].axis
        shown = columns if len(columns) < 3 else [n for n in columns if n in _MAIN]
        pngs["exponents"] = fit_figures.exponents_png(found.fits, shown, axis)
        parts = [name for name in columns if name not in shown]
        if parts:
            pngs["exponents_parts"] = fit_figures.exponents_png(found.fits, parts, axis)
    knees = _shown_knees(found)
    if knees:
        pngs["slots"] = figures.slots_png(knees, grid, grid.learnt)
    return pngs


def _long_axes(grid: Grid) -> list[studies.Axis]:
    return [axis for axis in grid.axes if len(axis.values) > 1]


def _shown_knees(found: Study) -> list[Knee]:
    """A knee per price (or per value of the longest other axis), all else held."""
    if not found.knees:
        return []
    drawn = {slots.AXIS}
    price = next((a for n in ("price_per_ms", "costs") if (a := found.grid.axis(n))), None)
    if price is None:
        lay = studies.layout(found.grid, drawn)
        side = lay.columns
    else:
        side = (price, studies.thinned(price.values, 4))
    others = [axis for axis in found.grid.axes if axis.column not in drawn]
    fixed = {
        axis.column: axis.values[0 if axis.numbers is None else (len(axis.values) - 1) // 2]
        for axis in others
        if side is None or axis.column != side[0].column
    }
    kept = [k for k in found.knees if all(k.where[name] == v for name, v in fixed.items())]
    if side is None:
        return kept[:1] or found.knees[:1]
    return [k for k in kept if k.where[side[0].column] in side[1]] or found.knees[:1]


def _page(found: Study, pngs: dict[str, bytes], manifest: dict[str, Any], facts: Facts) -> str:
    title = manifest.get("title") or str(manifest["name"]).replace("_", " ")
    description = manifest.get("description") or ""
    warnings = "".join(
        f'<p class="verdict warning">{html.text(line)}</p>'
        for line in words.banners(found.grid, facts)
    )
    body = "\n".join(
        (
            f"<h1>{html.text(title)}</h1>",
            f'<p class="lead">{html.text(description)}</p>' if description else "",
            f"<p>{html.text(words.what_was_run(manifest, facts))}</p>",
            warnings,
            _answer(found, pngs),
            _axes(found, pngs, words.column((manifest.get("report") or {}).get("x") or "")),
            _exponents(found, pngs),
            _slots(found, pngs),
            report_tables.section(found.grid, manifest, facts),
        )
    )
    return html.page(f"polar_jax: {title}", body)


def _answer(found: Study, pngs: dict[str, bytes]) -> str:
    verdict = words.verdict(found.winners, found.records, found.grid)
    parts = ["<h2>Where each policy wins</h2>", f'<p class="verdict">{html.text(verdict)}</p>']
    if found.records:
        parts.append(_records(found))
    if 0 < len(found.winners) <= MOST_ROWS and len(found.records) > 1:
        parts.append(_winners(found))
    if "winners" in pngs:
        lay = studies.layout(found.grid, [a.column for a in figures.map_axes(found.grid)])
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
            f"{one.best} of {one.of}",
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
        best = " = ".join(html.text(labels.label(name).name) for name in one.tied)
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


def _axes(found: Study, pngs: dict[str, bytes], first: str) -> str:
    """A figure per numeric axis, `first` before the others, which follow by length."""
    parts = []
    for axis in sorted(
        _long_axes(found.grid), key=lambda axis: (axis.column != first, -len(axis.values))
    ):
        png = pngs.get(f"axis_{axis.column}")
        if png is not None:
            lay = studies.layout(found.grid, [axis.column])
            caption = (
                f"{words.measured(axis)[2]} Means over seeds with 95 % bands"
                f"{', oracles thin' * any(p in ORACLES for p in found.grid.policies)}. "
            )
            if lay.rows is not None:
                caption += "Each row of panels has a scale of its own. "
            parts.append(f"<h2>Along {html.text(axis.title)}</h2>")
            parts.append(html.figure(png, caption + words.held(found.grid, lay)))
    return "\n".join(parts)


def _exponents(found: Study, pngs: dict[str, bytes]) -> str:
    if not found.fits:
        return ""
    parts = ["<h2>Exponents against theory</h2>"]
    caption = (
        "Points: means with 95 % intervals. Coloured lines: slopes fitted over the range that "
        "they span, given beside the names. Grey lines: slopes of theory, drawn through the "
        "last point of the lowest policy that each holds for."
    )
    parts += [html.figure(pngs[n], caption) for n in ("exponents", "exponents_parts") if n in pngs]
    for name in _FITTED_IN_ORDER:
        fits = [one for one in found.fits if one.figure == name and one.slope is not None]
        if not fits:
            continue
        rows = html.table(report_tables.FIT_HEADINGS, [report_tables.fit_row(f) for f in fits])
        # The parts explain the whole; they are there for who asks.
        summary = f"<summary>{html.text(figures.words(name))}</summary>"
        opened = " open" * (name in _MAIN)
        parts.append(f"<details{opened}>{summary}{rows}</details>")
    left = [f"<li>{html.text(line)}</li>" for line in report_tables.left_out(found.fits)]
    if left:
        parts.append(
            f"<details><summary>What was left out of the fits, and why ({len(left)})</summary>"
            f'<ul class="small">{"".join(left)}</ul></details>'
        )
    return "\n".join(parts)


def _slots(found: Study, pngs: dict[str, bytes]) -> str:
    if not found.knees:
        return ""
    shown = found.knees if len(found.knees) <= _MOST_SENTENCES else _shown_knees(found)
    items = "".join(
        f"<li>{html.text(slots.sentence(knee, found.grid, found.price))}</li>" for knee in shown
    )
    parts = [f"<h2>How many slots pay off</h2>\n<ul>{items}</ul>"]
    if "slots" in pngs:
        caption = (
            f"Bold: the best policy, with its 95 % band. Dashed: the knee; grey: 95 % of resampled "
            f"seeds have it there. {slots.DEFINITION}."
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
        html.row(cells)
        for knee in _shown_knees(found)
        for cells in report_tables.saving_cells(knee, found.grid)
    ]
    parts.append(html.table(headings, rows))
    parts.append('<p class="small">All combinations are in <code>slots.csv</code>.</p>')
    return "\n".join(parts)
