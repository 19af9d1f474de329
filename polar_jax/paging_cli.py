"""`polar-jax paging ...`: parse, prepare JAX, call, print."""

import pathlib
from collections.abc import Sequence
from typing import Any

from polar_jax import log_cli, terminal
from polar_jax.paging_tools import commands
from polar_jax.terminal import BAD_INPUT, FAILED, PROGRAM

_COMMANDS: dict[str, type[Any]] = {
    "synthesize": commands.Synthesize,
    "measure": commands.Measure,
    "show": commands.Show,
    "read-log": log_cli.ReadLog,
}
_USAGE = f"""usage: {PROGRAM} paging COMMAND [OPTIONS]

What it costs to page adapters in: adapters to measure with, their load times
as a file that `{PROGRAM} run --paging FILE` reads, and what such a file says.

commands:
  synthesize     write adapters of the exact shapes of real ones
  measure DIR    time disk to host and host to device; write a paging file
  show FILE      print and draw a paging file
  read-log FILE  load times out of a serving system's log, as a paging file

`{PROGRAM} paging COMMAND --help` explains the options; docs/paging.md what is measured.
"""


def main(words: Sequence[str]) -> int:
    """Runs a command.

    Args:
      words: the command line behind `paging`.

    Returns:
      The exit code: 0, 1 where something fails while it runs, 2 for bad input.
    """
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if words else BAD_INPUT
    kind = _COMMANDS.get(words[0])
    if kind is None:
        allowed = "synthesize, measure, show or read-log"
        return terminal.error(f"paging must be followed by {allowed}; got {words[0]!r}.", BAD_INPUT)
    try:
        options = terminal.parse(kind, f"paging {words[0]}", words[1:])
        return 0 if options is None else _ACTIONS[kind](options)
    except (ValueError, OSError, MemoryError, OverflowError) as error:
        return terminal.error(terminal.describe(error, kind), BAD_INPUT)


def _synthesize(options: commands.Synthesize) -> int:
    from polar_jax.paging_tools import synthesize

    recipes = [
        synthesize.Recipe(options.model, rank, targets)
        for targets in options.target_names()
        for rank in options.rank_numbers()
    ]
    job = synthesize.prepare(options.out, recipes, overwrite=options.overwrite)
    terminal.end_at_signals(job.clean_up)
    from polar_jax.paging_tools.view import View

    try:
        with View("writing", quiet=options.quiet) as view:
            written = synthesize.run(job, view)
    except OSError as error:
        return terminal.error(terminal.describe(error, commands.Synthesize), FAILED)
    if not options.quiet:
        for path, recipe in zip(written, recipes, strict=True):
            print(f"{path}  {recipe.size_bytes / 2**20:.1f} MiB")
    return 0


def _measure(options: commands.Measure) -> int:
    from polar_jax import io
    from polar_jax.paging_tools import files

    options.check()
    adapters = io.list_peft_adapters(options.folder)
    files.check_out(options.out, (".csv",), overwrite=options.overwrite)
    terminal.prepare_jax(1)
    import jax

    from polar_jax import console
    from polar_jax.paging_tools import measure, summary, view

    device = measure.devices(options.device)
    partial = files.temporary(options.out)
    terminal.end_at_signals(lambda: partial.unlink(missing_ok=True))
    try:
        with view.View("measuring", quiet=options.quiet) as progress:
            timings = measure.run(adapters, device, options.repeats, progress)
        data = files.paging_csv(timings.measured, adapters, timings.device)
        place = files.put_beside(options.out, data, overwrite=options.overwrite)
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        return terminal.error(terminal.describe(error, commands.Measure), FAILED)
    if place != options.out:
        terminal.say(f"{str(options.out)!r} has come to be there; the times are in {str(place)!r}.")
    for note in timings.notes:
        # Also with --quiet: what the figures are must not go unsaid.
        terminal.say(note)
    if not options.quiet:
        out = console.stdout()
        out.print(f"Paged to {timings.device}.", markup=False)
        found = summary.rows(timings.measured)
        view.print_rows(out, found)
        view.print_fits(out, summary.fits(found))
        out.print(str(place), markup=False, soft_wrap=True)
    return 0


def _show(options: commands.Show) -> int:
    from polar_jax import console, io
    from polar_jax.config import RunConfig
    from polar_jax.paging_tools import files, summary, view

    measured = io.read_measurements(options.file)
    table = io.read_paging_table(options.file, tier=options.tier)
    if options.out is not None:
        files.check_out(options.out, (".png",), overwrite=options.overwrite)
    found = summary.rows(measured)
    out = console.stdout()
    view.print_rows(out, found)
    view.print_fits(out, summary.fits(found))
    view.print_charge(out, table, RunConfig.price_per_ms)
    if options.out is None:
        return 0
    return _draw(options.out, found, options.file.name, overwrite=options.overwrite)


def _draw(out: pathlib.Path, found: Any, title: str, *, overwrite: bool) -> int:
    from polar_jax.paging_tools import figure, files

    terminal.end_at_signals(lambda: files.temporary(out).unlink(missing_ok=True))
    try:
        files.put(out, figure.paging_png(found, title), overwrite=overwrite)
    except OSError as error:
        return terminal.error(terminal.describe(error, commands.Show), FAILED)
    print(out)
    return 0


_ACTIONS: dict[type[Any], Any] = {
    commands.Synthesize: _synthesize,
    commands.Measure: _measure,
    commands.Show: _show,
    log_cli.ReadLog: log_cli.run,
}
