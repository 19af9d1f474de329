"""Online submodular maximisation of the savings: the controller with a proven bound.

Source: Streeter and Golovin (2008), "An online algorithm for maximizing submodular
functions", with Hedge (Freund and Schapire 1997) per slot. `docs/model.md`, "Online
submodular maximisation", has the formulas and the bound.
"""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polar_jax import experts
from polar_jax.controllers import own_key
from polar_jax.types import Admission, AdmitInputs, Controller, ReplanInputs


class OnlineParams(flax.struct.PyTreeNode):
    """Traced constants of `polar_oexp`."""

    rate: Array | float  # [], of Hedge, per request and per largest paging cost
    beta_max: Array | float  # [], largest beta_v, units of utility


class OnlineState(flax.struct.PyTreeNode):
    """One Hedge learner over adapters per slot; rows are slots, those from K on unused."""

    log_weight: Array  # [N, N], slot by adapter
    member: Array  # [N] int32, adapter in each slot during this epoch, -1 for none


def hedge_rate(num_adapters: int, cache_slots: int, horizon: int, epoch_length: int) -> float:
    """Rate of the Hedge learners, per request and in units of the largest paging cost.

    Over one of the `M = ceil(T/L)` epochs a slot's gains lie in `[0, B]`, `B = L max_i c_i`.
    With rate `eta` a learner that earns `A_k` forgoes at most
    `(eta B A_k / 2 + ln N / eta) / (1 - eta B / 2)`. What the `K` slots earn adds up to the
    savings of the set, at most `M B`, so the best rate is `eta = sqrt(2 K ln N / M) / B`,
    kept at most `1 / B`. The familiar `sqrt(ln N / M)`, for learners on their own, would
    put `K` in place of `sqrt(K)` in the bound.

    Args:
      num_adapters: `N`.
      cache_slots: `K`.
      horizon: `T`, rounds.
      epoch_length: `L`, rounds.

    Returns:
      `eta max_i c_i`, in `[0, 1 / L]`.
    """
    num_epochs = -(-horizon // epoch_length)
    scale = math.sqrt(2.0 * cache_slots * math.log(num_adapters) / num_epochs)
    return min(1.0, scale) / epoch_length


def slot_noise(policy_bits: Array, slot: Array | int, *, num_adapters: int) -> Array:
    """`[N]` float32 standard Gumbel numbers of one slot's draw.

    Args:
      policy_bits: `[2]` uint32 of the round.
      slot: `[]` int32.
      num_adapters: `N`.
    """
    key = jax.random.fold_in(own_key(policy_bits), slot)
    return jax.random.gumbel(key, (num_adapters,), jnp.float32)


def init(*, num_adapters: int, resident: Array, dtype: Any) -> OnlineState:
    """Uniform learners; the first set fills the slots in the order of its indices."""
    slots = jnp.arange(num_adapters, dtype=jnp.int32)
    order = jnp.argsort(~resident, stable=True).astype(jnp.int32)
    return OnlineState(
        log_weight=jnp.zeros((num_adapters, num_adapters), dtype),
        member=jnp.where(slots < jnp.sum(resident, dtype=jnp.int32), order, -1),
    )


def slot_gains(q: Array, paging_cost: Array, member: Array, active: Array) -> Array:
    """What each adapter would have added to the slots before each slot, on one request.

    Args:
      q: `[N]` utilities.
      paging_cost: `[N]`.
      member: `[N]` int32, adapter in each slot, -1 for none.
      active: `[N]` bool.

    Returns:
      `[N, N]`, slot by adapter: `f(S_{<k} + {i}) - f(S_{<k})`, in `[0, c_i]`; 0 in empty slots.
    """
    known = jnp.where(active, q, -jnp.inf)
    base = jnp.max(known - paging_cost)
    filled = member >= 0
    reached = jnp.where(filled, known[jnp.maximum(member, 0)], -jnp.inf)
    cover = jax.lax.cummax(jnp.concatenate([base[None], reached[:-1]]))
    gains = jnp.maximum(known[None, :] - cover[:, None], 0.0)
    return jnp.where(filled[:, None], gains, 0.0)


def admit(
    params: OnlineParams, state: OnlineState, inputs: AdmitInputs
) -> tuple[OnlineState, Admission]:
    """Learns from one request; the set stays until the epoch ends.

    Args:
      params: constants.
      state: the learners.
      inputs: the served request with the statistics from before its update.

    Returns:
      `(new state, the present set)`.
    """
    q = experts.optimistic_means(params.beta_max, inputs)
    gains = slot_gains(q, inputs.paging_cost, state.member, inputs.active)
    largest = jnp.max(jnp.where(inputs.active, inputs.paging_cost, 0.0))
    # No gain is above the largest cost: where that is 0 so are they, and nothing is learnt.
    share = gains / jnp.maximum(largest, np.finfo(gains.dtype).tiny)
    admission = Admission(resident=inputs.resident, bought=jnp.zeros_like(inputs.resident))
    return state.replace(log_weight=state.log_weight + params.rate * share), admission


def replan(
    params: OnlineParams, state: OnlineState, inputs: ReplanInputs
) -> tuple[OnlineState, Array]:
    """Draws the next epoch's set, slot by slot and without repeats.

    Adding Gumbel noise to log-weights and taking the largest draws from the learner's
    distribution, and cannot underflow: the set always has `min(K, adapters)` members.

    Args:
      params: constants.
      state: the learners.
      inputs: read are `cache_slots`, `policy_bits` and `active`.

    Returns:
      `(new state, [N] bool set)`.
    """
    del params
    num_adapters = state.member.shape[0]
    adapters = jnp.arange(num_adapters, dtype=jnp.int32)
    # Weights matter up to a factor: near 0, float32 keeps the leaders' differences.
    top = jnp.max(jnp.where(inputs.active[None, :], state.log_weight, -jnp.inf), axis=1)
    log_weight = state.log_weight - top[:, None]

    def draw(slot: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        members, member = carry
        noise = slot_noise(inputs.policy_bits, slot, num_adapters=num_adapters)
        free = inputs.active & ~members
        score = jnp.where(free, log_weight[slot] + noise.astype(log_weight.dtype), -jnp.inf)
        drawn = jnp.argmax(score).astype(jnp.int32)
        exists = jnp.any(free)
        members = members | ((adapters == drawn) & exists)
        return members, jnp.where((adapters == slot) & exists, drawn, member)

    nothing = jnp.zeros_like(inputs.resident), jnp.full_like(state.member, -1)
    slots = jnp.minimum(inputs.cache_slots, num_adapters)
    members, member = jax.lax.fori_loop(0, slots, draw, nothing)
    return OnlineState(log_weight=log_weight, member=member), members


def online_submodular() -> Controller:
    """`polar_oexp`: `K` Hedge learners over adapters, a new set per epoch.

    Slot `k` learns from what every adapter would have added to slots `< k` on each
    request, in the estimates `q`: costs are known, so this is full information.

    What is proven, in expectation over the draws, for the savings counted in `q` and
    `c = max_i c_i`: `sum_t savings_t(C_t) >= (1 - 1/e) max_C sum_t savings_t(C) - R` with
    `R = 2 c sqrt(2 K L (T + L) ln N) + (2 K + 1) L c`, which is `O(sqrt(L K T ln N))`; its last
    term is for the first set, which is given and not drawn. Loads come on top, at most `K` an
    epoch, and so does what the estimates are off. Drawing without repeats only adds gains: a
    repeat gains nothing.
    """
    return Controller(init=init, admit=admit, replan=replan, randomised=True)
