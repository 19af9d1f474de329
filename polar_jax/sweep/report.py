"""The report of a sweep: one HTML page, its figures, and its tables as CSV."""

import pathlib
from typing import Any

import matplotlib
import polars as pl

from polar_jax import html
from polar_jax.sweep import (
    figures,
    findings,
    fit_figures,
    report_sections,
    report_tables,
    winner_figures,
    words,
)
from polar_jax.sweep.files import write_whole
from polar_jax.sweep.findings import Study
from polar_jax.sweep.words import Facts

_FITTED = ("regret", "regret_routing", "regret_caching", "loss_to_full")


class DrawingError(Exception):
    """A figure that cannot be drawn."""


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
    found = findings.study(table, manifest)
    return _page(found, draw(found), manifest, facts)


def write(
    out: pathlib.Path, table: pl.DataFrame, manifest: dict[str, Any], facts: Facts
) -> list[pathlib.Path]:
    """Writes the tables, then the figures and the page; each file whole or not at all.

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
      DrawingError: if a figure cannot be drawn; the tables are written by then.
    """
    found = findings.study(table, manifest)
    frames = report_tables.frames(found.summary, found.winners, found.knees, found.fits)
    written = _write(
        {out / f"{name}.csv": one.write_csv().encode() for name, one in frames.items()}
    )
    try:
        pngs = draw(found)
    except Exception as error:  # Whatever a drawing library may raise.
        said = f"{type(error).__name__}: {error}"
        raise DrawingError(
            f"a figure cannot be drawn ({said}), so there is no new report.html; the tables in "
            f"{str(out)!r} are new."
        ) from error
    written += _write({out / "figures" / f"{name}.png": data for name, data in pngs.items()})
    return written + _write({out / "report.html": _page(found, pngs, manifest, facts).encode()})


def _write(files: dict[pathlib.Path, bytes]) -> list[pathlib.Path]:
    for path, data in files.items():
        write_whole(path, lambda file, data=data: file.write(data))
    return list(files)


def draw(found: Study) -> dict[str, bytes]:
    """Every figure of the report, as PNG bytes by the name of its file.

    Args:
      found: from `study`.
    """
    # Texts of users may hold dollars, which are no formulas.
    with matplotlib.rc_context({"text.parse_math": False}):
        return _draw(found)


def _draw(found: Study) -> dict[str, bytes]:
    grid, pngs = found.grid, {}
    contested = [one for one in found.winners if one.contested]
    if len(contested) > report_sections.MOST_ROWS and len(findings.long_axes(grid)) > 1:
        pngs["winners"] = winner_figures.winners_png(contested, grid)
    if 1 < len(contested) <= winner_figures.MOST_CELLS:
        pngs["ratios"] = winner_figures.ratios_png(contested, found.records, grid)
    for axis in findings.long_axes(grid):
        if axis.numbers is not None:
            name, per_request, _ = words.measured(axis)
            pngs[f"axis_{axis.column}"] = figures.axis_png(
                found.summary, grid, axis, name, per_request=per_request
            )
    columns = [name for name in _FITTED if any(f.slope and f.figure == name for f in found.fits)]
    if columns:
        axis = found.fits[0].axis
        shown = columns if len(columns) < 3 else [n for n in columns if n in report_sections.MAIN]
        pngs["exponents"] = fit_figures.exponents_png(found.fits, shown, axis)
        parts = [name for name in columns if name not in shown]
        if parts:
            pngs["exponents_parts"] = fit_figures.exponents_png(found.fits, parts, axis)
    knees, _ = findings.shown_knees(found)
    if knees:
        pngs["slots"] = figures.slots_png(knees, grid, grid.learnt)
    return pngs


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
            report_sections.answer(found, pngs),
            report_sections.axes(found, pngs),
            report_sections.exponents(found, pngs),
            report_sections.slots_that_pay(found, pngs),
            report_tables.section(found.grid, manifest, facts),
        )
    )
    return html.page(f"polar_jax: {title}", body)
