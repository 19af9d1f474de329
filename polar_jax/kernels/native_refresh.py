"""`linalg.refresh` as a native call: one lane after the other, those alone that count."""

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax.types import RouterState

_NAMES = (
    *("precision", "precision_recent", "precision_inv"),
    *("reward_sum", "reward_recent", "theta_hat"),
)


def refresh(state: RouterState, counted: Array) -> RouterState:
    """`linalg.refresh` of a lane that counts: same results but for rounding.

    An adapter that has learnt nothing since the last refresh keeps what that made.

    Args:
      state: statistics.
      counted: `[]` bool; a lane that only fills up a tile is left as it is.
    """
    dtype, pooled, one = state.theta_hat.dtype, state.pooled, jnp.zeros((1,), state.theta_hat.dtype)
    common = (one, one) if pooled is None else (pooled.precision_inv, pooled.theta)
    ridge = jnp.zeros((), dtype) if pooled is None else jnp.asarray(pooled.ridge, dtype)
    changed = (*(getattr(state, name) for name in _NAMES), *common)
    call = jax.ffi.ffi_call(
        "polar_refresh_f64" if dtype == jnp.float64 else "polar_refresh_f32",
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in changed],
        vmap_method="broadcast_all",
        input_output_aliases={2 + i: i for i in range(len(changed))},
    )
    out = call(counted, ridge, *changed, pooled=pooled is not None)
    if pooled is not None:
        state = state.replace(pooled=pooled.replace(precision_inv=out[-2], theta=out[-1]))
    return state.replace(**dict(zip(_NAMES, out[: len(_NAMES)], strict=True)))
