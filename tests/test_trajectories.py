"""Whole lanes against the NumPy reference: equal in float64, within 1e-4 in float32.

In float64 both run free on the same requests. In float32 one flipped near-tie sends two
correct runs apart for good, so there the reference judges the engine's own decisions.
"""

import functools
from typing import Any

import helpers
import jax
import numpy as np
import pytest
from comparison import Case, assert_same_lane, near_ties
from reference import best_static_set, lane_metrics

from polar_jax import lanes, policies

HORIZON = 1200  # Two chunks, four doubling epochs.
SEEDS = (0, 1)
LANES_OF = {"clustered": (0,), "sticky": (0, 1)}
OF_BINARY = ("polar_experts", "lfu")
REFERENCE_NAMES = {
    "regret_routing": "routing",
    "regret_forced": "forced",
    "regret_caching": "caching",
    "regret_switching": "switching",
}


def run_case(
    names: tuple[str, ...], settings: policies.Settings | None = None, **options: Any
) -> Case:
    """Runs `names` in float64 unless `options` say otherwise."""
    sizes: dict[str, Any] = {"horizon": HORIZON, "seeds": SEEDS, "dtype": np.float64}
    experiment = helpers.make_experiment(names, settings=settings, **(sizes | options))
    return Case(experiment, helpers.run_kept(experiment), settings)


@functools.cache
def main_case(environment: str, dtype: type) -> Case:
    """Every policy, or a few where rewards are 0 or 1; compiled and run once."""
    names = OF_BINARY if environment == "bernoulli" else policies.NAMES
    return run_case(names, environment=environment, dtype=dtype)


@pytest.mark.parametrize("name", policies.NAMES)
@pytest.mark.parametrize(
    "environment", ["sticky", pytest.param("clustered", marks=pytest.mark.slow)]
)
def test_every_lane_in_float64_equals_the_reference(environment, name):
    case = main_case(environment, np.float64)
    for lane in LANES_OF[environment]:
        assert_same_lane(case, name, lane)


@pytest.mark.parametrize("name", OF_BINARY)
def test_lanes_with_binary_rewards_equal_the_reference(name):
    assert_same_lane(main_case("bernoulli", np.float64), name, 0)


def test_the_comparison_exercises_forcing_replans_and_bought_loads():
    case = main_case("sticky", np.float64)
    forced = {name: case.engine(name, 0).forced.sum() for name in ("polar_plus", "polar_experts")}
    bought = {
        name: (case.engine(name, 0).switching > 0).sum()
        for name in ("polar", "polar_plus", "polar_experts")
    }
    assert min(forced.values()) > 0
    assert min(bought.values()) > 0
    assert case.engine("lru", 0).loads.sum() > 20


LITERATURE = ("landlord", "arc", "lecar", "fastlibra", "polar_oexp")
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "theory schedule": (("polar", "polar_experts"), {"beta": "theory", "sigma": 0.3}, {}),
    "reservoir and local search": (
        ("polar", "polar_plus"),
        {"sample": "reservoir", "search_plus": "local_search", "first_epoch": 32},
        {},
    ),
    "a pooled prior": (
        ("polar", "polar_plus", "polar_experts", "lru", "lin_ts"),
        {"prior": "pooled", "ridge": 2.0, "first_epoch": 32},
        {"environment": "bernoulli"},
    ),
    "a short window": (("polar", "polar_plus"), {"window": 70, "first_epoch": 32}, {}),
    "a window longer than a chunk": (("polar_plus",), {"window": 1_500}, {"horizon": 3_000}),
    "no switching term": (("polar", "polar_plus"), {"switching_term": False}, {}),
    "epochs of one round": (("polar",), {"epoch_length": 1}, {"horizon": 300}),
    "other constants": (
        ("polar_admit", "polar_experts", "epsilon_greedy", "lin_ts"),
        {
            "alpha": 0.2,
            "ridge": 2.0,
            "first_epoch": 7,
            "quota_scale": 4.0,
            "margin": 0.5,
            "value_half_life": 20.0,
            "expert_half_lives": (5.0, 50.0, 200.0),
            "score_half_life": 50.0,
            "score_growth": 0.5,
            "epsilon": 0.3,
            "thompson_scale": 0.1,
        },
        {},
    ),
    "no slots": (
        ("polar", "polar_plus", "polar_admit", "polar_experts", "gdsf", *LITERATURE),
        {},
        {"slots": 0, "horizon": 300},
    ),
    "all slots": (("polar", "polar_experts", "lru", *LITERATURE), {}, {"slots": 7, "horizon": 300}),
    "one adapter": (
        ("polar_experts", "lecar", "polar_oexp"),
        {},
        {"adapters": 1, "slots": 1, "horizon": 300},
    ),
    "one round": (("polar", "polar_plus", "polar_experts", "lru", *LITERATURE), {}, {"horizon": 1}),
    "free page-ins": (LITERATURE, {}, {"costs": lanes.Costs(synthetic_mean=0.0)}),
    "other constants of the literature's rules": (
        LITERATURE,
        {
            "use_half_life": 3.0,
            "lecar_learning_rate": 2.0,
            "lecar_discount": 0.9,
            "hedge_scale": 20.0,
            "epoch_length": 7,
            "alpha": 1.0,
        },
        {"slots": 2},
    ),
    "a refresh between epochs": (("polar_experts", "lfu"), {}, {"horizon": 4400}),
}


