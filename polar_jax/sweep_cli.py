"""`polar-jax sweep ...` and `polar-jax compare`: parse, prepare JAX, call, print.

What is about clusters is in `cluster_cli`.
"""

import os
import pathlib
import shlex
import signal
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from polar_jax import cluster_cli, terminal
from polar_jax.cluster.commands import SweepCancel, SweepSubmit
from polar_jax.sweep import commands
from polar_jax.terminal import BAD_INPUT, FAILED, PROGRAM

if TYPE_CHECKING:
    from polar_jax.sweep.plan import Plan
    from polar_jax.sweep.run import Outcome, Stop

_SWEEPS: dict[str, type[Any]] = {
    "run": commands.SweepRun,
    "plan": commands.SweepPlan,
    "status": commands.SweepStatus,
    "report": commands.SweepReport,
    "submit": SweepSubmit,
    "cancel": SweepCancel,
}
# Slurm ends a job step and has srun pass the same signal on: within so many seconds it is one. Who
# presses Ctrl-C twice means it.
_ECHO_SECONDS = 5.0
_USAGE = f"""usage: {PROGRAM} sweep COMMAND [OPTIONS]

A grid of configurations from one TOML file: planned, run, resumed at will, reported.

commands:
  run SPEC       run what is missing, then report; the same command again goes on
  plan SPEC      what would run; runs nothing
  status OUT     done, missing, failed; time left
  report OUT     tables and figures again, from stored results
  submit SPEC    the same on a cluster, by Slurm or Ray; docs/cluster.md
  cancel OUT     take what was submitted back; results stay

`{PROGRAM} sweep COMMAND --help` explains the options; docs/sweep_spec.md the spec.
"""


def main(words: Sequence[str]) -> int:
    """Runs a command.

    Args:
      words: the command line, from `sweep` or `compare` on.

    Returns:
      The exit code: 0, 1 where shards failed or results cannot be written, 2 for bad input,
      128 and the signal's number where one stopped the run.
    """
    name, rest = words[0], list(words[1:])
    if name == "sweep":
        if not rest or rest[0] in ("-h", "--help"):
            print(_USAGE, end="")
            return 0 if rest else BAD_INPUT
        if rest[0] not in _SWEEPS:
            allowed = "run, plan, status, report, submit or cancel"
            return terminal.error(
                f"sweep must be followed by {allowed}; got {rest[0]!r}.", BAD_INPUT
            )
        name, rest = f"sweep {rest[0]}", rest[1:]
    kind = commands.Compare if name == "compare" else _SWEEPS[name.split()[1]]
    try:
        options = terminal.parse(kind, name, rest)
        if options is None:
            return 0
        code = _ACTIONS[kind](options)
    except (ValueError, OSError, ImportError, MemoryError, OverflowError) as error:
        code = terminal.error(terminal.describe(error, kind), BAD_INPUT)
    if kind is commands.SweepRun:
        from polar_jax import processes

        processes.abandon(code)
    return code


def _plan_of(
    path: pathlib.Path, shard_seconds: float, devices: int | None, **prepared: bool
) -> "Plan":
    from polar_jax.sweep import spec

    asked = spec.read(path)
    terminal.prepare_jax(devices, **prepared)
    import jax

    from polar_jax.sweep import plan

    return plan.make(asked, shard_seconds=shard_seconds, platform=jax.devices()[0].platform)


def _run(options: commands.SweepRun) -> int:
    options.check()
    out = options.out or pathlib.Path("results") / options.spec.stem
    seconds = options.shard_seconds or _stored_seconds(out)
    began = time.perf_counter()
    how_prepared = {"portable": options.portable, "distributed": options.distributed}
    plan = _plan_of(options.spec, seconds, options.devices, **how_prepared)
    planning = time.perf_counter() - began
    from polar_jax import console, processes
    from polar_jax.sweep import run, together
    from polar_jax.sweep.console import SweepView, print_outcome

    stop = run.Stop()
    received = _stop_at_signals(stop)
    how = run.Options(
        num_devices=options.devices,
        memory_limit=None if options.memory_limit is None else int(options.memory_limit * 2**30),
        checkpoint_seconds=options.checkpoint_seconds,
        part=options.part(),
    )
    together.check_alike(plan)
    try:
        if not processes.leads():
            stopped = together.follow(plan, how, stop)
            processes.leave()
            return 128 + received[0] if received else FAILED * stopped
        with SweepView(quiet=options.quiet) as view:
            outcome = run.execute(plan, out, how, view, stop)
    except OSError as error:
        return terminal.error(terminal.describe(error, commands.SweepRun), FAILED)
    processes.leave()
    stored = _standing(outcome, out)
    # From here on there is no checkpoint to write: a signal ends the process at once.
    terminal.end_at_signals(lambda: None, f"; {stored}.")
    if received:
        word = "interrupted" if received[0] == signal.SIGINT else "stopped by a signal"
        terminal.say(f"{word}; {stored}.")
        return 128 + received[0]
    began = time.perf_counter()
    written, code = _report_if_whole(out) if options.report else ([], 0)
    reporting = time.perf_counter() - began
    if not options.quiet:
        print_outcome(console.stdout(), outcome, written, planning=planning, reporting=reporting)
    return _unfinished(outcome, told=not options.quiet) or code


