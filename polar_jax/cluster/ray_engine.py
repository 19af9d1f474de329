"""Ray core: one detached actor per submission starts its tasks, so that no caller has to wait.

The actor ends when its tasks have. A task's worker that dies loses that task alone, which is
not started again by itself: the next submission takes what is missing, as with Slurm.
"""

import contextlib
import logging
import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from polar_jax.cluster import journal
from polar_jax.cluster.engines import Alive, Engine, EngineError, Queue, UnreachableError
from polar_jax.cluster.journal import Submission
from polar_jax.cluster.task import Task

NAMESPACE = "polar_jax"
_SECONDS = 60.0
_ANSWER_SECONDS = 5.0


def check(request: Mapping[str, Any]) -> dict[str, Any]:
    """Sees that Ray is installed and a cluster of it answers.

    Args:
      request: what is asked; its `address` is None for the cluster of this machine.

    Returns:
      `address`, as other machines know it; `tasks_per_array`, which Ray does not limit.

    Raises:
      EngineError: if it is not installed.
      UnreachableError: if it does not answer.
    """
    with _connected(request.get("address")) as ray:
        address = ray.get_runtime_context().gcs_address
    return {"address": address, "tasks_per_array": 10**9}


def preview(submission: Submission, tasks: Sequence[Task]) -> list[str]:
    """What every task asks Ray for, and which shards it runs."""
    asked = ", ".join(f"{name} {value:g}" for name, value in _resources(submission).items())
    lines = [f"# Ray at {submission.request['address']}: {len(tasks)} tasks, each {asked}"]
    for task in tasks:
        shards = ", ".join(map(str, submission.tasks[task.number]))
        lines.append(f"# task {task.number}: shards {shards}")
    return [*lines, ""]


def submit(
    submission: Submission, tasks: Sequence[Task], taken: Callable[[Mapping[int, str]], None]
) -> None:
    """Starts an actor that runs the tasks; `taken` hears of them when it has started."""
    with _connected(submission.request["address"]) as ray:
        options = {"name": submission.name, "namespace": NAMESPACE, "lifetime": "detached"}
        # More calls than one at a time: it answers while it waits for tasks.
        actor = ray.remote(_Starter).options(**options, num_cpus=0, max_concurrency=4)
        most = submission.request["resources"]["array_parallelism"]
        started = actor.remote(
            submission.request["out"], submission.number, list(tasks), _resources(submission), most
        )
        try:
            ray.get(started.queue.remote(), timeout=_SECONDS)
        except (ray.exceptions.RayError, TimeoutError) as error:
            with contextlib.suppress(Exception):
                ray.kill(started)
            raise EngineError(f"Ray did not start the tasks: {_one_line(error)}") from None
    taken({task.number: "" for task in tasks})


def queue(submissions: Sequence[Submission]) -> Queue:
    """Which tasks wait or run, as their actors say; one that has ended has none."""
    found: Queue = {}
    by_address: dict[str, list[Submission]] = {}
    for one in submissions:
        by_address.setdefault(one.request["address"], []).append(one)
    for address, own in by_address.items():
        with _connected(address) as ray:
            for one in own:
                # A task that was started may wait for room: claims tell which ones run.
                for number in _asked(ray, one, "queue", ()):
                    found[one.number, number] = Alive(running=False, why="")
    return found


def cancel(submission: Submission) -> None:
    """Has the actor start no more tasks, and those that run checkpoint and end."""
    with _connected(submission.request["address"]) as ray:
        _asked(ray, submission, "cancel", None)


ENGINE = Engine(check, preview, submit, queue, cancel)


class _Starter:
    """The actor: keeps some tasks started until all have ended."""

    def __init__(
        self,
        out: str,
        submission: int,
        tasks: list[Task],
        resources: dict[str, float],
        most: int,
    ) -> None:
        self._ray = ray = _ray()
        self._submission = journal.load(pathlib.Path(out), submission)
        # CPU tasks may share a process one after the other, which saves its start.
        self._remote = ray.remote(_run).options(max_retries=0, **resources)
        self._waiting = list(tasks)
        self._most = most
        self._started: dict[Any, Task] = {}
        self._lock = threading.Lock()
        self._me = ray.get_runtime_context().current_actor
        threading.Thread(target=self._keep_going, daemon=True).start()

    def queue(self) -> list[int]:
        """Tasks that have not ended."""
        with self._lock:
            return [task.number for task in (*self._waiting, *self._started.values())]

    def cancel(self) -> None:
        """Starts no more tasks and interrupts those that run."""
        with self._lock:
            self._waiting.clear()
            started = list(self._started)
        for reference in started:
            self._ray.cancel(reference, force=False)

    def leave(self) -> None:
        """Ends the actor."""
        self._ray.actor.exit_actor()

    def _keep_going(self) -> None:
        try:
            while pending := self._start():
                ended, _ = self._ray.wait(pending, num_returns=1, timeout=1.0)
                for reference in ended:
                    self._see_end(reference)
        finally:
            # Whatever happened here, tasks that nobody starts or sees the end of are not alive.
            with self._lock:
                self._waiting.clear()
                self._started.clear()
            self._me.leave.remote()

    def _start(self) -> list[Any]:
        """Starts as many tasks as may run; returns those that have not ended."""
        with self._lock:
            while self._waiting and len(self._started) < self._most:
                task = self._waiting.pop(0)
                self._started[self._remote.remote(task)] = task
            return list(self._started)

    def _see_end(self, reference: Any) -> None:
        with self._lock:
            task = self._started.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError:
            # It said so itself, in its record.
            return
        except Exception as error:
            # A full disk costs the line, not the tasks that wait.
            with (
                contextlib.suppress(OSError),
                open(self._log(task), "a", encoding="utf-8") as file,
            ):
                file.write(f"ray: {_one_line(error)}\n")

    def _log(self, task: Task) -> pathlib.Path:
        self._submission.logs.mkdir(parents=True, exist_ok=True)
        return self._submission.logs / f"{task.number}.log"


def _run(task: Task) -> str:
    return task()


def _resources(submission: Submission) -> dict[str, float]:
    given = submission.request["resources"]
    wanted = {"num_cpus": given["cpus_per_task"], "num_gpus": given["gpus_per_task"]}
    if given["memory"] is not None:
        wanted["memory"] = int(given["memory"] * 2**30)
    return wanted


def _asked(ray: Any, submission: Submission, method: str, without: Any) -> Any:
    """What a submission's actor answers; `without` where it has ended."""
    try:
        actor = ray.get_actor(submission.name, namespace=NAMESPACE)
    except ValueError:
        return without
    try:
        return ray.get(getattr(actor, method).remote(), timeout=_SECONDS)
    except ray.exceptions.RayActorError:
        return without
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise UnreachableError(f"Ray does not answer: {_one_line(error)}") from None


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray's module, connected to a cluster for as long as the block runs."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = _ray()
    _see_port(address)
    try:
        ray.init(
            address=address or "auto",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = address or "auto"
        raise UnreachableError(
            f"no Ray cluster answers at --address {where}: {_one_line(error)}"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _ray() -> Any:
    """Ray's module."""
    try:
        import ray
    except ImportError:
        raise EngineError("--engine ray needs Ray: pip install 'polar-jax[ray]'.") from None
    return ray


def _see_port(address: str | None) -> None:
    """Sees quickly whether anything listens; Ray itself would try for half a minute."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        reason = error.strerror or error
        raise UnreachableError(
            f"no Ray cluster answers at --address {address}: {reason}."
        ) from None


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0]
