"""Ridge regression per adapter: scores, the rank-one update and its refresh.

Shapes: `N` adapters, `d` context features. Source: polar model, section "router"
(`docs/model.md`); Sherman and Morrison (1950).
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polar_jax.types import PooledState, RouterState

# GPUs and TPUs round matrix products to 10 or 8 bits of mantissa unless told otherwise;
# widths are differences of such products.
HIGHEST = jax.lax.Precision.HIGHEST


@functools.cache
def packed_layout(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of a packed symmetric matrix, and where each entry is stored.

    Half the numbers of a full matrix: what a round adds to the precision is written
    once, and writes are what the update costs.

    Args:
      size: `d`.

    Returns:
      `([p] rows, [p] columns, [d * d] positions)` with `p = d (d + 1) / 2`.
    """
    rows, columns = np.tril_indices(size)
    position = np.zeros((size, size), np.int32)
    position[rows, columns] = position[columns, rows] = np.arange(rows.size)
    return rows.astype(np.int32), columns.astype(np.int32), position.reshape(-1)


def unpack(packed: Array, *, size: int) -> Array:
    """`[N, d, d]` symmetric matrices from their packed form `[N, d (d + 1) / 2]`."""
    return packed[:, packed_layout(size)[2]].reshape(-1, size, size)


def init_statistics(
    ridge: Array | float,
    *,
    num_adapters: int,
    context_dim: int,
    dtype: Any,
    pooled: bool = False,
) -> RouterState:
    """Statistics of `num_adapters` adapters that were never chosen.

    Args:
      ridge: `[]` regularisation, above 0.
      num_adapters: `N`.
      context_dim: `d`.
      dtype: floating dtype of every statistic.
      pooled: whether estimates start from what all adapters have in common.

    Returns:
      The state with `precision = ridge * I` and no pulls.
    """
    eye = jnp.broadcast_to(
        jnp.eye(context_dim, dtype=dtype), (num_adapters, context_dim, context_dim)
    )
    vectors = jnp.zeros((num_adapters, context_dim), dtype)
    scale = jnp.asarray(ridge, dtype)
    return RouterState(
        precision=scale * eye,
        precision_recent=jnp.zeros((num_adapters, packed_layout(context_dim)[0].size), dtype),
        precision_inv=eye / scale,
        reward_sum=vectors,
        reward_recent=vectors,
        theta_hat=vectors,
        pulls=jnp.zeros((num_adapters,), jnp.int32),
        pooled=PooledState(eye[0] / scale, vectors[0], scale) if pooled else None,
    )


def directions(state: RouterState, context: Array) -> Array:
    """`[N, d]` products `V_i^-1 x` of every adapter with one context `[d]`."""
    return jnp.einsum("nij,j->ni", state.precision_inv, context, precision=HIGHEST)


def widths(direction: Array, context: Array, pulls: Array, ridge: Array | float) -> Array:
    """Confidence widths `sqrt(x^T V_i^-1 x)`, bitwise equal where nothing was learnt.

    Args:
      direction: `[N, d]` products `V_i^-1 x`.
      context: `[d]`.
      pulls: `[N]` int32.
      ridge: `[]`.

    Returns:
      `[N]` widths, at least 0.
    """
    squared = jnp.einsum("ni,i->n", direction, context, precision=HIGHEST)
    # The tail of a vectorised loop may round differently from its body, and ties of
    # the mathematics must be ties of the numbers: an untouched adapter's precision is
    # ridge * I, so all of them share one number computed once.
    untouched = jnp.dot(context, context, precision=HIGHEST) / ridge
    squared = jnp.where(pulls == 0, untouched, squared)
    return jnp.sqrt(jnp.maximum(squared, 0.0))