def _standing(outcome: "Outcome", out: pathlib.Path) -> str:
    """What is stored when a signal ends a run, and what to do."""
    if outcome.done == outcome.shards:
        again = f"`{PROGRAM} sweep report {shlex.quote(str(out))}`"
        return f"all {outcome.shards} shards are stored, {again} makes the tables"
    return (
        f"{outcome.done} of {outcome.shards} shards are done, the one in work is checkpointed; the "
        "same command goes on"
    )


def _unfinished(outcome: "Outcome", *, told: bool) -> int:
    """Says what is not done; returns the exit code."""
    # The progress that was shown has told each of them already.
    for index, text in () if told else outcome.failed.items():
        terminal.error(f"shard {index} failed: {text}", FAILED)
    if outcome.done == outcome.shards:
        return 0
    failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
    return terminal.error(
        f"{outcome.done} of {outcome.shards} shards are done{failed}; the same command tries the "
        "others again.",
        FAILED,
    )


def _stored_seconds(out: pathlib.Path) -> float:
    """What shards aim at in a folder that is there, the default elsewhere."""
    from polar_jax.sweep import plan, store

    if not (out / "manifest.json").exists():
        return plan.SHARD_SECONDS
    return float(store.open_existing(out).manifest["shard_seconds"])


def _stop_at_signals(stop: "Stop") -> list[int]:
    """The first signal asks the run to stop, a second one ends the process at once."""
    received: list[int] = []
    began = 0.0

    def handler(number: int, _frame: FrameType | None) -> None:
        nonlocal began
        if received:
            echo = number == received[0] and time.monotonic() < began + _ECHO_SECONDS
            if echo and number != signal.SIGINT:
                return
            os._exit(128 + number)
        began = time.monotonic()
        received.append(number)
        stop.requested = True
        terminal.say_at_once(f"\n{PROGRAM}: stopping; a checkpoint is being written.\n")

    terminal.on_signals(handler)
    return received


def _plan(options: commands.SweepPlan) -> int:
    options.check()
    plan = _plan_of(options.spec, options.shard_seconds, options.devices)
    import jax

    from polar_jax import console
    from polar_jax.sweep import memory
    from polar_jax.sweep.console import print_plan

    needed = memory.per_bucket(plan, exact=options.exact_memory, num_devices=options.devices)
    devices = options.devices or len(jax.devices())
    print_plan(console.stdout(), plan, needed, exact=options.exact_memory, num_devices=devices)
    return 0


def _status(options: commands.SweepStatus) -> int:
    if options.watch or cluster_cli.was_submitted(options.out):
        return cluster_cli.status(options)
    from polar_jax import console
    from polar_jax.sweep import status
    from polar_jax.sweep.console import print_status

    found = status.read(options.out)
    print_status(console.stdout(), found)
    return 0


def _report(options: commands.SweepReport) -> int:
    written, code = _write_report(options.out)
    for path in written:
        print(path)
    return code


def _report_if_whole(out: pathlib.Path) -> tuple[list[pathlib.Path], int]:
    from polar_jax.sweep import status

    found = status.read(out)
    return _write_report(out) if found["done"] == found["shards"] else ([], 0)


def _write_report(out: pathlib.Path) -> tuple[list[pathlib.Path], int]:
    """What was written, and the exit code; a figure that cannot be drawn is one line."""
    from polar_jax import sweep
    from polar_jax.sweep import report, status, store, words

    folder = store.open_existing(out)
    found = status.read(out)
    if not found["done"]:
        raise ValueError(f"{str(out)!r} has no finished shard yet, so there is nothing to report.")
    facts: words.Facts = {
        "seconds": found["seconds"],
        "decisions": found["decisions"],
        "shards_done": found["done"],
        "shards_total": found["shards"],
        "mixed": found["mixed"],
        "failures": [f"Shard {index}: {error}" for index, error in found["errors"].items()],
    }
    try:
        return report.write(out, sweep.load(out), folder.manifest, facts), 0
    except report.DrawingError as error:
        return [], terminal.error(terminal.describe(error, commands.SweepReport), FAILED)


def _compare(options: commands.Compare) -> int:
    from polar_jax import console
    from polar_jax.sweep import compare, pairing

    left, right, differing = pairing.paired(pairing.read(options.left), pairing.read(options.right))
    found = compare.compare(left.rows, right.rows)
    compare.print_comparison(console.stdout(), found._replace(differing=tuple(differing)))
    return 0


_ACTIONS: dict[type[Any], Any] = {
    commands.SweepRun: _run,
    commands.SweepPlan: _plan,
    commands.SweepStatus: _status,
    commands.SweepReport: _report,
    commands.Compare: _compare,
    SweepSubmit: cluster_cli.submit,
    SweepCancel: cluster_cli.cancel,
}
