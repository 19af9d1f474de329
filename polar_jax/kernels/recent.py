"""What a run of rounds adds to the sums since the last refresh, as matrix products.

The sums are read by the next refresh alone, so a kernel need not carry them: the decisions
and the contexts tell what they have grown by.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import linalg
from polar_jax.types import RouterState

# Rounds whose products are made at once: a whole chunk's would take more memory than the state.
BLOCK = 128


def add_rounds(
    state: RouterState, context: Array, reward: Array, adapter: Array, start: Array, stop: Array
) -> RouterState:
    """The state with the recent sums of rounds `start` to `stop - 1` of a chunk added.

    Args:
      state: statistics before the rounds.
      context: `[n, d]` of the chunk.
      reward: `[n]` observed rewards, any number for rounds not served.
      adapter: `[n]` int32, who served each round.
      start: `[]` int32.
      stop: `[]` int32.

    Returns:
      The state.
    """
    num_rounds, num_adapters = context.shape[0], state.pulls.shape[0]
    block = min(BLOCK, num_rounds)
    ids = jnp.arange(num_adapters, dtype=jnp.int32)[None, :]

    def add(index: Array, state: RouterState) -> RouterState:
        first = start + index * block
        base = jnp.minimum(first, num_rounds - block)
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=base, slice_size=block)
        chosen = cut(adapter)[:, None] == ids
        position = base + jnp.arange(block, dtype=jnp.int32)
        served = (position >= first) & (position < stop)
        chosen = (chosen & served[:, None]).astype(context.dtype)
        return add_observations(state, cut(context), cut(reward), chosen)

    num_blocks = (jnp.maximum(stop - start, 0) + block - 1) // block
    return jax.lax.fori_loop(0, num_blocks, add, state)


def add_observations(
    state: RouterState, context: Array, reward: Array, chosen: Array
) -> RouterState:
    """The state with the recent sums of some rounds added; nothing else changes.

    Args:
      state: statistics before the rounds.
      context: `[n, d]`.
      reward: `[n]` observed rewards.
      chosen: `[n, N]` one-hot of who served each round, zeros for rounds not served.

    Returns:
      The state; equal to adding the rounds one by one up to the order of the sums.
    """
    rows, columns, _ = linalg.packed_layout(context.shape[1])
    outer = context[:, rows] * context[:, columns]
    weighted = reward[:, None] * context
    return state.replace(
        precision_recent=state.precision_recent
        + jnp.einsum("tn,tp->np", chosen, outer, precision=linalg.HIGHEST),
        reward_recent=state.reward_recent
        + jnp.einsum("tn,td->nd", chosen, weighted, precision=linalg.HIGHEST),
    )
