"""What this machine can do at most, measured beside what is judged by it."""

import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from polar_jax import manifest
from polar_jax.bench.arithmetic import Cache, Limits

_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
MEASURES = ("operations", "memory", "first_cache", "second_cache", "third_cache")
# Where the system names the caches, and what they hold at least where it does not. The third is
# shared by cores, and not every processor has one.
_CACHES = {
    "first_cache": ("index0", 2**15),
    "second_cache": ("index2", 2**18),
    "third_cache": ("index3", 0),
}
_SYSTEM = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
_ACCELERATOR_SIDE, _ACCELERATOR_BYTES = 8_192, 2**30
# On-chip memory of one multiprocessor that a kernel may hold a lane's state in.
_ACCELERATOR_CACHE = 227 * 2**10


class Machine:
    """Measures the limits of all cores and of one; a context manager.

    A process per core, as threads of one would wait for each other between copies.
    `samples` has what was measured: `all` and `one`, each with rates per second; `platform`
    is what was measured on.
    """

    def __init__(self, platform: str, *, seconds: float) -> None:
        self.platform, self._seconds = platform, seconds
        self._workers: list[subprocess.Popen[str]] = []
        self._arrays: Any = None
        scopes = ("all", "one") if platform == "cpu" else ("all",)
        kinds = MEASURES if platform == "cpu" else MEASURES[:2]
        self.samples: dict[str, dict[str, list[float]]] = {
            scope: {kind: [] for kind in kinds} for scope in scopes
        }

    def __enter__(self) -> "Machine":
        if self.platform == "cpu":
            env = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
            command = [sys.executable, "-m", "polar_jax.bench.worker"]
            self._workers = [
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
                )
                for _ in range(manifest.usable_cores())
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()

    def measure(self) -> None:
        """Takes one sample of every limit."""
        for scope, kinds in self.samples.items():
            for kind, found in kinds.items():
                if self.platform != "cpu":
                    found.append(self._on_accelerator(kind))
                    continue
                used = self._workers if scope == "all" else self._workers[:1]
                found.append(sum(_ask(used, kind, self._seconds)))

    def limits(self, *, all_cores: bool) -> Limits:
        """Medians of what was measured."""
        scope = "all" if all_cores or "one" not in self.samples else "one"
        rates = {kind: statistics.median(found) for kind, found in self.samples[scope].items()}
        sizes = {name: cache_bytes(name, all_cores=scope == "all") for name in _CACHES}
        caches = [
            Cache(name.replace("_", " "), size, rates[name])
            for name, size in sizes.items()
            if size and name in rates
        ]
        if self.platform != "cpu":
            # Nothing here can time it, so it is no limit.
            caches = [Cache("on-chip memory", _ACCELERATOR_CACHE, math.inf)]
        return Limits(rates["operations"], rates["memory"], tuple(caches))

    def _on_accelerator(self, kind: str) -> float:
        import jax
        import jax.numpy as jnp

        if self._arrays is None:
            square = jnp.ones((_ACCELERATOR_SIDE, _ACCELERATOR_SIDE), jnp.float32)
            self._arrays = square, jnp.ones(_ACCELERATOR_BYTES // 4, jnp.float32)
        square, long = self._arrays
        calls, taken = 5, 0.0
        for timed in (False, True):
            began = time.perf_counter()
            out: Any = None
            for _ in range(calls if timed else 1):
                if kind == "operations":
                    # Full float32, which scores are computed in.
                    out = jnp.matmul(square, square, precision=jax.lax.Precision.HIGHEST)
                else:
                    out = jnp.negative(long)
            jax.block_until_ready(out)
            taken = time.perf_counter() - began
        amount = 2.0 * _ACCELERATOR_SIDE**3 if kind == "operations" else 2.0 * _ACCELERATOR_BYTES
        return amount * calls / taken


def _ask(workers: Sequence[subprocess.Popen[str]], kind: str, seconds: float) -> list[float]:
    """Has workers measure at the same time."""
    for worker in workers:
        if worker.stdin is not None:
            worker.stdin.write(f"{kind} {seconds}\n")
            worker.stdin.flush()
    return [float(worker.stdout.readline()) for worker in workers if worker.stdout is not None]


def cache_bytes(name: str, *, all_cores: bool) -> int:
    """Bytes of a cache that a core has; what every core has at least if nobody tells.

    Args:
      name: of `MEASURES`, a cache's.
      all_cores: whether all usable cores work: those with the same third cache then share it.
    """
    index, least = _CACHES[name]
    try:
        text = (_SYSTEM / index / "size").read_text("ascii").strip()
        size = int(text.rstrip("KM")) * (2**20 if text.endswith("M") else 2**10)
    except (OSError, ValueError):
        return least
    return size // _sharing(index) if all_cores and name == "third_cache" else size


def _sharing(index: str) -> int:
    """Usable cores that share a cache with the first of them, at least 1."""
    try:
        text = (_SYSTEM / index / "shared_cpu_list").read_text("ascii").strip()
        ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
        shared = {core for one in ends for core in range(one[0], one[-1] + 1)}
        return max(1, len(shared & os.sched_getaffinity(0)))
    except (OSError, ValueError, AttributeError):
        return manifest.usable_cores()


_INSTRUCTIONS = ("avx512f", "avx2", "avx", "sse4_2", "sve", "asimd")


def instruction_set() -> str:
    """The widest vector instructions of the processor that the system names."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        return "unknown"
    for line in text.splitlines():
        label, _, value = line.partition(":")
        if label.strip() in ("flags", "Features"):
            flags = set(value.split())
            return next((name for name in _INSTRUCTIONS if name in flags), "none known")
    return "unknown"


def surroundings() -> dict[str, Any]:
    """Versions and machine, as manifests have them, and what speed depends on besides."""
    import jax

    found = manifest.surroundings()
    found["machine"] |= {
        "instruction_set": instruction_set(),
        "cache_bytes": {name: cache_bytes(name, all_cores=True) for name in _CACHES},
        "devices": [str(device) for device in jax.devices()],
    }
    return found
