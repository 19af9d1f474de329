"""Sentences of a sweep's report: what was run, who wins, what a figure leaves out."""

from collections.abc import Sequence
from typing import Any, TypedDict

from polar_jax import labels
from polar_jax.sweep import studies
from polar_jax.sweep.layouts import Layout
from polar_jax.sweep.studies import Axis, Grid, Record, Winner

_MOST_LISTED = 8
_OPTIONS = {"adapters": "num_adapters", "slots": "cache_slots", "seed": "base_seed"}
# Options that a sentence names even where they are fixed, in its order.
_TOLD = (
    "environment",
    "num_adapters",
    "cache_slots",
    "capacity_bytes",
    "context_dim",
    "horizon",
    "costs",
    "paging",
    "tier",
    "price_per_ms",
    "beta",
)


class Facts(TypedDict):
    """How a sweep stands when its report is made."""

    seconds: float  # spent in shards that are done
    decisions: int  # made in them
    shards_done: int
    shards_total: int
    mixed: list[str]  # machines, tiles or versions that differ between shards, one sentence each
    failures: list[str]  # one line per failed shard


def column(option: str) -> str:
    """The column that an option of `polar-jax run` fills."""
    return _OPTIONS.get(option, option)


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def what_was_run(manifest: dict[str, Any], facts: Facts) -> str:
    """A sweep in one paragraph: axes, filters, fixed values, seeds, lanes and decisions.

    Args:
      manifest: what the sweep was made with.
      facts: how it stands.

    Returns:
      Plain text.
    """
    policies = next((e["values"] for e in manifest["axes"] if e["name"] == "policy"), None)
    if policies is None:
        policies = manifest["fixed"].get("policies", [])
    names = [labels.label(str(name)).name for name in policies]
    who = f"{len(names)} policies ({listed(names)})" if len(names) > 1 else listed(names)
    text = who or "Policies"
    axes = _axes(manifest["axes"])
    if axes:
        text += f", crossed with {'; '.join(axes)}" if len(names) > 1 else f" at {'; '.join(axes)}"
    if manifest["filters"]:
        text += f", where {listed(manifest['filters'])}"
    fixed = _fixed(manifest)
    if fixed:
        text += f"; all with {listed(fixed)}"
    seeds = manifest["seeds"]
    counts = [
        f"{seeds:,} seed{'s' * (seeds != 1)} each",
        f"{manifest['num_configurations']:,} configurations",
        f"{manifest['num_lanes']:,} simulations",
        f"{large(manifest['decisions'])} decisions",
    ]
    if facts["shards_done"] < facts["shards_total"]:
        counts.append(f"of which {large(facts['decisions'])} are done")
    return f"{text}. {', '.join(counts)}."