def sample_widths(state: RouterState, contexts: Array, ridge: Array | float) -> Array:
    """`[m, N]` confidence widths on `contexts` `[m, d]`."""
    products = jnp.einsum("nij,mj->mni", state.precision_inv, contexts, precision=HIGHEST)
    squared = jnp.einsum("mni,mi->mn", products, contexts, precision=HIGHEST)
    untouched = jnp.einsum("mi,mi->m", contexts, contexts, precision=HIGHEST) / ridge
    squared = jnp.where(state.pulls[None, :] == 0, untouched[:, None], squared)
    return jnp.sqrt(jnp.maximum(squared, 0.0))


def rank_one_update(
    state: RouterState, context: Array, adapter: Array, reward: Array, direction: Array
) -> RouterState:
    """Adds one observation to the chosen adapter by Sherman-Morrison.

    Args:
      state: statistics before the observation.
      context: `[d]`.
      adapter: `[]` int32, the adapter that served the request.
      reward: `[]` observed reward.
      direction: `[d]` product `V_a^-1 x` of the chosen adapter.

    Returns:
      Statistics after the observation.
    """
    chex.assert_rank([context, adapter, reward, direction], [1, 0, 0, 1])
    growth = 1.0 + jnp.dot(direction, context, precision=HIGHEST)
    surprise = reward - jnp.dot(state.theta_hat[adapter], context, precision=HIGHEST)
    # The outer product of one vector with itself is exactly symmetric;
    # outer(direction, direction / growth) is so only up to rounding.
    scaled = direction * jax.lax.rsqrt(growth)
    rows, columns, _ = packed_layout(context.shape[0])
    return state.replace(
        pooled=_pooled_update(state.pooled, context, reward),
        precision_recent=state.precision_recent.at[adapter].add(context[rows] * context[columns]),
        precision_inv=state.precision_inv.at[adapter].add(-scaled[:, None] * scaled[None, :]),
        reward_recent=state.reward_recent.at[adapter].add(reward * context),
        theta_hat=state.theta_hat.at[adapter].add(surprise / growth * direction),
        pulls=state.pulls.at[adapter].add(1),
    )


def _pooled_update(pooled: PooledState | None, context: Array, reward: Array) -> PooledState | None:
    """Adds one observation, whosesoever it is, to the common prior."""
    if pooled is None:
        return None
    direction = jnp.dot(pooled.precision_inv, context, precision=HIGHEST)
    growth = 1.0 + jnp.dot(direction, context, precision=HIGHEST)
    surprise = reward - jnp.dot(pooled.theta, context, precision=HIGHEST)
    scaled = direction * jax.lax.rsqrt(growth)
    return pooled.replace(
        precision_inv=pooled.precision_inv - scaled[:, None] * scaled[None, :],
        theta=pooled.theta + surprise / growth * direction,
    )


def prior_means(state: RouterState, direction: Array, context: Array) -> Array | float:
    """`[N]` what the common prior adds to the adapters' estimates on a context.

    Ridge regression towards a prior `theta_0` is `V^-1 (b + ridge theta_0)`: the estimate
    towards 0 plus `ridge V^-1 theta_0`.

    Args:
      state: statistics.
      direction: `[N, d]` products `V_i^-1 x`.
      context: `[d]`.
    """
    pooled = state.pooled
    if pooled is None:
        return 0.0
    shrunk = jnp.einsum("ni,i->n", direction, pooled.theta, precision=HIGHEST)
    # Untouched adapters share one number, as with widths, so that their ties stay ties.
    untouched = jnp.dot(context, pooled.theta, precision=HIGHEST)
    return jnp.where(state.pulls == 0, untouched, pooled.ridge * shrunk)


def estimates(state: RouterState) -> Array:
    """`[N, d]` estimates of theta, the common prior included."""
    pooled = state.pooled
    if pooled is None:
        return state.theta_hat
    shrunk = jnp.einsum("nij,j->ni", state.precision_inv, pooled.theta, precision=HIGHEST)
    prior = jnp.where((state.pulls == 0)[:, None], pooled.theta[None, :], pooled.ridge * shrunk)
    return state.theta_hat + prior


