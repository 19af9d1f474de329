"""Measured load times in figures: medians and quantiles per adapter, a line per tier."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from polar_jax.io.tables import Measured
from polar_jax.io.transfer import TransferModel, fit_transfer

LOW, HIGH = 0.1, 0.9


class Row(NamedTuple):
    """One adapter in one tier; milliseconds."""

    adapter: str
    tier: str
    size_bytes: int | None
    number: int  # measurements
    median: float
    low: float  # quantile LOW
    high: float  # quantile HIGH
    mean: float


class Fit(NamedTuple):
    """A tier's transfer model."""

    model: TransferModel
    worst: float  # largest |model - median| / median of an adapter


def rows(measured: Mapping[str, Measured]) -> list[Row]:
    """Figures per adapter and tier, in the order of the file.

    Args:
      measured: one or more measurements per adapter and tier.
    """
    found = []
    for adapter, one in measured.items():
        for tier, times in one.tiers.items():
            ms = np.asarray(times, np.float64)
            low, median, high = np.quantile(ms, [LOW, 0.5, HIGH])
            mean = float(ms.mean())
            found.append(
                Row(
                    *(adapter, tier, one.size_bytes, ms.size),
                    *(float(median), float(low), float(high), mean),
                )
            )
    return found


def tiers(found: Sequence[Row]) -> list[str]:
    """The tiers of some rows, in order of first appearance."""
    return list(dict.fromkeys(row.tier for row in found))


def fits(found: Sequence[Row]) -> dict[str, Fit]:
    """A transfer model per tier, on the adapters' medians.

    Args:
      found: figures per adapter and tier.

    Returns:
      By tier; those without two different sizes, or with a median of 0, are left out.
    """
    models = {}
    for tier in tiers(found):
        mine = [row for row in found if row.tier == tier and row.size_bytes is not None]
        sizes = np.array([row.size_bytes for row in mine], np.float64)
        medians = np.array([row.median for row in mine])
        if np.unique(sizes).size < 2 or not (medians > 0).all():
            continue
        model = fit_transfer(sizes, medians)
        worst = np.max(np.abs(model.milliseconds(sizes) - medians) / medians)
        models[tier] = Fit(model, float(worst))
    return models
