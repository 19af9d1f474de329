"""What a run was made with: parameters, versions, machine, times."""

import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

import polar_jax
from polar_jax import kernels, processors
from polar_jax.config import RunConfig, num_slots
from polar_jax.configured import Configured
from polar_jax.kernels import native_build
from polar_jax.lanes import Experiment, Results

_PACKAGE = pathlib.Path(__file__).parent
_VERSIONS = ("jax", "jaxlib", "numpy", "flax")


def build(
    config: RunConfig,
    configured: Configured,
    results: Results,
) -> dict[str, Any]:
    """Everything needed to repeat a run and to judge its figures.

    Args:
      config: the options, as given.
      configured: what they were resolved to.
      results: what was run.

    Returns:
      Plain values, ready for JSON.
    """
    experiment = configured.experiment
    decisions_per_second = results.num_decisions / max(results.run_seconds, 1e-9)
    return {
        "created": now(),
        "options": {
            name: str(value) if isinstance(value, pathlib.Path) else value
            for name, value in dataclasses.asdict(config).items()
        }
        | {"slots": num_slots(config)},
        "problem": _problem(experiment),
        "policies": [policy.name for policy in experiment.policies],
        "policy_settings": dataclasses.asdict(configured.settings),
        "environment": _environment(experiment) | configured.replay,
        "paging": _paging(experiment, configured.paging_origin),
        "seeds": [int(seed) for seed in experiment.seeds],
        "base_seed": experiment.base_seed,
        "oracle_exact": results.oracle_exact,
        **surroundings(),
        "num_devices": results.num_devices,
        "tile": results.tile,
        "seconds_compiling": round(results.compile_seconds, 3),
        "seconds_running": round(results.run_seconds, 3),
        "decisions": results.num_decisions,
        "decisions_per_second": round(decisions_per_second),
    }


def _problem(experiment: Experiment) -> dict[str, Any]:
    """The problem's sizes; capacity and sizes in bytes where they stand in place of slots."""
    described = experiment.problem._asdict()
    held = described.pop("memory")
    if held is None:
        return described
    return described | {
        "capacity_bytes": held.capacity_bytes,
        "size_bytes": list(held.size_bytes),
    }


def now() -> str:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def surroundings() -> dict[str, Any]:
    """Versions, commit and machine: what else the last bits of a result depend on."""
    device = jax.devices()[0]
    kernel = kernels.chosen(device.platform)
    return {
        "versions": {
            "python": platform.python_version(),
            "polar_jax": polar_jax.__version__,
            **{name: _version(name) for name in _VERSIONS},
        },
        "git": _git(),
        "machine": {
            "platform": platform.platform(),
            "jax_platform": device.platform,
            "device_kind": device.device_kind,
            "cpu": processors.cpu_model(),
            "instruction_set": processors.instruction_set(),
            "code": processors.code(),
            "usable_cores": usable_cores(),
            "kernel": kernel,
            # What built the kernel decides its last bits; of the others, jaxlib does.
            "compiler": native_build.compiler_version() if kernel == "native" else None,
        },
    }


def _environment(experiment: Experiment) -> dict[str, Any]:
    stream, params = experiment.environment, experiment.environment_params
    return {
        "name": stream.name,
        "num_clusters": stream.num_clusters,
        "num_segments": stream.num_segments,
        # Through text of float32's own digits: 0.1 stays 0.1.
        **{
            field.name: float(str(getattr(params, field.name)))
            for field in dataclasses.fields(params)
            if field.name not in ("data", "digest")
        },
    }


def _paging(experiment: Experiment, origin: str) -> dict[str, Any]:
    costs = experiment.costs
    described: dict[str, Any] = {"origin": origin, "price_per_ms": costs.price_per_ms}
    if costs.table is None:
        return {**described, "synthetic_mean": costs.synthetic_mean}
    return {
        **described,
        "tier": costs.table.tier,
        "adapters": list(costs.table.adapters),
        "mean_ms": [float(ms) for ms in costs.table.mean_ms],
        "sampled": costs.table.samples_ms is not None,
    }


def usable_cores() -> int:
    """Cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _git() -> dict[str, Any] | None:
    """Commit that the package's source is at, None where it is not under git."""
    # An installed copy may lie inside an unrelated repository; only tracked source counts.
    if _run_git("ls-files", "--error-unmatch", "types.py") is None:
        return None
    commit = _run_git("rev-parse", "HEAD")
    changes = _run_git("status", "--porcelain", "--untracked-files=no", ".")
    return None if commit is None else {"commit": commit, "modified": bool(changes)}


def _run_git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