def _pooled_refresh(
    pooled: PooledState | None, precision: Array, reward_sum: Array
) -> PooledState | None:
    """The common prior from the adapters' sums, each of which holds one `ridge I`."""
    if pooled is None:
        return None
    num_adapters, size = reward_sum.shape
    eye = jnp.eye(size, dtype=precision.dtype)
    whole = jnp.sum(precision, axis=0) - (num_adapters - 1) * pooled.ridge * eye
    root = _inverse_of_lower(cholesky(whole[None]))[0]
    inverse = jnp.einsum("ki,kj->ij", root, root, precision=HIGHEST)
    theta = jnp.dot(inverse, jnp.sum(reward_sum, axis=0), precision=HIGHEST)
    usable = jnp.all(jnp.isfinite(inverse))
    return pooled.replace(
        precision_inv=jnp.where(usable, inverse, pooled.precision_inv),
        theta=jnp.where(usable, theta, pooled.theta),
    )


def cholesky(matrices: Array) -> Array:
    """Lower Cholesky factors of `[N, d, d]` positive definite matrices, transposed.

    Written as `d` steps over all matrices at once, each of which reads what is done and writes
    one row: memory is what it costs. LAPACK's factors one small matrix after the other, and
    inside a branch inside a loop its call never returned when two host devices ran (jaxlib
    0.10.2).
    """
    rows = jnp.arange(matrices.shape[-1])

    def step(j: Array, factor: Array) -> Array:
        column = jax.lax.dynamic_index_in_dim(matrices, j, 1, keepdims=False)
        known = jax.lax.dynamic_index_in_dim(factor, j, 2, keepdims=False)
        column = column - jnp.einsum("nk,nki->ni", known, factor, precision=HIGHEST)
        pivot = jax.lax.dynamic_index_in_dim(column, j, 1)
        column = jnp.where((rows >= j)[None, :], column * jax.lax.rsqrt(pivot), 0.0)
        return jax.lax.dynamic_update_index_in_dim(factor, column, j, 1)

    return jax.lax.fori_loop(0, matrices.shape[-1], step, jnp.zeros_like(matrices))


def _inverse_of_lower(transposed: Array) -> Array:
    """Inverses of lower triangular matrices, given transposed, by forward substitution."""
    size = transposed.shape[-1]
    rows = jnp.arange(size)

    def step(j: Array, inverse: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(transposed, j, 2, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(row, j, 1)
        before = jnp.where((rows < j)[None, :], row, 0.0)
        known = jnp.einsum("nk,nki->ni", before, inverse, precision=HIGHEST)
        unit = (rows == j).astype(transposed.dtype)[None, :]
        solved = (unit - known) / pivot
        return jax.lax.dynamic_update_index_in_dim(inverse, solved, j, 1)

    return jax.lax.fori_loop(0, size, step, jnp.zeros_like(transposed))


def refresh(state: RouterState) -> RouterState:
    """Recomputes inverse and estimate from the sums, by Cholesky.

    Bounds the drift that Sherman-Morrison updates gather in float32. Where the
    factorisation fails (a precision beyond the dtype's range) the old values stay.
    """
    size = state.precision.shape[-1]
    precision = state.precision + unpack(state.precision_recent, size=size)
    reward_sum = state.reward_sum + state.reward_recent
    root = _inverse_of_lower(cholesky(precision))
    inverse = jnp.einsum("nki,nkj->nij", root, root, precision=HIGHEST)
    theta_hat = jnp.einsum("nij,nj->ni", inverse, reward_sum, precision=HIGHEST)
    usable = jnp.all(jnp.isfinite(inverse), axis=(1, 2))
    return state.replace(
        pooled=_pooled_refresh(state.pooled, precision, reward_sum),
        precision=precision,
        precision_recent=jnp.zeros_like(state.precision_recent),
        precision_inv=jnp.where(usable[:, None, None], inverse, state.precision_inv),
        reward_sum=reward_sum,
        reward_recent=jnp.zeros_like(reward_sum),
        theta_hat=jnp.where(usable[:, None], theta_hat, state.theta_hat),
    )
