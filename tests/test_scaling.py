"""Exponents of regret: known curves, coverage of intervals, refusals, and whole tables."""

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from polar_jax import environments
from polar_jax.sweep import bootstrap, exponents, power_law, scaling
from polar_jax.sweep.exponents import Fit

DECADES = np.geomspace(1e3, 1e6, 13)
ALLOWED = 1e-6  # chance that a correct build fails one statistical test of this file


def fit(values: np.ndarray, x: np.ndarray = DECADES, **options: Any) -> Fit:
    """A fit of regret, named."""
    named: dict[str, Any] = {"figure": "regret", "policy": "polar_plus"}
    return exponents.fit(values, x, **named | options)


def exact(curve: np.ndarray, seeds: int = 16) -> np.ndarray:
    """Seeds that all have the same curve."""
    return np.tile(curve, (seeds, 1))


def noisy(
    curve: np.ndarray, spread: float, *, seeds: int = 64, seed: int = 0, own: float = 0.25
) -> np.ndarray:
    """Seeds with a skewed factor of their own (the instance), and noise at every point."""
    rng = np.random.default_rng(seed)
    instance = rng.gamma(spread**-2, spread**2, (seeds, 1))
    return curve * instance * rng.gamma(own**-2, own**2, (seeds, curve.size))


def binomial_limits(trials: int, low: float, high: float) -> tuple[int, int]:
    """Counts that are too small for chance `low`, too large for `high`: each with `ALLOWED / 2`."""

    def logs(chance: float) -> np.ndarray:
        k = np.arange(trials + 1)
        ways = [
            math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in k
        ]
        return np.array(ways) + k * math.log(chance) + (trials - k) * math.log1p(-chance)

    below = np.cumsum(np.exp(logs(low)))
    above = np.cumsum(np.exp(logs(high))[::-1])[::-1]
    return int(np.argmax(below > ALLOWED / 2)), int(np.argmax(above <= ALLOWED / 2) - 1)


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0, 1.7, -0.3])
def test_a_pure_power_law_is_recovered(exponent: float) -> None:
    found = fit(exact(3.0 * DECADES**exponent))
    assert found.slope is not None
    assert found.power is not None
    assert found.curvature is not None
    for measured in (found.slope, found.power.exponent):
        assert measured.estimate == pytest.approx(exponent, abs=1e-6)
        assert measured.low == pytest.approx(exponent, abs=1e-5)
        assert measured.high == pytest.approx(exponent, abs=1e-5)
    assert found.power.factor.estimate == pytest.approx(3.0, rel=1e-6)
    assert abs(found.curvature.estimate) < 1e-9
    assert found.verdict == ""
    assert found.span == (1e5, 1e6)
    assert found.x.size == 13


@pytest.mark.parametrize(
    ("offset", "factor", "exponent"),
    [(100.0, 2.0, 0.5), (-50.0, 2.0, 0.5), (500.0, 0.02, 1.0), (100.0, -300.0, -0.3)],
)
def test_a_power_law_with_an_offset_is_recovered(
    offset: float, factor: float, exponent: float
) -> None:
    found = fit(exact(offset + factor * DECADES**exponent))
    assert found.power is not None
    assert found.slope is not None
    assert found.power.offset.estimate == pytest.approx(offset, rel=1e-5)
    assert found.power.factor.estimate == pytest.approx(factor, rel=1e-5)
    assert found.power.exponent.estimate == pytest.approx(exponent, abs=1e-6)
    assert found.power.misfit < 1e-8
    np.testing.assert_allclose(found.power.at(found.x), found.mean, rtol=1e-8)
    # The local slope knows nothing of an offset: it is the asymptotic exponent only without.
    assert abs(found.slope.estimate - exponent) > 1e-3


def test_an_offset_is_recovered_from_noisy_seeds_within_its_interval() -> None:
    found = fit(noisy(400.0 + 2.0 * DECADES**0.5, 0.3, seeds=256))
    assert found.power is not None
    assert not found.power.offset.excludes(400.0)
    assert not found.power.exponent.excludes(0.5)
    assert found.power.offset.excludes(0.0)


def test_the_weights_of_the_fit_are_one_over_the_variance() -> None:
    # The last point is wrong, but known a thousand times worse than the others.
    curve = 5.0 + 2.0 * DECADES**0.5
    curve[-1] *= 1.5
    error = 1e-3 * curve
    error[-1] *= 1e3
    law = power_law.fit_power_law(DECADES, curve, error, curve[None])
    assert law.exponent.estimate == pytest.approx(0.5, abs=1e-4)
    alike = power_law.fit_power_law(DECADES, curve, 1e-3 * curve, curve[None])
    assert abs(alike.exponent.estimate - 0.5) > 0.01


