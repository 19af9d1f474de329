"""What `sweep submit` hands over: the shards that are missing, in tasks of some each."""

import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from polar_jax import processors
from polar_jax.cluster import engines, journal, standing
from polar_jax.cluster.commands import SweepSubmit
from polar_jax.cluster.task import Task
from polar_jax.sweep import files, manifests, store

if TYPE_CHECKING:
    from polar_jax.sweep.plan import Plan


class Chosen(NamedTuple):
    """Which shards are handed over, and why others are not."""

    shards: list[int]
    done: int
    alive: int  # queued or running
    exhausted: list[int]  # handed over as often as is allowed
    tried: tuple[int, ...] = ()  # those of `shards` that were handed over before


class Accelerators(NamedTuple):
    """What tasks get of a node's accelerators."""

    per_task: int
    per_node: int | None  # where the plan chose
    why: str  # why it chose so; "" where it did not


class Submitted(NamedTuple):
    """How a call ended."""

    submission: journal.Submission | None  # None where nothing was handed over
    chosen: Chosen


def platform_of(options: SweepSubmit, out: pathlib.Path) -> str:
    """The kind of device to plan for.

    Args:
      options: those of the command.
      out: the sweep's folder.

    Returns:
      The one asked for, that of the folder, or what the tasks are given.
    """
    stored = _stored(out)
    if options.platform is not None:
        return options.platform
    if stored is not None:
        return stored["platform"]
    return "gpu" if options.gpus_per_task or options.gpus_per_node else "cpu"


def accelerators(plan: "Plan", options: SweepSubmit, out: pathlib.Path) -> Accelerators:
    """How many accelerators a task gets.

    The whole plan chooses, whatever is done of it, so that a later call chooses the same.

    Args:
      plan: what is asked for.
      options: those of the command, checked.
      out: the sweep's folder.

    Returns:
      As many as are asked for, or as the plan chooses for a node of so many as are asked for; where
      neither is, as the last submission had it, else none.

    Raises:
      ValueError: if a plan for processors is to choose.
    """
    node, task = options.gpus_per_node, options.gpus_per_task
    if node is None and task is None and plan.platform != "cpu" and journal.exists(out):
        for earlier in journal.read(out)[-1:]:
            given = earlier.request["resources"]
            node, task = given.get("gpus_per_node"), given["gpus_per_task"]
    if node is None:
        return Accelerators(task or 0, None, "")
    if plan.platform == "cpu":
        raise ValueError(
            f"--gpus-per-node is for sweeps on accelerators, and the plan is for cpu; got {node}."
        )
    from polar_jax.sweep import device_layout

    chosen, why = device_layout.choose(plan, node)
    return Accelerators(chosen.devices, node, why)


def shard_seconds_of(options: SweepSubmit, out: pathlib.Path) -> float | None:
    """What shards aim at: as asked, as in the folder, or None for the default."""
    stored = _stored(out)
    return options.shard_seconds or (None if stored is None else stored["shard_seconds"])


def check_folder(plan: "Plan", out: pathlib.Path, *, portable: bool = False) -> None:
    """Sees that a folder is new, empty, or that of the same sweep.

    Args:
      plan: what is asked for.
      out: the folder; nothing in it is changed.
      portable: whether its code is to be portable.

    Raises:
      StoreError: if it is not; it says in what they differ.
    """
    files.check_encodes(out)
    if out.exists() and not out.is_dir():
        raise store.StoreError(f"--out must be a folder, got the file {str(out)!r}.")
    if (out / manifests.NAME).exists():
        there = manifests.read(out)
        # Machines may differ: those of the tasks are compared when they start.
        machine = {**(there.get("machine") or {}), "jax_platform": plan.platform}
        machine["code"] = processors.PORTABLE if portable else processors.NATIVE
        given = {
            **there,
            **plan.spec.describe(),
            "shard_seconds": plan.shard_seconds,
            "plan_hash": plan.plan_hash,
            "machine": machine,
        }
        manifests.check_same(out, there, manifests.plain(given))
    elif journal.exists(out):
        for earlier in journal.read(out)[-1:]:
            _check_request(plan, out, earlier.request, portable=portable)
    elif out.exists() and (others := os.listdir(out)):
        raise store.StoreError(
            f"--out {str(out)!r} already holds files (such as {min(others)!r}) but no sweep; "
            "allowed are a new or empty folder, or that of the same sweep."
        )


