"""How random numbers of a stream are drawn: keys by name and index, clusters, jumps, slots.

A stream is a pure function of `(key, block)`; see `docs/model.md`, "Environments". Numbers
are drawn per index (`fold_in`), one adapter, feature or cluster at a time, so that padding an
axis changes none of them, and always in float32, because JAX draws other numbers in float64.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# Rounds that are drawn together. Part of the definition of every stream.
BLOCK = 256
# Slots of the uniform reservoir that a controller may plan from.
RESERVOIR_SLOTS = 512
# The last jump of a sticky stream is looked for within two blocks.
MAX_STAY = 0.9


class Streams(NamedTuple):
    """Named sub-streams of a key. The order is part of every stream's definition."""

    centres: Array
    theta: Array
    assignment: Array
    table: Array
    order: Array
    context: Array
    cluster: Array
    jump: Array
    noise: Array
    latency: Array
    reservoir: Array
    policy: Array


def keys(key: Array, count: int) -> Array:
    """`[count]` keys folded in from 0 up; more of them change none of the first."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def streams(key: Array) -> Streams:
    """The sub-streams of a seed's key, folded in together: one hash, one loop."""
    return Streams(*keys(key, len(Streams._fields)))


def at_block(key: Array, block: Array) -> Streams:
    """The sub-streams of a seed's key at one block."""
    named = keys(key, len(Streams._fields))
    return Streams(*jax.vmap(jax.random.fold_in, (0, None))(named, block))


def grid_normal(key: Array, rows: int, columns: int) -> Array:
    """`[rows, columns]` normals, each from its own key."""
    by_row = jax.vmap(lambda row: keys(row, columns))(keys(key, rows))
    return jax.vmap(jax.vmap(lambda one: jax.random.normal(one, (), jnp.float32)))(by_row)


def indexed_uniform(key: Array, count: int) -> Array:
    """`[count]` uniforms on `[0, 1)`, each from its own key."""
    return jax.vmap(lambda one: jax.random.uniform(one, (), jnp.float32))(keys(key, count))


def block_uniform(key: Array) -> Array:
    """`[BLOCK]` uniforms on `[0, 1)`."""
    return jax.random.uniform(key, (BLOCK,), jnp.float32)


def block_rounds(block: Array) -> Array:
    """`[BLOCK]` int32 numbers of a block's rounds, from 0."""
    return block * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)


def popularity(
    key: Array, zipf: Array, num_clusters: int, num_segments: int, *, first_in_order: bool
) -> Array:
    """Cumulative popularity of clusters, proportional to `rank^-zipf`, ranks anew per segment.

    Args:
      key: of this use alone.
      zipf: `[]` exponent, at least 0.
      num_clusters: `G`.
      num_segments: `S`.
      first_in_order: whether cluster `g` has rank `g` in segment 0.

    Returns:
      `[S, G]`.
    """
    ranks = jnp.arange(1, num_clusters + 1, dtype=jnp.float32)
    weights = ranks ** (-zipf)

    if num_segments == 1 and first_in_order:
        return (jnp.cumsum(weights) / jnp.sum(weights))[None, :]

    def segment(number: Array) -> Array:
        draws = indexed_uniform(jax.random.fold_in(key, number), num_clusters)
        shuffled = jnp.argsort(draws)
        in_order = (number == 0) & first_in_order
        order = jnp.where(in_order, jnp.arange(num_clusters), shuffled)
        return jnp.cumsum(weights[order]) / jnp.sum(weights)

    return jax.vmap(segment)(jnp.arange(num_segments))


def cluster_at(uniform: Array, cumulative: Array) -> Array:
    """Cluster of a uniform under cumulative probabilities `[..., G]`."""
    beyond = uniform[..., None] >= cumulative[..., :-1]
    return jnp.sum(beyond, axis=-1, dtype=jnp.int32)


def independent_clusters(drawn: Streams, cumulative: Array) -> Array:
    """`[BLOCK]` clusters of a block, independent draws.

    Args:
      drawn: the sub-streams at the block.
      cumulative: `[1, G]`.
    """
    return cluster_at(block_uniform(drawn.cluster), cumulative)


