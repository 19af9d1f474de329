"""Searches for adapters that differ in size: bounds, the reference's sets, ties, edges."""

import functools
import math
from typing import NamedTuple

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import sized
from reference.epochs import Replan
from reference.search import SOLVERS

from polar_jax import cache_search, cache_value, capacity, oracles, replanning
from polar_jax.cache_value import CacheProblem

ADAPTERS, CONTEXTS, ROUNDS = 6, 16, 50.0
HALF = 0.5 * (1.0 - 1.0 / math.e)
LIMIT = 2**ADAPTERS
NAMES = ("top_k", "greedy", "local_search", "exact")
quick = settings(derandomize=True, deadline=None, max_examples=40)


class Drawn(NamedTuple):
    """A problem for the reference and the memory that limits it."""

    plan: Replan
    held: capacity.Memory

    @property
    def bytes(self) -> sized.Bytes:
        """The memory as the reference reads it."""
        return sized.Bytes(*self.held)


def a_size(draw: st.DrawFn) -> int:
    """Small and equal ones, multiples of one another, and nine orders of magnitude."""
    kind = draw(st.sampled_from(["small", "double", "far"]))
    if kind == "small":
        return draw(st.integers(1, 5))
    if kind == "double":
        return 2 ** draw(st.integers(0, 4))
    return round(1e3 * 10.0 ** draw(st.floats(-3.0, 6.0)))


