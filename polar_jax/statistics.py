"""Means, standard errors, 95 % intervals and paired differences over seeds, in float64."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_NORMAL_975 = 1.959963984540054
# Student's t for few degrees of freedom, where the expansion below is not accurate.
_T_975 = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582}


class Estimate(NamedTuple):
    """A mean over seeds and how well it is known.

    With one seed `error` and `half_width` are NaN: nothing is known about the spread.
    """

    mean: np.ndarray  # [...] mean over seeds
    error: np.ndarray  # [...] standard error of the mean
    half_width: np.ndarray  # [...] half the 95 % interval

    @property
    def low(self) -> np.ndarray:
        """Lower end of the 95 % interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> np.ndarray:
        """Upper end of the 95 % interval."""
        return self.mean + self.half_width


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, within 2e-4.

    Args:
      degrees: degrees of freedom, at least 1.

    Returns:
      The quantile: a table up to 5, then the Cornish-Fisher expansion around the normal.
    """
    if degrees < 1:
        raise ValueError(f"degrees must be at least 1, got {degrees}.")
    if degrees in _T_975:
        return _T_975[degrees]
    z, v = _NORMAL_975, float(degrees)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def estimate(values: ArrayLike) -> Estimate:
    """Mean over seeds with its 95 % interval (Student's t).

    Args:
      values: `[S, ...]`, one row per seed, `S >= 1`.

    Returns:
      The estimate, of shape `[...]`.
    """
    array = np.asarray(values, np.float64)
    if array.ndim == 0 or array.shape[0] == 0:
        raise ValueError(f"values must have one row per seed, got shape {array.shape}.")
    seeds = array.shape[0]
    mean = array.mean(axis=0)
    if seeds == 1:
        unknown = np.full(mean.shape, math.nan)
        return Estimate(mean, unknown, unknown)
    error = array.std(axis=0, ddof=1) / math.sqrt(seeds)
    return Estimate(mean, error, t_quantile(seeds - 1) * error)


def paired_difference(values: ArrayLike, reference: ArrayLike) -> Estimate:
    """Mean of `values - reference` over seeds that both share.

    Args:
      values: `[S]`, one per seed.
      reference: `[S]`, on the same seeds in the same order.

    Returns:
      The estimate. Pairing removes what a seed does to both.
    """
    left, right = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    if left.shape != right.shape:
        raise ValueError(f"pairs must have equal shapes, got {left.shape} and {right.shape}.")
    return estimate(left - right)
