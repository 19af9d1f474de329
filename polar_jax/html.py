"""HTML pages that open from disk: the style, tables and figures that reports share."""

import base64
import html
from collections.abc import Iterable

from polar_jax import labels

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f5f7; color: #1d2430;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 36px 28px 64px; background: #fff; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; }
h2 { font-size: 18px; margin: 38px 0 10px; padding-top: 14px; border-top: 1px solid #e3e6ea; }
p { margin: 8px 0; max-width: 80ch; }
.lead { color: #4a5464; }
.verdict { background: #eef6f1; border-left: 4px solid #009e73; padding: 10px 16px;
  margin: 18px 0; max-width: none; }
.warning { background: #fdf1ec; border-left-color: #d55e00; }
details { margin: 14px 0; } summary { cursor: pointer; color: #4a5464; }
pre { background: #f1f3f5; padding: 10px 14px; font-size: 13px; overflow-x: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th { font-weight: 600; text-align: right; vertical-align: bottom; color: #4a5464;
  border-bottom: 2px solid #c9ced6; padding: 5px 8px; line-height: 1.25; }
td { text-align: right; padding: 4px 8px; border-bottom: 1px solid #edeff2; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 2px; }
tr.best td { background: #eef6f1; font-weight: 600; }
tr.oracle td { color: #6b7480; }
.part { color: #6b7480; font-weight: 400; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin-right: 7px; }
.worse { background: #fdf1ec; } .better { background: #eef6f1; } .level { color: #6b7480; }
.matrix td, .matrix th { font-size: 13px; padding: 4px 7px; }
figure { margin: 14px 0; } figure img { width: 100%; max-width: 980px; height: auto; }
figcaption, .small { color: #6b7480; font-size: 13px; max-width: 90ch; }
dl.policies dt { font-weight: 600; margin-top: 10px; } dl.policies dd { margin: 0 0 0 17px; }
.parameters { columns: 2; column-gap: 40px; font-size: 13.5px; }
.parameters div { display: flex; justify-content: space-between; gap: 16px;
  border-bottom: 1px solid #edeff2; padding: 2px 0; break-inside: avoid; }
.parameters span:first-child { color: #6b7480; white-space: nowrap; }
.parameters span:last-child { text-align: right; overflow-wrap: anywhere; }
code { font-size: 0.92em; background: #f1f3f5; padding: 0 4px; border-radius: 3px; }
@media (max-width: 760px) { .parameters { columns: 1; } main { padding: 20px 14px; } }
@media print { body { background: #fff; } main { padding: 0; } }
"""


def page(title: str, body: str) -> str:
    """A whole page.

    Args:
      title: what the tab says, not escaped.
      body: HTML between `<main>` and `</main>`.

    Returns:
      HTML with the style inside, which refers to nothing outside.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def plain(value: object) -> str:
    """A setting for people, not escaped: short numbers, lists with commas."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return str(value)


def text(value: object) -> str:
    """Anything as text that is no HTML."""
    return html.escape(str(value))


def swatch(policy: str) -> str:
    """A square in a policy's colour, to stand before its name."""
    colour = labels.label(policy).colour
    return f'<span class="swatch" style="background:{colour}"></span>'


def row(cells: Iterable[str], kind: str = "", *, raw: bool = False) -> str:
    """A table row.

    Args:
      cells: HTML of each cell.
      kind: class of the row: "best", "oracle" or "".
      raw: every cell but the first brings its own tags.

    Returns:
      HTML.
    """
    first, *rest = cells
    body = "".join(rest) if raw else "".join(f"<td>{cell}</td>" for cell in rest)
    return f'<tr class="{kind}"><td>{first}</td>{body}</tr>'


def table(headings: Iterable[str], rows: Iterable[str], kind: str = "") -> str:
    """A table that scrolls where it is wider than the page.

    Args:
      headings: HTML of each column's heading.
      rows: rows from `row`.
      kind: class of the table: "matrix" or "".

    Returns:
      HTML.
    """
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def figure(png: bytes, caption: str) -> str:
    """A picture inside the page.

    Args:
      png: the picture.
      caption: what stands below it, not escaped.

    Returns:
      HTML.
    """
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )
