"""Routers and their ridge statistics: one contract for all, ties, updates, refreshes."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polar_jax import linalg, routers
from polar_jax.types import Choice, RouteInputs, Router, RouterState, Scores

LANES = 64
N, D = 5, 4
ROUTERS = {
    "linucb": routers.linucb(),
    "linucb by the theory": routers.linucb(beta="theory"),
    "quota": routers.linucb(exploration="quota"),
    "relevant": routers.linucb(exploration="relevant"),
    "epsilon_greedy": routers.epsilon_greedy(),
    "linear_thompson": routers.linear_thompson(),
    "uniform_random": routers.uniform_random(),
    "perfect": routers.perfect(),
}


def unit_vectors(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Float32 vectors on the sphere along the last axis."""
    vectors = rng.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def route_inputs(
    context: np.ndarray | jax.Array, num_adapters: int = N, **changes: object
) -> RouteInputs:
    """A request with nothing resident and equal costs, unless `changes` say otherwise."""
    inputs = RouteInputs(
        context=jnp.asarray(context, jnp.float32),
        utility=jnp.zeros(num_adapters, jnp.float32),
        policy_bits=jnp.array([2**31, 3], jnp.uint32),
        resident=jnp.zeros(num_adapters, bool),
        paging_cost=jnp.full(num_adapters, 0.25, jnp.float32),
        quota=jnp.int32(0),
        active=jnp.ones(num_adapters, bool),
        num_features=jnp.int32(context.shape[-1]),
    )
    return inputs._replace(**changes)


def serve(
    router: Router,
    params: routers.RouterParams,
    state: RouterState,
    inputs: RouteInputs,
    reward: jax.Array,
) -> tuple[RouterState, Scores, Choice]:
    """One request: score, select, observe."""
    scores = router.score(params, state, inputs)
    choice = router.select(params, state, scores, inputs)
    new = routers.observe(state, inputs.context, choice.adapter, reward, scores)
    return new, scores, choice


@pytest.mark.parametrize("name", ROUTERS)
def test_router_contract(name):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, inputs, reward):
        return serve(ROUTERS[name], params, state, inputs, reward)

    params = routers.RouterParams()
    state = first = routers.init(params, num_adapters=N, context_dim=D)
    rng = np.random.default_rng(0)
    for t in range(4):
        inputs = route_inputs(unit_vectors(rng, D), quota=jnp.int32(t))
        state, scores, choice = step(params, state, inputs, jnp.float32(0.5))
        chex.assert_shape([scores.mean, scores.width, scores.beta, scores.index], (N,))
        chex.assert_shape(scores.direction, (N, D))
        chex.assert_shape([choice.adapter, choice.forced], ())
        assert choice.adapter.dtype == jnp.int32
        assert choice.forced.dtype == bool
        assert 0 <= int(choice.adapter) < N
        chex.assert_trees_all_equal_shapes_and_dtypes(first, state)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, choice)))
    assert int(state.pulls.sum()) == 4


@jax.jit
@jax.vmap
def judged(
    state: RouterState, context: jax.Array, resident: jax.Array
) -> tuple[jax.Array, jax.Array, Choice]:
    """Widths, index and choice of one lane; jitted over lanes."""
    params = routers.RouterParams()
    inputs = route_inputs(context, resident.shape[0], resident=resident)
    scores = ROUTERS["linucb"].score(params, state, inputs)
    return scores.width, scores.index, ROUTERS["linucb"].select(params, state, scores, inputs)


def partly_pulled(rng: np.random.Generator, num_adapters: int, dim: int) -> RouterState:
    """`LANES` states in which about half of the adapters have been chosen."""
    pulls = rng.integers(0, 2, (LANES, num_adapters)) * rng.integers(1, 9, (LANES, num_adapters))
    start = routers.init(routers.RouterParams(), num_adapters=num_adapters, context_dim=dim)
    state = jax.tree.map(lambda x: np.broadcast_to(x, (LANES, *x.shape)).copy(), start)
    added = unit_vectors(rng, LANES, num_adapters, dim)
    precision = np.eye(dim) + (pulls[..., None, None] * added[..., None]) * added[..., None, :]
    theta = np.where(pulls[..., None] > 0, rng.uniform(-0.2, 0.2, added.shape), 0.0)
    return state.replace(
        precision=np.float32(precision),
        precision_inv=np.float32(np.linalg.inv(precision)),
        theta_hat=np.float32(theta),
        pulls=np.int32(pulls),
    )


