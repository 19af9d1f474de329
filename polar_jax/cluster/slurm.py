"""Slurm through submitit: arrays of tasks that checkpoint when warned, and are queued again.

What is queued or runs is asked of `squeue` alone. Accounting (`sacct`) is never asked: many
clusters have none, and what is done is seen by files.
"""

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polar_jax.cluster.engines import Alive, Engine, EngineError, Queue, UnreachableError
from polar_jax.cluster.journal import Submission
from polar_jax.cluster.task import Task

if TYPE_CHECKING:
    import submitit

# The warning before a time limit or a preemption. submitit ignores SIGTERM, which tasks of
# ours take as a request to end; this one has its checkpoint hook called.
SIGNAL = "USR2"
# A task that is stopped at its limit has made progress, or gives up by itself.
_TIMEOUTS = 10_000
_SECONDS = 60.0
# sbatch obeys these more than its script, scancel and squeue theirs as much as their options: one
# of them makes an array of another size, a job of another name, a queue that shows a part. Dropped,
# but for what tells who pays and where, and only where no option says it. SBATCH_CLUSTERS goes
# too: squeue would not look there, while all commands follow SLURM_CLUSTERS alike.
_MEDDLING = ("SBATCH_", "SQUEUE_", "SCANCEL_")
_KEPT = ("partition", "account", "qos", "reservation")
_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
_WAITING = {
    *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"),
    *("RESV_DEL_HOLD",),
}


def check(request: Mapping[str, Any]) -> dict[str, Any]:
    """Sees that Slurm and submitit are there.

    Args:
      request: what is asked; its tasks may be missing yet.

    Returns:
      `tasks_per_array`, what Slurm allows.

    Raises:
      EngineError: if something is missing.
      UnreachableError: if the controller does not answer.
    """
    del request
    _submitit()
    shown = _call("scontrol", "show", "config")
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    # Slurm counts tasks from 0 and wants numbers below this; 0 means that it knows no arrays.
    return {"tasks_per_array": max(1, int(found[1]) if found else 1)}


def preview(submission: Submission, tasks: Sequence[Task]) -> list[str]:
    """The batch script of every array, and which task runs which shards."""
    lines = []
    for part, group in _arrays(submission, tasks):
        executor = _executor(submission, part)
        if len(group) > 1:
            executor.parameters["map_count"] = len(group)
        command = executor._submitit_command_str
        lines += [executor._make_submission_file_text(command, "preview")]
        for place, task in enumerate(group):
            shards = ", ".join(map(str, submission.tasks[task.number]))
            lines.append(f"# task {place}: shards {shards}")
        lines.append("")
    return lines


def submit(
    submission: Submission, tasks: Sequence[Task], taken: Callable[[Mapping[int, str]], None]
) -> None:
    """Submits arrays; `taken` hears of each as soon as Slurm has it."""
    submitit = _submitit()
    num_taken = 0
    for part, group in _arrays(submission, tasks):
        executor = _executor(submission, part)
        try:
            # What sbatch complains of, submitit prints and raises.
            with _environment(submission), contextlib.redirect_stderr(io.StringIO()):
                jobs = executor.submit_array(group)
        except (
            submitit.core.utils.FailedJobError,
            submitit.core.utils.FailedSubmissionError,
        ) as error:
            some = f"; {num_taken} of {len(tasks)} tasks were submitted" if num_taken else ""
            raise EngineError(f"sbatch refused: {_one_line(str(error))}{some}") from None
        num_taken += len(group)
        taken({task.number: job.job_id for task, job in zip(group, jobs, strict=True)})


def queue(submissions: Sequence[Submission]) -> Queue:
    """Which tasks are queued or run, by the names of jobs: no other record is needed."""
    by_name = {}
    for one in submissions:
        for part in range(_num_arrays(one)):
            by_name[_job_name(one, part)] = one, part
    if not by_name:
        return {}
    shown = _call(
        *("squeue", "--noheader", "--array", "--states=all"),
        *("--name=" + ",".join(by_name), "--format=%j|%K|%T|%r"),
    )
    found: Queue = {}
    for line in shown.splitlines():
        # With several clusters, each has a line in front.
        name, place, state, why = [*line.strip().split("|", 3), "", "", ""][:4]
        if name not in by_name or state not in _RUNNING | _WAITING:
            continue
        one, part = by_name[name]
        # A job that is no array has no place in one.
        task = part * one.request["tasks_per_array"] + (int(place) if place.isdigit() else 0)
        running = state in _RUNNING
        found[one.number, task] = Alive(running, "" if running or why == "None" else why)
    return found