@st.composite
def problems(draw: st.DrawFn, *, free_loads: bool = False) -> Drawn:
    """Random problems; coarse numbers in some of them, so that ties occur."""
    sizes = tuple(a_size(draw) for _ in range(ADAPTERS))
    # From nothing, through less than the smallest, to more than everything.
    room = draw(st.one_of(st.integers(0, sum(sizes) + 1), st.sampled_from([0, *sizes])))
    held = capacity.memory(sizes, max(0, room - draw(st.integers(0, 1))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    utility = rng.uniform(-1, 1, (CONTEXTS, ADAPTERS))
    cost = rng.uniform(0.0, draw(st.sampled_from([0.05, 0.5, 3.0])), ADAPTERS)
    if draw(st.booleans()):
        utility, cost = np.round(4 * utility) / 4, np.round(4 * cost) / 4
    weight = rng.integers(0, 3, CONTEXTS).astype(float)
    weight[0] = 1.0
    now, left = np.zeros(ADAPTERS, bool), draw(st.integers(0, ADAPTERS))
    for i in rng.permutation(ADAPTERS)[:left]:
        now[i] = sized.Bytes(*held).fits(sized.set_with(now, int(i)))
    load = draw(st.sampled_from([0.5, 5.0, 30.0])) * rng.uniform(0, 1, ADAPTERS)
    switch = np.zeros(ADAPTERS) if free_loads else load
    return Drawn(Replan(utility, weight, cost, switch, now, ROUNDS, SOLVERS["greedy"]), held)


@pytest.fixture(autouse=True)
def _in_double_precision():
    with helpers.double_precision():
        yield


def state(drawn: Drawn) -> CacheProblem:
    """The same problem for the engine."""
    plan, count = drawn.plan, len(drawn.held.size_bytes)
    return cache_value.cache_problem(
        jnp.asarray(plan.utility),
        jnp.asarray(plan.paging_cost),
        jnp.asarray(plan.switch_cost),
        jnp.asarray(plan.resident_now),
        jnp.int32(capacity.most_at_once(drawn.held)),
        weight=jnp.asarray(plan.weight),
        rounds=jnp.asarray(plan.rounds),
        room=jax.tree.map(jnp.asarray, capacity.room(drawn.held, count, np.float64)),
    )


@functools.cache
def compiled(name: str):
    """A search as one program for every size and capacity."""
    found = replanning.SEARCHES[name]
    traces = []

    def run(problem: CacheProblem, table: cache_search.SubsetTable) -> jax.Array:
        traces.append(name)
        assert len(traces) == 1, "sizes and capacities are data: they compile nothing"
        return found(problem, table)

    return jax.jit(run)


def search(name: str, drawn: Drawn) -> np.ndarray:
    """The set that a search returns."""
    table = cache_search.fitting_table(drawn.held, limit=LIMIT, maximal=False)
    assert table.complete
    return np.asarray(compiled(name)(state(drawn), table))


def value(drawn: Drawn, members: np.ndarray) -> float:
    """`G` by the reference."""
    return sized.value_of(drawn.plan, members)


def slack(drawn: Drawn, members: np.ndarray) -> float:
    """What the tie rules may give away."""
    return 2e-6 * abs(value(drawn, members)) + 1e-9


@quick
@given(drawn=problems())
def test_no_search_goes_above_the_capacity(drawn):
    for name in NAMES:
        assert drawn.bytes.fits(search(name, drawn)), name


@quick
@given(drawn=problems(free_loads=True))
def test_greedy_saves_half_its_share_of_the_best_where_loads_are_free(drawn):
    nothing = value(drawn, np.zeros(ADAPTERS, bool))
    best = max(value(drawn, one) for one in sized.all_sets(drawn.bytes))
    saved = value(drawn, search("greedy", drawn)) - nothing
    assert saved >= HALF * (best - nothing) - 1e-9


def test_the_density_alone_would_not_keep_the_bound():
    # Control: one adapter is worth nearly everything and takes all of the memory.
    utility = np.array([[0.02, 1.0]])
    plan = Replan(
        utility, np.ones(1), np.ones(2), np.zeros(2), np.zeros(2, bool), 1.0, SOLVERS["greedy"]
    )
    held = sized.Bytes((1, 100), 100)
    dense, led = sized.starts(plan, held)
    assert list(np.flatnonzero(dense)) == [0]
    assert list(np.flatnonzero(led)) == [1]
    nothing = sized.value_of(plan, np.zeros(2, bool))
    least = HALF * (sized.value_of(plan, led) - nothing)
    assert sized.value_of(plan, dense) - nothing < least


@quick
@given(drawn=problems())
def test_local_search_is_not_below_its_starts_and_nothing_beats_all_sets(drawn):
    local, best = search("local_search", drawn), search("exact", drawn)
    for start in (*sized.starts(drawn.plan, drawn.bytes), drawn.plan.resident_now):
        assert value(drawn, local) >= value(drawn, start) - slack(drawn, start)
    for name in NAMES:
        found = search(name, drawn)
        assert value(drawn, found) <= value(drawn, best) + slack(drawn, best)
    stay = value(drawn, drawn.plan.resident_now)
    assert value(drawn, search("greedy", drawn)) >= stay - 1e-9


@quick
@given(drawn=problems())
def test_every_search_finds_what_the_reference_finds(drawn):
    # Coarse utilities tie in exact arithmetic and may be summed in another order there; what
    # `top_k` then takes may be worth anything.
    for name in NAMES[1:]:
        got, expected = search(name, drawn), sized.SOLVERS[name](drawn.plan, drawn.bytes)
        gap = abs(value(drawn, got) - value(drawn, expected))
        assert gap <= slack(drawn, expected), name


@quick
@given(seed=st.integers(0, 2**32 - 1), room=st.integers(0, 60))
def test_searches_return_the_references_sets_where_no_two_sets_tie(seed, room):
    rng = np.random.default_rng(seed)
    held = capacity.memory(rng.integers(1, 20, ADAPTERS).tolist(), room)
    now = capacity.first_fitting(held)
    terms = rng.uniform(-1, 1, (CONTEXTS, ADAPTERS)), np.ones(CONTEXTS), rng.uniform(0, 1, ADAPTERS)
    plan = Replan(*terms, rng.uniform(0, 10, ADAPTERS), now, ROUNDS, SOLVERS["greedy"])
    for name in NAMES:
        got, expected = (
            search(name, Drawn(plan, held)),
            sized.SOLVERS[name](plan, Drawn(plan, held).bytes),
        )
        np.testing.assert_array_equal(got, expected, err_msg=name)


@pytest.mark.slow
@quick
@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(0, ADAPTERS), size=st.integers(1, 2**40))
def test_equal_sizes_give_the_sets_of_so_many_slots(seed, slots, size):
    rng = np.random.default_rng(seed)
    held = capacity.memory([size] * ADAPTERS, slots * size + rng.integers(0, size))
    assert capacity.most_at_once(held) == slots
    now = np.zeros(ADAPTERS, bool)
    now[rng.choice(ADAPTERS, slots, replace=False)] = True
    utility = np.round(rng.uniform(-1, 1, (CONTEXTS, ADAPTERS)), 1)
    costs = np.round(rng.uniform(0, 1, ADAPTERS), 1), rng.uniform(0, 10, ADAPTERS)
    plan = Replan(utility, np.ones(CONTEXTS), *costs, now, ROUNDS, SOLVERS["greedy"])
    ours = state(Drawn(plan, held))
    for name in NAMES:
        table = cache_search.subset_table(ADAPTERS, slots, limit=LIMIT)
        expected = replanning.SEARCHES[name](ours.replace(room=None), table)
        np.testing.assert_array_equal(search(name, Drawn(plan, held)), expected, err_msg=name)


def one_context(utility: list[float], sizes: list[int], room: int, *, now: list[int]) -> Drawn:
    """A problem of one context, costs of 1 and free loads."""
    count = len(utility)
    members = np.zeros(count, bool)
    members[now] = True
    plan = Replan(
        np.array([utility]),
        np.ones(1),
        np.ones(count),
        np.zeros(count),
        members,
        1.0,
        SOLVERS["greedy"],
    )
    return Drawn(plan, capacity.memory(sizes, room))


def found_by(name: str, drawn: Drawn) -> list[int]:
    """Members of the set that an untraced search returns."""
    table = cache_search.fitting_table(drawn.held, limit=LIMIT, maximal=False)
    return np.flatnonzero(replanning.SEARCHES[name](state(drawn), table)).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_one_adapter_none_that_fits_and_ties_are_no_special_cases(name):
    assert found_by(name, one_context([0.5], [7], 7, now=[])) == [0]
    assert found_by(name, one_context([0.5], [7], 6, now=[])) == []
    assert found_by(name, one_context([0.5], [7], 0, now=[])) == []
    tied = found_by(name, one_context([0.5, 0.5, 0.5], [2, 2, 3], 3, now=[]))
    assert tied == [0]
    assert found_by(name, one_context([0.5, 0.5], [2, 2], 3, now=[1]))[0] == (
        0 if name in ("top_k", "greedy", "local_search") else 1
    )


def test_the_best_adapter_is_chosen_over_a_denser_one_and_room_left_is_used():
    # The first is densest; the second alone is worth more, and the third fits beside it.
    drawn = one_context([0.3, 1.0, 0.0], [2, 99, 1], 100, now=[2])
    assert found_by("greedy", drawn) == [1, 2]


def test_moves_add_and_remove_as_well_as_exchange():
    held = capacity.memory([2, 3, 4], 5)
    utility = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.4]])
    now = np.array([False, False, True])
    costs = np.full(3, 2.0), np.array([0.0, 0.0, 0.0])
    plan = Replan(utility, np.ones(3), *costs, now, 3.0, SOLVERS["greedy"])
    assert found_by("local_search", Drawn(plan, held)) == [0, 1]
    dear = Replan(utility, np.ones(3), costs[0], np.full(3, 9.0), now, 3.0, SOLVERS["greedy"])
    assert found_by("local_search", Drawn(dear, held)) == [2]