@pytest.mark.parametrize("num_adapters", range(1, 34))
def test_widths_of_untouched_adapters_are_bitwise_equal(num_adapters):
    rng = np.random.default_rng(num_adapters)
    dim = 8 if num_adapters % 2 else 5
    state = partly_pulled(rng, num_adapters, dim)
    context = unit_vectors(rng, LANES, dim)
    resident = np.zeros((LANES, num_adapters), bool)
    widths, index, choice = jax.tree.map(np.asarray, judged(state, context, resident))
    untouched = np.asarray(state.pulls) == 0
    for lane in range(LANES):
        assert len(np.unique(widths[lane, untouched[lane]])) <= 1
    # Equal indices are equal in every bit: the lowest of them wins.
    np.testing.assert_array_equal(choice.adapter, np.argmax(index, axis=1))


@pytest.mark.parametrize("num_adapters", [1, 15, 16, 17])
def test_untouched_adapters_tie_inside_a_scan_as_well(num_adapters):
    rng = np.random.default_rng(1)
    contexts = unit_vectors(rng, LANES, 40, D)
    params = routers.RouterParams()

    @jax.jit
    @jax.vmap
    def lane(xs):
        def body(state, x):
            inputs = route_inputs(x, num_adapters)
            scores = ROUTERS["linucb"].score(params, state, inputs)
            # Every second adapter is served in turn, the others never.
            adapter = (2 * jnp.sum(state.pulls) % num_adapters) // 2 * 2
            new = routers.observe(state, x, adapter, x[0], scores)
            return new, (scores.width, state.pulls == 0)

        start = routers.init(params, num_adapters=num_adapters, context_dim=D)
        return jax.lax.scan(body, start, xs)[1]

    widths, untouched = lane(contexts)
    low = jnp.min(jnp.where(untouched, widths, jnp.inf), axis=-1)
    high = jnp.max(jnp.where(untouched, widths, -jnp.inf), axis=-1)
    some = np.asarray(untouched).any(axis=-1)
    np.testing.assert_array_equal(np.asarray(low)[some], np.asarray(high)[some])


def test_the_first_request_goes_to_the_lowest_resident_and_cost_decides_the_rest():
    params = routers.RouterParams(alpha=jnp.float32(0.5))
    state = routers.init(params, num_adapters=N, context_dim=D)
    context = unit_vectors(np.random.default_rng(0), D)
    resident = jnp.array([False, True, True, False, False])
    for residents, expected in ((resident, 1), (jnp.zeros(N, bool), 0), (jnp.ones(N, bool), 0)):
        inputs = route_inputs(context, resident=residents)
        assert int(serve(ROUTERS["linucb"], params, state, inputs, jnp.float32(0))[2].adapter) == (
            expected
        )
    cheap = jnp.array([0.3, 0.3, 0.3, 0.1, 0.3], jnp.float32)
    inputs = route_inputs(context, paging_cost=cheap)
    assert int(serve(ROUTERS["linucb"], params, state, inputs, jnp.float32(0))[2].adapter) == 3
    blind = params.replace(cost_weight=jnp.float32(0))
    assert int(serve(ROUTERS["linucb"], blind, state, inputs, jnp.float32(0))[2].adapter) == 0


@pytest.mark.parametrize(
    ("exploration", "pulls", "quota", "expected"),
    [
        ("quota", [2, 1, 1, 3, 3], 2, (1, True)),
        ("quota", [2, 2, 2, 3, 3], 2, (0, False)),
        ("none", [2, 1, 1, 3, 3], 2, (0, False)),
        # Adapter 0 leads by 0.5: within the margin of 0.6 adapter 1 is explored.
        ("relevant", [2, 1, 1, 3, 3], 2, (1, True)),
        ("relevant", [2, 2, 2, 3, 3], 2, (0, False)),
    ],
)
def test_forced_exploration_follows_its_quota(exploration, pulls, quota, expected):
    params = routers.RouterParams(margin=jnp.float32(0.6))
    state = routers.init(params, num_adapters=N, context_dim=1)
    theta = jnp.array([[0.5], [0.0], [0.0], [0.0], [0.0]], jnp.float32)
    state = state.replace(pulls=jnp.array(pulls, jnp.int32), theta_hat=theta)
    inputs = route_inputs(np.ones(1), quota=jnp.int32(quota), resident=jnp.ones(N, bool))
    router = routers.linucb(exploration=exploration)
    choice = router.select(params, state, router.score(params, state, inputs), inputs)
    assert (int(choice.adapter), bool(choice.forced)) == expected
    tight = params.replace(margin=jnp.float32(0.4))
    choice = router.select(tight, state, router.score(tight, state, inputs), inputs)
    assert bool(choice.forced) == (expected[1] and exploration == "quota")


