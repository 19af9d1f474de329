"""The `polar-jax` command: parses, prepares JAX, calls, prints. No science.

Imports are inside functions, so that `--help` answers before JAX could load.
"""

import io
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polar_jax import streams, terminal
from polar_jax.terminal import BAD_INPUT, FAILED, PROGRAM

if TYPE_CHECKING:
    from polar_jax.config import RunConfig
    from polar_jax.experiment import Prepared
    from polar_jax.lanes import Results

_USAGE = f"""usage: {PROGRAM} COMMAND [OPTIONS]

Caching and routing of LoRA adapters: simulates policies on streams of requests and shows
who wins.

commands:
  run            policies on one configuration: a table, a figure, a report
  sweep run      a grid of configurations from a TOML file: run, resume, report
  sweep plan     what a sweep would run, how long and in how much memory; runs nothing
  sweep status   how far a sweep is
  sweep report   its tables and figures again, from stored results
  sweep submit   the same grid on a cluster, by Slurm or Ray
  paging         what paging in costs: measure it here, read it from logs, show it
  compare        paired differences of two result folders
  replay check   is a file of measured requests sound, and what can be learnt in it?
  bench          decisions per second here, against baselines and this machine's limits

`{PROGRAM} COMMAND --help` explains a command's options.

options:
  -h, --help  show this help
  --version   show the version
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      arguments: the command line without the program's name; `sys.argv` where None.

    Returns:
      The exit code: 0, 1 for a failure while running, 2 for bad input. An interrupt ends
      the process at once with 130.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # Where the encoding has no "\u00b1", a "?" is better than no table.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    before = {number: signal.getsignal(number) for number in terminal.SIGNALS}
    terminal.end_at_signals(lambda: None)
    try:
        return _dispatch(words)
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does; the files are written.
        streams.detach(sys.stdout)
        return FAILED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        import polar_jax

        print(f"{PROGRAM} {polar_jax.__version__}")
        return 0
    if words[0] in ("sweep", "compare"):
        from polar_jax import sweep_cli

        return sweep_cli.main(words)
    if words[0] == "replay":
        from polar_jax import replay_cli

        return replay_cli.main(words[1:])
    if words[0] == "paging":
        from polar_jax import paging_cli

        return paging_cli.main(words[1:])
    if words[0] == "bench":
        from polar_jax import bench_cli

        return bench_cli.main(words[1:])
    if words[0] != "run":
        allowed = "run, sweep, paging, compare, replay or bench"
        return terminal.error(f"the command must be {allowed}; got {words[0]!r}.", BAD_INPUT)
    from polar_jax.config import RunConfig

    try:
        config = terminal.parse(RunConfig, "run", words[1:])
    except ValueError as error:
        return terminal.error(str(error), BAD_INPUT)
    return 0 if config is None else _run(config)


def _run(config: "RunConfig") -> int:
    try:
        terminal.prepare_jax(config.devices, portable=config.portable)
    except ValueError as error:
        return terminal.error(str(error), BAD_INPUT)
    import jax

    from polar_jax import console, experiment, store

    try:
        prepared = experiment.prepare(config)
    except (ValueError, OSError, MemoryError, OverflowError) as error:
        return terminal.error(terminal.describe(error, type(config)), BAD_INPUT)
    terminal.end_at_signals(lambda: store.release(prepared.folder))
    try:
        with console.ProgressView(quiet=config.quiet) as view:
            results = experiment.execute(prepared, view)
    except (OSError, MemoryError, ArithmeticError, jax.errors.JaxRuntimeError) as error:
        return terminal.error(terminal.describe(error, type(config)), FAILED)
    if not config.quiet:
        _show(prepared, results)
    return 0


def _show(prepared: "Prepared", results: "Results") -> None:
    from polar_jax import console, summary

    comparison = summary.compare(
        results,
        prepared.experiment.problem.horizon,
        linear_benchmark=prepared.configured.linear_benchmark,
    )
    out = console.stdout()
    console.print_results(out, comparison)
    out.print()
    for path in sorted(prepared.folder.path.iterdir()):
        out.print(str(path), markup=False, soft_wrap=True)