def cancel(submission: Submission) -> None:
    """Has Slurm end a submission's jobs; those that run get SIGTERM first."""
    names = [_job_name(submission, part) for part in range(_num_arrays(submission))]
    for name in names:
        _call("scancel", f"--name={name}")


ENGINE = Engine(check, preview, submit, queue, cancel)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise EngineError(
            "--engine slurm needs submitit: pip install 'polar-jax[slurm]'."
        ) from None
    for program in ("sbatch", "squeue", "scontrol", "srun"):
        if shutil.which(program) is None:
            raise EngineError(
                f"--engine slurm needs Slurm's commands on the path, and there is no {program!r}; "
                "use a login node of the cluster."
            )
    return submitit


def _executor(submission: Submission, part: int) -> "submitit.SlurmExecutor":
    """submitit's executor with everything that was asked for."""
    given = submission.request["resources"]
    executor = _submitit().SlurmExecutor(submission.logs, max_num_timeout=_TIMEOUTS)
    more: dict[str, Any] = {"requeue": True}
    for option in given["sbatch"]:
        key, equals, value = option.partition("=")
        more[key] = value if equals else True
    wanted = {
        "job_name": _job_name(submission, part),
        "time": given["minutes"],
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": given["cpus_per_task"],
        "gpus_per_task": given["gpus_per_task"] or None,
        "mem": None if given["memory"] is None else f"{_mebibytes(given['memory'])}M",
        "partition": given["partition"],
        "account": given["account"],
        "qos": given["qos"],
        "array_parallelism": max(1, given["array_parallelism"] // _num_arrays(submission)),
        "signal_delay_s": given["warning"],
        "stderr_to_stdout": True,
        # From Slurm 22.05 on, srun does not take the number over from sbatch.
        "srun_args": [f"--cpus-per-task={given['cpus_per_task']}"],
        # The process reads its signal from a variable, which may say something else here.
        "setup": [*given["setup"], f"export SUBMITIT_PREEMPT_SIGNAL={SIGNAL}"],
        "additional_parameters": {"signal": f"{SIGNAL}@{given['warning']}", **more},
    }
    executor.update_parameters(**{name: one for name, one in wanted.items() if one is not None})
    return executor


def _mebibytes(gibibytes: float) -> int:
    # To Slurm 0 means all that the node has.
    return max(1, round(1024 * gibibytes))


@contextlib.contextmanager
def _environment(submission: Submission) -> Iterator[None]:
    """Keeps what sbatch obeys beside its script away, for as long as the block runs."""
    given = submission.request["resources"]
    asked = {name for name in _KEPT if given.get(name) is not None}
    asked |= {option.partition("=")[0] for option in given["sbatch"]}
    kept = {f"SBATCH_{name.upper()}" for name in _KEPT if name not in asked}
    before = dict(os.environ)
    for name in before:
        if name.startswith(_MEDDLING) and name not in kept:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ |= before


def _arrays(submission: Submission, tasks: Sequence[Task]) -> Iterator[tuple[int, Sequence[Task]]]:
    size = submission.request["tasks_per_array"]
    for part in range(_num_arrays(submission)):
        yield part, tasks[part * size : (part + 1) * size]


def _num_arrays(submission: Submission) -> int:
    return -(-len(submission.tasks) // submission.request["tasks_per_array"])


def _job_name(submission: Submission, part: int) -> str:
    return f"{submission.name}.{part}"


def _call(*words: str) -> str:
    """Runs one of Slurm's commands; returns what it prints."""
    if shutil.which(words[0]) is None:
        raise UnreachableError(f"there is no {words[0]!r} on the path; use a login node.")
    try:
        done = subprocess.run(
            words,
            env={name: text for name, text in os.environ.items() if not name.startswith(_MEDDLING)},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"Slurm did not answer within {_SECONDS:g} s.") from None
    if done.returncode:
        raise UnreachableError(f"Slurm does not answer: {_one_line(done.stderr)}")
    return done.stdout


def _one_line(text: str) -> str:
    """What a command complains of, its own name left out."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line) for line in text.split("\n")]
    return " ".join("; ".join(line.strip() for line in lines if line.strip()).split())