@pytest.mark.parametrize(
    ("cost", "resident", "forced"),
    [(0.9, False, True), (3.0, False, False), (3.0, True, True)],
)
def test_exploring_by_a_dear_page_in_uses_up_more_of_the_quota(cost, resident, forced):
    params = routers.RouterParams(margin=jnp.float32(0.6))
    state = routers.init(params, num_adapters=N, context_dim=1)
    state = state.replace(pulls=jnp.array([9, 1, 9, 9, 9], jnp.int32))
    held = jnp.ones(N, bool).at[1].set(resident)
    inputs = route_inputs(np.ones(1), quota=jnp.int32(3), resident=held)
    inputs = inputs._replace(paging_cost=jnp.full(N, cost, jnp.float32))
    router = routers.linucb(exploration="relevant")
    choice = router.select(params, state, router.score(params, state, inputs), inputs)
    assert bool(choice.forced) is forced


def test_the_theory_schedule_is_its_formula():
    params = routers.RouterParams(sigma=0.5, delta=0.1, theta_bound=2.0, ridge=4.0)
    state = routers.init(params, num_adapters=2, context_dim=3)
    pulled = state.replace(pulls=jnp.array([0, 8], jnp.int32))
    beta = routers.theory_beta(params, pulled, route_inputs(np.ones(3), 2))
    expected = [0.5 * math.sqrt(3 * math.log(growth * 2 / 0.1)) + 4.0 for growth in (1.0, 3.0)]
    np.testing.assert_allclose(beta, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["exploration", "beta"])
def test_unknown_parts_of_a_router_are_refused_with_what_is_allowed(name):
    with pytest.raises(ValueError, match=rf"{name} must be one of .*; got 'qota'"):
        routers.linucb(**{name: "qota"})


@jax.jit
def learn(state: RouterState, contexts: jax.Array, rewards: jax.Array) -> RouterState:
    """Observes every context on adapter 1."""

    def body(state, pair):
        scores = ROUTERS["linucb"].score(routers.RouterParams(), state, route_inputs(pair[0], 2))
        return routers.observe(state, pair[0], jnp.int32(1), pair[1], scores), None

    return jax.lax.scan(body, state, (contexts, rewards))[0]


def learnt(rounds: int, dim: int = 8) -> tuple[RouterState, np.ndarray, np.ndarray]:
    """A state after `rounds` observations, and the exact precision and reward sum."""
    rng = np.random.default_rng(3)
    centre = rng.standard_normal(dim)
    contexts = np.float32(
        centre / np.linalg.norm(centre) + 0.02 * rng.standard_normal((rounds, dim))
    )
    contexts /= np.linalg.norm(contexts, axis=1, keepdims=True)
    rewards = np.float32(rng.uniform(-1, 1, rounds))
    start = routers.init(routers.RouterParams(), num_adapters=2, context_dim=dim)
    exact = contexts.astype(float)
    return learn(start, contexts, rewards), np.eye(dim) + exact.T @ exact, rewards @ exact


def relative_error(got: jax.Array, expected: np.ndarray) -> float:
    """Frobenius norm of the difference over that of `expected`."""
    return float(np.linalg.norm(np.asarray(got, float) - expected) / np.linalg.norm(expected))


def test_sherman_morrison_follows_the_direct_inverse():
    state, precision, rewards = learnt(500)
    inverse = np.linalg.inv(precision)
    assert relative_error(state.precision_inv[1], inverse) < 1e-4
    assert relative_error(state.theta_hat[1], inverse @ rewards) < 1e-3
    np.testing.assert_array_equal(state.precision_inv[1], state.precision_inv[1].T)
    np.testing.assert_array_equal(state.pulls, [0, 500])
    np.testing.assert_array_equal(state.precision_inv[0], np.eye(8))
    np.testing.assert_array_equal(state.theta_hat[0], np.zeros(8))


