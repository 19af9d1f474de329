"""`polar-jax bench`: parse, prepare JAX, measure, print."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polar_jax import terminal
from polar_jax.bench.commands import Bench
from polar_jax.terminal import BAD_INPUT, FAILED

if TYPE_CHECKING:
    from polar_jax.bench.limits import Machine
    from polar_jax.bench.runs import Plan

# Of a sample of a limit: as long as the others, within reason.
_LIMIT_SECONDS = (0.05, 0.5)


def main(words: Sequence[str]) -> int:
    """Runs the command.

    Args:
      words: the command line behind `bench`.

    Returns:
      The exit code: 0, 1 where something fails while it runs, 2 for bad input.
    """
    try:
        options = terminal.parse(Bench, "bench", words)
        if options is None:
            return 0
        options = options.sized()
        options.check()
        return _scale(options) if options.scaling else _measure(options)
    except (ValueError, OSError, ImportError) as error:
        return terminal.error(terminal.describe(error, Bench), BAD_INPUT)


def _plan(options: Bench, platform: str) -> "Plan":
    from polar_jax.bench import runs

    limit = options.memory_limit
    return runs.Plan(
        shapes=options.shape_numbers(),
        lane_counts=options.lane_numbers(),
        policies=options.policy_names(),
        rounds=options.rounds,
        repeats=options.repeats,
        seconds=options.seconds,
        memory_bytes=runs.default_memory(platform) if limit is None else int(limit * 2**30),
        kernels=options.kernel_names(platform),
    )


def _machine(options: Bench, platform: str) -> "Machine":
    from polar_jax.bench import limits

    least, most = _LIMIT_SECONDS
    return limits.Machine(platform, seconds=min(max(options.seconds, least), most))


def _measure(options: Bench) -> int:
    terminal.prepare_jax(options.devices)
    import jax

    from polar_jax import console, kernels
    from polar_jax.bench import baselines, limits, record, runs, view
    from polar_jax.paging_tools import files
    from polar_jax.paging_tools.view import View

    if options.json is not None:
        files.check_out(options.json, overwrite=options.overwrite, option="--json")

    platform = jax.devices()[0].platform
    kernel = kernels.chosen(platform)
    missing = baselines.installed()[1]
    terminal.end_at_signals(lambda: None)
    try:
        plan = _plan(options, platform)
        with (
            View("measuring", quiet=options.quiet) as report,
            _machine(options, platform) as machine,
        ):
            cases = runs.measure(plan, machine, report)
        if options.json is not None:
            values = record.build(cases, machine, missing, dataclasses.asdict(options))
            record.write_json(options.json, values, overwrite=options.overwrite)
    except (OSError, MemoryError, ArithmeticError, jax.errors.JaxRuntimeError) as error:
        return terminal.error(terminal.describe(error, Bench), FAILED)
    if not options.quiet:
        out = console.stdout()
        view.print_machine(out, machine, limits.surroundings())
        view.print_cases(out, cases, machine)
        view.print_notes(out, missing, kernel)
        if options.json is not None:
            out.print(str(options.json), markup=False, soft_wrap=True)
    return 0


def _scale(options: Bench) -> int:
    terminal.prepare_jax(options.devices)
    import jax

    from polar_jax import kernels
    from polar_jax.bench import scaling
    from polar_jax.paging_tools import files
    from polar_jax.paging_tools.view import View

    csv_file, figure = options.out / "scaling.csv", options.out / "scaling.png"
    for path in (csv_file, figure):
        files.check_out(path, overwrite=options.overwrite)

    platform = jax.devices()[0].platform
    kernels.chosen(platform)
    terminal.end_at_signals(lambda: None)
    sweep = scaling.SMALL if options.small else scaling.Sweep()
    try:
        plan = _plan(options, platform)
        with (
            View("measuring", quiet=options.quiet) as report,
            _machine(options, platform) as machine,
        ):
            points = scaling.measure(plan, sweep, machine, report)
        written = {
            csv_file: scaling.scaling_csv(points, machine),
            figure: scaling.scaling_png(points, machine),
        }
        for path, data in written.items():
            files.put(path, data, overwrite=options.overwrite)
    except (OSError, MemoryError, ArithmeticError, jax.errors.JaxRuntimeError) as error:
        return terminal.error(terminal.describe(error, Bench), FAILED)
    for path in () if options.quiet else written:
        print(path)
    return 0