def sticky_clusters(
    key: Array,
    block: Array,
    cumulative: Array,
    segment_rounds: Array,
    stay: Callable[[Array], Array],
) -> Array:
    """`[BLOCK]` clusters of a block: each round keeps its cluster, or jumps to a drawn one.

    The cluster is that of the last jump within this block and the one before, where it is
    for certain: with `stay` at most 0.9, no jump in 256 rounds has a chance of 2e-12.

    Args:
      key: the seed's.
      block: `[]` int32.
      cumulative: `[S, G]` popularity of the clusters per segment.
      segment_rounds: `[]` int32, rounds of a segment.
      stay: gives the probability of keeping the cluster for `[BLOCK]` rounds, at most
        `MAX_STAY`.
    """

    def jumps(block: Array) -> tuple[Array, Array]:
        """Which rounds of a block jump, and the cluster that each would jump to."""
        drawn, rounds = at_block(key, block), block_rounds(block)
        jump = (block_uniform(drawn.jump) >= stay(rounds)) | (rounds == 0)
        segment = jnp.clip(rounds // segment_rounds, 0, cumulative.shape[0] - 1)
        return jump, cluster_at(block_uniform(drawn.cluster), cumulative[segment])

    # Block 0 has no predecessor; round 0 always jumps, so what is drawn for it is unread.
    before = jumps(jnp.maximum(block - 1, 0))
    jump, target = (jnp.concatenate(pair) for pair in zip(before, jumps(block), strict=True))
    positions = jnp.where(jump, jnp.arange(2 * BLOCK, dtype=jnp.int32), 0)
    return target[jax.lax.cummax(positions)[BLOCK:]]


def reservoir_slots(key: Array, block: Array) -> Array:
    """Slot of each round in a uniform sample of all rounds so far, -1 for none."""
    rounds = block_rounds(block)
    drawn = jax.random.randint(key, (BLOCK,), 0, rounds + 1, jnp.int32)
    slot = jnp.where(rounds < RESERVOIR_SLOTS, rounds, drawn)
    return jnp.where(slot < RESERVOIR_SLOTS, slot, -1)


def shuffled(position: Array, size: Array, pass_: Array, deck: Array, words: Array) -> Array:
    """Where a card lies in a deck that is shuffled anew in every pass; no table is held.

    A Feistel network over the next power of four, walked until it is back inside the deck,
    is a permutation of `0 .. size - 1` for every pass and deck (Black and Rogaway 2002).

    Args:
      position: `[...]` int32 in `[0, size)`.
      size: `[...]` int32, at least 1.
      pass_: `[...]` int32, which shuffle.
      deck: `[...]` int32, which deck.
      words: `[2]` uint32 of the seed.

    Returns:
      `[...]` int32 in `[0, size)`.
    """
    unsigned = functools.partial(jnp.asarray, dtype=jnp.uint32)
    size_ = unsigned(size)
    # Half the bits of the last card's number, rounded up; 4 at least, as tiny networks mix ill.
    bits = 32 - jax.lax.clz(jnp.maximum(size_ - 1, 1))
    half = jnp.maximum((bits + 1) // 2, 4)
    mask = (jnp.uint32(1) << half) - jnp.uint32(1)
    key = _mixed(words[0] ^ _mixed(unsigned(pass_) ^ words[1] ^ _mixed(unsigned(deck))))

    def network(value: Array) -> Array:
        left, right = value >> half, value & mask
        for number in range(8):
            turn = jnp.uint32(0x9E3779B9 * (number + 1) % 2**32)
            left, right = right, left ^ (_mixed(right + _mixed(key + turn)) & mask)
        return (left << half) | right

    def inside(value: Array) -> Array:
        return jnp.where(value >= size_, network(value), value)

    value = jax.lax.while_loop(
        lambda value: jnp.any(value >= size_), inside, network(unsigned(position))
    )
    return value.astype(jnp.int32)


def _mixed(value: Array) -> Array:
    """A bijection of uint32 that spreads every bit (the finaliser of MurmurHash3)."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
    value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
    return value ^ (value >> 16)