def _axes(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Axes but the policy; zipped ones together."""
    blocks: dict[object, list[str]] = {}
    for entry in entries:
        if entry["name"] == "policy":
            continue
        block = entry["name"] if entry.get("zipped") is None else int(entry["zipped"])
        blocks.setdefault(block, []).append(_values(entry["name"], entry["values"]))
    return [" together with ".join(block) for block in blocks.values()]


def _values(name: str, values: Sequence[Any]) -> str:
    title = studies.TITLES.get(name, name.replace("_", " "))
    distinct = list(dict.fromkeys(map(studies.shown, values)))
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(distinct) > _MOST_LISTED and len(numbers) == len(values):
        ends = f"{studies.shown(min(numbers))} to {studies.shown(max(numbers))}"
        return f"{title} from {ends} ({len(distinct)} values)"
    return f"{title} {listed(distinct)}"


def _fixed(manifest: dict[str, Any]) -> list[str]:
    fixed = {column(name): value for name, value in manifest["fixed"].items()}
    known = [name for name in _TOLD if fixed.get(name) is not None]
    return [
        f"{studies.TITLES.get(name, name.replace('_', ' '))} {studies.shown(fixed[name])}"
        for name in known
    ]


def large(count: float) -> str:
    """A count for people: `5.2 million`."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:,.0f}"


def banners(grid: Grid, facts: Facts) -> list[str]:
    """What a reader has to know before he believes a number.

    Args:
      grid: the rows.
      facts: how the sweep stands.

    Returns:
      Sentences, none where the sweep is whole and of one machine.
    """
    lines = []
    done, total = facts["shards_done"], facts["shards_total"]
    if done < total:
        lines.append(
            f"Partial: {done:,} of {total:,} shards are done. Combinations are compared on the "
            "seeds that all their policies have so far."
        )
    lines += [f"Mixed: {line}" for line in facts["mixed"]]
    failed = facts["failures"]
    if failed:
        more = f" and {len(failed) - 3:,} more" if len(failed) > 3 else ""
        lines.append(f"Failed: {'; '.join(failed[:3])}{more}. Running the sweep again retries.")
    if grid.table["seed"].n_unique() == 1:
        lines.append("One seed: nothing is known about chance, and no interval can be given.")
    return lines


def verdict(winners: Sequence[Winner], records: Sequence[Record], grid: Grid) -> str:
    """Who wins, over all combinations with two policies or more, in two or three sentences."""
    if not grid.learnt:
        return "Only oracles ran, and oracles are not ranked."
    if len(grid.learnt) == 1:
        aside = ", oracles aside" if len(grid.policies) > 1 else ""
        return f"{_name(grid.learnt[0])} is the only policy that was run{aside}."
    if not records:
        return "No combination has rows of two policies on a common seed yet."
    contested = [one for one in winners if one.contested]
    if len(contested) == 1:
        return f"By loss to full memory, {_single(contested[0])}"
    first = records[0]
    text = f"{_name(first.policy)} is the best policy in {first.best} of {first.of} combinations"
    text += f" ({first.clear} of them beyond chance{_shared(first)})"
    others = [one for one in records[1:] if one.best]
    if others:
        text += "; " + listed([f"{_name(one.policy)} in {one.best}" for one in others[:4]])
    safest = min(records, key=lambda one: (-one.of, one.worst))
    text += f". The least risk is {_name(safest.policy)}: " + (
        "never above the best."
        if safest.worst <= 1.0
        else f"at worst {percent(safest.worst)} above the best ({grid.place(safest.worst_where)})."
    )
    return text


def _shared(one: Record) -> str:
    return f", {one.shared} an exact tie with another" if one.shared else ""


def least(counts: Sequence[tuple[object, int]], axis: Axis) -> str:
    """Where along an axis the loss of the only policy is least, in a sentence.

    Args:
      counts: from `studies.least`.
      axis: the axis.
    """
    of = sum(count for _, count in counts)
    if of == 1:
        return f"Its mean loss to full memory per request is least at {axis.name(counts[0][0])}."
    places = listed([f"{axis.name(value)} in {count}" for value, count in counts[:_MOST_LISTED]])
    return (
        f"Of {of} combinations of the other axes, its mean loss to full memory per request is "
        f"least at {places}."
    )


def judged(grid: Grid) -> str:
    """Which seeds choose the best policies, and which judge them."""
    if grid.chosen_on is None:
        return (
            "The best is chosen on the same seeds that it is judged on, which flatters it where "
            "margins are small."
        )
    return (
        f"The best is chosen on the first {grid.chosen_on:,} seeds; margins and ratios are of the "
        "others, so that choosing does not flatter it, and a ratio may be below 1."
    )


def _single(winner: Winner) -> str:
    if len(winner.tied) > 1:
        return f"{listed([_name(one) for one in winner.tied])} are best and tie exactly."
    if winner.second is None:
        return f"{_name(winner.best)} is alone."
    ratio = winner.ratios[winner.second]
    told = "which is not chance alone" if winner.told_apart else "which may be chance"
    if winner.seeds == 1:
        told = "and one seed cannot tell whether that is chance"
    return (
        f"{_name(winner.best)} is best; {_name(winner.second)} comes next with "
        f"{percent(ratio.value)} more, {told}."
    )


def percent(ratio: float) -> str:
    """What a ratio is above 1."""
    return f"{100.0 * (ratio - 1.0):.1f} %" if ratio < 1.1 else f"{100.0 * (ratio - 1.0):.0f} %"


def _name(policy: str) -> str:
    return labels.label(policy).name


def held(grid: Grid, lay: Layout) -> str:
    """What panels leave out, as a sentence to end a caption with; empty where nothing."""
    parts = []
    for side in (lay.columns, lay.rows):
        if side is not None and len(side[1]) < len(side[0].values):
            axis, values = side
            parts.append(f"{len(values)} of {len(axis.values)} values of {axis.title} have panels.")
    if lay.styles is not None:
        plain, dotted = (lay.styles.name(value) for value in lay.styles.values)
        parts.append(f"Dotted lines with open points: {dotted}; the others: {plain}.")
    fixed = [
        f"{axis.title} is held at {axis.number(lay.held[axis.column])}"
        + " (its middle value)" * _in_the_middle(axis, lay.held[axis.column])
        for axis in grid.axes
        if axis.column in lay.held and len(axis.values) > 1
    ]
    if fixed:
        parts.append(f"{listed(fixed)}; nothing is averaged over it.")
    return " ".join(parts)


def _in_the_middle(axis: Axis, value: object) -> bool:
    values = axis.values
    return axis.numbers is not None and len(values) > 2 and value == values[(len(values) - 1) // 2]


def measured(axis: Axis) -> tuple[str, bool, str]:
    """Which figure is drawn against an axis.

    Args:
      axis: of numbers.

    Returns:
      A name in `tables.FIGURES`, whether it is divided by the horizon, and why that one.
    """
    if axis.column == "horizon":
        return "regret", False, "Regret is against the best static set with perfect routing."
    why = "Loss to full memory, as the best static set itself changes along this axis."
    if axis.column in ("cache_slots", "capacity_bytes", "price_per_ms", "costs"):
        return "loss_to_full", True, why
    return "loss_to_full", True, "Loss to full memory is never negative and compares all panels."


def figure(name: str, *, per_request: bool = False) -> str:
    """A figure's name for people, from its column."""
    if name == "loss_to_full":
        text = "loss to full memory"
    elif name.startswith("regret_"):
        text = f"regret, part of {name.removeprefix('regret_')}"
    else:
        text = name.replace("_", " ")
    return f"{text} per request" if per_request else text
