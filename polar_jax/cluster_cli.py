"""`polar-jax sweep submit`, `sweep cancel`, and `sweep status` of what was submitted."""

import contextlib
import pathlib
import shlex
from typing import TYPE_CHECKING

from polar_jax import terminal
from polar_jax.cluster.commands import SweepCancel, SweepSubmit
from polar_jax.terminal import FAILED, PROGRAM

if TYPE_CHECKING:
    from polar_jax.cluster.submission import Chosen
    from polar_jax.sweep.commands import SweepStatus
    from polar_jax.sweep.plan import Plan

_SHOWN = 20


def was_submitted(out: pathlib.Path) -> bool:
    """Whether a folder holds records of what was submitted."""
    from polar_jax.cluster import journal

    return journal.exists(out)


def submit(options: SweepSubmit) -> int:
    """Hands what is missing to a scheduler.

    Args:
      options: those of the command.

    Returns:
      The exit code: 0; 1 where the scheduler refuses, or where shards were tried too often.

    Raises:
      ValueError, OSError: for options or a folder that cannot be used.
    """
    options.check()
    out = options.folder
    from polar_jax.cluster import engines, submission

    try:
        # Before the plan, which takes a while.
        engines.named(options.engine).check({"address": options.address})
        plan = planned(options, out)
        if options.dry_run:
            chosen, lines = submission.preview(plan, options, out, terminal.prepare_jax)
            print("\n".join(lines), end="")
            print(f"{_choice(chosen)}; nothing was submitted.")
            return 0
        done = submission.submit(plan, options, out, terminal.prepare_jax)
    except engines.EngineError as error:
        return terminal.error(str(error), FAILED)
    where = shlex.quote(str(out))
    if done.submission is None:
        print(f"{_choice(done.chosen)}; nothing was submitted.")
    else:
        jobs = sorted({job.partition("_")[0] for job in done.submission.jobs.values()}, key=len)
        named = f" ({options.engine} {', '.join(jobs)})" if any(jobs) else ""
        tasks = len(done.submission.tasks)
        print(
            f"submitted {tasks} task{'s' * (tasks != 1)}{named}; {_choice(done.chosen)}.\n"
            f"`{PROGRAM} sweep status {where} --watch` shows how far they are."
        )
    if done.chosen.done and not done.submission and not done.chosen.alive:
        _finish(done.chosen, out, where)
    return _exhausted(done.chosen, options.max_attempts)


def cancel(options: SweepCancel) -> int:
    """Takes a sweep's tasks back.

    Args:
      options: those of the command.

    Returns:
      The exit code: 0, or 1 where a scheduler does not answer.

    Raises:
      ValueError, OSError: for a folder that cannot be used.
    """
    from polar_jax.cluster import engines, journal, standing

    if not journal.exists(options.out):
        raise ValueError(f"{str(options.out)!r} holds nothing that was submitted.")
    try:
        with journal.locked(options.out):
            found = standing.Reader(options.out).read()
            open_ = [one for one in found.submissions if not one.cancelled]
            alive = _alive(open_)
            for one in open_:
                if one.number in alive:
                    engines.named(one.engine).cancel(one)
                    one.record_cancelled()
    except engines.EngineError as error:
        return terminal.error(str(error), FAILED)
    tasks = sum(alive.values())
    print(
        f"cancelled {tasks} task{'s' * (tasks != 1)}; {found.count('done')} of "
        f"{len(found.shards)} shards are done, `{PROGRAM} sweep submit` goes on from here."
        if tasks
        else "nothing is queued or running; nothing was cancelled."
    )
    return 0


def status(options: "SweepStatus") -> int:
    """Shows how a sweep stands, once or until nothing is queued or running.

    Args:
      options: those of the command.

    Returns:
      The exit code: 0; with `watch`, 1 where shards are not done at its end.

    Raises:
      ValueError, OSError: for a folder that cannot be used.
    """
    from polar_jax import console
    from polar_jax.cluster import standing, watch

    reader = standing.Reader(options.out)
    if options.watch:
        with contextlib.suppress(KeyboardInterrupt):
            found = watch.watch(reader, console.stdout())
            return 0 if found.count("done") == len(found.shards) else FAILED
        return 0
    found = reader.read()
    out = console.stdout()
    out.print(found.title, style="bold", markup=False)
    for line in watch.lines(found, most=_SHOWN):
        out.print(line, markup=False, soft_wrap=True)
    return 0


def planned(options: SweepSubmit, out: pathlib.Path) -> "Plan":
    """Plans what is submitted, on a node that need not have its devices.

    Args:
      options: those of the command, checked.
      out: the sweep's folder.

    Raises:
      ValueError, OSError: for a spec that cannot be used.
    """
    from polar_jax.cluster import submission
    from polar_jax.sweep import spec

    asked = spec.read(options.spec)
    platform = submission.platform_of(options, out)
    seconds = submission.shard_seconds_of(options, out)
    import jax

    # A login node has no accelerator, or one that is not for us: planning needs none.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
    terminal.prepare_jax(1)
    from polar_jax.sweep import plan

    return plan.make(asked, shard_seconds=seconds or plan.SHARD_SECONDS, platform=platform)


def _alive(submissions: list) -> dict[int, int]:
    """Number of a submission to how many of its tasks are queued or running."""
    from polar_jax.cluster import engines

    counts: dict[int, int] = {}
    for name in engines.NAMES:
        own = [one for one in submissions if one.engine == name]
        for number, _ in engines.named(name).queue(own) if own else ():
            counts[number] = counts.get(number, 0) + 1
    return counts


def _choice(chosen: "Chosen") -> str:
    total = len(chosen.shards) + chosen.done + chosen.alive + len(chosen.exhausted)
    return (
        f"of {total} shards {chosen.done} are done, {chosen.alive} queued or running, "
        f"{len(chosen.shards)} to do"
    )


def _finish(chosen: "Chosen", out: pathlib.Path, where: str) -> None:
    """Tidies a sweep that is done, which no single task does, and says what comes next."""
    if chosen.exhausted:
        return
    from polar_jax.sweep import store

    store.open_existing(out).tidy()
    print(f"all shards are done: `{PROGRAM} sweep report {where}` makes the tables.")


def _exhausted(chosen: "Chosen", attempts: int) -> int:
    if not chosen.exhausted:
        return 0
    shown = ", ".join(map(str, chosen.exhausted[:8]))
    more = f" and {len(chosen.exhausted) - 8} more" if len(chosen.exhausted) > 8 else ""
    return terminal.error(
        f"shards {shown}{more} were submitted {attempts} times and are not done; `{PROGRAM} sweep "
        f"status` says why, --max-attempts {attempts + 1} tries them again.",
        FAILED,
    )