def test_what_counts_slots_is_refused():
    problem = state(one_context([0.5, 0.4], [1, 2], 2, now=[]))
    with pytest.raises(ValueError, match="distorted_greedy must have slots"):
        cache_search.distorted_greedy(problem)
    with pytest.raises(ValueError, match="exact must have slots"):
        cache_search.exact(problem, cache_slots=1)


def test_the_static_oracle_takes_sizes_or_slots():
    utility = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (50, 4)))
    cost, weight = jnp.full(4, 0.5), jnp.ones(50)
    held = capacity.memory([3, 1, 2, 2], 4)
    got = np.asarray(oracles.static_oracle(utility, cost, weight, memory=held))
    expected, exact = sized.best_static_set(
        np.asarray(utility), np.full(4, 0.5), sized.Bytes(*held)
    )
    np.testing.assert_array_equal(got, expected)
    assert exact
    assert oracles.oracle_is_exact(4, 2, held)
    with pytest.raises(ValueError, match="give one of cache_slots and memory, got None and None"):
        oracles.static_oracle(utility, cost, weight)


@pytest.mark.parametrize("count", [20, 40])
def test_the_oracle_of_many_sets_is_not_called_exact(count):
    held = capacity.memory(list(range(10, 10 + count)), 200)
    assert not oracles.oracle_is_exact(count, capacity.most_at_once(held), held)
    shapes = {
        cache_search.fitting_table(
            capacity.Memory(held.size_bytes, room), limit=5_000, maximal=True
        ).members.shape
        for room in (0, 15, 30, 200)
    }
    assert len(shapes) == 1