@pytest.mark.parametrize("exponent", [3.0, -2.0])
def test_an_exponent_outside_the_search_leaves_its_interval_open(exponent: float) -> None:
    found = fit(exact(10.0 + DECADES**exponent), figure="loss_to_full")
    assert found.power is not None
    sought = found.power.exponent
    outside = sought.high if exponent > 0 else -sought.low
    assert outside == math.inf
    assert (found.power.offset.low, found.power.offset.high) == (-math.inf, math.inf)


def test_a_curve_that_does_not_vary_determines_no_exponent_of_a_power_law() -> None:
    found = fit(exact(np.full(13, 7.0)))
    assert found.slope is not None
    assert found.power is not None
    assert found.slope.estimate == pytest.approx(0.0, abs=1e-9)
    assert math.isnan(found.power.exponent.estimate)
    assert (found.power.exponent.low, found.power.exponent.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    "curve",
    [
        DECADES**0.5 * np.log(DECADES),
        np.log(DECADES) ** 2,
        DECADES**0.4 + 0.01 * DECADES,
        300.0 + DECADES**0.5,
    ],
)
def test_curves_that_bend_in_logarithms_are_flagged(curve: np.ndarray) -> None:
    found = fit(noisy(curve, 0.3, seeds=128, own=0.01))
    assert found.verdict == "not a power law here"
    assert "not a power law here" in scaling.describe(found)


def test_pure_power_laws_are_flagged_as_seldom_as_the_interval_says() -> None:
    # 400 studies of 64 seeds; a percentile interval of 64 skewed seeds misses 0 in 5 to 8 %.
    trials, curve = 400, 3.0 * DECADES[::3] ** 0.5
    flagged = 0
    for trial in range(trials):
        values = noisy(curve, 0.5, seed=trial)
        flagged += bool(fit(values, DECADES[::3], resamples=400).verdict)
    least, most = binomial_limits(trials, 0.05, 0.08)
    assert least <= flagged <= most
    bent = noisy(curve * np.log(DECADES[::3]) ** 2, 0.5, seed=1)
    assert fit(bent, DECADES[::3], resamples=400).verdict


@pytest.mark.parametrize(("share", "consistent"), [(1.0, True), (0.5, False)])
def test_slope_intervals_cover_the_truth_as_often_as_they_say(
    share: float, consistent: bool
) -> None:
    # 1,200 independent studies; with 64 skewed seeds the percentile bootstrap covers in 93 to
    # 95 % (docs/scaling.md). Exact binomial limits: a correct build fails with probability
    # 1e-6. The control, with intervals of half the width, has to fail.
    trials, x = 1_200, np.array([1e5, 3e5, 1e6])
    covered = 0
    for trial in range(trials):
        slope = fit(noisy(2.0 * x**0.5, 0.5, seed=trial), x, resamples=500).slope
        assert slope is not None
        low, high = (
            slope.estimate + share * (end - slope.estimate) for end in (slope.low, slope.high)
        )
        covered += low <= 0.5 <= high
    least, most = binomial_limits(trials, 0.93, 0.95)
    assert (least <= covered <= most) == consistent


def test_intervals_resample_whole_seeds_and_not_points() -> None:
    # Seeds that differ by a factor alone have the same slope each: its interval has no width,
    # as it would if the points of a curve were drawn apart.
    found = fit(noisy(DECADES**0.5, 0.5, own=1e-9))
    assert found.slope is not None
    assert found.power is not None
    assert found.slope.high - found.slope.low < 1e-6
    assert found.power.factor.high - found.power.factor.low > 0.1
    assert found.spread == pytest.approx(0.5, abs=0.15)


def test_means_within_three_standard_errors_are_left_out() -> None:
    values = exact(DECADES**0.5, 64)
    swing = np.where(np.arange(64) % 2 == 0, 1.0, -1.0)
    values[:, 2] += 0.99 * swing * values[:, 2] * 8 / 3 * math.sqrt(63 / 64)
    values[:, 4] += 1.01 * swing * values[:, 4] * 8 / 3 * math.sqrt(63 / 64)
    found = fit(values)
    assert [x for x, _ in found.skipped] == [DECADES[4]]
    assert "not above 3 standard errors" in found.skipped[0][1]
    assert found.x.size == 12
    assert DECADES[4] not in found.x


