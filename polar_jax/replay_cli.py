"""`polar-jax replay check`: parse, read, print."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from polar_jax import terminal
from polar_jax.terminal import BAD_INPUT, PROGRAM

if TYPE_CHECKING:
    from polar_jax.replay_facts import Facts

_USAGE = f"""usage: {PROGRAM} replay COMMAND [OPTIONS]

Replays: measured contexts and utilities of real requests (docs/replays.md).

commands:
  check FILE     is it sound, and is there anything to learn in it?

`{PROGRAM} replay check --help` explains the options.
"""


@dataclasses.dataclass(frozen=True)
class ReplayCheck:
    """Check a replay and show its facts: sizes, best adapters and sets, what a router can learn.

    Attributes:
      file: a .npz or .parquet file, or "real" for the one that ships with the package.
      missing: what a missing utility means: a number, or adapter-mean.
      slots: sizes of the static sets to look for.
      json: print the facts as JSON.
    """

    file: tyro.conf.Positional[pathlib.Path]
    missing: Annotated[
        str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="(default: none may be)")
    ] = None
    slots: tuple[int, ...] = (1, 2, 4, 8)
    json: bool = False


def main(words: Sequence[str]) -> int:
    """Runs a command.

    Args:
      words: the command line behind `replay`.

    Returns:
      The exit code: 0, or 2 for a file or an option that cannot be used.
    """
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if words else BAD_INPUT
    if words[0] != "check":
        return terminal.error(f"replay must be followed by check; got {words[0]!r}.", BAD_INPUT)
    try:
        options = terminal.parse(ReplayCheck, "replay check", list(words[1:]))
        return 0 if options is None else _check(options)
    except (ValueError, OSError, MemoryError) as error:
        return terminal.error(terminal.describe(error, ReplayCheck), BAD_INPUT)


def _check(options: ReplayCheck) -> int:
    wrong = [one for one in options.slots if one < 1]
    if wrong:
        raise ValueError(f"--slots must be whole numbers of at least 1; got {wrong[0]}.")
    terminal.prepare_jax(1)
    from polar_jax import configured, console, replay_facts
    from polar_jax.config import RunConfig

    config = RunConfig(environment=str(options.file), missing=options.missing)
    found = replay_facts.facts(configured.read_replay(config), options.slots)
    if options.json:
        print(json.dumps(replay_facts.plain(found), indent=2))
        return 0
    out = console.stdout()
    for label, value in _lines(found):
        out.print(f"{label:<36}{value}", markup=False, highlight=False, soft_wrap=True)
    out.print()
    out.print(replay_facts.verdict(found), markup=False, highlight=False)
    return 0


def _lines(found: "Facts") -> list[tuple[str, str]]:
    kind = "single outcomes, 0 or 1" if found.binary else "measured"
    lines = [
        ("requests, M", f"{found.requests:,}, in a recorded order of {found.order:,}"),
        ("adapters, N", f"{found.adapters:,}"),
        (
            "features, d",
            f"{found.features:,}, divided by the largest norm {found.largest_norm:.6g}",
        ),
        ("domains", f"{found.domains:,}"),
        ("utilities", kind + (f", {found.missing:,} missing and filled" if found.missing else "")),
        ("", ""),
        ("mean utility per request with", ""),
        ("  the best single adapter", f"{found.best_adapter_utility:.4f}  {found.best_adapter}"),
    ]
    for one in found.static_sets:
        how = "" if one.exact else " (searched for)"
        names = ", ".join(one.adapters[:8]) + (", ..." if one.slots > 8 else "")
        lines.append((f"  the best static {one.slots}{how}", f"{one.utility:.4f}  {names}"))
    return [
        *lines,
        ("  the best adapter per domain", f"{found.domain_utility:.4f}"),
        ("  a linear model's choice", f"{found.linear_utility:.4f}  cross-fitted"),
        ("  the best adapter per request", f"{found.oracle_utility:.4f}"),
        ("", ""),
        ("R\N{SUPERSCRIPT TWO} of a linear model, cross-fitted", f"{found.r_squared:.3f}"),
        ("  of differences between adapters", f"{found.r_squared_between:.3f}"),
    ]
