"""From bytes to milliseconds: `overhead_ms + bytes / bandwidth`, fitted to measured pairs."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from polar_jax import checks, paging


class TransferModel(NamedTuple):
    """Time to move an adapter: a constant and a share for every byte."""

    overhead_ms: float  # per adapter, >= 0
    bytes_per_ms: float  # bandwidth, > 0; infinite where time does not grow with size

    @property
    def gb_per_s(self) -> float:
        """The bandwidth in 1e9 bytes per second."""
        return self.bytes_per_ms / 1e6

    def milliseconds(self, size_bytes: ArrayLike) -> np.ndarray:
        """The time for each of `[N]` sizes in bytes: `[N]` float64 milliseconds."""
        return self.overhead_ms + np.asarray(size_bytes, np.float64) / self.bytes_per_ms


def transfer_model(*, overhead_ms: float, gb_per_s: float) -> TransferModel:
    """A model from given figures.

    Args:
      overhead_ms: time per adapter whatever its size, finite and `>= 0`.
      gb_per_s: bandwidth in 1e9 bytes per second, finite and `> 0`.

    Raises:
      ValueError: for a figure out of range.
    """
    checks.finite_at_least("overhead_ms", overhead_ms, 0.0)
    checks.finite_at_least("gb_per_s", gb_per_s, 0.0, above=True)
    return TransferModel(float(overhead_ms), float(gb_per_s) * 1e6)


def fit_transfer(size_bytes: ArrayLike, ms: ArrayLike) -> TransferModel:
    """Fits a model to measured pairs by least squares of relative errors.

    Relative errors, as a millisecond counts for more at 5 ms than at 500. Neither figure
    comes out negative: where time falls with size the model is a constant, and where the
    line would start below 0 it starts at 0.

    Args:
      size_bytes: `[M]` sizes, at least 1, of two or more different values.
      ms: `[M]` times, above 0; where each size was measured many times, their medians.

    Returns:
      The model with the least sum of `((model - ms) / ms)^2`.

    Raises:
      ValueError: for pairs that cannot be used.
    """
    sizes, times = np.asarray(size_bytes, np.float64), np.asarray(ms, np.float64)
    if sizes.ndim != 1 or sizes.shape != times.shape:
        raise ValueError(
            f"size_bytes and ms must be lists of one length, got shapes {sizes.shape} and "
            f"{times.shape}."
        )
    for what, values, usable, allowed in (
        ("size_bytes", sizes, (sizes >= 1) & (sizes <= paging.MAX_BYTES), f"[1, {2**53}]"),
        ("ms", times, (times > 0) & (times <= paging.MAX_MS), f"(0, {paging.MAX_MS:g}]"),
    ):
        if not usable.all():
            raise ValueError(f"{what} must be in {allowed}, got {values[~usable][0]:g}.")
    if np.unique(sizes).size < 2:
        raise ValueError(
            f"size_bytes must have two or more different sizes to fit a line, got "
            f"{np.unique(sizes).size}."
        )
    # Divided by the time, every row of `a + b size = ms` becomes `a / ms + b size / ms = 1`.
    constant, slope = 1.0 / times, sizes / times
    moments = np.array([[constant @ constant, constant @ slope], [constant @ slope, slope @ slope]])
    # The sizes' scale is taken out, or the matrix would look singular.
    scale = np.array([1.0, 1.0 / sizes.max()])
    right = scale * np.array([constant.sum(), slope.sum()])
    overhead, per_byte = scale * np.linalg.solve(moments * np.outer(scale, scale), right)
    if overhead < 0.0:
        overhead, per_byte = 0.0, slope.sum() / (slope @ slope)
    if per_byte <= 0.0:
        return TransferModel(float(constant.sum() / (constant @ constant)), float("inf"))
    return TransferModel(float(overhead), float(1.0 / per_byte))
