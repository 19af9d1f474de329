"""Exponents along one axis: where they may be fitted, three fits, and their intervals.

`S` seeds, `P` points along an axis, `R` resamples. `docs/scaling.md` says how to read them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from polar_jax import checks
from polar_jax.sweep import bootstrap
from polar_jax.sweep.bootstrap import Interval
from polar_jax.sweep.power_law import MIN_POINTS, PowerLaw, fit_power_law

AXES = {"horizon": "T", "num_adapters": "N", "cache_slots": "K", "context_dim": "d"}
FIGURES = (
    "regret",
    "regret_routing",
    "regret_forced",
    "regret_caching",
    "regret_switching",
    "loss_to_full",
)
# On these a policy that moves can beat every static set: regret has no sign, hence no power.
SIGNED_STREAMS = ("sticky", "drifting", "rotating", "replay")
NOT_A_POWER_LAW = "not a power law here"
MIN_SEEDS = 16  # of 8, an interval that says 95 % covers in 86 % (docs/scaling.md)
MIN_USABLE = 3
STANDARD_ERRORS = 3.0
LENGTHS = 30  # a horizon counts from this many times max(N d, L0)
FIRST_EPOCH = 64  # L0
# Horizons are whole numbers: a decade's first point may lie this little before it.
_ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
    """One figure of one policy along one axis; `P` points were used.

    Attributes:
      figure: column that was fitted.
      policy: its policy.
      axis: column along which it was fitted, a key of `AXES`.
      group: names and values of what else was held fixed.
      seeds: `S`, seeds present at every point.
      x: `[P]` points used, increasing.
      mean: `[P]` means over seeds.
      error: `[P]` their standard errors.
      skipped: `(x, reason)` of every point left out.
      why_not: why nothing was fitted; None where it was. The fits below are then None.
      slope: log-log slope over `span`.
      span: first and last `x` of the last decade used (of all points, where they span less).
      power: fit of `A + B x^p`; None below `MIN_POINTS` points.
      curvature: quadratic coefficient of `ln mean` in `ln x`; None below `MIN_POINTS` points.
      verdict: `NOT_A_POWER_LAW` where the curvature's interval excludes 0, else "".
      spread: standard deviation between seeds at the largest `x` used, divided by the mean:
        seeds redraw the environment instance.
      failed: share of resamples with a mean that has no logarithm.
      theory: the exponent that theory has for it and where from, `theory.exponent`.
    """

    figure: str
    policy: str
    axis: str
    group: tuple[tuple[str, Any], ...]
    seeds: int
    x: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    skipped: tuple[tuple[float, str], ...]
    why_not: str | None = None
    slope: Interval | None = None
    span: tuple[float, float] | None = None
    power: PowerLaw | None = None
    curvature: Interval | None = None
    verdict: str = ""
    spread: float = float("nan")
    failed: float = 0.0
    theory: tuple[float, str] | None = None

    def line_at(self, x: np.ndarray) -> np.ndarray:
        """The power law with the fitted slope, through the last decade's centre.

        Args:
          x: where, positive, of any shape.

        Raises:
          ValueError: if nothing was fitted.
        """
        if self.slope is None or self.span is None:
            raise ValueError(f"{self.figure} of {self.policy} was not fitted: {self.why_not}.")
        used = self.x >= self.span[0]
        centre, level = np.log(self.x[used]).mean(), np.log(self.mean[used]).mean()
        return np.exp(level + self.slope.estimate * (np.log(x) - centre))


def refused(
    figure: str,
    policy: str,
    axis: str,
    group: tuple[tuple[str, Any], ...],
    *,
    seeds: int,
    why_not: str,
) -> Fit:
    """A fit that says why there is none, whatever its points.

    Args:
      figure: column that was to be fitted.
      policy: its policy.
      axis: along which.
      group: what else was held fixed.
      seeds: seeds present at every point.
      why_not: the reason.
    """
    none = np.empty(0)
    return Fit(figure, policy, axis, group, seeds, none, none, none, (), why_not)


def least_horizon(num_adapters: np.ndarray, context_dim: np.ndarray) -> np.ndarray:
    """The horizon from which a run counts, `30 max(N d, L0)`: each adapter has been learnt.

    Args:
      num_adapters: `N`, of any shape.
      context_dim: `d`, likewise.

    Returns:
      Rounds, of the same shape.
    """
    return LENGTHS * np.maximum(np.asarray(num_adapters) * np.asarray(context_dim), FIRST_EPOCH)


def _refusal(figure: str, stream: str, seeds: int) -> str | None:
    """Why a figure may not be fitted at all, or None."""
    if stream in SIGNED_STREAMS and figure != "loss_to_full":
        return (
            f"regret can be negative on {stream} streams, where a policy that moves can beat "
            "every static set; loss_to_full is fitted instead"
        )
    if seeds < MIN_SEEDS:
        return f"{seeds} seeds at every point, at least {MIN_SEEDS} are needed"
    return None


def _reason(x: float, mean: float, error: float, horizon: float, least: float) -> str | None:
    """Why a point may not be used, or None."""
    if x <= 0.0:
        return "it has no logarithm"
    if horizon < least:
        return f"T = {horizon:g} is below {LENGTHS} max(N d, L0) = {least:g}"
    if not np.isfinite(mean) or not np.isfinite(error):
        return "some seeds are not finite"
    if mean <= 0.0:
        return f"the mean, {mean:.3g}, is not positive"
    if mean <= STANDARD_ERRORS * error:
        return f"the mean, {mean:.3g}, is not above 3 standard errors ({error:.2g} each)"
    return None


def _few(axis: str, x: np.ndarray, skipped: Sequence[tuple[float, str]]) -> str | None:
    """Why the points left are too few, or None."""
    letter = AXES[axis]
    if x.size < MIN_USABLE:
        last = f"; at {letter} = {skipped[-1][0]:g}: {skipped[-1][1]}" if skipped else ""
        return f"{x.size} usable points, at least {MIN_USABLE} are needed{last}"
    if _last_decade(x).sum() < 2:
        return f"the last decade holds one usable point, {letter} = {x[-1]:g}"
    return None


def _last_decade(x: np.ndarray) -> np.ndarray:
    """Which of `[P]` increasing points are at least a tenth of the last."""
    return x >= x[-1] / 10.0 * (1.0 - _ROUNDING)


def _leading(log_x: np.ndarray, degree: int) -> np.ndarray:
    """`[P]` weights that give the leading coefficient of a least-squares polynomial."""
    basis = np.vander(log_x - log_x.mean(), degree + 1)
    return np.linalg.pinv(basis)[0]


def _fits(fit: Fit, values: np.ndarray, resamples: int, seed: int) -> Fit:
    """Adds the fits and their intervals to points that may be used."""
    x, mean = fit.x, fit.mean
    resampled = bootstrap.weights(fit.seeds, resamples, seed) @ values
    positive = resampled > 0.0
    logs = np.where(positive, np.log(np.where(positive, resampled, 1.0)), np.nan)
    last, log_x, log_mean = _last_decade(x), np.log(x), np.log(mean)
    by = _leading(log_x[last], 1)
    fitted = dataclasses.replace(
        fit,
        slope=bootstrap.interval(float(log_mean[last] @ by), logs[:, last] @ by),
        span=(float(x[last][0]), float(x[-1])),
        spread=float(values[:, -1].std(ddof=1) / mean[-1]),
        failed=float(np.mean(~positive.all(axis=1))),
    )
    if x.size < MIN_POINTS:
        return fitted
    bend = _leading(log_x, 2)
    curvature = bootstrap.interval(float(log_mean @ bend), logs @ bend)
    return dataclasses.replace(
        fitted,
        power=fit_power_law(x, mean, fit.error, resampled),
        curvature=curvature,
        verdict=NOT_A_POWER_LAW if curvature.excludes(0.0) else "",
    )


def fit(
    values: np.ndarray,
    x: np.ndarray,
    *,
    figure: str,
    policy: str,
    axis: str = "horizon",
    stream: str = "clustered",
    horizon: np.ndarray | None = None,
    least: np.ndarray | float = 0.0,
    group: tuple[tuple[str, Any], ...] = (),
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> Fit:
    """Fits the mean of one figure along one axis, where it may be fitted.

    Args:
      values: `[S, P]`, a row per seed, the same seeds at every point.
      x: `[P]` distinct points, in any order.
      figure: what the values are, one of `FIGURES`.
      policy: whose they are.
      axis: what `x` is, a key of `AXES`.
      stream: environment; on `SIGNED_STREAMS` only `loss_to_full` is fitted.
      horizon: `[P]` horizon of each point; None is `x`.
      least: least horizon that counts, `least_horizon(N, d)`; `[P]` or one for all.
      group: what else was held fixed, for the reader.
      resamples: `R`.
      seed: of the bootstrap.

    Returns:
      The fit, or why there is none.

    Raises:
      ValueError: for shapes that do not fit, repeated points or an unknown figure or axis.
    """
    checks.one_of("figure", figure, FIGURES)
    checks.one_of("axis", axis, AXES)
    values, x = np.asarray(values, np.float64), np.asarray(x, np.float64)
    if x.ndim != 1 or values.ndim != 2 or values.shape[1] != x.size:
        raise ValueError(f"values must be [seeds, {x.size}] like x, got shape {values.shape}.")
    if np.unique(x).size < x.size:
        raise ValueError(f"points along {axis} must differ, got {sorted(x.tolist())}.")
    order, seeds = np.argsort(x), values.shape[0]
    lengths = (x if horizon is None else np.broadcast_to(horizon, x.shape))[order]
    floors = np.broadcast_to(np.asarray(least, np.float64), x.shape)[order]
    x, values = x[order], values[:, order]
    why_not = _refusal(figure, stream, seeds)
    if why_not:
        return refused(figure, policy, axis, group, seeds=seeds, why_not=why_not)
    finite = np.isfinite(values).all(axis=0)
    known = np.where(finite, values, 0.0)
    mean = np.where(finite, known.mean(axis=0), np.nan)
    error = known.std(axis=0, ddof=1) / np.sqrt(seeds)
    reasons = [_reason(*point) for point in zip(x, mean, error, lengths, floors, strict=True)]
    skipped = tuple((float(at), why) for at, why in zip(x, reasons, strict=True) if why)
    used = np.array([why is None for why in reasons], bool)
    points = (x[used], mean[used], error[used])
    why_not = _few(axis, x[used], skipped)
    found = Fit(figure, policy, axis, group, seeds, *points, skipped, why_not)
    return found if why_not else _fits(found, values[:, used], resamples, seed)