def test_runs_that_are_too_short_are_left_out() -> None:
    least = exponents.least_horizon(np.array([15, 4]), np.array([8, 2]))
    assert least.tolist() == [30 * 120, 30 * 64]
    x = np.array([1e3, 3_599.0, 3_600.0, 1e4, 3e4, 1e5])
    found = fit(exact(x**0.5), x, least=30 * 120)
    assert found.x.tolist() == [3_600.0, 1e4, 3e4, 1e5]
    assert [at for at, _ in found.skipped] == [1e3, 3_599.0]
    assert found.skipped[0][1] == "T = 1000 is below 30 max(N d, L0) = 3600"


def test_along_other_axes_the_length_is_that_of_each_point() -> None:
    n = np.array([4.0, 8.0, 16.0, 32.0])
    least = exponents.least_horizon(n, np.full(4, 8.0))
    found = fit(exact(n), n, axis="num_adapters", horizon=np.full(4, 4_000.0), least=least)
    assert found.x.tolist() == [4.0, 8.0, 16.0]
    assert found.span == (4.0, 16.0)
    assert found.power is None
    assert found.curvature is None


@pytest.mark.parametrize("stream", exponents.SIGNED_STREAMS)
def test_regret_is_not_fitted_where_it_can_be_negative(stream: str) -> None:
    values = exact(DECADES**0.5)
    for figure in exponents.FIGURES:
        found = fit(values, stream=stream, figure=figure)
        assert (found.slope is None) == (figure != "loss_to_full")
        assert (found.why_not is None) == (figure == "loss_to_full")
        assert found.why_not is None or stream in found.why_not


def test_streams_of_independent_requests_are_the_ones_that_are_fitted() -> None:
    fitted = set(environments.NAMES) - set(exponents.SIGNED_STREAMS)
    assert fitted == {"clustered", "isotropic", "bernoulli"}


@pytest.mark.parametrize(
    ("curve", "seeds", "reason"),
    [
        (DECADES**0.5, 15, "15 seeds at every point, at least 16 are needed"),
        (
            -DECADES,
            16,
            "0 usable points, at least 3 are needed; at T = 1e\\+06: the mean, -1e\\+06",
        ),
        (0.0 * DECADES, 16, "the mean, 0, is not positive"),
        (np.where(DECADES > 1e4, np.nan, DECADES), 16, None),
        (np.where(DECADES > 2e3, np.nan, DECADES), 16, "2 usable points.*not finite"),
        (np.where((DECADES > 5e3) & (DECADES < 9e5), np.nan, DECADES), 16, "last decade holds one"),
    ],
)
def test_what_cannot_be_fitted_says_why(curve: np.ndarray, seeds: int, reason: str | None) -> None:
    found = fit(exact(curve, seeds))
    if reason is None:
        assert found.why_not is None
        return
    assert found.slope is None
    with pytest.raises(ValueError, match=f"was not fitted: .*{reason}"):
        found.line_at(DECADES)
    assert f"not fitted, {found.why_not}" in scaling.describe(found)


def test_resamples_without_a_logarithm_widen_the_interval_and_open_it() -> None:
    draws = np.linspace(0.0, 1.0, 1_001)
    whole = bootstrap.interval(0.5, draws)
    assert (whole.low, whole.high) == pytest.approx((0.025, 0.975))
    few, many = draws.copy(), draws.copy()
    few[480:490] = np.nan
    many[480:510] = np.nan
    wider = bootstrap.interval(0.5, few)
    assert wider.low < whole.low
    assert wider.high > whole.high
    opened = bootstrap.interval(0.5, many)
    assert (opened.low, opened.high) == (-math.inf, math.inf)


def test_non_positive_means_of_resamples_are_counted() -> None:
    # The mean is 3.9 standard errors above 0, held up by the one seed in 20 that is below.
    values = exact(DECADES**0.5, 20)
    values[0] *= -3.9
    found = fit(values)
    assert found.failed > 0.0
    sound = fit(noisy(DECADES**0.5, 0.3))
    assert sound.failed == 0.0


