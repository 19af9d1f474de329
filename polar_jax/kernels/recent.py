"""What a run of rounds adds to the sums since the last refresh, as matrix products.

The sums are read by the next refresh alone, so a kernel need not carry them: the decisions
and the contexts tell what they have grown by.
"""

import jax.numpy as jnp
from jax import Array

from polar_jax import linalg
from polar_jax.types import RouterState


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
