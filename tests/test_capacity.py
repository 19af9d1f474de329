"""Sizes and capacities in bytes: exact sums, what fits at once, what fits first, equal sizes."""

import itertools
from typing import Any

import helpers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_jax import capacity, kernels, lanes, metrics, policies, problems

quick = settings(derandomize=True, deadline=None, max_examples=100)
sizes_of = st.lists(
    st.one_of(st.integers(1, 6), st.integers(1, 2**53), st.sampled_from([4096, 3 * 4096, 2**40])),
    min_size=1,
    max_size=7,
)


def fitting(held: capacity.Memory) -> set[tuple[int, ...]]:
    """Every set that fits, in bytes, by Python's own numbers."""
    adapters = range(len(held.size_bytes))
    return {
        members
        for count in range(len(adapters) + 1)
        for members in itertools.combinations(adapters, count)
        if sum(held.size_bytes[i] for i in members) <= held.capacity_bytes
    }


@st.composite
def memories(draw: st.DrawFn) -> capacity.Memory:
    """A memory whose capacity is near some set's size, or any number."""
    sizes = draw(sizes_of)
    near = sum(draw(st.lists(st.sampled_from(sizes), max_size=4)))
    room = draw(st.one_of(st.integers(0, 2**53), st.just(near), st.just(max(0, near - 1))))
    return capacity.memory(sizes, min(room, 2**53))


@quick
@given(held=memories())
def test_what_fits_in_units_fits_in_bytes_and_nothing_is_rounded_up_to_2_29_units(held):
    sizes, space = capacity.units(held)
    in_bytes = fitting(held)
    in_units = fitting(capacity.Memory(sizes, space))
    assert in_units <= in_bytes
    unit = np.gcd.reduce(np.array(held.size_bytes, object))
    if held.capacity_bytes // unit <= 2**29:
        assert in_units == in_bytes
    # Sums of two such numbers stay in int32.
    assert max(*sizes, space) <= 2**30


@quick
@given(held=memories())
def test_listed_sets_are_all_that_fit_and_the_maximal_ones_among_them(held):
    whole = fitting(capacity.Memory(*capacity.units(held)))
    listed = capacity.fitting_sets(held, 2**7, maximal=False)
    assert listed is not None
    assert set(listed) == whole
    assert len(listed) == len(whole)
    full = capacity.fitting_sets(held, 2**7, maximal=True)
    assert full is not None
    assert set(full) == {one for one in whole if not any(set(one) < set(two) for two in whole)}
    assert full == sorted(full, key=lambda one: (-len(one), one))
    for maximal, count in ((False, len(listed)), (True, len(full))):
        assert capacity.fitting_sets(held, count - 1, maximal=maximal) is None
        assert capacity.fitting_sets(held, count, maximal=maximal) is not None
    assert capacity.most_at_once(held) == len(listed[0])


def test_maximal_sets_of_much_room_are_found_without_trying_all_sets():
    many = capacity.memory([7] * 59 + [1], 7 * 60)
    assert capacity.fitting_sets(many, 10, maximal=True) == [tuple(range(60))]
    assert capacity.fitting_sets(many, 5_000, maximal=False) is None


@quick
@given(held=memories())
def test_the_first_set_takes_each_adapter_that_still_fits(held):
    sizes, left = capacity.units(held)
    for size, member in zip(sizes, capacity.first_fitting(held), strict=True):
        assert member == (size <= left)
        left -= size if member else 0
    assert left >= 0


