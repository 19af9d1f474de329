"""What a task of a cluster's job does: its shards, one after the other, from where they are.

Loads JAX only where there is work left.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from polar_jax.cluster import journal

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

    from polar_jax.sweep.plan import Plan
    from polar_jax.sweep.run import Outcome, Stop

# Starts in a row that stored nothing before they were told to end.
MAX_FRUITLESS = 3
_PATIENCE_SECONDS = 0.5
# What GPUs a scheduler gave to a process, by the variable that it sets.
_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "TPU_VISIBLE_DEVICES")


class TaskError(RuntimeError):
    """A task that did not end well; one line."""


@dataclasses.dataclass
class Task:
    """A call without arguments that runs a task; schedulers carry it as a pickle.

    submitit calls it, and `checkpoint` when the scheduler warns the process. The work is
    done in a thread of its own: the main thread waits, so that a signal is handled at once,
    be it in the middle of a compilation.

    Attributes:
      out: the sweep's folder.
      submission: the number of the submission.
      number: the task's number in it.
      prepare: what starts JAX on a number of devices, `terminal.prepare_jax`.
      logged: whether it writes its log itself, as where the scheduler keeps none in the folder.
      fruitless: starts in a row, before this one, that stored nothing.
    """

    out: str
    submission: int
    number: int
    prepare: Callable[..., None]
    logged: bool = False
    fruitless: int = 0
    _work: "_Work | None" = dataclasses.field(default=None, init=False, repr=False)

    def __call__(self) -> str:
        """Runs the task.

        Returns:
          What was done, one line.

        Raises:
          TaskError: if shards failed.
          SystemExit: if it was asked to end by SIGTERM; what is in work is checkpointed.
        """
        submission = journal.load(pathlib.Path(self.out), self.submission)
        with self._log(submission):
            submission.clear_end(self.number)
            self._work = work = _Work(self, submission)
            with _on_termination(work.terminate):
                work.wait()
            return work.result()

    def checkpoint(self) -> "DelayedSubmission | None":
        """Stores what is in work and says how to go on; submitit's hook.

        Returns:
          The call to queue again; None where that would not help.
        """
        from submitit.helpers import DelayedSubmission

        work = self._work
        if work is None:
            return DelayedSubmission(self)
        work.end()
        if work.error is not None:
            work.record("failed", _one_line(work.error))
            return None
        fruitless = 0 if work.has_stored() else self.fruitless + 1
        if fruitless >= MAX_FRUITLESS:
            work.record(
                "failed",
                f"it was stopped {fruitless} times in a row before anything was stored; give it "
                "more --time",
            )
            return None
        return DelayedSubmission(dataclasses.replace(self, fruitless=fruitless))

    @contextlib.contextmanager
    def _log(self, submission: journal.Submission) -> Iterator[None]:
        if not self.logged:
            yield
            return
        path = submission.logs / f"{self.number}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(path, "a", encoding="utf-8", buffering=1) as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            yield


class _Work:
    """The thread that computes, and how it is ended."""

    def __init__(self, task: Task, submission: journal.Submission) -> None:
        self.task, self.submission = task, submission
        self.out = pathlib.Path(task.out)
        self.shards = list(submission.tasks[task.number])
        self.error: BaseException | None = None
        self.outcome: Outcome | None = None
        self.terminated = False
        self._stop: Stop | None = None
        self._ending = False
        self._before = _stored(self.out, self.shards)
        self._thread = threading.Thread(target=self._run, name="shards", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits for the end, signals being handled meanwhile."""
        while self._thread.is_alive():
            try:
                # Ray cancels a task by a KeyboardInterrupt without a signal, which does not
                # wake a thread that waits.
                self._thread.join(_PATIENCE_SECONDS)
            except KeyboardInterrupt:
                self.terminate()

    def end(self) -> None:
        """Has the work stop after a checkpoint, and waits for that."""
        self._ending = True
        if self._stop is not None:
            self._stop.requested = True
        self._thread.join()

    def terminate(self) -> None:
        """Has the work stop after a checkpoint; the task ends then."""
        self.terminated = self._ending = True
        if self._stop is not None:
            self._stop.requested = True

    def has_stored(self) -> bool:
        """Whether anything was stored since the start."""
        return _stored(self.out, self.shards) != self._before

    def record(self, state: str, error: str) -> None:
        """Keeps how the task ended, where there is room to."""
        with contextlib.suppress(OSError):
            self.submission.record_end(self.task.number, state, error)

    def result(self) -> str:
        """What became of it: a line, or an exception."""
        if self.error is not None:
            text = _one_line(self.error)
            self.record("failed", text)
            print(f"error: {text}", flush=True)
            raise TaskError(text) from self.error
        done = f"{0 if self.outcome is None else self.outcome.done} of {len(self.shards)}"
        if self.terminated and (self.outcome is None or self.outcome.stopped):
            self.record("stopped", "it was asked to end, and stored a checkpoint")
            print(f"asked to end; {done} shards are done", flush=True)
            sys.exit(128 + signal.SIGTERM)
        if self.outcome is not None and self.outcome.failed:
            text = "; ".join(f"shard {i}: {error}" for i, error in self.outcome.failed.items())
            self.record("failed", text)
            raise TaskError(text)
        return f"{done} shards are done"

    def _run(self) -> None:
        try:
            missing = _missing(self.out, self.shards)
            given = [f"{name}={os.environ[name]}" for name in _DEVICES if name in os.environ]
            print(
                f"task {self.task.number} of submission {self.task.submission}: {len(missing)} of "
                f"{len(self.shards)} shards are missing {missing}",
                *given,
                flush=True,
            )
            if missing and not self._ending:
                self._compute(missing)
        except BaseException as error:
            traceback.print_exc()
            self.error = error

    def _compute(self, missing: list[int]) -> None:
        plan = planned(self.submission.request, self.task.prepare)
        from polar_jax.sweep import run
        from polar_jax.sweep.console import SweepView

        self._stop = stop = run.Stop()
        # It may have been asked to end while there was nothing to stop yet.
        stop.requested = self._ending
        request = self.submission.request
        how = run.Options(
            memory_limit=request["memory_limit"],
            checkpoint_seconds=request["checkpoint_seconds"],
            order=missing,
            others=False,
        )
        with SweepView() as view:
            self.outcome = run.execute(plan, self.out, how, view, stop)