def request(plan: "Plan", options: SweepSubmit, out: pathlib.Path) -> dict[str, Any]:
    """A request without tasks: everything that a task must know.

    Args:
      plan: what is asked for.
      options: those of the command, checked.
      out: the sweep's folder.

    Returns:
      Plain values, ready for JSON.

    Raises:
      ValueError: for portable code on accelerators, or accelerators to a plan for processors.
    """
    spec = plan.spec
    given = accelerators(plan, options, out)
    limit = options.memory_limit
    # Also where the environment says so, as with `sweep run`.
    portable = options.portable or processors.code() == processors.PORTABLE
    if portable and plan.platform != "cpu":
        raise ValueError(
            f"--portable is about code for processors, and the plan is for {plan.platform}."
        )
    return {
        "engine": options.engine,
        "address": options.address,
        "created": journal.now(),
        "host": files.this_process().host,
        "spec": {
            "name": spec.name,
            "title": spec.title,
            "text": spec.text,
            "folder": str(options.spec.parent.absolute()),
        },
        "out": str(out.absolute()),
        "spec_hash": spec.spec_hash,
        "plan_hash": plan.plan_hash,
        "platform": plan.platform,
        "shard_seconds": plan.shard_seconds,
        "decisions": [shard.decisions for shard in plan.shards],
        "checkpoint_seconds": options.checkpoint_seconds,
        "portable": portable,
        "memory_limit": None if limit is None else int(limit * 2**30),
        "max_attempts": options.max_attempts,
        "resources": {
            "partition": options.partition,
            "account": options.account,
            "qos": options.qos,
            "minutes": options.minutes,
            "warning": options.warning,
            "gpus_per_task": given.per_task,
            "gpus_per_node": given.per_node,
            "layout": given.why,
            "cpus_per_task": options.cpus_per_task,
            "memory": options.memory,
            "array_parallelism": options.array_parallelism,
            "setup": list(options.setup),
            "sbatch": list(options.sbatch),
        },
    }


def choose(found: standing.Standing, max_attempts: int) -> Chosen:
    """Picks the shards to hand over.

    Args:
      found: how the sweep stands.
      max_attempts: how often a shard is handed over at most.

    Raises:
      StoreError: if a shard's file belongs to another sweep.
    """
    foreign = [one for one in found.shards if one.state == "foreign"]
    if foreign:
        raise store.StoreError(foreign[0].detail)
    rest = [one for one in found.shards if one.state not in ("done", "running", "queued")]
    exhausted = [one.index for one in rest if one.attempts >= max_attempts]
    left = [one.index for one in rest if one.attempts < max_attempts]
    alive = found.count("running") + found.count("queued")
    tried = tuple(one.index for one in rest if 0 < one.attempts < max_attempts)
    return Chosen(left, found.count("done"), alive, exhausted, tried)


def grouped(shards: Sequence[int], per_task: int, alone: Collection[int] = ()) -> list[list[int]]:
    """Shards in tasks of so many each, in order.

    Args:
      shards: all of them.
      per_task: how many a task runs, at least 1.
      alone: shards that get a task of their own, behind the others.
    """
    single = set(alone)
    rest = [index for index in shards if index not in single]
    tasks = [rest[i : i + per_task] for i in range(0, len(rest), per_task)]
    return [*tasks, *([index] for index in shards if index in single)]


def submit(
    plan: "Plan",
    options: SweepSubmit,
    out: pathlib.Path,
    prepare: Callable[..., None],
) -> Submitted:
    """Hands over what is missing and not already queued or running.

    Args:
      plan: what is asked for.
      options: those of the command, checked.
      out: the sweep's folder.
      prepare: what starts JAX in a task.

    Returns:
      What was handed over, and what was not.

    Raises:
      EngineError: if the scheduler is absent or refuses; what it took before is recorded.
      StoreError: if the folder holds something else, or another call is at work on it.
      OSError: if the folder cannot be written to.
    """
    engine, asked = _checked(plan, options, out)
    _make(out)
    with journal.locked(out):
        chosen = _choose(out, asked)
        if not chosen.shards:
            return Submitted(None, chosen)
        asked |= _tasks(chosen, options, out, journal.next_number(out), asked)
        submission = journal.add(out, asked)
        tasks = _made(submission, prepare)

        def taken(jobs: Mapping[int, str]) -> None:
            nonlocal submission
            submission = submission.record_jobs(jobs)

        try:
            engine.submit(submission, tasks, taken)
        except BaseException as error:
            # An answer that got lost: the scheduler may have the tasks for all that.
            doubt = "" if submission.jobs else _doubt(engine, submission)
            if not doubt:
                journal.withdraw(submission)
            elif isinstance(error, engines.EngineError):
                raise engines.EngineError(f"{str(error).rstrip('.')}; {doubt}") from None
            raise
    return Submitted(submission, chosen)


