"""The concave relaxation: value, projection, bound, rounding, and the search made of them."""

import functools
import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference import relaxation

from polar_jax import cache_search, cache_value, relaxed_search, set_moves
from polar_jax.cache_value import CacheProblem
from polar_jax.types import Room

ADAPTERS, CONTEXTS = 10, 24
# Problems come from a seed: there is nothing to shrink.
quick = settings(
    derandomize=True, deadline=None, max_examples=12, phases=(Phase.explicit, Phase.generate)
)
objective_of = jax.jit(cache_value.objective)
rank_all = jax.jit(functools.partial(set_moves.rankings, width=ADAPTERS))
savings_at = jax.jit(relaxed_search.concave_savings)
project = jax.jit(relaxed_search.project)
relax = jax.jit(functools.partial(relaxed_search.relax, width=ADAPTERS, phases=12))
greedy = jax.jit(cache_search.greedy)
climb = jax.jit(functools.partial(set_moves.climb, pool=ADAPTERS, limit=100))
round_once = jax.jit(relaxed_search.round_dependently)
round_many = jax.jit(jax.vmap(relaxed_search.round_dependently, (0, None, None)))


@functools.cache
def search(width: int = ADAPTERS):
    """The whole search as one program for every problem of a size."""
    return jax.jit(functools.partial(relaxed_search.relaxed, jax.random.key(3), width=width))


@pytest.fixture(autouse=True)
def _in_double_precision():
    # With optimisations, unlike other float64 tests: few programs that run often.
    with helpers.double_precision(optimised=True):
        yield


def stated(
    utility: np.ndarray,
    slots: int,
    *,
    cost: float = 0.5,
    switch: float | np.ndarray = 0.0,
    now: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    active: np.ndarray | None = None,
) -> CacheProblem:
    """A problem over 50 rounds; nothing resident unless said otherwise."""
    contexts, adapters = utility.shape
    return jax.jit(cache_value.cache_problem)(
        jnp.asarray(utility),
        jnp.full(adapters, cost, utility.dtype),
        jnp.asarray(np.broadcast_to(switch, (adapters,)), utility.dtype),
        jnp.asarray(np.zeros(adapters, bool) if now is None else now),
        jnp.int32(slots),
        weight=jnp.asarray(np.ones(contexts) if weight is None else weight, utility.dtype),
        rounds=jnp.asarray(50.0, utility.dtype),
        active=None if active is None else jnp.asarray(active),
    )