def test_the_line_has_the_slope_and_passes_through_the_last_decade() -> None:
    found = fit(noisy(DECADES**0.5, 0.3))
    assert found.slope is not None
    line = found.line_at(DECADES)
    slopes = np.diff(np.log(line)) / np.diff(np.log(DECADES))
    np.testing.assert_allclose(slopes, found.slope.estimate)
    last = DECADES > 9e4
    assert np.log(line[last] / found.mean[last]).sum() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figure": "hit_rate"}, "figure must be one of regret, "),
        ({"axis": "alpha"}, "axis must be one of horizon, "),
        ({"x": DECADES[:5]}, r"values must be \[seeds, 5\] like x, got shape \(16, 13\)"),
        ({"x": np.full(13, 5.0)}, "points along horizon must differ"),
        ({"resamples": 0}, "at least 1, got 16 and 0"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(exact(DECADES**0.5), **change)


def table(
    *, policies: tuple[str, ...] = ("lru", "polar_plus"), slots: tuple[int, ...] = (2, 4)
) -> dict[str, np.ndarray]:
    """A table of lanes: regret grows as T^(K / 10), a different factor per policy."""
    horizons = np.array([10_000, 30_000, 100_000, 300_000])
    rows: dict[str, list[Any]] = {}
    for index, policy in enumerate(policies):
        for k in slots:
            curves = noisy((index + 1) * horizons ** (k / 10), 0.3, seeds=20, own=0.05)
            for seed, curve in enumerate(curves):
                for horizon, value in zip(horizons, curve, strict=True):
                    row = {"policy": policy, "seed": seed, "cache_slots": k, "horizon": horizon}
                    row |= {"num_adapters": 15, "context_dim": 8, "environment": "clustered"}
                    row |= {"mean_paging_cost": 0.3}
                    row |= dict.fromkeys(exponents.FIGURES, value)
                    for name, entry in row.items():
                        rows.setdefault(name, []).append(entry)
    return {name: np.array(entries) for name, entries in rows.items()}


def taken(columns: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some rows of a table."""
    return {name: column[rows] for name, column in columns.items()}


BY = ("policy", "cache_slots", "horizon", "environment")


def test_a_study_fits_every_policy_group_and_figure() -> None:
    found = scaling.study(table(), "horizon", by=BY)
    assert len(found) == 2 * 2 * len(exponents.FIGURES)
    assert [one.policy for one in found[::12]] == ["lru", "polar_plus"]
    for one in found:
        held = dict(one.group)
        assert set(held) == {"cache_slots", "environment"}
        assert one.slope is not None
        assert one.seeds == 20
        assert one.slope.estimate == pytest.approx(held["cache_slots"] / 10, abs=0.03)


def same(left: Fit, right: Fit) -> bool:
    """Whether two fits have the same numbers, bit by bit."""
    return repr(dataclasses.asdict(left)) == repr(dataclasses.asdict(right))


def test_the_order_of_rows_changes_nothing_and_the_bootstrap_seed_does() -> None:
    columns = table()
    shuffled = taken(columns, np.random.default_rng(3).permutation(columns["seed"].size))
    straight = scaling.study(columns, "horizon", by=BY)
    assert all(map(same, straight, scaling.study(shuffled, "horizon", by=BY)))
    assert all(map(same, straight, scaling.study(columns, "horizon", by=BY)))
    bootstrap.weights.cache_clear()
    assert all(map(same, straight, scaling.study(columns, "horizon", by=BY)))
    other = scaling.study(columns, "horizon", by=BY, seed=1)
    assert not any(map(same, straight, other))


def test_only_seeds_present_at_every_point_are_used() -> None:
    columns = table(policies=("lru",), slots=(4,))
    lacking = ~((columns["seed"] == 3) & (columns["horizon"] == 100_000))
    found = scaling.study(taken(columns, lacking), "horizon", by=BY, figures=("regret",))[0]
    without = taken(columns, columns["seed"] != 3)
    expected = scaling.study(without, "horizon", by=BY, figures=("regret",))[0]
    assert found.seeds == 19
    assert same(found, expected)
    apart = taken(columns, (columns["seed"] < 8) == (columns["horizon"] < 50_000))
    nothing = scaling.study(apart, "horizon", by=BY, figures=("regret",))[0]
    assert nothing.why_not == "no seed was run at every value of horizon"


def test_rows_that_only_a_forgotten_axis_tells_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="name the axis that tells them apart"):
        scaling.study(table(), "horizon", by=("environment",))
    with pytest.raises(ValueError, match=r"lacks \['alpha'\]"):
        scaling.study(table(), "horizon", by=("alpha",))
    with pytest.raises(ValueError, match="scaling axis must be one of horizon"):
        scaling.study(table(), "alpha")


def test_a_size_that_changes_along_the_axis_is_not_taken_for_the_axis() -> None:
    columns = table(slots=(4,))
    columns["num_adapters"] = columns["horizon"] // 1_000
    found = scaling.study(columns, "horizon", by=BY)
    assert {one.why_not for one in found} == {"num_adapters changes along horizon too"}


def test_a_study_refuses_signed_streams_and_short_runs_by_its_columns() -> None:
    columns = table(slots=(4,))
    half = columns["policy"] == "lru"
    columns["environment"] = np.where(half, "rotating", "clustered").astype(object)
    columns["context_dim"] = np.full(half.size, 30)
    for one in scaling.study(columns, "horizon", by=BY):
        signed = one.policy == "lru" and one.figure != "loss_to_full"
        assert (one.slope is None) == signed
        assert signed or [x for x, _ in one.skipped] == [10_000.0]
    told = scaling.study(table(), "horizon", by=("cache_slots",), fixed={"environment": "sticky"})
    assert all((one.slope is None) == (one.figure != "loss_to_full") for one in told)


def test_what_moves_along_with_the_axis_is_refused_and_its_stream_is_read() -> None:
    columns = table(slots=(4,)) | {"alpha": np.where(table(slots=(4,))["horizon"] < 50_000, 1, 2)}
    for one in scaling.study(columns, "horizon", along=("alpha",)):
        assert one.why_not == "alpha changes along horizon too"
    columns["alpha"] = np.ones_like(columns["alpha"])
    assert all(one.slope for one in scaling.study(columns, "horizon", along=("alpha",)))
    # The stream of the rows counts, not that of the options that are fixed.
    columns["environment"] = np.full(columns["alpha"].size, "rotating", object)
    for one in scaling.study(columns, "horizon", along=("environment",)):
        assert (one.slope is None) == (one.figure != "loss_to_full")


def test_nulls_of_other_axes_make_a_group_of_their_own() -> None:
    columns = table(slots=(4,), policies=("lru",))
    columns["period"] = np.where(columns["seed"] < 8, np.nan, 500.0)
    found = scaling.study(columns, "horizon", by=("period",), figures=("regret",))
    assert [dict(one.group)["period"] for one in found] == [None, 500.0]
    assert [one.seeds for one in found] == [8, 12]


def test_axes_may_be_named_by_their_option() -> None:
    columns = table(slots=(2, 4, 8))
    only = taken(columns, columns["horizon"] == 30_000)
    found = scaling.study(only, "slots", by=("horizon",), figures=("regret",))
    assert {one.axis for one in found} == {"cache_slots"}
    assert found[0].x.tolist() == [2.0, 4.0, 8.0]
    assert "for K from 2 to 8" in scaling.describe(found[0])


def test_a_study_tells_theory_what_it_knows_of_a_group() -> None:
    def known(columns: dict[str, np.ndarray], **fixed: str) -> dict[str, float | None]:
        found = scaling.study(columns, "horizon", by=("cache_slots",), fixed=fixed)
        return {one.figure: one.theory and one.theory[0] for one in found if one.policy == "lru"}

    columns = table(slots=(4,))
    assert known(columns, beta="theory") == {
        **dict.fromkeys(exponents.FIGURES),
        **{"regret_routing": 0.5, "loss_to_full": 1.0},
    }
    assert known(columns)["regret_routing"] is None
    assert known(columns, beta="theory", environment="bernoulli")["regret_routing"] is None
    everything = columns | {"num_adapters": np.full_like(columns["num_adapters"], 4)}
    assert known(everything)["loss_to_full"] is None
    free = columns | {"mean_paging_cost": np.zeros_like(columns["mean_paging_cost"])}
    assert known(free)["loss_to_full"] is None


def calls_of(task: Callable[[], object]) -> int:
    """How many functions a task calls."""
    calls = [0]

    def count(_frame: object, event: str, _arg: object) -> None:
        calls[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        task()
    finally:
        sys.setprofile(None)
    return calls[0]


def test_a_fit_of_256_seeds_calls_nothing_per_resample() -> None:
    values = noisy(100.0 + DECADES**0.5, 0.3, seeds=256)
    fit(values)
    few, many = (calls_of(lambda n=n: fit(values, resamples=n)) for n in (500, 4000))
    # Seconds depend on the machine, this does not; steps of a search may differ by a few.
    assert abs(many - few) < 500
