"""How many slots pay off: loss per request against K, and the knee of that curve."""

from typing import Any, NamedTuple

import numpy as np
import polars as pl

from polar_jax import labels, statistics
from polar_jax.statistics import Estimate
from polar_jax.sweep import bootstrap, studies
from polar_jax.sweep.bootstrap import Interval
from polar_jax.sweep.studies import Grid

AXIS = "cache_slots"
# One more slot has to save this share of what all slots save, or it does not pay; with many
# slots, where even equal ones save less each, this part of what a slot saves on average.
LEAST_SHARE = 0.05
LEAST_OF_AVERAGE = 0.5
DEFINITION = (
    "The knee is the smallest K after which every further slot saves less than "
    f"{100 * LEAST_SHARE:.0f} % of what all slots together save, from the smallest K to the "
    f"largest (beyond {LEAST_OF_AVERAGE / LEAST_SHARE:.0f} slots: less than half of what a slot "
    "saves on average), on the mean curve of the best policy (the learnt one whose loss to full "
    "memory is least on average over K)"
)


class Curve(NamedTuple):
    """One policy's cost against `M` numbers of slots, per request."""

    slots: np.ndarray  # [M] int64, ascending
    loss: Estimate  # [M] units of utility
    paging_ms: Estimate  # [M] milliseconds


class Knee(NamedTuple):
    """Cost against K at one value of every other axis."""

    where: dict[str, Any]  # axes but the slots
    best: str  # the policy that the figures below are of
    curves: dict[str, Curve]  # of every policy
    knee: int | None  # None: still worth it at the largest K, or no K saves anything
    low: int  # 95 % of resampled seeds have their knee within [low, high]
    high: int
    whole: Estimate  # loss at the smallest K minus that at the largest
    kept: Interval  # share of the whole saving that the knee has
    saving: Estimate  # [M - 1] per slot, from one K to the next
    saving_ms: Estimate  # [M - 1] the same in milliseconds of paging

    @property
    def pays(self) -> bool:
        """Whether the largest K loses less than the smallest, as far as the seeds can tell."""
        known = float(self.whole.mean if np.isnan(self.whole.error) else self.whole.low)
        return known > 0.0


def least_share(slots: np.ndarray) -> float:
    """The share of the whole saving that one more slot has to save, or it does not pay.

    Args:
      slots: `[M]` ascending numbers of slots, `M >= 2`.
    """
    return min(LEAST_SHARE, LEAST_OF_AVERAGE / float(slots[-1] - slots[0]))


