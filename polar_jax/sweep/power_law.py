"""The fit of `A + B x^p` with `A` free, over many curves at once.

`P` points, `R` curves (the mean over all seeds, or its resamples).
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from polar_jax.sweep.bootstrap import Interval, interval

LOWEST, HIGHEST = -0.5, 2.5  # of the exponent
MIN_POINTS = 4  # one more than there are parameters
_GRID = np.linspace(LOWEST, HIGHEST, 121)
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_STEPS, _EXACT_STEPS = 24, 44  # narrow the grid's cell to 5e-7 and 3e-11
_AT_EDGE = 1e-5
_FLAT = 1e-24  # squared relative variation that is rounding alone
_LEAST_EXPONENT = 1e-9


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """`A + B x^p`, by weighted least squares.

    Attributes:
      offset: `A`, units of the figure.
      factor: `B`, units of the figure per `x^p`.
      exponent: `p`, sought in `[LOWEST, HIGHEST]`; an end of its interval is infinite where
        the search's edge, not the data, set it. `A` and `B` are then open too.
      misfit: largest relative distance of a mean from the fit.
    """

    offset: Interval
    factor: Interval
    exponent: Interval
    misfit: float

    def at(self, x: np.ndarray) -> np.ndarray:
        """The fitted curve at `x`, positive, of any shape."""
        return self.offset.estimate + self.factor.estimate * x**self.exponent.estimate


class _Curves(NamedTuple):
    """What the profile needs; bases and curves are orthogonal to a constant."""

    log_x: np.ndarray  # [P] less their mean, which keeps powers near 1
    shift: float  # the mean that was taken off
    weights: np.ndarray  # [P], sum 1
    level: np.ndarray  # [R] weighted mean of each curve
    centred: np.ndarray  # [R, P]


class _Found(NamedTuple):
    """One fit per curve; NaN where a curve determines none."""

    offset: np.ndarray  # [R]
    factor: np.ndarray  # [R]
    exponent: np.ndarray  # [R]


def _basis(exponent: np.ndarray, log_x: np.ndarray) -> np.ndarray:
    """`(x^p - 1) / p`, `[..., P]`: spans what `x^p` spans and is `log x` at 0, not constant."""
    safe = np.where(np.abs(exponent) < _LEAST_EXPONENT, _LEAST_EXPONENT, exponent)[..., None]
    return np.expm1(safe * log_x) / safe


def _line(exponent: np.ndarray, curves: _Curves) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slope, mean of the basis and weighted squared error of the best line, `[R]` each."""
    basis = _basis(exponent, curves.log_x)
    mean = basis @ curves.weights
    basis = basis - mean[..., None]
    weighted = basis * curves.weights
    slope = (weighted * curves.centred).sum(-1) / (weighted * basis).sum(-1)
    residual = curves.centred - slope[..., None] * basis
    return slope, mean, (residual**2) @ curves.weights


def _best_cell(curves: _Curves) -> np.ndarray:
    """Index in the grid of each curve's best exponent, `[R]`."""
    basis = _basis(_GRID, curves.log_x)
    basis = basis - (basis @ curves.weights)[:, None]
    weighted = basis * curves.weights
    explained = (curves.centred @ weighted.T) ** 2 / (weighted * basis).sum(-1)
    return explained.argmax(axis=1)


def _exponents(curves: _Curves, steps: int) -> np.ndarray:
    """The profile's minimum by golden section around the grid's, `[R]`."""
    best = _best_cell(curves)
    low, high = _GRID[np.maximum(best - 1, 0)], _GRID[np.minimum(best + 1, _GRID.size - 1)]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = _line(left, curves)[2], _line(right, curves)[2]
    for _ in range(steps):
        shrink = at_left < at_right  # the minimum is left of `right`
        low, high = np.where(shrink, low, left), np.where(shrink, right, high)
        new = np.where(shrink, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        at_new = _line(new, curves)[2]
        left, right, at_left, at_right = (
            np.where(shrink, new, right),
            np.where(shrink, left, new),
            np.where(shrink, at_new, at_right),
            np.where(shrink, at_left, at_new),
        )
    return (low + high) / 2.0


def _find(curves: _Curves, steps: int) -> _Found:
    """The fit of every curve."""
    exponent = _exponents(curves, steps)
    exponent = np.where(np.abs(exponent) < _LEAST_EXPONENT, _LEAST_EXPONENT, exponent)
    slope, mean, _ = _line(exponent, curves)
    variation = (curves.centred**2) @ curves.weights
    scale = np.where(variation <= _FLAT * curves.level**2, np.nan, 1.0)
    factor = scale * slope / exponent
    offset = curves.level - slope * mean - factor
    return _Found(offset, factor * np.exp(-exponent * curves.shift), scale * exponent)


def _prepare(x: np.ndarray, curves: np.ndarray, error: np.ndarray) -> _Curves:
    """Centres `[R, P]` curves; a point without error would outweigh all: then all count alike."""
    relative = error if np.all(error > 0.0) else curves[0]
    weights = (np.min(relative) / relative) ** 2
    weights = weights / weights.sum()
    level = curves @ weights
    log_x = np.log(x)
    shift = float(log_x.mean())
    return _Curves(log_x - shift, shift, weights, level, curves - level[:, None])


def fit_power_law(
    x: np.ndarray, mean: np.ndarray, error: np.ndarray, resampled: np.ndarray
) -> PowerLaw:
    """Fits `A + B x^p`: `p` by its profile, `A` and `B` in closed form at each `p`.

    Args:
      x: `[P]`, positive, `P >= MIN_POINTS`.
      mean: `[P]` means over seeds, positive.
      error: `[P]` their standard errors; weights are `1 / error^2`, the same in every
        resample. Where one is 0, weights are `1 / mean^2`.
      resampled: `[R, P]` means of the resamples.

    Returns:
      The fit. A curve that does not vary determines no exponent: NaN, open intervals.

    Raises:
      ValueError: if there are fewer than `MIN_POINTS` points.
    """
    if x.size < MIN_POINTS:
        raise ValueError(f"A + B x^p needs at least {MIN_POINTS} points, got {x.size}.")
    found = _find(_prepare(x, mean[None], error), _EXACT_STEPS)
    drawn = _find(_prepare(x, np.concatenate([mean[None], resampled]), error), _STEPS)
    offsets, factors, exponents = (figure[1:] for figure in drawn)
    at_low, at_high = exponents < LOWEST + _AT_EDGE, exponents > HIGHEST - _AT_EDGE
    edge = at_low | at_high
    fitted = found.offset[0] + found.factor[0] * x ** found.exponent[0]
    return PowerLaw(
        interval(found.offset[0], np.where(edge, np.nan, offsets)),
        interval(found.factor[0], np.where(edge, np.nan, factors)),
        interval(
            found.exponent[0],
            np.where(at_low, -np.inf, exponents),
            np.where(at_high, np.inf, exponents),
        ),
        float(np.max(np.abs(fitted / mean - 1.0))),
    )
