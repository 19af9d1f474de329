"""`polar-jax sweep submit`, `sweep cancel`, and `sweep status` of what was submitted."""

import collections
import contextlib
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polar_jax import terminal
from polar_jax.cluster.commands import SweepCancel, SweepSubmit
from polar_jax.terminal import FAILED, PROGRAM

if TYPE_CHECKING:
    from polar_jax.cluster.journal import Submission
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
            if chosen.shards:
                _say_layout(submission.request(plan, options, out)["resources"])
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
        print(f"submitted {tasks} task{'s' * (tasks != 1)}{named}; {_choice(done.chosen)}.")
        _say_layout(done.submission.request["resources"])
        print(f"`{PROGRAM} sweep status {where} --watch` shows how far they are.")
    if done.chosen.done and not done.submission and not done.chosen.alive:
        _finish(done.chosen, out, where)
    return _exhausted(done.chosen, options.max_attempts)


def cancel(options: SweepCancel) -> int:
    """Takes a sweep's tasks back.

    Args:
      options: those of the command.

    Returns:
      The exit code: 0, or 1 where a scheduler does not answer; what others have is cancelled.

    Raises:
      ValueError, OSError: for a folder that cannot be used.
    """
    from polar_jax.cluster import journal, standing

    if not journal.exists(options.out):
        raise ValueError(f"{str(options.out)!r} holds nothing that was submitted.")
    with journal.locked(options.out):
        if options.forget:
            return _forget(options)
        found = standing.Reader(options.out).read()
        # Cancelled ones too: their tasks may have outlived it.
        tasks, complaints = _cancel(found.submissions)
    done = [one.index for one in found.shards if one.state == "done"]
    # What is done needs no scheduler any more.
    open_ = {one.number for one in standing.unfinished(found.submissions, done)}
    silent = {number: text for number, text in complaints.items() if number in open_}
    if tasks:
        print(
            f"cancelled {tasks} task{'s' * (tasks != 1)}; {len(done)} of {len(found.shards)} "
            f"shards are done, `{PROGRAM} sweep submit` goes on from here."
        )
    elif not silent:
        print("nothing is queued or running; nothing was cancelled.")
    return terminal.error("; ".join(standing.told(silent)), FAILED) if silent else 0


def _cancel(submissions: Sequence["Submission"]) -> tuple[int, dict[int, str]]:
    """Ends what is alive; how many tasks, and which submission's scheduler complains of what."""
    from polar_jax.cluster import engines, standing

    queue, complaints = standing.ask(submissions)
    alive = collections.Counter(number for number, _ in queue)
    tasks = 0
    for one in submissions:
        if not alive[one.number]:
            continue
        try:
            engines.named(one.engine).cancel(one)
        except engines.EngineError as error:
            complaints[one.number] = str(error)
        else:
            tasks += alive[one.number]
            one.record_cancelled()
    return tasks, complaints


def _forget(options: SweepCancel) -> int:
    """Marks submissions as ended whose scheduler is gone, or has nothing of them."""
    from polar_jax.cluster import journal, standing

    known = {one.number: one for one in journal.read(options.out)}
    for number in options.forget:
        if number not in known:
            allowed = ", ".join(map(str, known)) or "none"
            raise ValueError(
                f"--forget must be the number of a submission ({allowed}), got {number}."
            )
    chosen = [known[number] for number in options.forget]
    for number, _ in standing.ask(chosen).queue:
        raise ValueError(
            f"--forget is for a scheduler that is gone, and that of submission {number} has tasks "
            "of it; cancel without --forget."
        )
    for one in chosen:
        one.record_forgotten()
    named = ", ".join(str(one.number) for one in chosen)
    print(f"no scheduler is asked about submission {named} any more.")
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


def _say_layout(given: Mapping[str, Any]) -> None:
    """How many accelerators a task gets and why, where the plan chose; `given` are resources."""
    if given["gpus_per_node"] is not None:
        each, of = given["gpus_per_task"], given["gpus_per_node"]
        print(f"layout: {given['layout']}; a task gets {each} of a node's {of}.")


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