# Each of these compiles for 10 s and more, and asks what the others ask of other parts: CI alone.
LONG = (
    *("a window longer than a chunk", "reservoir and local search", "a refresh between epochs"),
    *("one adapter", "a pooled prior", "epochs of one round"),
)


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in VARIANTS],
)
def test_variants_in_float64_equal_the_reference(variant):
    names, constants, sizes = VARIANTS[variant]
    settings = policies.Settings(**constants)
    case = run_case(names, settings, **({"environment": "sticky", "seeds": (3,)} | sizes))
    for name in names:
        assert_same_lane(case, name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", policies.NAMES)
def test_every_float32_decision_scores_as_the_references_best(name, record_property):
    case = main_case("sticky", np.float32)
    found = sum(near_ties(case, name, lane) for lane in range(len(SEEDS)))
    record_property("near_ties", found)
    print(f"{name}: {found} near-ties in {len(SEEDS) * HORIZON} rounds")


@pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
@pytest.mark.parametrize("name", policies.NAMES)
def test_figures_equal_the_references_on_the_engines_own_decisions(name, dtype):
    case = main_case("sticky", dtype)
    figures = case.results.policies[name]
    relative = 1e-6 if dtype == np.float32 else 1e-12
    marks, lane = case.results.curve_round - 1, 1
    expected = lane_metrics(
        case.engine(name, lane),
        helpers.reference_rounds(case.experiment, figures, lane),
        helpers.reference_problem(case.experiment, case.results, lane),
        case.results.oracle_set[lane],
    )
    expected["page_ins"] = 1.0 - expected["hit"]
    # These streams have no arrival times; test_replay_runs has one that does.
    expected["waiting_ms"] = np.zeros_like(expected["regret"])
    for part, curve in figures.curves.items():
        by_round = expected[REFERENCE_NAMES.get(part, part)]
        scale = 1.0 + np.cumsum(np.abs(by_round))[marks]
        gap = np.abs(curve[lane] - np.cumsum(by_round)[marks])
        assert np.all(gap <= relative * scale), part
        assert figures.totals[part][lane] == curve[lane, -1]


@pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
def test_parts_add_up_to_the_regret_at_every_mark(dtype):
    parts = ("regret_routing", "regret_caching", "regret_switching")
    for result in main_case("sticky", dtype).results.policies.values():
        curves = [result.curves[part] for part in parts]
        scale = 1.0 + sum(np.abs(curve) for curve in curves)
        assert np.all(np.abs(sum(curves) - result.curves["regret"]) <= 1e-6 * scale)


@pytest.mark.parametrize(
    "environment", ["sticky", pytest.param("clustered", marks=pytest.mark.slow)]
)
def test_the_perfect_policy_has_no_regret_and_full_memory_loses_nothing_to_paging(environment):
    results = main_case(environment, np.float64).results.policies
    for part in ("regret", "regret_routing", "regret_caching", "regret_switching"):
        np.testing.assert_allclose(results["oracle"].totals[part], 0.0, atol=1e-9)
    assert np.all(results["full_cache"].totals["page_ins"] == 0)
    assert np.all(results["no_cache"].totals["page_ins"] == HORIZON)
    for result in results.values():
        assert np.all(np.diff(result.curves["loss_to_full"], axis=1) >= -1e-12)


def test_the_hindsight_oracle_is_the_references_best_static_set():
    case = main_case("sticky", np.float64)
    result = case.results.policies["static"]
    for lane in range(len(SEEDS)):
        utility = helpers.reference_rounds(case.experiment, result, lane).utility
        costs = helpers.reference_problem(case.experiment, case.results, lane)
        expected, exact = best_static_set(utility, costs.paging_cost, costs.cache_slots)
        np.testing.assert_array_equal(case.results.oracle_set[lane], expected)
        assert exact
        assert case.results.oracle_exact


@pytest.mark.slow
def test_policies_see_the_same_requests_in_either_precision():
    double = main_case("sticky", np.float64).results.policies["static"].rounds
    single = main_case("sticky", np.float32).results.policies["polar"].rounds
    # To the last bit but one: the two are compiled apart.
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), double, single)
