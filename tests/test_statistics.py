"""Means, intervals and paired differences, against known values and by their coverage."""

import itertools
import math

import numpy as np
import pytest

from polar_jax import statistics

# Student's t, 97.5 %, from printed tables.
TABLE = {1: 12.7062, 2: 4.3027, 5: 2.5706, 6: 2.4469, 10: 2.2281, 29: 2.0452, 120: 1.9799}


@pytest.mark.parametrize(("degrees", "expected"), TABLE.items())
def test_the_quantile_agrees_with_printed_tables(degrees: int, expected: float) -> None:
    assert statistics.t_quantile(degrees) == pytest.approx(expected, abs=2e-4)


def test_the_quantile_falls_to_that_of_the_normal() -> None:
    quantiles = [statistics.t_quantile(degrees) for degrees in range(1, 2_000)]
    assert all(a > b for a, b in itertools.pairwise(quantiles))
    assert statistics.t_quantile(10**9) == pytest.approx(1.959964, abs=1e-6)


def test_a_mean_has_its_standard_error_and_interval() -> None:
    found = statistics.estimate([1.0, 2.0, 3.0, 4.0])
    error = math.sqrt(5.0 / 3.0 / 4.0)
    assert float(found.mean) == 2.5
    assert float(found.error) == pytest.approx(error)
    assert float(found.low) == pytest.approx(2.5 - 3.182446 * error)
    assert float(found.high) == pytest.approx(2.5 + 3.182446 * error)


def test_curves_are_averaged_over_seeds() -> None:
    found = statistics.estimate(np.array([[1.0, 10.0], [3.0, 10.0]]))
    np.testing.assert_allclose(found.mean, [2.0, 10.0])
    np.testing.assert_allclose(found.error, [1.0, 0.0])


def test_one_seed_has_no_interval() -> None:
    found = statistics.estimate([7.0])
    assert float(found.mean) == 7.0
    assert math.isnan(float(found.error))
    assert math.isnan(float(found.half_width))


def test_pairing_removes_what_a_seed_does_to_both() -> None:
    seeds = np.array([100.0, -50.0, 3.0, 900.0])
    found = statistics.paired_difference(seeds + np.array([1.0, 1.1, 0.9, 1.0]), seeds)
    assert float(found.mean) == pytest.approx(1.0)
    assert float(found.half_width) < 0.2


@pytest.mark.parametrize(("share", "consistent"), [(1.0, True), (0.85, False)])
def test_intervals_of_five_seeds_cover_the_mean_as_often_as_they_say(
    share: float, consistent: bool
) -> None:
    # Hoeffding over 40,000 independent intervals: a correct build fails with
    # probability 1e-6. The control, with intervals cut to 85 %, has to fail.
    trials, allowed = 40_000, 1e-6
    values = np.random.default_rng(5).normal(size=(5, trials))
    found = statistics.estimate(values)
    covered = float(np.mean(np.abs(found.mean) <= share * found.half_width))
    deviation = math.sqrt(math.log(2.0 / allowed) / (2.0 * trials))
    assert (abs(covered - 0.95) <= deviation) == consistent


@pytest.mark.parametrize("values", [[], np.float64(3.0)])
def test_no_seeds_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="one row per seed"):
        statistics.estimate(values)


def test_pairs_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal shapes, got \(2,\) and \(3,\)"):
        statistics.paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
