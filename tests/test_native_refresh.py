"""The native refresh of a lane's statistics is that of `linalg`, of the lanes alone that count."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polar_jax import linalg
from polar_jax.kernels import native_build, native_refresh
from polar_jax.types import RouterState

pytestmark = pytest.mark.skipif(
    native_build.native().path is None, reason=f"no native kernel: {native_build.native().reason}"
)


def _learnt(num_adapters: int, dim: int, *, pooled: bool = False) -> RouterState:
    """Statistics after a refresh and more rounds; the last of several adapters knows nothing."""
    state = linalg.init_statistics(
        0.5, num_adapters=num_adapters, context_dim=dim, dtype=jnp.float64, pooled=pooled
    )
    rng = np.random.default_rng(3)
    for part in range(2):
        for t in range(3 * num_adapters):
            a = jnp.int32(t % max(1, num_adapters - 1))
            state = _learn(state, jnp.asarray(rng.normal(size=dim)), a, jnp.asarray(rng.normal()))
        state = linalg.refresh(state) if part == 0 else state
    return state


@jax.jit
def _learn(state: RouterState, x: jax.Array, a: jax.Array, reward: jax.Array) -> RouterState:
    return linalg.rank_one_update(state, x, a, reward, linalg.directions(state, x)[a])


def assert_close(got: RouterState, expected: RouterState) -> None:
    """All numbers are the same but for rounding."""
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("num_adapters", "dim"), [(1, 1), (7, 5), (15, 16), (6, 33)])
def test_it_is_that_of_linalg(num_adapters, dim, pooled):
    with helpers.double_precision():
        learnt = _learnt(num_adapters, dim, pooled=pooled)
        lanes = jax.tree.map(lambda x: jnp.stack([x, x]), learnt)
        counted = jnp.asarray([True, False])
        got = jax.jit(jax.vmap(native_refresh.refresh))(lanes, counted)
        assert_close(jax.tree.map(lambda x: x[0], got), linalg.refresh(learnt))
        # A lane that does not count is left as it is, and nothing is left to a second refresh.
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(learnt), strict=True):
            np.testing.assert_array_equal(one[1], other)
        assert np.any(learnt.precision_recent)
        assert not np.any(got.precision_recent[0])
        again = jax.vmap(native_refresh.refresh)(got, counted)
        np.testing.assert_array_equal(again.precision_inv, got.precision_inv)
        if num_adapters > 1:
            # What knows nothing new keeps its very numbers.
            np.testing.assert_array_equal(got.precision_inv[0, -1], learnt.precision_inv[-1])


def test_what_has_learnt_nothing_is_left_alone():
    with helpers.double_precision():
        learnt = _learnt(7, 5)
        spoilt = learnt.replace(precision_inv=learnt.precision_inv.at[-1].set(9.0))
        got = native_refresh.refresh(spoilt, jnp.asarray(True))
        np.testing.assert_array_equal(got.precision_inv[-1], 9.0)
        # A common prior that cannot be solved stays; what is not a number in one adapter does it.
        pooled = _learnt(7, 5, pooled=True)
        broken = pooled.replace(precision=pooled.precision.at[2].set(np.nan))
        kept = native_refresh.refresh(broken, jnp.asarray(True)).pooled
        assert kept is not None
        assert pooled.pooled is not None
        np.testing.assert_array_equal(kept.precision_inv, pooled.pooled.precision_inv)


def test_single_precision_is_within_its_rounding():
    with helpers.double_precision():
        learnt = _learnt(15, 16)
        single = jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, learnt)
        got = native_refresh.refresh(single, jnp.asarray(True))
        assert got.precision_inv.dtype == np.float32
        expected = linalg.refresh(learnt)
        # Inverses of condition numbers of about 100, in steps of 6e-8.
        np.testing.assert_allclose(got.precision_inv, expected.precision_inv, rtol=0, atol=2e-5)
        np.testing.assert_allclose(got.theta_hat, expected.theta_hat, rtol=0, atol=5e-5)


def test_it_removes_drift():
    with helpers.double_precision():
        learnt = _learnt(7, 5)
        drifted = learnt.replace(precision_inv=learnt.precision_inv.at[:-1].multiply(1.01))
        fresh = native_refresh.refresh(drifted, jnp.asarray(True))
        assert_close(fresh, linalg.refresh(learnt))
        assert not np.allclose(drifted.precision_inv[0], fresh.precision_inv[0], rtol=1e-3)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1e9])
def test_what_cholesky_cannot_solve_keeps_its_inverse(wrong):
    with helpers.double_precision():
        learnt = _learnt(7, 5)
        broken = learnt.replace(precision=learnt.precision.at[2, 1, 1].set(wrong))
        got = native_refresh.refresh(broken, jnp.asarray(True))
        assert_close(got, linalg.refresh(broken))
        np.testing.assert_array_equal(got.precision_inv[2], learnt.precision_inv[2])
