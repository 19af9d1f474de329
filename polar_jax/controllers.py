"""Residency rules that act on requests: fixed sets, LRU, LFU, GDSF, POLAR-A.

A controller is a `Controller`: `init(cache_slots=..., num_adapters=..., resident=...)`
makes what it remembers, `admit` sees every served request and may change the set for
the next one, `replan` (see `replanning.py`) changes it at epoch boundaries. POLAR-E's
controller has a file of its own, `experts.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from polar_jax.types import Admission, AdmitInputs, Controller, ReplanInputs, Room, Scores


class AdmissionParams(flax.struct.PyTreeNode):
    """Traced constants of the admission rules."""

    decay: Array | float  # [], factor of the residency values per request, 2^(-1/half-life)


class PriorityState(flax.struct.PyTreeNode):
    """One number per adapter; the resident with the least is evicted."""

    priority: Array  # [N]


class RequestCount(flax.struct.PyTreeNode):
    """LRU's and LFU's memory: exact integer counters."""

    priority: Array  # [N] int32, last use (LRU) or uses (LFU)
    clock: Array  # [] int32, requests served so far


class GdsfState(flax.struct.PyTreeNode):
    """GreedyDual-Size-Frequency."""

    priority: Array  # [N]
    uses: Array  # [N], uses since the adapter entered the cache
    clock: Array  # [], priority of the last evicted adapter


def least_resident(priority: Array, resident: Array) -> tuple[Array, Array]:
    """Index of the resident with the least priority (lowest on ties), and if there is one.

    Args:
      priority: `[N]`, any ordered dtype.
      resident: `[N]` bool.

    Returns:
      `([] int32 index, [] bool whether any adapter is resident)`.
    """
    top = jnp.iinfo(priority.dtype).max if jnp.issubdtype(priority.dtype, jnp.integer) else jnp.inf
    masked = jnp.where(resident, priority, jnp.asarray(top, priority.dtype))
    return jnp.argmin(masked).astype(jnp.int32), jnp.any(resident)


def swap(resident: Array, incoming: Array, outgoing: Array, allowed: Array) -> Array:
    """`[N]` set with `incoming` in place of `outgoing` where `allowed`."""
    adapters = jnp.arange(resident.shape[0], dtype=jnp.int32)
    swapped = (resident & (adapters != outgoing)) | (adapters == incoming)
    return jnp.where(allowed, swapped, resident)


def leaving(
    room: Room,
    priority: Array,
    resident: Array,
    incoming: Array,
    wanted: Array,
    removable: Array | None = None,
) -> tuple[Array, Array]:
    """Who makes room for an adapter that is not resident: the least first, until it fits.

    Args:
      room: sizes and capacity.
      priority: `[N]`, any ordered dtype; ties to the lowest index.
      resident: `[N]` bool, a set that fits.
      incoming: `[]` int32.
      wanted: `[]` bool, False where it is not to come in.
      removable: `[N]` bool, the residents that may leave; all where None.

    Returns:
      `([N] bool who leaves, [] bool whether it is wanted and fits then)`.
    """
    removable = resident if removable is None else removable
    used = jnp.sum(jnp.where(resident, room.size, 0), dtype=jnp.int32)
    need = room.size[incoming] - (room.capacity - used)
    fits = wanted & (need <= jnp.sum(jnp.where(removable, room.size, 0), dtype=jnp.int32))
    need = jnp.where(fits, need, 0)
    adapters = jnp.arange(resident.shape[0], dtype=jnp.int32)

    def evict(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        out, freed = carry
        least, _ = least_resident(priority, removable & ~out)
        return out | (adapters == least), freed + room.size[least]

    nobody = jnp.zeros_like(resident), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[1] < need, evict, nobody)[0], fits


def exchange(resident: Array, incoming: Array, outgoing: Array, allowed: Array) -> Array:
    """`[N]` set with `incoming` `[]` in place of all of `outgoing` `[N]` bool where `allowed`."""
    adapters = jnp.arange(resident.shape[0], dtype=jnp.int32)
    return jnp.where(allowed, (resident & ~outgoing) | (adapters == incoming), resident)


def admit_sized(
    inputs: AdmitInputs, priority: Array, value: Array | None = None
) -> tuple[Admission, Array]:
    """A miss evicts, the least priority first, until the adapter fits; one too large never does.

    Args:
      inputs: the request, with a room.
      priority: `[N]`.
      value: `[N]`; where given, an adapter worth less than all that it would evict stays out.

    Returns:
      `(the admission, [N] bool whom it evicts)`.

    Raises:
      ValueError: for a request without a room.
    """
    if inputs.room is None:
        raise ValueError("the request must have a room, got one with slots.")
    adapter, resident = inputs.adapter, inputs.resident
    outgoing, enters = leaving(inputs.room, priority, resident, adapter, ~resident[adapter])
    if value is not None:
        enters &= value[adapter] >= jnp.sum(jnp.where(outgoing, value, jnp.zeros_like(value)))
    admission = Admission(
        resident=exchange(resident, adapter, outgoing, enters), bought=jnp.zeros_like(resident)
    )
    return admission, outgoing & enters


def admit_on_miss(inputs: AdmitInputs, priority: Array, worthy: Array | bool = True) -> Admission:
    """Swaps a missed adapter, which the request has paid for, for the least resident.

    Args:
      inputs: the request.
      priority: `[N]`; the resident with the least is evicted.
      worthy: `[]` bool, False keeps the set; not read where adapters differ in size.

    Returns:
      The set for the next round; nothing is bought.
    """
    if inputs.room is not None:
        return admit_sized(inputs, priority)[0]
    outgoing, any_resident = least_resident(priority, inputs.resident)
    missed = ~inputs.resident[inputs.adapter]
    resident = swap(inputs.resident, inputs.adapter, outgoing, missed & any_resident & worthy)
    return Admission(resident=resident, bought=jnp.zeros_like(inputs.resident))


# Beyond every adapter's index, which is what a router's draws from the same bits count by.
_CONTROLLER_STREAM = 0x504F4C41


def own_key(policy_bits: Array) -> Array:
    """Key of a controller's random numbers in one round.

    Routers use the bits as they are, or as a key; folding a stream number in makes the
    controller's numbers independent of theirs, so that any two may be combined.

    Args:
      policy_bits: `[2]` uint32 of the round.
    """
    key = jax.random.wrap_key_data(policy_bits, impl="threefry2x32")
    return jax.random.fold_in(key, _CONTROLLER_STREAM)


def _no_memory(**sizes: Any) -> tuple[()]:
    del sizes
    return ()


def fixed() -> Controller:
    """The set it starts with, for good: `static`, `no_cache`, `full_cache`, oracles."""
    return Controller(init=_no_memory, admit=None, replan=None)


def _init_counts(*, num_adapters: int, **unused: Any) -> RequestCount:
    del unused
    return RequestCount(
        priority=jnp.full((num_adapters,), -1, jnp.int32), clock=jnp.zeros((), jnp.int32)
    )


def _admit_lru(
    params: AdmissionParams, state: RequestCount, inputs: AdmitInputs
) -> tuple[RequestCount, Admission]:
    del params
    admission = admit_on_miss(inputs, state.priority)
    touched = state.priority.at[inputs.adapter].set(state.clock)
    return state.replace(priority=touched, clock=state.clock + 1), admission


def lru() -> Controller:
    """Evicts the least recently chosen: what serving systems do today."""
    return Controller(init=_init_counts, admit=_admit_lru, replan=None)


def _admit_lfu(
    params: AdmissionParams, state: RequestCount, inputs: AdmitInputs
) -> tuple[RequestCount, Admission]:
    del params
    counted = state.priority.at[inputs.adapter].add(1)
    return state.replace(priority=counted, clock=state.clock + 1), admit_on_miss(inputs, counted)


def lfu() -> Controller:
    """Evicts the adapter with the fewest choices since the first request."""
    return Controller(init=_init_counts, admit=_admit_lfu, replan=None)


def _init_gdsf(*, num_adapters: int, dtype: Any, **unused: Any) -> GdsfState:
    del unused
    zeros = jnp.zeros((num_adapters,), dtype)
    return GdsfState(priority=zeros, uses=zeros, clock=jnp.zeros((), dtype))


def _admit_gdsf(
    params: AdmissionParams, state: GdsfState, inputs: AdmitInputs
) -> tuple[GdsfState, Admission]:
    del params
    adapter = inputs.adapter
    if inputs.room is None:
        admission = admit_on_miss(inputs, state.priority)
        outgoing, any_resident = least_resident(state.priority, inputs.resident)
        hit = inputs.resident[adapter]
        clock = jnp.where(hit | ~any_resident, state.clock, state.priority[outgoing])
    else:
        admission, evicted = admit_sized(inputs, state.priority)
        hit = inputs.resident[adapter]
        last = jnp.max(jnp.where(evicted, state.priority, -jnp.inf))
        clock = jnp.where(jnp.any(evicted), last, state.clock)
    uses = jnp.where(hit, state.uses[adapter] + 1.0, 1.0)
    refreshed = clock + uses * inputs.paging_cost[adapter] / inputs.size[adapter]
    return GdsfState(
        priority=state.priority.at[adapter].set(refreshed),
        uses=state.uses.at[adapter].set(uses),
        clock=clock,
    ), admission


def gdsf() -> Controller:
    """GreedyDual-Size-Frequency (Cherkasova 1998): priority `clock + uses c_i / size_i`.

    `uses` counts from the adapter's entry into the cache, as in the original.
    """
    return Controller(init=_init_gdsf, admit=_admit_gdsf, replan=None)


def _init_values(*, num_adapters: int, dtype: Any, **unused: Any) -> PriorityState:
    del unused
    return PriorityState(priority=jnp.zeros((num_adapters,), dtype))


def saving_of_best(scores: Scores, paging_cost: Array) -> tuple[Array, Array]:
    """The adapter with the best mean, and what having it resident would save.

    Returns:
      `([] int32 adapter, [] saving max(0, mean_i - max_j (mean_j - c_j)))`.
    """
    best = jnp.argmax(scores.mean).astype(jnp.int32)
    saving = jnp.max(scores.mean) - jnp.max(scores.mean - paging_cost)
    return best, jnp.maximum(saving, 0.0)


def _admit_value(
    params: AdmissionParams, state: PriorityState, inputs: AdmitInputs
) -> tuple[PriorityState, Admission]:
    best, saving = saving_of_best(inputs.scores, inputs.paging_cost)
    value = (params.decay * state.priority).at[best].add(saving)
    if inputs.room is not None:
        density = value / inputs.room.relative
        return state.replace(priority=value), admit_sized(inputs, density, value)[0]
    outgoing, _ = least_resident(value, inputs.resident)
    worthy = value[inputs.adapter] >= value[outgoing]
    return state.replace(priority=value), admit_on_miss(inputs, value, worthy)


def residency_value() -> Controller:
    """POLAR-A: admits a missed adapter whose decayed saving is not below the least one's.

    Where adapters differ in size: not below the sum of those who would make room, the least
    saving per size first.
    """
    return Controller(init=_init_values, admit=_admit_value, replan=None)


@functools.cache
def epoch(replan: Callable[[ReplanInputs], Array], *, search: str, optimistic: bool) -> Controller:
    """Changes the set at epoch boundaries only, by `replan` (POLAR and POLAR+).

    Args:
      replan: `[N]` set from `ReplanInputs`; equal functions give the same controller, so that
        their policies share a compiled program.
      search: what it searches with.
      optimistic: whether it plans on `mean + beta * width`.
    """

    def planned(params: Any, state: Any, inputs: ReplanInputs) -> tuple[Any, Array]:
        del params
        return state, replan(inputs)

    return Controller(
        init=_no_memory, admit=None, replan=planned, search=search, optimistic=optimistic
    )