@quick
@given(size=st.integers(1, 2**50), count=st.integers(1, 7), room=st.integers(0, 2**53))
def test_equal_sizes_are_exactly_one_and_give_the_first_slots(size, count, room):
    held = capacity.memory([size] * count, room)
    slots = min(count, room // size)
    assert held.equal
    assert capacity.most_at_once(held) == slots
    assert capacity.first_fitting(held).tolist() == [i < slots for i in range(count)]
    arrays = capacity.room(held, count + 2, np.float32)
    np.testing.assert_array_equal(arrays.relative, np.ones(count + 2, np.float32))
    assert np.all(np.asarray(arrays.size)[:count] == 1) or slots == 0
    assert np.all(np.asarray(arrays.size)[count:] > arrays.capacity)


def test_a_unit_is_made_larger_only_where_int32_would_not_do():
    exact = capacity.memory([3, 5], 2**29)
    assert capacity.units(exact) == ((3, 5), 8)
    far = capacity.memory([2**33 + 1, 2**33, 1], 2**33 + 1)
    sizes, space = capacity.units(far)
    assert space <= 2**29
    assert sizes[2] == 1
    # The second and the last fill it to the byte, which larger units cannot tell.
    assert sizes[1] + sizes[2] >= space
    everything = capacity.memory([2**33 + 1, 2**33 + 3], 2**40)
    assert capacity.most_at_once(everything) == 2


@pytest.mark.parametrize(
    ("sizes", "room", "message"),
    [
        ([], 5, "size_bytes must hold the size of one or more"),
        ([1, 0], 5, r"size_bytes\[1\] must be a whole number in \[1, 9.0072e\+15\], got 0"),
        ([1.5], 5, r"size_bytes\[0\] must be a whole number .* got 1.5"),
        ([float("nan")], 5, "got nan"),
        ([2**60], 5, "got 1152921504606846976"),
        ([1], -1, "capacity_bytes must be .* got -1"),
        ([1], float("inf"), "got inf"),
    ],
)
def test_sizes_and_capacities_outside_their_range_are_refused(sizes, room, message):
    with pytest.raises(ValueError, match=message):
        capacity.memory(sizes, room)


def sized(sizes: list[int], room: int) -> problems.Problem:
    """A small problem with sizes."""
    return problems.sized_problem(sizes, room, context_dim=3, horizon=100)


@pytest.mark.parametrize("name", policies.SLOTS_ONLY)
def test_policies_that_count_slots_refuse_sizes_that_differ_and_name_those_that_do_not(name):
    with pytest.raises(ValueError, match=f"'{name}' must have adapters of equal size.*polar, "):
        policies.policy(name, **sized([1, 2, 2], 4)._asdict())
    assert policies.policy(name, **sized([2, 2, 2], 4)._asdict()).problem.cache_slots == 2


@pytest.mark.parametrize("name", ["polar", "polar_plus", "polar_plus_no_forced"])
def test_a_search_that_counts_slots_is_refused_where_sizes_differ(name):
    own = policies.Settings(search="distorted_greedy", search_plus="distorted_greedy")
    with pytest.raises(ValueError, match="must not search with distorted_greedy"):
        policies.policy(name, **sized([1, 2, 2], 4)._asdict(), settings=own)
    policies.policy(name, **sized([2, 2, 2], 4)._asdict(), settings=own)
    policies.policy("lru", **sized([1, 2, 2], 4)._asdict(), settings=own)


def test_a_memory_that_is_another_problems_is_refused():
    given: dict[str, Any] = sized([1, 2, 2], 4)._asdict()
    wrong: dict[str, Any] = {**given, "cache_slots": 3}
    with pytest.raises(ValueError, match=r"cache_slots must be 3 and 2, .* got 3 and 3"):
        policies.policy("lru", **wrong)
    with pytest.raises(ValueError, match="must be made for the experiment's"):
        helpers.make_experiment(
            made=[policies.policy("lru", **given)], size_bytes=[1, 2, 2], capacity_bytes=5
        )


# What keeps sets in ways of its own: a replan by greedy and by all sets, and every eviction.
NAMED = (
    *("polar", "polar_plus", "polar_admit", "polar_experts", "oracle_cache"),
    *("lru", "lfu", "gdsf", "landlord", "fastlibra"),
)


def assert_bitwise_equal(got: lanes.Results, expected: lanes.Results) -> None:
    """Every total and curve, bit for bit."""
    np.testing.assert_array_equal(got.oracle_set, expected.oracle_set)
    assert got.oracle_exact == expected.oracle_exact
    for name, result in expected.policies.items():
        for part in metrics.PARTS:
            np.testing.assert_array_equal(got.policies[name].totals[part], result.totals[part])
            np.testing.assert_array_equal(got.policies[name].curves[part], result.curves[part])


@pytest.mark.slow
@pytest.mark.parametrize("slots", [0, 1, 3, 7])
def test_equal_sizes_give_bitwise_the_results_of_slots(slots, monkeypatch):
    base: dict[str, Any] = {"environment": "sticky", "horizon": 1000, "dtype": np.float32}
    equal: dict[str, Any] = {
        "size_bytes": [20_185_616] * 7,
        "capacity_bytes": slots * 20_185_616 + 5,
    }
    if slots == 7:
        equal["capacity_bytes"] = 10**12
    names = (*NAMED, *(policies.SLOTS_ONLY if slots == 3 else ()))
    expected = lanes.run(helpers.make_experiment(names, slots=slots, **base))
    assert_bitwise_equal(lanes.run(helpers.make_experiment(names, **base, **equal)), expected)
    # And by the rules for sizes themselves, which problems of equal sizes do not need and the
    # native kernel has not: one kernel for both, as kernels may break float32's near-ties apart.
    monkeypatch.setenv(kernels.VARIABLE, "xla")
    expected = lanes.run(helpers.make_experiment(names, slots=slots, **base))
    monkeypatch.setattr(problems.Problem, "differing", property(lambda one: one.memory))
    by_size = lanes.run(helpers.make_experiment(NAMED, **base, **equal))
    assert by_size.policies["polar"].totals["loads"].sum() > 0 or slots in (0, 7)
    kept = expected._replace(policies={name: expected.policies[name] for name in NAMED})
    assert_bitwise_equal(by_size, kept)


@pytest.mark.slow
def test_another_capacity_compiles_nothing_and_room_for_everything_loses_less_than_none():
    from polar_jax import programs

    def run(room: int) -> lanes.Results:
        return lanes.run(
            helpers.make_experiment(
                ("oracle_cache", "lru", "polar"),
                horizon=300,
                size_bytes=[5, 9, 2, 4, 7, 3, 30],
                capacity_bytes=room,
            )
        )

    losses = [run(0).policies["oracle_cache"].totals["loss_to_full"]]
    compiled = len(programs._COMPILED)
    for room in (1, 8, 15, 40, 60):
        losses.append(run(room).policies["oracle_cache"].totals["loss_to_full"])
    assert len(programs._COMPILED) == compiled
    assert losses[0].sum() > losses[-1].sum()
