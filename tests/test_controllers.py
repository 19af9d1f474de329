"""Residency rules: one contract for all of them, and traces worked by hand."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import served, start_of

from polar_jax import controllers, eviction, experts, replanning
from polar_jax.types import Admission, AdmitInputs, Controller, ReplanInputs

N, ROUNDS = 6, 200
ADMITTING: dict[str, tuple[Controller, Any]] = {
    "lru": (controllers.lru(), ()),
    "lfu": (controllers.lfu(), ()),
    "gdsf": (controllers.gdsf(), ()),
    "landlord": (eviction.landlord(), ()),
    "arc": (eviction.arc(), ()),
    "lecar": (
        eviction.lecar(),
        eviction.LecarParams(learning_rate=jnp.float32(0.45), discount=jnp.float32(0.005)),
    ),
    "fastlibra": (eviction.fastlibra(), eviction.FastLibraParams(decay=jnp.float32(0.99))),
    "residency value": (controllers.residency_value(), controllers.AdmissionParams(decay=0.99)),
    "experts": (
        experts.experts(num_values=3),
        experts.ExpertParams(
            value_decay=jnp.array([0.9, 0.99, 0.999], jnp.float32),
            score_half_life=jnp.float32(300),
            score_growth=jnp.float32(0.5),
            beta_max=jnp.float32(0.5),
        ),
    ),
}
SEARCHES = ("exact", *replanning.SEARCHES)


@functools.cache
def random_run(name: str) -> Any:
    """A jitted run over random requests from any first set; returns every set."""
    controller, params = ADMITTING[name]
    admit = controller.admit
    assert admit is not None

    def run(resident: jax.Array, means: jax.Array, adapters: jax.Array, cost: jax.Array) -> Any:
        bits = jax.random.bits(jax.random.key(1), (len(adapters), 2), jnp.uint32)

        def body(carry: Any, request: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
            state, resident = carry
            mean, adapter, bits = request
            state, admission = admit(
                params, state, served(resident, adapter, mean, cost, jnp.abs(mean), bits=bits)
            )
            return (state, admission.resident), admission

        start = start_of(controller, resident), resident
        return jax.lax.scan(body, start, (means, adapters, bits))

    return jax.jit(run)


@pytest.mark.parametrize("slots", [0, 1, 3, N])
@pytest.mark.parametrize("name", ADMITTING)
def test_admission_contract(name, slots):
    rng = np.random.default_rng(slots)
    means = np.float32(0.4 * rng.standard_normal((ROUNDS, N)))
    adapters = rng.integers(0, N, ROUNDS).astype(np.int32)
    cost = np.float32(rng.uniform(0.01, 0.3, N))
    first = np.arange(N) < slots
    # The scan itself refuses a carry whose structure, shapes or dtypes change.
    (state, _), admissions = random_run(name)(first, means, adapters, cost)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        state, start_of(ADMITTING[name][0], jnp.asarray(first))
    )
    sets, bought = np.asarray(admissions.resident), np.asarray(admissions.bought)
    assert sets.dtype == bought.dtype == bool
    np.testing.assert_array_equal(sets.sum(axis=1), slots)
    before = np.concatenate([first[None], sets[:-1]])
    entered = sets & ~before
    # Whoever enters was served by this request, or is bought; nothing else is bought.
    paid = np.arange(N)[None] == adapters[:, None]
    assert not np.any(entered & ~paid & ~bought)
    assert not np.any(bought & ~entered)
    if name != "experts":
        assert not bought.any()
    if slots in (0, N):
        np.testing.assert_array_equal(sets, np.broadcast_to(first, sets.shape))
    else:
        assert entered.any()


@pytest.mark.parametrize("name", ADMITTING)
def test_admission_compiles_once_and_keeps_strong_types(name):
    controller, params = ADMITTING[name]
    admit = controller.admit
    assert admit is not None
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state: Any, inputs: AdmitInputs) -> tuple[Any, Admission]:
        return admit(params, state, inputs)

    resident = jnp.arange(N) < 2
    state = start_of(controller, resident)
    for adapter in range(3):
        inputs = served(resident, adapter, jnp.zeros(N, jnp.float32), jnp.full(N, 0.1, jnp.float32))
        state, admission = step(state, inputs)
        resident = admission.resident
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, admission)))


def test_fixed_sets_never_change():
    controller = controllers.fixed()
    assert controller.admit is None
    assert controller.replan is None
    assert jax.tree.leaves(start_of(controller, jnp.ones(N, bool))) == []


@pytest.mark.parametrize("slots", [0, 2, N])
@pytest.mark.parametrize("search", SEARCHES)
def test_replan_contract(search, slots):
    plan = replanning.replanner(search, optimistic=True)
    assert plan is replanning.replanner(search, optimistic=True)
    rng = np.random.default_rng(0)
    means = np.float32(rng.uniform(-1, 1, (32, N)))
    resident = np.arange(N) < slots
    inputs = ReplanInputs(
        mean=jnp.asarray(means),
        optimistic=jnp.asarray(means + 0.1),
        weight=jnp.ones(32, jnp.float32),
        resident=jnp.asarray(resident),
        paging_cost=jnp.full(N, 0.4, jnp.float32),
        switch_cost=jnp.full(N, 0.4, jnp.float32),
        cache_slots=jnp.int32(slots),
        amortised_rounds=jnp.float32(100),
        policy_bits=jnp.zeros(2, jnp.uint32),
        active=jnp.ones(N, bool),
        subsets=replanning.controller_subsets(N, slots, N),
    )
    planned = np.asarray(jax.jit(plan)(inputs))
    assert planned.dtype == bool
    assert planned.shape == (N,)
    assert planned.sum() == slots


def test_only_what_is_asked_for_drives_a_replan():
    inputs = ReplanInputs(
        mean=jnp.array([[1.0, 0.0]], jnp.float32),
        optimistic=jnp.array([[0.0, 1.0]], jnp.float32),
        weight=jnp.ones(1, jnp.float32),
        resident=jnp.array([True, False]),
        paging_cost=jnp.full(2, 0.5, jnp.float32),
        switch_cost=jnp.zeros(2, jnp.float32),
        cache_slots=jnp.int32(1),
        amortised_rounds=jnp.float32(1),
        policy_bits=jnp.zeros(2, jnp.uint32),
        active=jnp.ones(2, bool),
        subsets=replanning.controller_subsets(2, 1, 2),
    )
    for optimistic, expected in ((False, [True, False]), (True, [False, True])):
        plan = replanning.replanner("greedy", optimistic=optimistic)
        assert plan(inputs).tolist() == expected
    with pytest.raises(ValueError, match=r"search must be one of .*got 'best'"):
        replanning.replanner("best", optimistic=True)


def trace(name: str, choices: list[int], cost: list[float], first: list[int]) -> list[list[int]]:
    """The resident set after each choice, with nothing to learn from the scores."""
    controller, params = ADMITTING[name]
    admit = controller.admit
    assert admit is not None
    step = jax.jit(admit)
    resident = jnp.asarray(np.isin(np.arange(len(cost)), first))
    state = start_of(controller, resident)
    costs, mean = jnp.array(cost, jnp.float32), jnp.zeros(len(cost), jnp.float32)
    sets = []
    for adapter in choices:
        state, admission = step(params, state, served(resident, adapter, mean, costs))
        resident = admission.resident
        sets.append(np.flatnonzero(resident).tolist())
    return sets


def test_lru_evicts_the_least_recently_chosen_and_unused_residents_first():
    sets = trace("lru", [0, 1, 2, 0, 2, 1], [0.1] * 3, first=[0, 1])
    # 2 replaces 0, 0 replaces 1, the hit on 2 touches it, 1 replaces 0.
    assert sets == [[0, 1], [0, 1], [1, 2], [0, 2], [0, 2], [1, 2]]
    # Never chosen and never chosen tie: the lowest goes.
    assert trace("lru", [2], [0.1] * 3, first=[0, 1]) == [[1, 2]]
    assert trace("lru", [1, 2], [0.1] * 3, first=[0, 1]) == [[0, 1], [1, 2]]


def test_lfu_evicts_the_least_often_chosen_and_remembers_the_evicted():
    sets = trace("lfu", [0, 0, 1, 2, 1, 2], [0.1] * 3, first=[0, 1])
    # Counts 2, 1: 2 replaces 1. Counts 2, 2, 1: 1 replaces 2. Counts 2, 2, 2: the lowest goes.
    assert sets == [[0, 1], [0, 1], [0, 1], [0, 2], [0, 1], [1, 2]]


def test_gdsf_weighs_uses_by_cost_and_ages_by_the_clock():
    sets = trace("gdsf", [0, 1, 2, 2, 0, 1], [0.25, 0.5, 0.125], first=[0, 1])
    # Priorities .25, .5; 2 replaces 0: clock .25, priority .375; its hit makes that .5,
    # a tie with 1, which goes: clock .5, priority of 0 .75; 1 replaces 2.
    assert sets == [[0, 1], [0, 1], [1, 2], [1, 2], [0, 2], [0, 1]]


def test_gdsf_divides_by_size():
    controller, _ = ADMITTING["gdsf"]
    assert controller.admit is not None
    resident = jnp.array([True, False])
    cost = jnp.full(2, 0.5, jnp.float32)
    inputs = served(resident, 0, jnp.zeros(2, jnp.float32), cost)
    inputs = inputs._replace(size=jnp.array([4.0, 1.0], jnp.float32))
    state, _ = controller.admit((), start_of(controller, resident), inputs)
    assert state.priority.tolist() == [0.125, 0.0]


def test_polar_a_admits_a_miss_worth_at_least_the_least_resident():
    controller = controllers.residency_value()
    assert controller.admit is not None
    params = controllers.AdmissionParams(decay=jnp.float32(0.5))
    step = jax.jit(controller.admit)
    resident = jnp.array([True, False, False])
    cost = jnp.ones(3, jnp.float32)
    state = start_of(controller, resident)
    # (best adapter, choice, values after, resident after); the best saves 1 each time.
    steps = [
        (1, 1, [0.0, 1.0, 0.0], 1),
        (0, 0, [1.0, 0.5, 0.0], 0),
        (1, 2, [0.5, 1.25, 0.0], 0),
        (0, 0, [1.25, 0.625, 0.0], 0),
        (2, 2, [0.625, 0.3125, 1.0], 2),
    ]
    for best, choice, values, expected in steps:
        mean = jnp.zeros(3, jnp.float32).at[best].set(1.0)
        state, admission = step(params, state, served(resident, choice, mean, cost))
        resident = admission.resident
        assert state.priority.tolist() == values
        assert np.flatnonzero(resident).tolist() == [expected]
    # Worth as much as the least resident is enough.
    fresh = start_of(controller, jnp.array([True, False, False]))
    mean = jnp.array([0.0, 1.0, 0.0], jnp.float32)
    inputs = served(jnp.array([True, False, False]), 2, mean, cost)
    assert step(params, fresh, inputs)[1].resident.tolist() == [False, False, True]


def polar_e(
    requests: list[tuple[list[float], int]], switch: float = 1.0, paging: float = 1.0
) -> list[Any]:
    """`(state, admission)` after each `(utilities, choice)`: one value expert, decays of 1/2."""
    controller = experts.experts(num_values=1)
    assert controller.admit is not None
    step = jax.jit(controller.admit)
    half = jnp.float32(0.5)
    params = experts.ExpertParams(
        value_decay=half[None],
        score_half_life=jnp.float32(1),
        score_growth=jnp.float32(0),
        beta_max=half,
    )
    resident = jnp.array([True, False])
    state, after = start_of(controller, resident), []
    for mean, choice in requests:
        cost = jnp.full(2, paging, jnp.float32)
        inputs = served(resident, choice, jnp.array(mean, jnp.float32), cost)
        inputs = inputs._replace(switch_cost=jnp.full(2, switch, jnp.float32))
        state, admission = step(params, state, inputs)
        resident = admission.resident
        after.append((state, admission))
    return after


def test_polar_e_moves_its_virtual_cache_and_then_buys_what_it_has_missed_enough():
    # q = (0, 0.6), both cost 1, K = 1: adapter 1 is routed around and misses 0.6 each time.
    after = polar_e([([0.0, 0.6], 0)] * 4)
    values = [state.value[:, 0].tolist() for state, _ in after]
    np.testing.assert_allclose(values, [[0.4, 1.0], [0.6, 1.5], [0.7, 1.75], [0.75, 1.875]], 1e-6)
    losses = [state.loss.tolist() for state, _ in after]
    # The virtual load of round 2 costs 1; from round 3 on the value expert leads.
    wanted = [[0.0, 0.0], [1.0, 0.0], [0.0, 0.1], [0.0, 0.65]]
    np.testing.assert_allclose(losses, wanted, atol=1e-6)
    virtual = [state.sets[:, 0].tolist() for state, _ in after]
    assert virtual == [[True, False], [False, True], [False, True], [False, True]]
    deficits = [float(state.real_deficit[1]) for state, _ in after]
    np.testing.assert_allclose(deficits, [0.0, 0.0, 0.6, 0.0], atol=1e-6)
    assert [a.resident.tolist() for _, a in after] == [[True, False]] * 3 + [[False, True]]
    assert [a.bought.tolist() for _, a in after] == [[False, False]] * 3 + [[False, True]]


def test_polar_e_prefers_a_load_that_a_miss_has_paid_for():
    after = polar_e([([0.0, 0.6], 0)] * 3 + [([0.0, 0.6], 1)])
    state, admission = after[-1]
    assert admission.resident.tolist() == [False, True]
    assert admission.bought.tolist() == [False, False]
    np.testing.assert_allclose(state.real_deficit[1], 0.6, rtol=1e-6)


def test_polar_e_waits_longer_where_loads_cost_more():
    after = polar_e([([0.0, 0.6], 0)] * 6, switch=2.0)
    bought = [bool(a.bought.any()) for _, a in after]
    # 0.6 per round from round 3 on: 0.6, 1.2, 1.8, 2.4.
    assert bought == [False] * 5 + [True]


def test_the_lru_expert_follows_virtual_misses():
    # q = (0, 2): even with {0} resident the route is adapter 1, paged in.
    state, admission = polar_e([([0.0, 2.0], 0)])[0]
    assert state.sets[:, -1].tolist() == [False, True]
    assert state.last_use.tolist() == [-1, 0]
    assert state.sets[:, 0].tolist() == [False, True]
    # The real request was a hit on 0; adapter 1 is 1 short, which its load costs: bought.
    np.testing.assert_allclose(state.loss, [0.0, 0.0])
    assert admission.bought.tolist() == [False, True]


def test_polar_e_gives_its_only_slot_to_the_better_adapter_however_dear_paging_is():
    # Nobody ever pages in at 3: only a load can bring adapter 1, worth 0.6 more each time.
    after = polar_e([([0.0, 0.6], 0)] * 12, switch=3.0, paging=3.0)
    virtual = [state.sets[:, 0].tolist() for state, _ in after]
    assert virtual == [[True, False]] * 4 + [[False, True]] * 8
    assert after[-1][1].resident.tolist() == [False, True]
    assert sum(bool(a.bought[1]) for _, a in after) == 1


def test_the_memory_of_the_scores_is_a_share_of_the_past():
    params = experts.ExpertParams(
        value_decay=jnp.ones(1, jnp.float32),
        score_half_life=jnp.float32(500),
        score_growth=jnp.float32(0.125),
        beta_max=jnp.float32(0.5),
    )
    clocks = jnp.array([0, 4_000, 80_000, 10_000_000], jnp.int32)
    half_lives = -1.0 / jnp.log2(experts.score_decay(params, clocks))
    np.testing.assert_allclose(half_lives[:3], [500, 500, 10_000], rtol=2e-3)
    assert float(half_lives[3]) > 5e5  # float32 cannot tell decays this close to 1 apart


def test_optimism_of_the_virtual_caches_is_capped():
    params = experts.ExpertParams(
        value_decay=jnp.ones(1, jnp.float32),
        score_half_life=jnp.float32(1),
        score_growth=jnp.float32(0),
        beta_max=jnp.float32(0.1),
    )
    ones = jnp.ones(2, jnp.float32)
    inputs = served(jnp.ones(2, bool), 0, 0 * ones, ones, width=ones)
    np.testing.assert_allclose(experts.optimistic_means(params.beta_max, inputs), [0.1, 0.1])
    np.testing.assert_allclose(experts.optimistic_means(9.0, inputs), [0.5, 0.5])
