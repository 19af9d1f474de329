"""Symmetric matrices folded into half the numbers, with operations that GPUs do on chip.

A symmetric `[d, d]` matrix (`d` even, `h = d / 2`) is four blocks: `A`, `B` and its transpose,
and `C`. `cross` holds `B`; `mixed` holds the upper triangle of `A` and, below the diagonal,
the lower one of `C`, whose diagonal is `diagonal`. No number is kept twice, every size is a
power of two where `d` is, and with vectors kept as two halves a product and an outer product
need no gather. Blocks are kept flat, `h * h`; `N` matrices lie side by side.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class Folded(NamedTuple):
    """Symmetric matrices at half their size."""

    mixed: Array  # [N, h * h], or [h * h] for one matrix
    cross: Array  # [N, h * h]
    diagonal: Array  # [N, h]


class Halves(NamedTuple):
    """A vector, or `N` of them, as two halves."""

    first: Array  # [..., h]
    second: Array  # [..., h]


@functools.cache
def _places(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of `mixed`, those of `cross`, and where `[d * d]` entries are kept."""
    half = size // 2
    k, c = np.indices((half, half), dtype=np.int32).reshape(2, -1)
    rows, columns = (np.where(c >= k, axis, axis + half) for axis in (k, c))
    after = half + np.arange(half, dtype=np.int32)
    position = np.zeros((size, size), np.int32)
    position[rows, columns] = position[columns, rows] = np.arange(k.size)
    position[k, c + half] = position[c + half, k] = k.size + np.arange(k.size)
    position[after, after] = 2 * k.size + np.arange(half)
    return np.stack([rows, columns]), np.stack([k, c + half]), after, position.reshape(-1)


def fold(matrices: Array) -> Folded:
    """Folds `[N, d, d]` symmetric matrices, `d` even; a gather, for use outside of kernels."""
    mixed, cross, after, _ = _places(matrices.shape[-1])
    return Folded(
        matrices[:, mixed[0], mixed[1]],
        matrices[:, cross[0], cross[1]],
        matrices[:, after, after],
    )


def unfold(folded: Folded) -> Array:
    """`[N, d, d]` matrices from their folded form; exactly symmetric."""
    num, half = folded.diagonal.shape
    position = _places(2 * half)[3]
    return jnp.concatenate(folded, axis=1)[:, position].reshape(num, 2 * half, 2 * half)


def halves(vectors: Array) -> Halves:
    """Splits `[..., d]` vectors, `d` even; a slice, for use outside of kernels."""
    half = vectors.shape[-1] // 2
    return Halves(vectors[..., :half], vectors[..., half:])


def _column_less_row(half: int) -> Array:
    """`[h, h]` columns less rows: 0 on the diagonal, negative below it."""
    index = jnp.arange(half, dtype=jnp.int32)
    shape = half, half
    return jnp.broadcast_to(index[None, :], shape) - jnp.broadcast_to(index[:, None], shape)


def outer(v: Halves) -> Folded:
    """`v v^T` folded."""
    half = v.first.shape[0]
    upper = v.first[:, None] * v.first[None, :]
    lower = v.second[:, None] * v.second[None, :]
    mixed = jnp.where(_column_less_row(half) >= 0, upper, lower)
    cross = v.first[:, None] * v.second[None, :]
    flat = half * half
    return Folded(mixed.reshape(flat), cross.reshape(flat), v.second * v.second)


def inner(vectors: Halves, v: Halves) -> Array:
    """`[N]` products of `N` vectors with one."""
    return jnp.sum(vectors.first * v.first[None, :] + vectors.second * v.second[None, :], axis=1)


def quadratic(folded: Folded, v: Halves) -> Array:
    """`[N]` values `v^T M v` of `N` matrices: one multiply-add per number kept."""
    half = v.first.shape[0]
    mixed, cross, diagonal = outer(v)
    # Entries beside the diagonal stand for two.
    beside = (_column_less_row(half) != 0).reshape(half * half)
    weight = jnp.where(beside, 2.0 * mixed, mixed)
    products = folded.mixed * weight[None, :] + folded.cross * (2.0 * cross)[None, :]
    return jnp.sum(products, axis=1) + jnp.sum(folded.diagonal * diagonal[None, :], axis=1)


def selected(folded: Folded, here: Array) -> Folded:
    """The one matrix of `N` where `here` `[N]` is set."""
    mask = here.astype(folded.diagonal.dtype)[:, None]
    return Folded(*(jnp.sum(part * mask, axis=0) for part in folded))


def downdated(folded: Folded, here: Array, v: Halves) -> Folded:
    """`M - v v^T` for the matrices where `here` `[N]` is set."""
    mask = here.astype(folded.diagonal.dtype)[:, None]
    parts = zip(folded, outer(v), strict=True)
    return Folded(*(part - mask * change[None, :] for part, change in parts))


def product(folded: Folded, v: Halves) -> Halves:
    """`M v` of one matrix; each entry beside the diagonal serves its row and its column."""
    half = v.first.shape[0]
    place = _column_less_row(half)
    mixed, cross = folded.mixed.reshape(half, half), folded.cross.reshape(half, half)
    first_row, first_column = v.first[:, None], v.first[None, :]
    second_row, second_column = v.second[:, None], v.second[None, :]
    upper, lower = jnp.where(place >= 0, mixed, 0.0), jnp.where(place < 0, mixed, 0.0)
    beyond = jnp.where(place > 0, mixed, 0.0)
    first = jnp.sum(upper * first_column + cross * second_column, axis=1)
    second = jnp.sum(cross * first_row + lower * second_row, axis=0)
    return Halves(
        first + jnp.sum(beyond * first_row, axis=0),
        second + jnp.sum(lower * second_column, axis=1) + folded.diagonal * v.second,
    )
