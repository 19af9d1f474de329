"""Whole lanes of adapters that differ in size against the NumPy reference, action by action."""

import functools
from typing import Any

import comparison
import helpers
import numpy as np
import pytest
from comparison import Case
from reference import sized

from polar_jax import capacity, lanes, policies

pytestmark = pytest.mark.slow  # Compiles most of the programs there are.

HORIZON = 1200  # Two chunks, four doubling epochs.
SEEDS = (0, 1)
# One never fits; two small ones, two equal ones; bytes that have no divisor in common.
SIZES = (10, 4, 37, 7, 21, 21, 5)
CAPACITY = 36


def run_case(
    names: tuple[str, ...], settings: policies.Settings | None = None, **options: Any
) -> Case:
    """Runs `names` in float64."""
    given: dict[str, Any] = {"horizon": HORIZON, "seeds": SEEDS, "environment": "sticky"}
    given |= {"size_bytes": SIZES, "capacity_bytes": CAPACITY, "dtype": np.float64}
    experiment = helpers.make_experiment(names, settings=settings, **(given | options))
    return Case(experiment, helpers.run_kept(experiment), settings)


@functools.cache
def main_case() -> Case:
    """Every policy that knows sizes; compiled and run once."""
    return run_case(policies.SIZED)


def assert_same_lane(case: Case, name: str, lane: int) -> None:
    """Equal to the reference's, and within the capacity."""
    comparison.assert_same_lane(case, name, lane)
    held = case.experiment.problem.memory
    assert held is not None
    if name != "full_cache":
        resident = case.engine(name, lane).resident
        assert np.all(resident @ np.array(held.size_bytes) <= held.capacity_bytes)


@pytest.mark.parametrize("name", policies.SIZED)
def test_every_lane_in_float64_equals_the_reference(name):
    for lane in range(len(SEEDS)):
        assert_same_lane(main_case(), name, lane)


def test_the_comparison_evicts_several_at_once_leaves_room_and_turns_the_largest_away():
    for name in ("lru", "lfu", "gdsf", "landlord", "fastlibra"):
        lane = main_case().engine(name, 0)
        left = np.sum(lane.resident[:-1] & ~lane.resident[1:], axis=1)
        assert left.max() >= 2, name
        assert np.any((lane.loads[:-1] == 1) & (left == 0)), name
        too_large = lane.actions == SIZES.index(max(SIZES))
        assert np.any(too_large), name
        assert np.all(lane.loads[too_large] == 0), name


@functools.cache
def variant_case(variant: str) -> Case:
    """One variant on one lane."""
    names, constants, sizes = VARIANTS[variant]
    return run_case(names, policies.Settings(**constants), **({"seeds": (3,)} | sizes))


def test_the_comparison_buys_loads_and_holds_sets_of_several_numbers_of_adapters():
    for name in ("polar", "polar_plus", "polar_experts"):
        lane = variant_case("dear page-ins").engine(name, 0)
        assert np.sum(lane.switching > 0) > 0, name
        assert len(set(lane.resident.sum(axis=1))) > 1, name


VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, Any]]] = {
    "dear page-ins": (
        ("polar", "polar_plus", "polar_admit", "polar_experts", "landlord", "gdsf"),
        {},
        {"costs": lanes.Costs(synthetic_mean=1.5), "horizon": 800},
    ),
    "local search and singles": (
        ("polar_plus", "polar"),
        {"search_plus": "local_search", "first_epoch": 32, "epoch_length": 20},
        {"horizon": 800, "size_bytes": (30, 3, 31, 4, 21, 5, 9), "capacity_bytes": 34},
    ),
    "single gains by size": (("polar_plus",), {"search_plus": "top_k"}, {"horizon": 800}),
    "no capacity": (("polar", "polar_plus", "polar_experts", "lru"), {}, {"capacity_bytes": 0}),
    "a capacity below the smallest": (
        ("polar", "polar_experts", "gdsf", "polar_admit"),
        {},
        {"capacity_bytes": min(SIZES) - 1, "horizon": 300},
    ),
    "room for everything": (
        ("polar", "polar_plus", "polar_experts", "lru", "landlord"),
        {},
        {"capacity_bytes": 10**9, "horizon": 300},
    ),
    "sizes of very different orders": (
        ("polar", "polar_plus", "polar_experts", "gdsf", "landlord", "polar_admit"),
        {},
        {
            "size_bytes": (10**12 + 7, 10**6, 3, 10**9 + 1, 10**12 - 5, 10**3, 1),
            "capacity_bytes": 10**12 + 10**9,
            "horizon": 600,
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_in_float64_equal_the_reference(variant):
    for name in VARIANTS[variant][0]:
        assert_same_lane(variant_case(variant), name, 0)


def test_the_hindsight_oracle_is_the_references_best_set_that_fits():
    case = main_case()
    held = sized.Bytes(SIZES, CAPACITY)
    for lane in range(len(SEEDS)):
        result = case.results.policies["static"]
        utility = helpers.reference_rounds(case.experiment, result, lane).utility
        cost = helpers.reference_problem(case.experiment, case.results, lane).paging_cost
        expected, exact = sized.best_static_set(utility, cost, held)
        np.testing.assert_array_equal(case.results.oracle_set[lane], expected)
        assert exact
        assert case.results.oracle_exact
    assert capacity.most_at_once(capacity.Memory(SIZES, CAPACITY)) == 4