def preview(
    plan: "Plan",
    options: SweepSubmit,
    out: pathlib.Path,
    prepare: Callable[..., None],
) -> tuple[Chosen, list[str]]:
    """What `submit` would hand over; writes and submits nothing.

    Args:
      plan: what is asked for.
      options: those of the command, checked.
      out: the sweep's folder.
      prepare: what starts JAX in a task.

    Returns:
      The choice, and lines that show what the scheduler would get.
    """
    engine, asked = _checked(plan, options, out)
    chosen = _choose(out, asked)
    if not chosen.shards:
        return chosen, []
    number = journal.next_number(out)
    asked |= _tasks(chosen, options, out, number, asked)
    folder = out / journal.FOLDER / str(number)
    submission = journal.Submission(number, folder, asked, {}, False)
    return chosen, engine.preview(submission, _made(submission, prepare))


def _checked(
    plan: "Plan", options: SweepSubmit, out: pathlib.Path
) -> tuple[engines.Engine, dict[str, Any]]:
    """The scheduler and the request, without tasks, where both and the folder agree."""
    asked = request(plan, options, out)
    engine = engines.named(options.engine)
    asked |= engine.check(asked)
    check_folder(plan, out, portable=asked["portable"])
    return engine, asked


def _choose(out: pathlib.Path, asked: Mapping[str, Any]) -> Chosen:
    """Picks the shards of a request; before a sweep counts as done, all its pages are read."""
    for whole in (False, True):
        found = standing.Reader(out, request=asked, whole=whole).read(sure=True)
        chosen = choose(found, asked["max_attempts"])
        if chosen.shards or chosen.alive or not chosen.done:
            break
    return chosen


def _doubt(engine: engines.Engine, submission: journal.Submission) -> str:
    """Why a submission that failed must stay on record; "" where the scheduler has nothing."""
    number = submission.number
    try:
        if not engine.queue([submission]):
            return ""
    except engines.EngineError:
        return f"whether the scheduler has submission {number} is not known, so its record stays"
    return f"the scheduler has tasks of submission {number} all the same, so its record stays"


def _made(submission: journal.Submission, prepare: Callable[..., None]) -> list[Task]:
    out, logged = submission.request["out"], submission.engine != "slurm"
    return [
        Task(out, submission.number, number, prepare, logged)
        for number in range(len(submission.tasks))
    ]


def _tasks(
    chosen: Chosen, options: SweepSubmit, out: pathlib.Path, number: int, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The tasks of a request, and the name that the scheduler knows them by."""
    # What ended a task's process takes its other shards along: none is to suffer twice.
    tasks = grouped(chosen.shards, options.shards_per_task, chosen.tried)
    arrays = -(-len(tasks) // asked["tasks_per_array"])
    if options.array_parallelism < arrays:
        raise ValueError(
            f"--array-parallelism must be at least {arrays}, as {len(tasks)} tasks are {arrays} "
            f"arrays on this cluster, got {options.array_parallelism}; or more --shards-per-task."
        )
    digest = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", asked["spec"]["name"])[:40]
    # No two submissions may share a name: it is how a scheduler is asked for its tasks.
    moment = hashlib.sha256(asked["created"].encode()).hexdigest()[:4]
    return {"tasks": tasks, "name": f"polar-{plain}-{digest}-{number}{moment}"}


def _stored(out: pathlib.Path) -> dict[str, Any] | None:
    """Platform and length of shards of what the folder holds; None for a new one."""
    if (out / manifests.NAME).exists():
        found = manifests.read(out)
        platform = (found.get("machine") or {}).get("jax_platform")
        return {"platform": platform, "shard_seconds": float(found["shard_seconds"])}
    for earlier in journal.read(out)[-1:] if journal.exists(out) else []:
        return {name: earlier.request[name] for name in ("platform", "shard_seconds")}
    return None


def _check_request(
    plan: "Plan", out: pathlib.Path, earlier: Mapping[str, Any], *, portable: bool
) -> None:
    """Sees that a folder in which no task has started yet was submitted for the same plan."""
    for name, here in (
        ("spec_hash", plan.spec.spec_hash),
        ("shard_seconds", plan.shard_seconds),
        ("platform", plan.platform),
        ("plan_hash", plan.plan_hash),
        ("portable", portable),
    ):
        there = earlier.get(name, False)
        if there != here:
            raise store.StoreError(
                f"--out {str(out)!r} was submitted for another sweep: {name} is "
                f"{str(there)[:12]} there, {str(here)[:12]} here. Use another --out."
            )


def _make(out: pathlib.Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise store.StoreError(f"--out {str(out)!r} cannot be made ({reason}).") from error
    files.check_writable(out)
