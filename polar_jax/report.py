"""The report: one HTML page that opens from disk and needs nothing but itself."""

import base64
import html
import math
from collections.abc import Iterable
from typing import Any

from polar_jax import figures, labels, summary
from polar_jax.statistics import Estimate
from polar_jax.summary import Comparison, PolicySummary, number, with_error

_STYLE = """
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


def render(comparison: Comparison, manifest: dict[str, Any], regret_png: bytes) -> str:
    """The whole page.

    Args:
      comparison: the summary of the run.
      manifest: what it was made with, from `manifest.build`.
      regret_png: the figure that is also written beside the page.

    Returns:
      HTML with style and figures inside.
    """
    title = configuration(comparison, manifest)
    horizon = manifest["problem"]["horizon"]
    body = "\n".join(
        (
            "<h1>Who wins: caching and routing of LoRA adapters</h1>",
            f'<p class="lead">{_text(title)}</p>',
            f'<p class="verdict">{_text(verdict(comparison))}</p>',
            _results(comparison),
            "<h2>Over time</h2>",
            _figure(
                regret_png,
                "Mean over seeds with 95 % bands, in the order of the last values. Values near "
                "zero are on a linear scale, so that curves may change sign.",
            ),
            "<h2>What the regret is made of</h2>",
            _figure(
                figures.parts_png(comparison),
                "Means over seeds. Routing is shown without its forced share. Caching is "
                "negative where a set that moves beats the best static one.",
            ),
            "<h2>What users of the server see</h2>",
            _figure(
                figures.serving_png(comparison),
                f"Means over seeds and {horizon:,} requests, with 95 % intervals.",
            ),
            _differences(comparison),
            _policies(comparison),
            _parameters(manifest),
            _notes(comparison),
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>polar_jax: {_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def configuration(comparison: Comparison, manifest: dict[str, Any]) -> str:
    """What was run, in one sentence."""
    problem, environment = manifest["problem"], manifest["environment"]["name"]
    seeds = "1 seed" if comparison.num_seeds == 1 else f"{comparison.num_seeds} seeds"
    return (
        f"{problem['num_adapters']} adapters, {problem['cache_slots']} cache slots and "
        f"{problem['context_dim']} context features on {problem['horizon']:,} {environment} "
        f"requests, {seeds} per policy, paging costs {manifest['paging']['origin']}."
    )


def verdict(comparison: Comparison) -> str:
    """Who wins, by how much, and whether the seeds can tell."""
    learnt = [policy for policy in comparison.policies if not policy.is_oracle]
    if not learnt:
        return "Only oracles ran, and oracles are not ranked."
    first = learnt[0]
    text = (
        f"{_name(first)} has the least regret of all policies that could run on a server: "
        f"{with_error(first.figures['regret'])}."
    )
    if len(learnt) == 1:
        return text
    second = learnt[1]
    gap = comparison.differences[second.name, first.name]
    text += f" {_name(second)} comes next with {with_error(second.figures['regret'])}"
    if math.isnan(float(gap.half_width)):
        return f"{text}; one seed cannot tell whether that is chance."
    told = "which is not chance alone" if float(gap.low) > 0.0 else "which may be chance"
    return (
        f"{text}, {number(gap.mean)} more on the same requests (95 % interval "
        f"{_interval(gap)}), {told}."
    )


def sentence(policy: PolicySummary, comparison: Comparison) -> str:
    """What a policy does and how it did, without its name."""
    mean = {name: float(one.mean) for name, one in policy.figures.items()}
    text = (
        f"{labels.label(policy.name).does}. Its regret is "
        f"{with_error(policy.figures['regret'])}; {100.0 * mean['hit_rate']:.1f} % of requests "
        f"find their adapter in fast memory, and paging adds "
        f"{number(mean['paging_ms_per_request'])} ms to the mean request."
    )
    if policy.name == comparison.best:
        return f"{text} The best of those that could run on a server."
    if comparison.best is None or math.isnan(policy.excess):
        return text
    relation = "above" if policy.excess >= 0.0 else "below"
    best = labels.label(comparison.best).name
    return (
        f"{text} Its loss to full memory is {100.0 * abs(policy.excess):.0f} % {relation} {best}'s."
    )


def _results(comparison: Comparison) -> str:
    headings = (
        "policy",
        "regret",
        "routing",
        "of it<br>forced",
        "caching",
        "switching",
        "loss to<br>full memory",
        "net utility<br>per request",
        "hit rate<br>%",
        "paging<br>ms/request",
        "switching<br>ms/request",
        "loads",
    )
    rows = []
    for policy in comparison.policies:
        one = policy.figures
        kind = "best" if policy.name == comparison.best else "oracle" if policy.is_oracle else ""
        cells = (
            f"{_swatch(policy.name)}{_text(_name(policy))}{' *' if policy.is_oracle else ''}",
            with_error(one["regret"]),
            *(
                f'<span class="part">{number(one["regret_" + part].mean)}</span>'
                for part in ("routing", "forced", "caching", "switching")
            ),
            with_error(one["loss_to_full"]),
            with_error(one["net_utility"]),
            f"{100.0 * float(one['hit_rate'].mean):.1f}",
            number(one["paging_ms_per_request"].mean),
            number(one["switching_ms_per_request"].mean),
            number(one["loads"].mean),
        )
        rows.append(_row(cells, kind))
    notes = "".join(f'<p class="small">{_text(line)}</p>' for line in summary.notes(comparison))
    return f"<h2>Results</h2>\n{_table(headings, rows)}\n{notes}"


def _differences(comparison: Comparison) -> str:
    """Paired differences to the best policy, then between all."""
    if len(comparison.policies) < 2:
        return ""
    parts = ["<h2>Differences on the same requests</h2>"]
    if comparison.best is not None:
        best = comparison.best
        rows = []
        for policy in comparison.policies:
            if policy.name == best:
                continue
            gap = comparison.differences[policy.name, best]
            excess = (
                "\N{EN DASH}" if math.isnan(policy.excess) else f"{100.0 * policy.excess:+.0f} %"
            )
            cells = (
                f"{_swatch(policy.name)}{_text(_name(policy))}",
                number(gap.mean),
                _interval(gap),
                excess.replace("-", "\N{MINUS SIGN}"),
            )
            rows.append(_row(cells, "oracle" if policy.is_oracle else ""))
        headings = (
            f"policy minus {_text(labels.label(best).name)}",
            "difference<br>of regret",
            "95 % interval",
            "loss to full<br>memory, relative",
        )
        parts.append(_table(headings, rows))
    names = [policy.name for policy in comparison.policies]
    headings = ("row minus column", *(_text(labels.label(name).name) for name in names))
    rows = []
    for row in names:
        cells = [_text(labels.label(row).name)]
        cells += [_gap(comparison, row, column) for column in names]
        rows.append(_row(cells, raw=True))
    parts.append(
        "<p>All pairs: mean difference of regret ± half of its 95 % interval. Green: "
        "the row's policy loses less; red: it loses more; grey: the interval "
        "contains 0.</p>"
    )
    parts.append(_table(headings, rows, kind="matrix"))
    parts.append(
        '<p class="small">Differences are taken seed by seed, which removes what a stream does '
        "to both policies. Each interval stands for one pair; with many pairs some will miss. "
        "Differences of regret and of loss to full memory are the same.</p>"
    )
    return "\n".join(parts)


def _gap(comparison: Comparison, row: str, column: str) -> str:
    if row == column:
        return "<td></td>"
    gap = comparison.differences[row, column]
    if math.isnan(float(gap.half_width)):
        return f"<td>{number(gap.mean)}</td>"
    kind = "better" if float(gap.high) < 0 else "worse" if float(gap.low) > 0 else "level"
    return f'<td class="{kind}">{number(gap.mean)} ± {number(gap.half_width)}</td>'


def _policies(comparison: Comparison) -> str:
    entries = "\n".join(
        f"<dt>{_swatch(policy.name)}{_text(_name(policy))} <code>{_text(policy.name)}</code></dt>"
        f"<dd>{_text(_name(policy))} {_text(sentence(policy, comparison))}</dd>"
        for policy in comparison.policies
    )
    return f'<h2>The policies</h2>\n<dl class="policies">\n{entries}\n</dl>'


def _parameters(manifest: dict[str, Any]) -> str:
    machine, versions = manifest["machine"], manifest["versions"]
    git = manifest["git"]
    commit = "none" if git is None else git["commit"][:12] + (" (modified)" * git["modified"])
    rows: dict[str, Any] = {
        **{name.replace("_", " "): value for name, value in manifest["problem"].items()},
        "seeds": len(manifest["seeds"]),
        "base seed": manifest["base_seed"],
        **{f"environment: {name}": value for name, value in manifest["environment"].items()},
        **{
            name.replace("_", " "): value
            for name, value in manifest["policy_settings"].items()
            if value is not None
        },
        "price per ms": manifest["paging"]["price_per_ms"],
        "created": manifest["created"],
        "CPU": machine["cpu"],
        "devices": f"{manifest['num_devices']} x {machine['device_kind']}",
        "tile, lanes per device": manifest["tile"],
        "seconds compiling": manifest["seconds_compiling"],
        "seconds running": manifest["seconds_running"],
        "decisions per second": f"{manifest['decisions_per_second']:,}",
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "git commit": commit,
    }
    lines = "\n".join(
        f"<div><span>{_text(name)}</span><span>{_text(_plain(value))}</span></div>"
        for name, value in rows.items()
    )
    return (
        f'<h2>Parameters</h2>\n<div class="parameters">\n{lines}\n</div>\n'
        '<p class="small">Everything is in <code>manifest.json</code>; figures per simulation '
        "are in <code>results.parquet</code>.</p>"
    )


def _notes(comparison: Comparison) -> str:
    lines = [
        "Regret is against the best static set with perfect routing, chosen for the whole "
        "horizon; it counts expected utilities, not noisy rewards, and may be negative where "
        "the stream changes.",
        "Loss to full memory is against every adapter resident and perfect routing; ratios "
        "between policies use it, as it is never negative.",
        "Routing, caching and switching add up to the regret. Forced exploration is a part of "
        "routing.",
        "Paging latency delays a request; switching latency is of loads that no request had "
        "paid for.",
    ]
    if not comparison.oracle_exact:
        lines.append(
            "There are too many sets to try them all, so the best static set was searched for: "
            "it may not be the best, and regret is a lower bound."
        )
    if any(policy.is_oracle for policy in comparison.policies):
        lines.append(
            "Policies marked * know what no server can know, or hold more than fits; they are "
            "shown for scale and never ranked."
        )
    items = "\n".join(f"<li>{_text(line)}</li>" for line in lines)
    return f"<h2>How to read this</h2>\n<ul>\n{items}\n</ul>"


def _name(policy: PolicySummary) -> str:
    return labels.label(policy.name).name


def _interval(estimate: Estimate) -> str:
    if math.isnan(float(estimate.half_width)):
        return "\N{EN DASH}"
    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _text(value: object) -> str:
    return html.escape(str(value))


def _swatch(policy: str) -> str:
    colour = labels.label(policy).colour
    return f'<span class="swatch" style="background:{colour}"></span>'


def _row(cells: Iterable[str], kind: str = "", *, raw: bool = False) -> str:
    """A table row; with `raw` every cell but the first brings its own tags."""
    first, *rest = cells
    body = "".join(rest) if raw else "".join(f"<td>{cell}</td>" for cell in rest)
    return f'<tr class="{kind}"><td>{first}</td>{body}</tr>'


def _table(headings: Iterable[str], rows: Iterable[str], kind: str = "") -> str:
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _figure(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{_text(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )
