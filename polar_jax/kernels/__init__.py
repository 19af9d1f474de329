"""Faster forms of `simulate.run_rounds`, and which one a run takes.

All give the same decisions as `simulate` up to near-ties of float32: sums are added in another
order. What a kernel does not have takes the XLA path, policy by policy.

* "xla": `simulate.run_rounds` itself, on every device.
* "native": C++ for processors, one lane after the other, its statistics in cache.
* "pallas": for GPUs, one program per lane for a whole segment, its statistics on chip; shapes that
  do not fit there take "blocked". It has not run on a GPU yet, so that nothing takes it unasked.
  On processors it is interpreted: for tests.
* "blocked": plain JAX on every device; rounds are scored ahead in blocks by matrix products.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from polar_jax import checks, metrics, simulate
from polar_jax.kernels import (
    blocked_rounds,
    native_build,
    native_metrics,
    native_refresh,
    native_rounds,
    pallas_rounds,
    random_bits,
)
from polar_jax.types import RouterState, Rule

NAMES = ("xla", "native", "pallas", "blocked")
VARIABLE = "POLAR_JAX_KERNEL"


def available(platform: str) -> tuple[str, ...]:
    """Kernels that can run here, the one that is taken unless said otherwise last.

    Args:
      platform: "cpu", "gpu" or "tpu".
    """
    if platform == "gpu":
        return ("pallas", "xla")
    native = platform == "cpu" and native_build.native().path is not None
    return ("xla", "native") if native else ("xla",)


def chosen(platform: str) -> str:
    """The kernel for a run: what `POLAR_JAX_KERNEL` says, or the fastest that can run here.

    Args:
      platform: "cpu", "gpu" or "tpu".

    Raises:
      ValueError: for an unknown name, or a kernel that cannot run here.
    """
    name = os.environ.get(VARIABLE, "")
    return check(VARIABLE, name, platform) if name else available(platform)[-1]


def check(label: str, name: str, platform: str) -> str:
    """Returns the name of a kernel that can run on a kind of device here.

    Args:
      label: what names it, for messages.
      name: the name received.
      platform: "cpu", "gpu" or "tpu".

    Raises:
      ValueError: for an unknown name, or a kernel that cannot run here.
    """
    checks.one_of(label, name, NAMES)
    if name == "native" and platform != "cpu":
        raise ValueError(f"{label}: native runs on processors alone, and the device is {platform}.")
    if name == "native" and native_build.native().reason:
        raise ValueError(f"{label}: native cannot be had here: {native_build.native().reason}")
    return name


def taken(name: str, rule: Rule, shape: tuple[int, int], *, sized: bool) -> str:
    """What serves one policy: `name`, or a kernel that has its rule and shape where that has not.

    Args:
      name: of `NAMES`.
      rule: the policy's.
      shape: `(N, d)` that the program is compiled for.
      sized: whether adapters differ in size.
    """
    if name == "native":
        return name if native_rounds.supports(rule, sized=sized) else "xla"
    on_chip = pallas_rounds.supports(rule, sized=sized) and pallas_rounds.fits(*shape)
    if name == "pallas" and on_chip:
        return name
    return "blocked" if name != "xla" and blocked_rounds.supports(rule) else "xla"


class Taken(NamedTuple):
    """The kernels that one policy's program is made of."""

    rounds: str  # serves the rounds: what `taken` gave
    beside: str  # refreshes statistics and sums up figures: the run's kernel


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "xla": simulate.run_rounds,
    "native": native_rounds.run_rounds,
    "pallas": pallas_rounds.run_rounds,
    "blocked": blocked_rounds.run_rounds,
}


def run_rounds(name: str) -> Callable[..., Any]:
    """The function of a kernel, with the arguments and results of `simulate.run_rounds`.

    Args:
      name: what `taken` gave.
    """
    return _FUNCTIONS[name]


def requests_per_read(name: str) -> int:
    """For how many requests at most a kernel reads a lane's statistics once.

    Args:
      name: what `taken` gave.
    """
    return {"native": native_rounds.TOGETHER, "blocked": blocked_rounds.BLOCK}.get(name, 1)


def refresh(name: str) -> Callable[[RouterState, Array], RouterState]:
    """The function that refreshes a lane's statistics, as `linalg.refresh` does.

    Args:
      name: the run's kernel.

    Returns:
      A function of the statistics, and of whether the lane counts: if not, what becomes of it is
      read by nobody.
    """
    return native_refresh.refresh if name == "native" else simulate.refresh


def chunk_sums(name: str) -> Callable[..., Any]:
    """The function that sums a chunk's figures up, as `metrics.chunk_sums` does.

    Args:
      name: the run's kernel.
    """
    return native_metrics.chunk_sums if name == "native" else metrics.chunk_sums


def keys(name: str, key: Array) -> Array:
    """Keys of the same random numbers, to the bit, drawn as a kernel draws them.

    Args:
      name: the run's kernel.
      key: threefry keys of any shape.
    """
    return random_bits.apart(key, native=name == "native")
