"""What `polar-jax bench` prints: the machine, and a table per case."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from polar_jax.bench import arithmetic, baselines, record
from polar_jax.bench.limits import Machine
from polar_jax.bench.runs import Case, Row
from polar_jax.console import rate

_TITLES = {
    "baseline": "LinUCB of others",
    "kernel": "kernel alone",
    "everything": "everything",
}


def print_machine(console: Console, machine: Machine, facts: Mapping[str, Any]) -> None:
    """The machine and its limits.

    Args:
      console: where to.
      machine: with what was measured.
      facts: of `limits.surroundings`.
    """
    here, versions = facts["machine"], facts["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("jax", "jaxlib", "numpy"))
    console.print(
        f"{here['cpu']}, {here['usable_cores']} cores, {here['instruction_set']}; {named}; "
        f"{len(here['devices'])} devices ({here['device_kind']})",
        markup=False,
        soft_wrap=True,
    )
    for scope in machine.samples:
        found = machine.limits(all_cores=scope == "all")
        cached = "".join(
            f", in the {cache.name} {cache.rate / 1e9:,.1f} GB/s"
            for cache in found.caches
            if math.isfinite(cache.rate)
        )
        what = "one core" if scope == "one" else "all cores" if "one" in machine.samples else "it"
        console.print(
            f"{what}: matrix product {found.operations / 1e9:,.1f} GFLOP/s, copy "
            f"{found.memory / 1e9:,.1f} GB/s{cached}",
            markup=False,
            soft_wrap=True,
        )


def print_cases(console: Console, cases: Sequence[Case], machine: Machine) -> None:
    """A table per case, and what was left out."""
    for case in cases:
        needed = arithmetic.work(*case.shape)
        moved = round(needed.state_bytes + needed.stream_bytes)
        console.print()
        console.print(
            f"{case.shape[0]} adapters x {case.shape[1]} features, {lane_text(case.lanes)}: "
            f"{needed.operations:,} operations and {moved:,} bytes per decision",
            style="bold",
            markup=False,
            soft_wrap=True,
        )
        console.print(_table(case, machine))
        for row in case.rows:
            if row.skipped:
                text = f"left out: {_TITLES[row.group]}, {row.name}: {row.skipped}"
                console.print(text, style="dim", markup=False, soft_wrap=True)


def lane_text(count: int) -> str:
    """So many lanes, in words."""
    return f"{count:,} lane" + ("" if count == 1 else "s")


def _table(case: Case, machine: Machine) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    table.add_column("")
    table.add_column("what", no_wrap=True)
    headings = (
        *("lanes", "decisions/s", "x NumPy\nloop", "ns per\ndecision"),
        *("floor\nns", "bound by", "of the\nlimit", "spread", "worst\ngap"),
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    shown = None
    for row in case.rows:
        if row.rate is not None:
            title = "" if row.group == shown else _TITLES[row.group]
            table.add_row(title, row.name, *_cells(row, row.rate, machine))
            shown = row.group
    return table


def _cells(row: Row, per_second: float, machine: Machine) -> list[str]:
    found = record.standing(row, machine)
    ratio = "" if row.ratio is None else f"{row.ratio:,.2f}"
    limit = ("", "", "")
    if found is not None:
        limit = f"{found.floor_ns:,.1f}", found.bound_by, f"{100.0 * found.fraction:.1f} %"
    gap = "" if row.worst_gap is None else f"{row.worst_gap:.0e}"
    return [
        f"{row.lanes:,}",
        rate(per_second, 1.0),
        ratio,
        f"{1e9 / per_second:,.0f}",
        *limit,
        f"{100.0 * arithmetic.spread(row.samples):.0f} %",
        gap,
    ]


def print_notes(console: Console, missing: Mapping[str, str], kernel: str) -> None:
    """What the tables do not say.

    Args:
      console: where to.
      missing: baselines that could not run, and why.
      kernel: of whole runs.
    """
    notes = [
        f"Per decision, {arithmetic.FORMULA}. The floor is what this machine's own matrix product "
        "and copies allow for that; spread is fastest over slowest sample.",
        f"Worst gap: how far below the best score, in float64, a choice was; allowed are "
        f"{baselines.EXACT:g} in float64 and {baselines.SINGLE:g} in float32.",
        f"Whole runs use the kernel {kernel!r}; all but native serve one lane in a tile of many, "
        "of which one is counted.",
    ]
    if missing:
        packages = "; ".join(f"{name} ({reason})" for name, reason in missing.items())
        notes.append(f"Not installed: {packages}. They come with pip install 'polar-jax[bench]'.")
    console.print()
    for note in notes:
        console.print(note, style="dim", markup=False)
