"""The report: one HTML page that opens from disk and needs nothing but itself."""

import math
from typing import Any

from polar_jax import bytesizes, figures, html, labels, summary
from polar_jax.statistics import Estimate
from polar_jax.summary import Comparison, PolicySummary, number, with_error


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
            f'<p class="lead">{html.text(title)}</p>',
            f'<p class="verdict">{html.text(verdict(comparison))}</p>',
            _results(comparison),
            "<h2>Over time</h2>",
            html.figure(
                regret_png,
                "Mean over seeds with 95 % bands, in the order of the last values. Values near "
                "zero are on a linear scale, so that curves may change sign.",
            ),
            "<h2>What the regret is made of</h2>",
            html.figure(
                figures.parts_png(comparison),
                "Means over seeds. Routing is shown without its forced share. Caching is "
                "negative where a set that moves beats the best static one.",
            ),
            "<h2>What users of the server see</h2>",
            html.figure(
                figures.serving_png(comparison),
                f"Means over seeds and {horizon:,} requests, with 95 % intervals.",
            ),
            _differences(comparison),
            _policies(comparison),
            _parameters(manifest),
            _notes(comparison),
        )
    )
    return html.page(f"polar_jax: {title}", body)


def configuration(comparison: Comparison, manifest: dict[str, Any]) -> str:
    """What was run, in one sentence."""
    problem, environment = manifest["problem"], manifest["environment"]["name"]
    source = manifest["environment"].get("source")
    origin = f" of {source}" if source else ""
    seeds = "1 seed" if comparison.num_seeds == 1 else f"{comparison.num_seeds} seeds"
    return (
        f"{problem['num_adapters']} adapters{_memory(problem)} and "
        f"{problem['context_dim']} context features on {problem['horizon']:,} {environment} "
        f"requests{origin}, {seeds} per policy, paging costs {manifest['paging']['origin']}."
    )


def _memory(problem: dict[str, Any]) -> str:
    """What limits the resident set, said after the adapters."""
    if "capacity_bytes" not in problem:
        return f", {problem['cache_slots']} cache slots"
    sizes = sorted(problem["size_bytes"])
    each = " to ".join(bytesizes.shown(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
    return (
        f" of {each}, {bytesizes.shown(problem['capacity_bytes'])} of fast memory (at most "
        f"{problem['cache_slots']} at once)"
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
        *(("waiting<br>ms/request",) if comparison.waited else ()),
        "loads",
    )
    rows = []
    for policy in comparison.policies:
        one = policy.figures
        kind = "best" if policy.name == comparison.best else "oracle" if policy.is_oracle else ""
        cells = (
            html.swatch(policy.name) + html.text(_name(policy)) + " *" * policy.is_oracle,
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
            *((number(one["waiting_ms_per_request"].mean),) if comparison.waited else ()),
            number(one["loads"].mean),
        )
        rows.append(html.row(cells, kind))
    notes = "".join(f'<p class="small">{html.text(line)}</p>' for line in summary.notes(comparison))
    return f"<h2>Results</h2>\n{html.table(headings, rows)}\n{notes}"


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
                f"{html.swatch(policy.name)}{html.text(_name(policy))}",
                number(gap.mean),
                _interval(gap),
                excess.replace("-", "\N{MINUS SIGN}"),
            )
            rows.append(html.row(cells, "oracle" if policy.is_oracle else ""))
        headings = (
            f"policy minus {html.text(labels.label(best).name)}",
            "difference<br>of regret",
            "95 % interval",
            "loss to full<br>memory, relative",
        )
        parts.append(html.table(headings, rows))
    names = [policy.name for policy in comparison.policies]
    headings = ("row minus column", *(html.text(labels.label(name).name) for name in names))
    rows = []
    for row in names:
        cells = [html.text(labels.label(row).name)]
        cells += [_gap(comparison, row, column) for column in names]
        rows.append(html.row(cells, raw=True))
    parts.append(
        "<p>All pairs: mean difference of regret ± half of its 95 % interval. Green: "
        "the row's policy loses less; red: it loses more; grey: the interval "
        "contains 0.</p>"
    )
    parts.append(html.table(headings, rows, kind="matrix"))
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
        f"<dt>{html.swatch(policy.name)}{html.text(_name(policy))} "
        f"<code>{html.text(policy.name)}</code></dt>"
        f"<dd>{html.text(_name(policy))} {html.text(sentence(policy, comparison))}</dd>"
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
        f"<div><span>{html.text(name)}</span><span>{html.text(html.plain(value))}</span></div>"
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
    items = "\n".join(f"<li>{html.text(line)}</li>" for line in lines)
    return f"<h2>How to read this</h2>\n<ul>\n{items}\n</ul>"


def _name(policy: PolicySummary) -> str:
    return labels.label(policy.name).name


def _interval(estimate: Estimate) -> str:
    if math.isnan(float(estimate.half_width)):
        return "\N{EN DASH}"
    return f"[{number(estimate.low)}, {number(estimate.high)}]"
