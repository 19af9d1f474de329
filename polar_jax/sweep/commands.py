"""The options of `polar-jax sweep` and `polar-jax compare`. Does not load JAX."""

import dataclasses
import pathlib
import re
from typing import Annotated

import tyro

from polar_jax import checks
from polar_jax.config import MAX_DEVICES

_SLICE = re.compile(r"(\d+)/(\d+)")
MAX_SECONDS = 86_400.0
MAX_MEMORY = 2.0**20  # GiB: more than any device has


def _arg(metavar: str, default: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


_Positional = tyro.conf.Positional


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """Run what a spec asks for, or go on where it was left, and report.

    The same command again goes on: a shard is done when its file is stored, and a shard in
    work goes on from its last checkpoint. Several processes on one folder share the work.
    Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 checkpoint and end; a second one ends at once.

    Attributes:
      spec: TOML file of the sweep; docs/sweep_spec.md explains it.
      out: folder for the results.
      slice: I/N: only the shards I, I + N, I + 2N, ..., 0 <= I < N, as one task of a batch
        job of N.
      shard_seconds: work that a shard aims at, on the machine of the plan's constants, above 0.
        Fixed when the folder is made.
      checkpoint_seconds: work that may be lost when the machine is switched off, above 0.
      memory_limit: GiB that may be used on each device. It changes no result.
      devices: devices to use, at least 1; no result depends on it.
      portable: compile for any processor with AVX2, so that unlike machines give the same bits;
        a folder is of one kind of code.
      distributed: compute every shard together with the other processes of this job step, as
        started by srun or another launcher that JAX knows; without it each process takes shards
        of its own, which is faster wherever a shard fits one of them.
      report: make tables and figures at the end; `polar-jax sweep report` makes them later.
      quiet: print nothing but errors.
    """

    spec: _Positional[pathlib.Path]
    out: Annotated[pathlib.Path | None, _arg("DIR", "results/<name of the spec>")] = None
    slice: Annotated[str | None, _arg("I/N", "all shards")] = None
    shard_seconds: Annotated[float | None, _arg("FLOAT", "that of the folder, or 300")] = None
    checkpoint_seconds: float = 20.0
    memory_limit: Annotated[float | None, _arg("FLOAT", "four fifths of what there is")] = None
    devices: Annotated[int | None, _arg("INT", "every core, or every accelerator")] = None
    portable: bool = False
    distributed: bool = False
    report: bool = True
    quiet: bool = False

    def part(self) -> tuple[int, int] | None:
        """The slice as numbers.

        Raises:
          ValueError: where it is not I/N with 0 <= I < N.
        """
        if self.slice is None:
            return None
        found = _SLICE.fullmatch(self.slice)
        if found is None or not int(found[1]) < int(found[2]):
            raise ValueError(f"--slice must be I/N with 0 <= I < N, got {self.slice!r}.")
        return int(found[1]), int(found[2])

    def check(self) -> None:
        """Checks every number.

        Raises:
          ValueError: names the option, what was received and what is allowed.
        """
        self.part()
        for name, most in (
            ("shard_seconds", MAX_SECONDS),
            ("checkpoint_seconds", MAX_SECONDS),
            ("memory_limit", MAX_MEMORY),
        ):
            value = getattr(self, name)
            if value is not None:
                _above_zero("--" + name.replace("_", "-"), value, most)
        if self.devices is not None:
            checks.between("--devices", self.devices, 1, MAX_DEVICES, whole=True)


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """Show what a sweep would run: configurations, lanes, programs, memory, a rough time.

    Attributes:
      spec: TOML file of the sweep; docs/sweep_spec.md explains it.
      shard_seconds: work that a shard aims at, above 0.
      exact_memory: compile every program and show the memory that the compiler planned,
        in place of an estimate. Compiled programs are kept for the run.
      devices: devices to plan for, at least 1.
    """

    spec: _Positional[pathlib.Path]
    shard_seconds: float = 300.0
    exact_memory: bool = False
    devices: Annotated[int | None, _arg("INT", "every core, or every accelerator")] = None

    def check(self) -> None:
        """Checks every number.

        Raises:
          ValueError: names the option, what was received and what is allowed.
        """
        _above_zero("--shard-seconds", self.shard_seconds, MAX_SECONDS)
        if self.devices is not None:
            checks.between("--devices", self.devices, 1, MAX_DEVICES, whole=True)


@dataclasses.dataclass(frozen=True)
class SweepStatus:
    """Show how far a sweep is: done, missing, failed, decisions so far, time left.

    Of a sweep that was submitted to a cluster it also shows what is queued and running, and what
    was lost, from any login node.

    Attributes:
      out: folder of the sweep.
      watch: keep one screen up to date until nothing is queued or running any more.
    """

    out: _Positional[pathlib.Path]
    watch: bool = False


@dataclasses.dataclass(frozen=True)
class SweepReport:
    """Make tables, figures and report.html again, from stored results only.

    Attributes:
      out: folder of the sweep; it may be unfinished.
    """

    out: _Positional[pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Compare:
    """Show paired differences of two result folders: the second minus the first.

    Simulations are matched by policy, seed and every parameter that one of the folders varies.
    Folders whose seeds draw other requests, adapters or costs are refused; other parameters
    that differ are told.

    Attributes:
      left: folder of `polar-jax run` or of `polar-jax sweep run`.
      right: the other one.
    """

    left: _Positional[pathlib.Path]
    right: _Positional[pathlib.Path]


def _above_zero(name: str, value: float, most: float) -> None:
    if not 0.0 < value <= most:
        raise ValueError(f"{name} must be in (0, {most:g}], got {value:g}.")
