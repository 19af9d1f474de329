"""The searches for a resident set: bounds, agreement with the reference, tie rules, edges."""

import functools
import math
from typing import Any, NamedTuple

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_jax import cache_search, cache_value
from polar_jax.cache_value import CacheProblem

ADAPTERS, CONTEXTS = 6, 16
ROUNDS = 50.0
ENOUGH = 1.0 - 1.0 / math.e
SEARCHES = {
    "top_k": cache_search.top_k,
    "greedy": cache_search.greedy,
    "distorted_greedy": cache_search.distorted_greedy,
    "local_search": cache_search.local_search,
}
make_problem = jax.jit(cache_value.cache_problem)
objective_of = jax.jit(cache_value.objective)
quick = settings(derandomize=True, deadline=None, max_examples=40)


class Drawn(NamedTuple):
    """A problem in the order in which the reference's searches take it."""

    utility: np.ndarray  # [M, N]
    weight: np.ndarray  # [M]
    paging_cost: np.ndarray  # [N]
    switch_cost: np.ndarray  # [N]
    resident_now: np.ndarray  # [N] bool
    cache_slots: int
    rounds: float


@st.composite
def problems(draw: st.DrawFn, *, free_loads: bool = False, full: bool = True) -> Drawn:
    """Random problems; coarse numbers in some of them, so that ties occur."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    slots = draw(st.integers(0, ADAPTERS))
    coarse = draw(st.booleans())
    utility = rng.uniform(-1, 1, (CONTEXTS, ADAPTERS))
    cost = rng.uniform(0.0, draw(st.sampled_from([0.05, 0.5, 3.0])), ADAPTERS)
    if coarse:
        utility, cost = np.round(4 * utility) / 4, np.round(4 * cost) / 4
    weight = rng.integers(0, 3, CONTEXTS).astype(float)
    weight[0] = 1.0
    members = slots if full else draw(st.integers(0, slots))
    now = np.zeros(ADAPTERS, bool)
    now[rng.choice(ADAPTERS, members, replace=False)] = True
    load = draw(st.sampled_from([0.5, 5.0, 30.0])) * rng.uniform(0, 1, ADAPTERS)
    switch = np.zeros(ADAPTERS) if free_loads else load
    return Drawn(utility, weight, cost, switch, now, slots, ROUNDS)


@pytest.fixture(autouse=True)
def _in_double_precision():
    with helpers.double_precision():
        yield


def state(drawn: Drawn, dtype: type = np.float64) -> CacheProblem:
    """The same problem for the engine."""
    utility, weight, cost, switch, now, slots, rounds = drawn
    return make_problem(
        np.asarray(utility, dtype),
        np.asarray(cost, dtype),
        np.asarray(switch, dtype),
        np.asarray(now),
        np.int32(slots),
        weight=np.asarray(weight, dtype),
        rounds=np.asarray(rounds, dtype),
    )


@functools.cache
def compiled(name: str):
    """A search as one program for every K."""
    return jax.jit(SEARCHES[name])


@functools.cache
def compiled_exact(slots: int, smaller: bool):
    """The exact search of one K."""
    return jax.jit(functools.partial(cache_search.exact, cache_slots=slots, smaller=smaller))


def search(name: str, drawn: Drawn) -> np.ndarray:
    """The set that a search returns."""
    if name.startswith("exact"):
        found = compiled_exact(drawn.cache_slots, name == "exact_or_smaller")(state(drawn))
    else:
        found = compiled(name)(state(drawn))
    return np.asarray(found)


def value(drawn: Drawn, members: np.ndarray) -> float:
    """`G` by the reference."""
    terms = drawn.weight, drawn.paging_cost, drawn.switch_cost, drawn.resident_now
    return reference.objective(members, drawn.utility, *terms, drawn.rounds)


def slack(drawn: Drawn, members: np.ndarray) -> float:
    """What the tie rules may give away."""
    return 2e-6 * abs(value(drawn, members)) + 1e-9


@quick
@given(drawn=problems(free_loads=True))
def test_greedy_saves_at_least_its_share_of_the_best_where_loads_are_free(drawn):
    nothing = value(drawn, np.zeros(ADAPTERS, bool))
    best = search("exact_or_smaller", drawn)
    saved = value(drawn, search("greedy", drawn)) - nothing
    assert saved >= ENOUGH * (value(drawn, best) - nothing) - slack(drawn, best)


@quick
@given(drawn=problems(full=False))
def test_no_search_is_worse_than_staying_and_none_beats_all_subsets(drawn):
    stay = value(drawn, drawn.resident_now)
    best = search("exact_or_smaller", drawn)
    for name in ("greedy", "local_search", "exact_or_smaller"):
        assert value(drawn, search(name, drawn)) >= stay - slack(drawn, best)
    for name in SEARCHES:
        found = search(name, drawn)
        assert value(drawn, found) <= value(drawn, best) + slack(drawn, best)
        assert found.sum() <= drawn.cache_slots


@quick
@given(drawn=problems())
def test_sets_of_exactly_k_are_enough_while_the_set_now_is_full(drawn):
    best = value(drawn, search("exact_or_smaller", drawn))
    assert value(drawn, search("exact", drawn)) >= best - slack(
        drawn, drawn.resident_now
    ) - 2e-6 * abs(best)
    assert value(drawn, search("local_search", drawn)) >= value(drawn, drawn.resident_now) - 1e-9


@quick
@given(drawn=problems())
def test_distorted_greedy_keeps_its_bound(drawn):
    nothing = value(drawn, np.zeros(ADAPTERS, bool))
    best = search("exact_or_smaller", drawn)
    paid = float(np.sum(drawn.switch_cost[best & ~drawn.resident_now]))
    savings = value(drawn, best) + paid - nothing
    got = value(drawn, search("distorted_greedy", drawn)) - nothing
    assert got >= ENOUGH * savings - paid - slack(drawn, best)


@quick
@given(drawn=problems())
def test_searches_equal_the_references_up_to_ties(drawn):
    # The reference leaves unprofitable loads out of `top_k`; the engine fills every slot.
    for name in ("greedy", "distorted_greedy", "local_search", "exact"):
        found, expected = search(name, drawn), getattr(reference, name)(*drawn)
        tolerance = 3e-6 * abs(value(drawn, expected)) + 1e-9
        if name in ("greedy", "distorted_greedy"):
            tolerance = ties_may_cost(drawn)
        assert abs(value(drawn, found) - value(drawn, expected)) <= tolerance, name


def ties_may_cost(drawn: Drawn) -> float:
    """How much a tie that rounding broke the other way may cost a greedy search."""
    coarse = np.array_equal(np.round(4 * drawn.utility), 4 * drawn.utility)
    return math.inf if coarse else 1e-9


@quick
@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(0, ADAPTERS))
def test_searches_return_the_references_sets_where_no_two_sets_tie(seed, slots):
    rng = np.random.default_rng(seed)
    now = np.zeros(ADAPTERS, bool)
    now[rng.choice(ADAPTERS, slots, replace=False)] = True
    drawn = Drawn(
        rng.uniform(-1, 1, (CONTEXTS, ADAPTERS)),
        np.ones(CONTEXTS),
        rng.uniform(0.5, 2.0, ADAPTERS),
        rng.uniform(0.0, 5.0, ADAPTERS),
        now,
        slots,
        ROUNDS,
    )
    for name in ("greedy", "distorted_greedy", "local_search"):
        np.testing.assert_array_equal(search(name, drawn), getattr(reference, name)(*drawn))
    values = sorted(
        value(drawn, np.isin(np.arange(ADAPTERS), row))
        for row in cache_search.subset_table(ADAPTERS, slots, smaller=False)
    )
    if len(values) == 1 or values[-1] - values[-2] > 1e-5 * abs(values[-1]):
        np.testing.assert_array_equal(search("exact", drawn), reference.exact(*drawn))


@quick
@given(drawn=problems(full=False))
def test_the_objective_is_the_references_up_to_the_value_of_the_empty_set(drawn):
    problem = state(drawn)
    for name in SEARCHES:
        members = search(name, drawn)
        ours = float(objective_of(problem, members)) + float(problem.floor)
        assert ours == pytest.approx(value(drawn, members), rel=1e-12, abs=1e-9)


def with_utility(utility: list[list[float]], *, now: list[int], slots: int, switch: float = 0.0):
    """A problem whose paging costs are too high to page anything in."""
    table = np.asarray(utility, float)
    count = table.shape[1]
    members = np.isin(np.arange(count), now)
    costs = np.full(count, 10.0), np.full(count, switch)
    return Drawn(table, np.ones(len(table)), *costs, members, slots, 1.0)


def indices(drawn: Drawn, name: str) -> list[int]:
    """Members of the set that a search returns."""
    return np.flatnonzero(search(name, drawn)).tolist()


def test_equal_gains_go_to_the_lowest_adapter():
    drawn = with_utility([[0.5, 0.5, 0.5]], now=[2], slots=1)
    assert indices(drawn, "top_k") == [0]
    assert indices(drawn, "distorted_greedy") == [0]
    assert indices(drawn, "greedy") == [0]


def test_exact_prefers_fewer_loads_and_then_the_first_set_in_order():
    assert indices(with_utility([[0.5, 0.5, 0.5]], now=[2], slots=1), "exact") == [2]
    assert indices(with_utility([[0.5, 0.5, 0.5]], now=[], slots=1), "exact") == [0]
    # A gain within 1e-6 of G does not pay for moving.
    near = [[0.5, 0.5, 0.5 * (1 + 1e-7)]]
    assert indices(with_utility(near, now=[1], slots=1), "exact") == [1]
    clear = [[0.5, 0.5, 0.5 * (1 + 1e-4)]]
    assert indices(with_utility(clear, now=[1], slots=1), "exact") == [2]


def test_local_search_swaps_only_for_a_clear_gain_and_takes_the_lowest_out():
    # Greedy starts from adapter 0 and is no worse: it wins the tie with staying.
    assert indices(with_utility([[0.5, 0.5]], now=[1], slots=1), "local_search") == [0]
    # Covering pairs: greedy takes the broad adapter 0 first; swaps find {1, 2}.
    rows = [[0.6, 1.0, 0.0], [0.6, 0.0, 1.0], [0.6, 1.0, 0.0], [0.6, 0.0, 1.0]]
    drawn = with_utility(rows, now=[0, 1], slots=2)
    assert indices(drawn, "greedy") == [0, 1]
    assert indices(drawn, "local_search") == [1, 2]


def test_greedy_skips_loads_that_do_not_pay_and_keeps_members_in_free_slots():
    drawn = with_utility([[0.9, 0.1, 0.0]], now=[1, 2], slots=2, switch=0.05)
    # Adapter 0 is worth its load; then nothing gains, and member 1 stays.
    assert indices(drawn, "greedy") == [0, 1]
    dear = with_utility([[0.9, 0.1, 0.0]], now=[1, 2], slots=2, switch=100.0)
    assert indices(dear, "greedy") == [1, 2]
    assert indices(dear, "distorted_greedy") == [1]


def test_greedy_returns_to_the_present_set_where_its_own_is_worse():
    # The first pick (0) looks best alone but makes {1, 2} together unreachable.
    rows = [[0.6, 1.0, 0.0], [0.6, 0.0, 1.0]]
    drawn = with_utility(rows, now=[1, 2], slots=2)
    assert indices(drawn, "greedy") == [1, 2]
    assert value(drawn, np.array([False, True, True])) > value(drawn, np.array([True, True, False]))


@pytest.mark.parametrize("name", [*SEARCHES, "exact"])
def test_no_slots_all_slots_and_a_single_adapter_are_no_special_cases(name):
    rng = np.random.default_rng(0)
    table = rng.uniform(-1, 1, (4, 3)).tolist()
    assert indices(with_utility(table, now=[], slots=0), name) == []
    everything = [0, 1, 2]
    full = with_utility(table, now=everything, slots=3)
    found = indices(full, name)
    assert value(full, np.isin(everything, found)) == pytest.approx(value(full, np.ones(3, bool)))
    if name != "distorted_greedy":
        assert found == everything
    assert indices(with_utility([[0.3], [0.2]], now=[0], slots=1), name) == [0]


@pytest.mark.parametrize("name", SEARCHES)
def test_one_program_serves_every_number_of_slots(name):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(problem: CacheProblem) -> jax.Array:
        return SEARCHES[name](problem)

    rng = np.random.default_rng(1)
    utility = rng.uniform(-1, 1, (CONTEXTS, ADAPTERS)).tolist()
    for slots in range(ADAPTERS + 1):
        drawn = with_utility(utility, now=list(range(slots)), slots=slots)
        assert np.sum(np.asarray(run(state(drawn)))) <= slots


@pytest.mark.parametrize("name", [*SEARCHES, "exact"])
def test_searches_in_float32_lose_nothing_that_matters(name):
    rng = np.random.default_rng(2)
    now = np.arange(ADAPTERS) < 3
    table = rng.uniform(-1, 1, (CONTEXTS, ADAPTERS))
    cost = rng.uniform(0.1, 0.6, ADAPTERS)
    drawn = Drawn(table, np.ones(CONTEXTS), cost, cost, now, 3, ROUNDS)
    rule = compiled_exact(3, False) if name == "exact" else compiled(name)
    found = np.asarray(rule(state(drawn, np.float32)))
    assert value(drawn, found) >= value(drawn, search(name, drawn)) - 1e-4 * ROUNDS


def listed(adapters: int, slots: int, **options: Any) -> list[tuple[int, ...]]:
    """The subsets of a table, without what fills up its shape."""
    table = cache_search.subset_table(adapters, slots, **options)
    rows = table.members.swapaxes(1, 2).reshape(-1, table.members.shape[1])
    assert table.num_blocks * cache_search.SUBSET_BLOCK >= table.num_subsets
    return [tuple(i for i in row if i < adapters) for row in rows[: table.num_subsets].tolist()]


def test_tables_of_one_limit_have_one_shape_whatever_the_slots():
    tables = [
        cache_search.subset_table(n, k, limit=2_000, padded_adapters=16)
        for n, k in ((9, 0), (9, 2), (16, 4), (16, 8), (16, 15))
    ]
    assert len({table.members.shape for table in tables}) == 1
    assert [bool(table.complete) for table in tables] == [True, True, True, False, True]


def test_the_table_of_subsets_lists_each_once_in_order():
    assert listed(4, 2) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert listed(3, 2, smaller=True) == [(0, 1), (0, 2), (1, 2), (0,), (1,), (2,), ()]
    assert listed(3, 0) == [()]
    assert listed(3, 2, padded_adapters=8) == [(0, 1), (0, 2), (1, 2)]
    assert len(set(listed(15, 4, limit=5_000))) == 1365
    assert cache_search.num_subsets(15, 4) == 1365


@pytest.mark.parametrize(("cost", "copies"), [(0.3, 2), (1_000.0, 1), (1_000.0, 2)])
def test_local_search_ends_where_sets_differ_by_rounding_alone(cost: float, copies: int) -> None:
    # Exact duplicates and huge costs: swaps whose true gain is 0 but whose float32 sums differ.
    search = jax.jit(cache_search.local_search)
    for seed in range(10):
        base = np.random.default_rng(seed).uniform(-1, 1, (256, 20 // copies)).astype(np.float32)
        utility = jnp.asarray(np.tile(base, (1, copies)))
        problem = cache_value.cache_problem(
            utility,
            jnp.full(20, cost, jnp.float32),
            jnp.zeros(20, jnp.float32),
            jnp.arange(20) < 10,
            jnp.int32(10),
            weight=jnp.ones(256, jnp.float32),
            rounds=jnp.float32(1.0),
        )
        assert int(jnp.sum(search(problem))) == 10