def place(slots: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Where the knee is.

    Args:
      slots: `[M]` ascending numbers of slots, `M >= 2`.
      loss: `[..., M]` loss at each.

    Returns:
      `[...]` indices into `slots`: 0 where nothing is saved, `M - 1` where even the last
      step saves `least_share` of the whole per slot.
    """
    saved = -np.diff(loss) / np.diff(slots)
    total = loss[..., :1] - loss[..., -1:]
    worth = (saved >= least_share(slots) * total) & (total > 0.0)
    # One past the last step that is worth it.
    steps = np.arange(1, slots.size)
    return np.where(worth, steps, 0).max(axis=-1)


def knees(grid: Grid) -> list[Knee]:
    """Cost against K at every combination of the other axes.

    Args:
      grid: the rows.

    Returns:
      In the order of the axes' values; empty where K has fewer than 3 values.
    """
    axis = grid.axis(AXIS)
    if axis is None or axis.numbers is None or len(axis.values) < 3:
        return []
    others = [one.column for one in grid.axes if one.column != AXIS]
    rows = grid.table.select(
        *others,
        AXIS,
        "policy",
        "seed",
        pl.col("loss_to_full") / pl.col("horizon"),
        "paging_ms_per_request",
    )
    parts = rows.partition_by(others, as_dict=True) if others else {(): rows}
    places = [{v: n for n, v in enumerate(a.values)} for a in grid.axes if a.column != AXIS]
    order = sorted(parts, key=lambda key: [p[v] for p, v in zip(places, key, strict=True)])
    found = [_knee(dict(zip(others, key, strict=True)), parts[key], grid) for key in order]
    return [knee for knee in found if knee is not None]


def _knee(where: dict[str, Any], rows: pl.DataFrame, grid: Grid) -> Knee | None:
    matrices: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    every = rows[AXIS].n_unique()
    for policy in grid.policies:
        mine = rows.filter(pl.col("policy") == policy).sort(AXIS)
        if mine[AXIS].n_unique() < max(every, 3):
            continue
        slots, loss, _ = studies.by_seed(mine, AXIS, "loss_to_full")
        _, paging, _ = studies.by_seed(mine, AXIS, "paging_ms_per_request")
        if loss.shape[0]:
            matrices[policy] = (np.array(slots, np.int64), loss, paging)
    learnt = [policy for policy in grid.learnt if policy in matrices]
    if not learnt:
        return None
    best = min(learnt, key=lambda policy: float(matrices[policy][1].mean()))
    slots, loss, paging = matrices[best]
    at = int(place(slots, loss.mean(axis=0)))
    draws = studies.resampled(loss) if loss.shape[0] > 1 else loss
    low, high = np.quantile(place(slots, draws), [0.025, 0.975], method="nearest")
    steps = np.diff(slots)
    inside = at < slots.size - 1 and loss[:, 0].mean() > loss[:, -1].mean()
    return Knee(
        where=where,
        best=best,
        curves={
            policy: Curve(one[0], statistics.estimate(one[1]), statistics.estimate(one[2]))
            for policy, one in matrices.items()
        },
        knee=int(slots[at]) if inside else None,
        low=int(slots[int(low)]),
        high=int(slots[int(high)]),
        whole=statistics.estimate(loss[:, 0] - loss[:, -1]),
        kept=_kept(loss, draws, at),
        saving=statistics.estimate(-np.diff(loss, axis=1) / steps),
        saving_ms=statistics.estimate(-np.diff(paging, axis=1) / steps),
    )


def _kept(loss: np.ndarray, draws: np.ndarray, at: int) -> Interval:
    """The share of the whole saving at index `at`, with limits over resampled seeds.

    Resamples that save nothing have no share: beyond 2.5 % of them the interval is open.
    """

    def share(means: np.ndarray) -> np.ndarray:
        total = means[..., 0] - means[..., -1]
        saved = means[..., 0] - means[..., at]
        return np.where(total > 0.0, saved / np.where(total > 0.0, total, 1.0), np.nan)

    value = float(share(loss.mean(axis=0)))
    if loss.shape[0] == 1:
        return Interval(value, -np.inf, np.inf)
    return bootstrap.interval(value, share(draws))


def sentence(knee: Knee, grid: Grid, price: float | None) -> str:
    """What an engineer asks for, in one sentence.

    Args:
      knee: one combination.
      grid: the rows.
      price: price per millisecond where it is no axis; None where it sets no cost.

    Returns:
      A sentence with the knee, its interval over seeds and what it keeps.
    """
    where = grid.place(knee.where)
    # Synthetic costs are in units of utility: no price makes them.
    drawn = any(studies.SYNTHETIC in str(value) for value in knee.where.values())
    if "price_per_ms" not in knee.where and price is not None and not drawn:
        where = f"price per ms = {studies.shown(price)}" + (f", {where}" if where else "")
    head = f"At {where}: " if where else ""
    slots = knee.curves[knee.best].slots
    first, last = int(slots[0]), int(slots[-1])
    name = labels.label(knee.best).name
    if not knee.pays:
        return (
            f"{head}slots do not pay: with {name}, the loss at K = {last} cannot be told from "
            f"that at K = {first}, or is larger."
        )
    if knee.knee is None:
        return (
            f"{head}from {int(slots[-2])} to {last} every slot still saves "
            f"{100 * least_share(slots):.2g} % or more of the whole with {name}: no knee among the "
            "values of K that were run."
        )
    limits = ""
    if not np.isnan(knee.whole.error):
        kept = ""
        if np.isfinite([knee.kept.low, knee.kept.high]).all():
            kept = f"95 % interval {100 * knee.kept.low:.0f} to {100 * knee.kept.high:.0f} %; "
        limits = (
            f" ({kept}the knee itself is {_range(knee.low, knee.high)} in 95 % of resamples of "
            "the seeds)"
        )
    slot = "slot gives" if knee.knee == 1 else "slots give"
    return (
        f"{head}{knee.knee} {slot} {100 * knee.kept.estimate:.0f} % of what {last} would save over "
        f"{first}, with {name}{limits}."
    )


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
