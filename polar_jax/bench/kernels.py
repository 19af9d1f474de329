"""The kernels that can be measured: each serves rounds as `simulate.run_rounds` does."""

import os
from collections.abc import Callable
from typing import Any

from polar_jax import checks, simulate
from polar_jax.types import Rule

VARIABLE = "POLAR_JAX_KERNEL"  # chooses the engine's own kernel
_KERNELS: dict[str, Callable[..., Any]] = {"xla": simulate.run_rounds}


def kernel_names(platform: str) -> tuple[str, ...]:
    """Kernels that run on a kind of device here, the engine's own choice last.

    Args:
      platform: "cpu", "gpu" or "tpu".
    """
    del platform  # XLA runs on all of them.
    return tuple(_KERNELS)


def serves(name: str, rule: Rule) -> bool:
    """Whether a kernel has a policy's rule; the engine serves the others by XLA."""
    del rule  # XLA has all of them.
    return name in _KERNELS


def kernel(name: str) -> Callable[..., Any]:
    """A kernel, a function with the arguments and results of `simulate.run_rounds`.

    Args:
      name: one of `kernel_names`.
    """
    return _KERNELS[checks.one_of("kernel", name, _KERNELS)]


def engine_kernel(platform: str) -> str:
    """What whole runs use here: what `POLAR_JAX_KERNEL` says, else the engine's choice.

    Args:
      platform: "cpu", "gpu" or "tpu".

    Raises:
      ValueError: for a kernel that is not here.
    """
    names = kernel_names(platform)
    return checks.one_of(VARIABLE, os.environ.get(VARIABLE) or names[-1], names)