def planned(request: Mapping[str, Any], prepare: Callable[..., None]) -> "Plan":
    """Plans a submission's sweep again, where it is computed.

    Args:
      request: the submission's.
      prepare: what starts JAX on a number of devices.

    Raises:
      TaskError: if this is not what was submitted: other devices, another version, other files.
    """
    import jax

    platform = request["platform"]
    if platform == "cpu":
        # Where a node has accelerators that the task was not given.
        jax.config.update("jax_platforms", "cpu")
    devices = request["resources"]["cpus_per_task"] if platform == "cpu" else None
    prepare(devices, **({"portable": True} if request.get("portable") else {}))
    here = jax.devices()[0].platform
    if here != platform:
        raise TaskError(
            f"the sweep was planned for {platform}, this node's JAX has {here}; give tasks "
            f"devices (--gpus-per-task), or submit with --platform {here}"
        )
    from polar_jax.sweep import plan, spec

    given = request["spec"]
    asked = spec.parse(given["text"], name=given["name"], folder=pathlib.Path(given["folder"]))
    made = plan.make(asked, shard_seconds=request["shard_seconds"], platform=platform)
    if (asked.spec_hash, made.plan_hash) != (request["spec_hash"], request["plan_hash"]):
        raise TaskError(
            "the spec plans other shards here than where it was submitted: the files that it "
            "names, or the version of polar_jax, are not the same"
        )
    return made


def _missing(out: pathlib.Path, shards: list[int]) -> list[int]:
    """Those that are not done; a damaged file is none."""
    from polar_jax.sweep import shard_files, store

    there = [index for index in shards if shard_files.path_of(out / "shards", index).exists()]
    if not there:
        return shards
    folder = store.open_existing(out, whole=True)
    done = {index for index in there if folder.state(index) == "done"}
    return [index for index in shards if index not in done]


def _stored(out: pathlib.Path, shards: list[int]) -> list[int]:
    """What is stored of each shard; it changes with every checkpoint that holds more."""
    from polar_jax.sweep import store

    try:
        folder = store.open_existing(out)
    except store.StoreError:
        # No manifest yet: that one is written is no progress.
        return [0] * len(shards)
    found = []
    for index in shards:
        meta = folder.read_meta(index)
        done = folder.shard_path(index).exists()
        found.append(-1 if done else 0 if meta is None else meta["decisions"])
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _on_termination(end: Callable[[], None]) -> Iterator[None]:
    """Has SIGTERM, which submitit passes over, end the work in order."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        end()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