@st.composite
def problems(draw: st.DrawFn) -> CacheProblem:
    """Random problems: coarse numbers for ties, unused contexts, free and dear loads."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    slots = draw(st.integers(0, ADAPTERS))
    utility = rng.uniform(-1, 1, (CONTEXTS, ADAPTERS))
    if draw(st.booleans()):
        utility = np.round(4 * utility) / 4
    now = np.zeros(ADAPTERS, bool)
    now[rng.choice(ADAPTERS, draw(st.integers(0, slots)), replace=False)] = True
    weight = rng.integers(0, 3, CONTEXTS).astype(float)
    weight[0] = 1.0
    switch = draw(st.sampled_from([0.0, 0.5, 5.0, 1e6])) * rng.uniform(0, 1, ADAPTERS)
    cost = draw(st.sampled_from([0.05, 0.5, 3.0]))
    return stated(utility, slots, cost=cost, switch=switch, now=now, weight=weight)


def best_value(problem: CacheProblem) -> tuple[float, np.ndarray]:
    """Objective of the best set of at most `K`, and the set."""
    slots = int(problem.cache_slots)
    best = cache_search.exact(problem, cache_slots=slots, smaller=True)
    return float(objective_of(problem, best)), np.asarray(best)


def slack(problem: CacheProblem, value: float) -> float:
    """What tie rules may give away."""
    return 3e-6 * abs(value + float(problem.floor)) + 1e-9


@quick
@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_the_concave_value_and_its_supergradient_are_the_references(problem, seed):
    rng = np.random.default_rng(seed)
    point = rng.choice([0.0, 0.25, 1.0, rng.uniform()], ADAPTERS)
    value, gradient, prices = savings_at(rank_all(problem), problem.weight, point, jnp.zeros(()))
    saving, weight = np.asarray(problem.saving), np.asarray(problem.weight)
    assert float(value) == pytest.approx(relaxation.concave_savings(saving, weight, point))
    expected = relaxation.supergradient(saving, weight, point)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-9)
    gains = cache_value.marginal_gains(problem, prices)
    np.testing.assert_allclose(gains, expected, rtol=1e-10, atol=1e-9)
    # A supergradient lies above the concave function everywhere.
    other = rng.uniform(0, 1, ADAPTERS)
    above = float(value) + expected @ (other - point)
    assert relaxation.concave_savings(saving, weight, other) <= above + 1e-9


@quick
@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_smoothing_bends_the_value_down_a_little_and_has_its_own_gradient(problem, seed):
    point = jnp.asarray(np.random.default_rng(seed).uniform(0, 1, ADAPTERS))
    lists, softness = rank_all(problem), jnp.asarray(0.25)
    sharp = savings_at(lists, problem.weight, point, jnp.zeros(()))[0]
    value, gradient, _ = savings_at(lists, problem.weight, point, softness)
    assert value <= sharp + 1e-9
    # At most a quarter of the softness is lost of each context's best saving.
    assert value >= sharp - 0.25 * softness * jnp.dot(lists.saving[0], problem.weight) - 1e-9
    step = 1e-6
    for i in range(3):
        ends = [
            savings_at(lists, problem.weight, point.at[i].add(sign * step), softness)[0]
            for sign in (1, -1)
        ]
        assert float(ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient[i]), abs=1e-3)


@quick
@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(0, ADAPTERS))
def test_projection_is_feasible_idempotent_and_nearest(seed, slots):
    rng = np.random.default_rng(seed)
    upper = rng.choice([1.0, 1.0, 0.0], ADAPTERS)
    point = rng.normal(0.5, 3.0, ADAPTERS)
    nearest = np.asarray(project(point, jnp.asarray(float(slots)), upper))
    assert (nearest >= 0).all()
    assert (nearest <= upper).all()
    assert nearest.sum() <= slots + 1e-12
    again = project(nearest, jnp.asarray(float(slots)), upper)
    np.testing.assert_allclose(again, nearest, atol=1e-7)
    # The angle to every feasible point is obtuse: the condition of the nearest one.
    for _ in range(20):
        other = rng.uniform(0, 1, ADAPTERS) * upper
        other *= min(1.0, slots / max(other.sum(), 1e-12))
        assert (point - nearest) @ (other - nearest) <= 1e-6


@quick
@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_the_bound_holds_for_every_set_whatever_the_prices(problem, seed):
    best, _ = best_value(problem)
    prices = np.random.default_rng(seed).uniform(0, 2, CONTEXTS)
    assert float(relaxed_search.price_bound(problem, jnp.asarray(prices))) >= best - 1e-9
    found = relax(problem)
    assert float(found.bound) >= best - 1e-9
    assert float(found.bound) >= float(found.value) - 1e-9
    point = np.asarray(found.point)
    saving, weight = np.asarray(problem.saving), np.asarray(problem.weight)
    loads = float(point @ np.asarray(problem.load_cost))
    value = relaxation.concave_savings(saving, weight, point) - loads
    assert float(found.value) == pytest.approx(value, abs=1e-6)


@quick
@given(problem=problems())
def test_the_ascent_comes_close_to_the_optimum(problem):
    found = relax(problem)
    scale = 1e-9 + float(jnp.dot(jnp.max(problem.saving, axis=1), problem.weight))
    assert float(found.bound - found.value) <= 0.02 * scale


@quick
@given(seed=st.integers(0, 2**32 - 1))
def test_rounding_keeps_certain_members_and_the_size(seed):
    rng = np.random.default_rng(seed)
    point = rng.choice([0.0, 1.0, rng.uniform(), rng.uniform()], ADAPTERS)
    sets = np.asarray(round_many(jax.random.split(jax.random.key(seed % 1000), 20), point, 10))
    assert sets[:, point == 1.0].all()
    assert not sets[:, point == 0.0].any()
    sizes = sets.sum(axis=1)
    assert (sizes >= math.floor(point.sum() + 1e-9)).all()
    assert (sizes <= math.ceil(point.sum() - 1e-9)).all()


def test_rounding_has_the_points_means_and_saves_what_independent_draws_would():
    # Hoeffding, 11 statements at 1e-7 each: a correct build fails with probability 1.1e-6.
    draws = 40_000
    width = math.sqrt(math.log(2 / 1e-7) / (2 * draws))
    rng = np.random.default_rng(5)
    point = rng.uniform(0, 1, ADAPTERS)
    point *= 4.0 / point.sum()
    point = np.minimum(point, 1.0)
    sets = np.asarray(round_many(jax.random.split(jax.random.key(0), draws), point, 5))
    assert (np.abs(sets.mean(axis=0) - point) <= width).all()
    # Negative control: the test can tell a probability that is off by three widths.
    assert (np.abs(sets.mean(axis=0) - (point + 3 * width)) > width).all()
    saving = rng.uniform(0, 1, (1, ADAPTERS))
    independent = relaxation.multilinear_savings(saving, np.ones(1), point)
    saved = np.max(np.where(sets, saving, 0.0), axis=1).mean()
    assert saved >= independent - width
    concave = relaxation.concave_savings(saving, np.ones(1), point)
    assert independent >= (1 - 1 / math.e) * concave


def test_rounding_never_exceeds_the_slots_though_the_sum_does_by_a_rounding_error():
    point = np.full(3, 2.0 / 3.0) + 1e-4
    sets = np.asarray(round_many(jax.random.split(jax.random.key(1), 20_000), point, 2))
    assert sets.sum(axis=1).max() == 2


@quick
@given(problem=problems())
def test_the_search_keeps_its_bound_its_slots_and_the_present_sets_value(problem):
    found = search()(problem)
    value = float(objective_of(problem, found))
    best, members = best_value(problem)
    loads = float(jnp.sum(jnp.where(members, problem.load_cost, 0.0)))
    assert int(jnp.sum(found)) <= int(problem.cache_slots)
    assert value <= best + slack(problem, best)
    assert value >= float(objective_of(problem, problem.resident)) - 1e-9
    # The guarantee is of the mean; swaps leave every one of these runs above it.
    assert value >= (1 - 1 / math.e) * (best + loads) - loads - slack(problem, best)


@quick
@given(problem=problems())
def test_the_search_is_within_one_per_cent_of_greedy(problem):
    whole = float(objective_of(problem, greedy(problem))) + float(problem.floor)
    savings = float(objective_of(problem, greedy(problem)))
    value = float(objective_of(problem, search()(problem)))
    assert value >= savings - 0.01 * max(abs(savings), abs(whole)) - 1e-9


def poor(slots: int) -> CacheProblem:
    """Weighted coverage on which greedy gets `1 - (1 - 1/K)^K`: columns tempt, rows are best."""
    rest = (1.0 - 1.0 / slots) ** np.arange(slots + 1)
    column = np.append(rest[:-1] / slots, rest[-1]) / slots
    utility = np.zeros((slots, slots + 1, 2 * slots + 3))
    for j in range(slots):
        utility[:, j, j] = 1.0
        utility[j, :, slots + j] = 1.0 - 1e-6
    weight = np.repeat(column[None, :], slots, axis=0).reshape(-1)
    return stated(utility.reshape(len(weight), -1), slots, cost=1.0, weight=weight)


@pytest.mark.parametrize("slots", [3, 10])
def test_the_search_finds_the_optimum_where_greedy_and_swaps_are_provably_poor(slots):
    problem = poor(slots)
    best = 50.0 * (1.0 - 1e-6)
    by_greedy = float(objective_of(problem, greedy(problem)))
    assert by_greedy == pytest.approx(best * (1 - (1 - 1 / slots) ** slots), rel=1e-3)
    width = problem.saving.shape[1]
    value = float(objective_of(problem, search(width)(problem)))
    assert value == pytest.approx(best, rel=1e-5)
    if slots > 3:
        by_swaps = cache_search.local_search(problem)
        assert float(objective_of(problem, by_swaps)) < 0.9 * value


@pytest.mark.slow
@pytest.mark.parametrize("switch", [0.0, 5.0])
def test_no_slots_all_slots_one_adapter_and_one_context_are_no_special_cases(switch):
    rng = np.random.default_rng(0)
    utility = rng.uniform(-1, 1, (6, 4))
    assert not search(4)(stated(utility, 0, switch=switch)).any()
    everything = stated(utility, 4, switch=switch, now=np.ones(4, bool))
    assert search(4)(everything).all()
    for shape, slots in (((6, 1), 1), ((1, 4), 2), ((1, 1), 1)):
        problem = stated(utility[: shape[0], : shape[1]], slots, switch=switch)
        found = search(shape[1])(problem)
        assert float(objective_of(problem, found)) == pytest.approx(best_value(problem)[0])


def test_without_savings_the_present_set_stays():
    now = np.arange(ADAPTERS) < 3
    flat = stated(np.zeros((CONTEXTS, ADAPTERS)), 3, cost=0.0, now=now)
    np.testing.assert_array_equal(search()(flat), now)
    unseen = stated(np.eye(CONTEXTS, ADAPTERS), 3, now=now, weight=np.zeros(CONTEXTS))
    np.testing.assert_array_equal(search()(unseen), now)


@pytest.mark.slow
def test_equal_adapters_are_not_both_kept():
    twins = np.tile(np.repeat(np.eye(3), 4, axis=0), (1, 2))
    found = np.asarray(search(6)(stated(twins, 3, cost=1.0)))
    assert (found[:3] ^ found[3:]).all()


def test_loads_that_cost_too_much_are_left_and_free_slots_keep_present_members():
    rng = np.random.default_rng(1)
    utility, now = rng.uniform(0, 1, (CONTEXTS, ADAPTERS)), np.arange(ADAPTERS) < 4
    np.testing.assert_array_equal(search()(stated(utility, 4, switch=1e9, now=now)), now)
    assert not search()(stated(utility, 4, switch=1e9)).any()
    # One adapter is worth it; of the present ones as many stay as there is room for.
    utility[:, 7], switch = 2.0, np.full(ADAPTERS, 1e9)
    switch[7] = 0.1
    found = np.asarray(search()(stated(utility, 4, switch=switch, now=now)))
    assert found[7]
    assert found.sum() == 4
    assert found[:4].sum() == 3


@pytest.mark.slow
def test_adapters_that_only_fill_up_a_shape_are_never_chosen_and_change_little():
    rng = np.random.default_rng(2)
    utility = rng.uniform(0, 1, (CONTEXTS, ADAPTERS))
    for slots in (2, ADAPTERS, ADAPTERS + 2):
        padded = np.pad(utility, ((0, 0), (0, 4)), constant_values=-np.inf)
        active = np.arange(ADAPTERS + 4) < ADAPTERS
        found = np.asarray(search(ADAPTERS + 4)(stated(padded, slots, active=active, switch=0.1)))
        assert not found[ADAPTERS:].any()
        alone = stated(utility, min(slots, ADAPTERS), switch=0.1)
        value = float(objective_of(alone, jnp.asarray(found[:ADAPTERS])))
        assert value >= 0.99 * float(objective_of(alone, greedy(alone)))


@pytest.mark.slow
def test_float32_and_short_lists_stay_within_one_per_cent_of_greedy():
    rng = np.random.default_rng(4)
    for width in (8, 96):
        utility = rng.uniform(0, 1, (64, 96)).astype(np.float32)
        problem = stated(utility, 12, cost=0.3)
        assert problem.saving.dtype == jnp.float32
        value = float(objective_of(problem, search(width)(problem)))
        assert value >= 0.99 * float(objective_of(problem, greedy(problem)))


def test_the_width_of_lists_follows_the_sparsity_of_sets():
    assert relaxed_search.list_width(100, 10) == 100
    assert relaxed_search.list_width(4_096, 256) == 256
    assert relaxed_search.list_width(65_536, 256) == 2_048
    assert relaxed_search.list_width(1_000, 0) == 1_000


@quick
@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_moves_never_lower_the_objective_and_end_where_no_swap_helps(problem, seed):
    rng, slots = np.random.default_rng(seed), int(problem.cache_slots)
    start = np.zeros(ADAPTERS, bool)
    start[rng.choice(ADAPTERS, rng.integers(0, slots + 1), replace=False)] = True
    lists = rank_all(problem)
    found = np.asarray(climb(problem, lists, jnp.asarray(start)))
    value = float(objective_of(problem, jnp.asarray(found)))
    assert value >= float(objective_of(problem, jnp.asarray(start))) - 1e-9
    assert float(set_moves.led(problem, lists, jnp.asarray(found)).value) == pytest.approx(value)
    for out in [*np.flatnonzero(found), -1]:
        for into in [*np.flatnonzero(~found), -1]:
            other = found.copy()
            other[[i for i in (out,) if i >= 0]] = False
            other[[i for i in (into,) if i >= 0]] = True
            if other.sum() <= slots:
                moved = float(objective_of(problem, jnp.asarray(other)))
                assert moved <= value + slack(problem, value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"width must be .*got 0"),
        ({"width": ADAPTERS + 1}, rf"width must be .*got {ADAPTERS + 1}"),
        ({"width": 2, "pool": 0}, r"pool must be .*got 0"),
        ({"width": 2, "samples": 0}, r"samples must be .*got 0"),
    ],
)
def test_sizes_outside_their_range_are_refused(options, message):
    problem = stated(np.eye(CONTEXTS, ADAPTERS), 2)
    with pytest.raises(ValueError, match=message):
        relaxed_search.relaxed(jax.random.key(0), problem, **options)


def test_adapters_that_differ_in_size_are_refused():
    problem = stated(np.eye(CONTEXTS, ADAPTERS), 2)
    one = jnp.ones(ADAPTERS, jnp.int32)
    room = Room(size=one, capacity=jnp.int32(2), relative=one.astype(float))
    sized = problem.replace(room=room)
    with pytest.raises(ValueError, match="relaxed must have slots, got adapters that differ"):
        relaxed_search.relaxed(jax.random.key(0), sized, width=2)


@pytest.mark.parametrize("discount", [0.0, -1.0, 1.5, math.nan])
def test_savings_are_discounted_by_a_factor_of_at_most_one(discount):
    problem = stated(np.eye(CONTEXTS, ADAPTERS), 2)
    with pytest.raises(ValueError, match="discount must be"):
        relaxed_search.relax(problem, width=2, discount=discount)
