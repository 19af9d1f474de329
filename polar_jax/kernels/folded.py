"""Symmetric matrices folded into half the numbers, with operations that GPUs do on chip.

A symmetric `[d, d]` matrix `A` (`d` even, `h = d / 2`) is kept as `body` `[h, d]` and `corner`
`[h]`: row `k` of the body holds row `k` of the upper triangle from column `k` on, and in the
`k` places left of it row `d - 1 - k` backwards, whose diagonal entry is `corner[k]`. Both
sizes are powers of two where `d` is, no number is kept twice, and an outer product `v v^T`
folds into outer products of `v`, of `v` backwards, and of their first halves, without any
gather. Leading axes `N` are matrices side by side.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class Folded(NamedTuple):
    """Symmetric matrices at half their size."""

    body: Array  # [..., h, d]
    corner: Array  # [..., h]


class Vector(NamedTuple):
    """A vector in the four orders that folded matrices are multiplied in."""

    whole: Array  # [d]
    reverse: Array  # [d], backwards
    head: Array  # [h], first half
    tail: Array  # [h], first half of `reverse`


@functools.cache
def _places(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the body, rows of the corner, and where `[d * d]` entries are kept."""
    k, j = np.arange(size // 2)[:, None], np.arange(size)[None, :]
    rows, columns = np.where(j >= k, k, size - 1 - k), np.where(j >= k, j, size - 1 - j)
    corner = size - 1 - np.arange(size // 2)
    position = np.zeros((size, size), np.int32)
    position[rows, columns] = position[columns, rows] = k * size + j
    position[corner, corner] = rows.size + np.arange(corner.size)
    return rows, columns, corner, position.reshape(-1)


def fold(matrices: Array) -> Folded:
    """Folds `[N, d, d]` symmetric matrices, `d` even; a gather, for use outside of kernels."""
    rows, columns, corner, _ = _places(matrices.shape[-1])
    return Folded(matrices[:, rows, columns], matrices[:, corner, corner])


def unfold(folded: Folded) -> Array:
    """`[N, d, d]` matrices from their folded form; exactly symmetric."""
    num, half, size = folded.body.shape
    flat = jnp.concatenate([folded.body.reshape(num, half * size), folded.corner], axis=1)
    return flat[:, _places(size)[3]].reshape(num, size, size)


def _indices(size: int) -> tuple[Array, Array]:
    shape = size // 2, size
    k = jnp.arange(shape[0], dtype=jnp.int32)[:, None]
    j = jnp.arange(shape[1], dtype=jnp.int32)[None, :]
    return jnp.broadcast_to(k, shape), jnp.broadcast_to(j, shape)


def outer(v: Vector) -> Folded:
    """`v v^T` folded."""
    k, j = _indices(v.whole.shape[0])
    upper = v.head[:, None] * v.whole[None, :]
    lower = v.tail[:, None] * v.reverse[None, :]
    return Folded(jnp.where(j >= k, upper, lower), v.tail * v.tail)


def quadratic(folded: Folded, v: Vector) -> Array:
    """`[N]` values `v^T A v` of `N` matrices: one multiply-add per number kept."""
    k, j = _indices(v.whole.shape[0])
    body, corner = outer(v)
    weight = jnp.where(j == k, body, 2.0 * body)
    rows = jnp.sum(folded.body * weight[None, :, :], axis=2)
    return jnp.sum(rows + folded.corner * corner[None, :], axis=1)


def selected(folded: Folded, here: Array) -> Folded:
    """The one matrix of `N` where `here` `[N]` is set."""
    mask = here.astype(folded.body.dtype)
    body = jnp.sum(folded.body * mask[:, None, None], axis=0)
    return Folded(body, jnp.sum(folded.corner * mask[:, None], axis=0))


def downdated(folded: Folded, here: Array, v: Vector) -> Folded:
    """`A - v v^T` for the matrices where `here` `[N]` is set."""
    body, corner = outer(v)
    mask = here.astype(folded.body.dtype)
    return Folded(
        folded.body - mask[:, None, None] * body[None, :, :],
        folded.corner - mask[:, None] * corner[None, :],
    )


def _extended(half: Array) -> Array:
    """`[d]` vector with `half` `[h]` in front of zeros."""
    k, j = _indices(2 * half.shape[0])
    return jnp.sum(jnp.where(j == k, half[:, None], 0.0), axis=0)


def _head(whole: Array) -> Array:
    """`[h]` first half of a `[d]` vector."""
    k, j = _indices(whole.shape[0])
    return jnp.sum(jnp.where(j == k, whole[None, :], 0.0), axis=1)


def _reversed(whole: Array) -> Array:
    size = whole.shape[0]
    i = jnp.arange(size, dtype=jnp.int32)
    mirrored = i[:, None] + i[None, :] == size - 1
    return jnp.sum(jnp.where(mirrored, whole[:, None], 0.0), axis=0)


def scaled(v: Vector, factor: Array) -> Vector:
    """`factor v`."""
    return Vector(v.whole * factor, v.reverse * factor, v.head * factor, v.tail * factor)


def product(folded: Folded, v: Vector) -> Vector:
    """`A v` of one matrix, by sums over masked products."""
    k, j = _indices(v.whole.shape[0])
    body = folded.body
    upper = jnp.where(j >= k, body, 0.0)
    beyond = jnp.where(j > k, body, 0.0)
    lower = jnp.where(j < k, body, 0.0)
    # Each entry beside the diagonal serves its row and its column.
    front = jnp.sum(upper * v.whole[None, :], axis=1)
    across = jnp.sum(beyond * v.head[:, None], axis=0)
    back = jnp.sum(lower * v.reverse[None, :], axis=1) + folded.corner * v.tail
    across_back = jnp.sum(lower * v.tail[:, None], axis=0)
    top, bottom = across + _extended(front), across_back + _extended(back)
    whole, reverse = top + _reversed(bottom), bottom + _reversed(top)
    return Vector(whole, reverse, _head(whole), _head(reverse))


def vector(whole: Array) -> Vector:
    """A `[d]` vector in its four orders."""
    reverse = _reversed(whole)
    return Vector(whole, reverse, _head(whole), _head(reverse))
