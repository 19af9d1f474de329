"""Faster forms of `simulate.run_rounds`, and which one a run takes.

All give the same decisions as `simulate` up to near-ties of float32: sums are added in another
order. What a kernel does not have takes the XLA path, policy by policy.
"""

import os
from collections.abc import Callable
from typing import Any

from polar_jax import checks, simulate
from polar_jax.kernels import native_build, native_rounds
from polar_jax.types import Rule

NAMES = ("xla", "native")
VARIABLE = "POLAR_JAX_KERNEL"


def available(platform: str) -> tuple[str, ...]:
    """Kernels that can run here, the one that is taken unless said otherwise last.

    Args:
      platform: "cpu", "gpu" or "tpu".
    """
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
    if not name:
        return available(platform)[-1]
    checks.one_of(VARIABLE, name, NAMES)
    if name == "xla":
        return name
    if platform != "cpu":
        raise ValueError(
            f"{VARIABLE}={name} runs on processors alone, and the device is {platform}."
        )
    reason = native_build.native().reason
    if reason:
        raise ValueError(f"{VARIABLE}={name} cannot be had here: {reason}")
    return name


def taken(name: str, rule: Rule, *, sized: bool) -> str:
    """The kernel that serves one policy: `name`, or "xla" where that does not have its rule.

    Args:
      name: of `NAMES`.
      rule: the policy's.
      sized: whether adapters differ in size.
    """
    return name if name == "native" and native_rounds.supports(rule, sized=sized) else "xla"


def run_rounds(name: str) -> Callable[..., Any]:
    """The function of a kernel, with the arguments and results of `simulate.run_rounds`.

    Args:
      name: of `NAMES`, for a rule that the kernel has (`taken`).
    """
    return native_rounds.run_rounds if name == "native" else simulate.run_rounds
