"""The options of `polar-jax sweep submit` and `sweep cancel`. Does not load JAX."""

import dataclasses
import pathlib
import re
from typing import Annotated, Literal

import tyro

from polar_jax import checks
from polar_jax.config import MAX_DEVICES

_Positional = tyro.conf.Positional
_MAX = 1_000_000
_MAX_GIBIBYTES = 2.0**20
_SLURM_ONLY = ("partition", "account", "qos", "time", "signal_seconds", "setup", "sbatch")
_DEFAULT_MINUTES, _DEFAULT_SIGNAL = 60, 90
_OPTION = re.compile(r"[a-z][a-z0-9-]*(=.+)?", re.DOTALL)
# Options of sbatch by which tasks would not be found again, or not be what was recorded: their
# number and names, where they run (squeue is asked here alone), their logs and warnings, and what
# sbatch prints and when it returns.
_RESERVED = (
    *("array", "clusters", "error", "job-name", "no-requeue", "nodes", "ntasks", "open-mode"),
    *("output", "parsable", "quiet", "requeue", "signal", "test-only", "wait", "wrap"),
)


def _arg(metavar: str, default: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclasses.dataclass(frozen=True)
class SweepSubmit:
    """Hand what is missing of a sweep to a cluster's scheduler; returns at once.

    The same command again hands over only what is neither done, queued nor running: what
    failed, was lost or was cancelled. Tasks checkpoint when the scheduler warns them, are
    queued again and go on where they were. `polar-jax sweep status OUT --watch` shows how far
    it is, `polar-jax sweep report OUT` makes the tables. docs/cluster.md tells it step by step.

    Attributes:
      spec: TOML file of the sweep; docs/sweep_spec.md explains it.
      out: folder for the results, on a disk that all nodes share.
      engine: slurm needs sbatch on the path and the extra `slurm`; ray the extra `ray`.
      dry_run: print the batch script and which task runs which shards; submit and write nothing.
      partition: Slurm's partition, such as gpu.
      account: Slurm's account, where the cluster asks for one.
      qos: Slurm's quality of service.
      time: minutes that a task may take, at least 1; a task that needs longer is checkpointed
        and queued again.
      gpus_per_task: accelerators of a task, at least 0; one process serves them all.
      gpus_per_node: accelerators that a node has, at least 1, in place of --gpus-per-task: the plan
        chooses how many a task gets, one to all, so that they idle least, and says so. It changes
        no result.
      cpus_per_task: processors of a task, at least 1.
      memory: GiB of main memory of a task, above 0.
      platform: kind of device to plan for: cpu, gpu or tpu.
      array_parallelism: tasks that run at once at most, at least 1.
      shards_per_task: shards that a task runs one after the other, at least 1.
      max_attempts: how often a shard is handed over at most, at least 1.
      shard_seconds: work that a shard aims at, above 0. Fixed by the first submission.
      checkpoint_seconds: work that may be lost when a task is killed, above 0.
      memory_limit: GiB that may be used on each device. It changes no result.
      portable: compile for any processor with AVX2, so that unlike nodes give the same bits; a
        folder is of one kind of code.
      signal_seconds: how long before its limit Slurm warns a task, at least 1.
      setup: shell lines to run before a task, such as "module load cuda".
      sbatch: further options of sbatch, such as constraint=a100 or exclusive.
      address: Ray's address, such as auto or 10.0.0.1:6379.
    """

    spec: _Positional[pathlib.Path]
    out: Annotated[pathlib.Path | None, _arg("DIR", "results/<name of the spec>")] = None
    engine: Literal["slurm", "ray"] = "slurm"
    dry_run: bool = False
    partition: Annotated[str | None, _arg("NAME", "the cluster's")] = None
    account: Annotated[str | None, _arg("NAME", "yours")] = None
    qos: Annotated[str | None, _arg("NAME", "the cluster's")] = None
    time: Annotated[int | None, _arg("MINUTES", str(_DEFAULT_MINUTES))] = None
    gpus_per_task: Annotated[int | None, _arg("N", "that of the last submission, else 0")] = None
    gpus_per_node: Annotated[int | None, _arg("N", "that of the last submission")] = None
    cpus_per_task: int = 1
    memory: Annotated[float | None, _arg("GIB", "the cluster's")] = None
    platform: Annotated[
        Literal["cpu", "gpu", "tpu"] | None,
        _arg("{cpu,gpu,tpu}", "that of the folder, or gpu where tasks have GPUs, or cpu"),
    ] = None
    array_parallelism: int = 256
    shards_per_task: int = 1
    max_attempts: int = 3
    shard_seconds: Annotated[float | None, _arg("FLOAT", "that of the folder, or 300")] = None
    checkpoint_seconds: float = 20.0
    memory_limit: Annotated[float | None, _arg("GIB", "four fifths of what there is")] = None
    portable: bool = False
    signal_seconds: Annotated[
        int | None, _arg("SECONDS", f"{_DEFAULT_SIGNAL}, or half of a short --time")
    ] = None
    setup: Annotated[tuple[str, ...], _arg("LINE...", "none")] = ()
    sbatch: Annotated[tuple[str, ...], _arg("KEY[=VALUE]...", "none")] = ()
    address: Annotated[str | None, _arg("HOST:PORT", "auto")] = None

    def check(self) -> None:
        """Checks every option.

        Raises:
          ValueError: names the option, what was received and what is allowed.
        """
        for name, least, most in (
            ("gpus_per_task", 0, _MAX),
            ("gpus_per_node", 1, MAX_DEVICES),
            *((name, 1, _MAX) for name in ("cpus_per_task", "array_parallelism")),
            *((name, 1, _MAX) for name in ("shards_per_task", "max_attempts")),
            *((name, 1, _MAX) for name in ("time", "signal_seconds")),
        ):
            value = getattr(self, name)
            if value is not None:
                checks.between(_written(name), value, least, most, whole=True)
        if self.gpus_per_node is not None and self.gpus_per_task is not None:
            raise ValueError(
                "--gpus-per-node and --gpus-per-task exclude each other, as the plan chooses one "
                f"by the other; got {self.gpus_per_node} and {self.gpus_per_task}."
            )
        for name, most in (
            *((name, 86_400.0) for name in ("shard_seconds", "checkpoint_seconds")),
            *((name, _MAX_GIBIBYTES) for name in ("memory", "memory_limit")),
        ):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= most:
                raise ValueError(f"{_written(name)} must be in (0, {most:g}], got {value:g}.")
        self._check_engine()

    def _check_engine(self) -> None:
        if self.engine == "slurm":
            if self.address is not None:
                raise ValueError(f"--address is for --engine ray, got {self.address!r} with slurm.")
            if "%" in str(self.folder.absolute()):
                raise ValueError(
                    f"--out must be without '%', which Slurm takes for a pattern, got "
                    f"{str(self.folder.absolute())!r}."
                )
            if not self.warning < 60 * self.minutes:
                raise ValueError(
                    f"--signal-seconds must be below --time ({60 * self.minutes} s), got "
                    f"{self.warning}."
                )
            for option in self.sbatch:
                if not _OPTION.fullmatch(option):
                    raise ValueError(
                        "--sbatch takes options as sbatch spells them, without dashes in front, "
                        f"such as constraint=a100; got {option!r}."
                    )
                if _is_reserved(option.partition("=")[0]):
                    raise ValueError(
                        "--sbatch takes no option that the tasks depend on ("
                        f"{', '.join(_RESERVED)}); got {option!r}."
                    )
            return
        given = [name for name in _SLURM_ONLY if getattr(self, name) not in (None, ())]
        if given:
            raise ValueError(f"{_written(given[0])} is for --engine slurm, got it with ray.")

    @property
    def folder(self) -> pathlib.Path:
        """The sweep's folder."""
        return self.out or pathlib.Path("results") / self.spec.stem

    @property
    def minutes(self) -> int:
        """Minutes that a task may take."""
        return _DEFAULT_MINUTES if self.time is None else self.time

    @property
    def warning(self) -> int:
        """Seconds before its limit at which a task is warned."""
        if self.signal_seconds is None:
            return min(_DEFAULT_SIGNAL, 30 * self.minutes)
        return self.signal_seconds


@dataclasses.dataclass(frozen=True)
class SweepCancel:
    """Take a sweep's tasks from the queue and end those that run; results stay.

    Running tasks write a checkpoint first. `polar-jax sweep submit` goes on from there.

    Attributes:
      out: folder of the sweep.
      forget: numbers of submissions whose scheduler is gone for good: cancel nothing, but take
        their tasks for ended and ask nobody about them any more.
    """

    out: _Positional[pathlib.Path]
    forget: Annotated[tuple[int, ...], _arg("N...", "none")] = ()


def _is_reserved(name: str) -> bool:
    # sbatch knows options by any beginning that tells them apart.
    return name.startswith("ntasks") or any(one.startswith(name) for one in _RESERVED)


def _written(name: str) -> str:
    return "--" + name.replace("_", "-")
