"""Percentile intervals by bootstrap of whole seeds, in float64 and without loops.

`S` seeds, `P` points of a curve, `R` resamples. A seed is an environment instance with all
its rounds and horizons, so it is drawn or left out as one.
"""

import dataclasses
import functools
import math

import numpy as np

RESAMPLES = 2_000
_TAIL = 0.025


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number and its 95 % percentile interval; an infinite end is one the data leave open.

    Attributes:
      estimate: from the mean over all seeds.
      low: lower end.
      high: upper end.
    """

    estimate: float
    low: float
    high: float

    def excludes(self, value: float, *, tolerance: float = 1e-9) -> bool:
        """Whether `value` lies outside, by more than `tolerance` (rounding)."""
        return value < self.low - tolerance or value > self.high + tolerance

    def __format__(self, spec: str) -> str:
        """`estimate [low, high]`, each by `spec` (default `.3g`)."""
        spec = spec or ".3g"
        return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


@functools.lru_cache(maxsize=8)
def weights(seeds: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How much each seed weighs in each resample: counts of `S` draws, divided by `S`.

    Args:
      seeds: `S`, at least 1.
      resamples: `R`, at least 1.
      seed: of the random numbers; the same one gives the same resamples.

    Returns:
      `[R, S]`, read-only, rows sum to 1. Curves of equally many seeds share it, so that
      their intervals hold for the same redrawn seeds.

    Raises:
      ValueError: if either number is below 1.
    """
    if seeds < 1 or resamples < 1:
        raise ValueError(f"seeds and resamples must be at least 1, got {seeds} and {resamples}.")
    counts = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1.0 / seeds), resamples)
    drawn = counts / seeds
    drawn.flags.writeable = False
    return drawn


def interval(estimate: float, lows: np.ndarray, highs: np.ndarray | None = None) -> Interval:
    """The 95 % percentile interval of a figure's resamples.

    Resamples that could not be calculated (NaN) count as below the lower end and as above
    the upper one: the interval can only grow, and is open where they exceed 2.5 %.

    Args:
      estimate: the figure over all seeds.
      lows: `[R]` resamples, as the lower end reads them.
      highs: `[R]` resamples as the upper end reads them; None is `lows`. They differ where
        a resample is known to one side alone, such as "at most -0.5".

    Returns:
      The interval; its ends are order statistics, the outer ones where two are as near.
    """
    highs = lows if highs is None else highs
    last = lows.size - 1
    low = np.sort(np.where(np.isnan(lows), -np.inf, lows))[math.floor(_TAIL * last)]
    high = np.sort(np.where(np.isnan(highs), np.inf, highs))[math.ceil((1.0 - _TAIL) * last)]
    return Interval(float(estimate), float(low), float(high))