def test_refresh_takes_away_the_drift():
    state, precision, rewards = learnt(4_096)
    inverse = np.linalg.inv(precision)
    drifted = state.replace(
        precision_inv=state.precision_inv * 1.05, theta_hat=state.theta_hat - 0.05
    )
    fresh = jax.jit(linalg.refresh)(drifted)
    assert relative_error(drifted.precision_inv[1], inverse) > 0.04
    # What is left is the rounding of the float32 sums times the condition number, 1,600.
    assert relative_error(fresh.precision_inv[1], inverse) < 2e-3
    assert relative_error(fresh.theta_hat[1], inverse @ rewards) < 2e-3
    np.testing.assert_array_equal(fresh.precision_recent, jnp.zeros_like(state.precision_recent))
    np.testing.assert_array_equal(fresh.precision_inv[0], np.eye(8))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, fresh)


def test_small_additions_to_a_large_precision_are_not_lost():
    # 2^24 + 1 is 2^24 in float32: 3,000 additions of 1 would all vanish.
    start = routers.init(routers.RouterParams(), num_adapters=2, context_dim=2)
    large = start.replace(precision=start.precision * 2.0**24)
    contexts = np.tile(np.array([1.0, 0.0], np.float32), (3000, 1))
    fresh = jax.jit(linalg.refresh)(learn(large, contexts, np.zeros(3000, np.float32)))
    assert float(fresh.precision[1, 0, 0]) == 2.0**24 + 3000
    assert float(fresh.precision[1, 1, 1]) == 2.0**24


def test_a_refresh_that_cannot_factor_keeps_the_old_inverse():
    state = routers.init(routers.RouterParams(), num_adapters=2, context_dim=2)
    broken = state.replace(precision=state.precision.at[1].multiply(-1.0))
    fresh = jax.jit(linalg.refresh)(broken)
    np.testing.assert_array_equal(fresh.precision_inv, state.precision_inv)
    np.testing.assert_array_equal(fresh.theta_hat, state.theta_hat)


@pytest.mark.parametrize("dim", [1, 4, 9])
def test_cholesky_is_numpys(dim):
    rng = np.random.default_rng(dim)
    roots = rng.standard_normal((6, dim, dim))
    matrices = np.float32(roots @ np.swapaxes(roots, 1, 2) + np.eye(dim))
    factor = jax.jit(linalg.cholesky)(matrices)
    np.testing.assert_allclose(
        np.swapaxes(factor, 1, 2), np.linalg.cholesky(matrices), rtol=2e-4, atol=2e-4
    )


def test_packed_form_holds_every_entry_of_a_symmetric_matrix():
    rows, columns, _ = linalg.packed_layout(4)
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((2, 4, 4))
    matrix = (matrix + np.swapaxes(matrix, 1, 2)).astype(np.float32)
    packed = jnp.asarray(matrix[:, rows, columns])
    np.testing.assert_array_equal(linalg.unpack(packed, size=4), matrix)


def test_widths_of_a_sample_are_those_of_its_requests():
    state = jax.tree.map(lambda x: x[0], partly_pulled(np.random.default_rng(5), N, D))
    contexts = unit_vectors(np.random.default_rng(6), 7, D)
    together = jax.jit(linalg.sample_widths)(state, contexts, jnp.float32(1))
    for context, row in zip(contexts, np.asarray(together), strict=True):
        direct = linalg.widths(
            linalg.directions(state, context), jnp.asarray(context), state.pulls, jnp.float32(1)
        )
        np.testing.assert_allclose(row, direct, rtol=1e-5)


def test_uniform_bits_reach_both_ends_and_never_one():
    bits = jnp.array([0, 255, 256, 2**32 - 1], jnp.uint32)
    assert routers.uniform_from_bits(bits).tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]


def test_thompson_normals_do_not_change_when_other_rounds_do():
    bits = jnp.array([[1, 2], [3, 4]], jnp.uint32)
    normals = functools.partial(routers.thompson_normal, num_adapters=6)
    together = jax.jit(jax.vmap(normals))(bits)
    np.testing.assert_array_equal(together[1], normals(bits[1]))
    assert together.dtype == jnp.float32
