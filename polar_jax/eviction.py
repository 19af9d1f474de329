"""Eviction rules from the caching literature: Landlord, ARC, LeCaR, FastLibra's.

Under all of them a miss admits the adapter it has just paid for; they differ in whom it
replaces. Lists of the papers are stamps here: `[N]` int32 rounds, the least of a list is its
least recently used end. Every rule costs `O(N)` per request.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from polar_jax.controllers import (
    admit_on_miss,
    admit_sized,
    least_resident,
    own_key,
    swap,
)
from polar_jax.routers import uniform_from_bits
from polar_jax.types import Admission, AdmitInputs, Controller


class FastLibraParams(flax.struct.PyTreeNode):
    """Traced constants of `fastlibra`."""

    decay: Array | float  # [], factor of the use probabilities per request, 2^(-1/half-life)


class LecarParams(flax.struct.PyTreeNode):
    """Traced constants of `lecar`."""

    learning_rate: Array | float  # [], of the experts' weights
    discount: Array | float  # [], in (0, 1]: a regret K requests after the eviction counts so much


class LandlordState(flax.struct.PyTreeNode):
    """Landlord's memory."""

    credit: Array  # [N], in [0, c_i]


class UseState(flax.struct.PyTreeNode):
    """FastLibra's memory."""

    probability: Array  # [N], decayed share of the requests that each adapter served


class ArcState(flax.struct.PyTreeNode):
    """ARC's four lists and its target."""

    place: Array  # [N] int32, one of NOWHERE, T1, T2, B1, B2
    stamp: Array  # [N] int32, round of the last move within or between lists
    target: Array  # [], adaptive size of T1, in [0, K]
    clock: Array  # [] int32, requests served so far


class LecarState(flax.struct.PyTreeNode):
    """LeCaR's experts, their weights and their histories."""

    last_use: Array  # [N] int32, -1 for never
    uses: Array  # [N] int32, kept while an adapter is resident or in a history
    history: Array  # [N] int32, NOWHERE, or whose history: BY_LRU, BY_LFU
    evicted_at: Array  # [N] int32, round of the last eviction
    weight: Array  # [2], of LRU and LFU, sum 1
    clock: Array  # [] int32, requests served so far


NOWHERE = 0
T1, T2, B1, B2 = 1, 2, 3, 4
BY_LRU, BY_LFU = 1, 2
# LeCaR's published code keeps both weights away from 0, from where none returns.
LEAST_WEIGHT = 0.01


def _put(values: Array, index: Array, value: Array | int, allowed: Array) -> Array:
    """`values` with `value` at `index` where `allowed`."""
    here = (jnp.arange(values.shape[0], dtype=jnp.int32) == index) & allowed
    return jnp.where(here, jnp.asarray(value, values.dtype), values)


def _exchange(inputs: AdmitInputs, outgoing: Array, allowed: Array) -> Admission:
    resident = swap(inputs.resident, inputs.adapter, outgoing, allowed)
    return Admission(resident=resident, bought=jnp.zeros_like(resident))


def _init_landlord(*, num_adapters: int, dtype: Any, **unused: Any) -> LandlordState:
    del unused
    return LandlordState(credit=jnp.zeros((num_adapters,), dtype))


def _admit_landlord(
    params: Any, state: LandlordState, inputs: AdmitInputs
) -> tuple[LandlordState, Admission]:
    del params
    if inputs.room is not None:
        return _admit_sized_landlord(state, inputs)
    outgoing, any_resident = least_resident(state.credit, inputs.resident)
    pays = ~inputs.resident[inputs.adapter] & any_resident
    rent = jnp.where(pays, state.credit[outgoing], 0.0)
    credit = jnp.where(inputs.resident, state.credit - rent, state.credit)
    credit = credit.at[inputs.adapter].set(inputs.paging_cost[inputs.adapter])
    return LandlordState(credit=credit), admit_on_miss(inputs, state.credit)


def _admit_sized_landlord(
    state: LandlordState, inputs: AdmitInputs
) -> tuple[LandlordState, Admission]:
    """Rent per size, until those without credit make room: the last evicted sets the rent."""
    density = state.credit / inputs.size
    admission, evicted = admit_sized(inputs, density)
    rent = jnp.max(jnp.where(evicted, density, 0.0))
    left = jnp.maximum(state.credit - rent * inputs.size, 0.0)
    credit = jnp.where(inputs.resident, left, state.credit)
    credit = credit.at[inputs.adapter].set(inputs.paging_cost[inputs.adapter])
    return LandlordState(credit=credit), admission


def landlord() -> Controller:
    """Landlord (Young 1998; GreedyDual-Size of Cao and Irani 1997).

    An adapter's credit is `c_i` when it is loaded and again at every use. A miss charges all
    residents the least credit among them and evicts one that has none left; where adapters
    differ in size, in proportion to their sizes and until the new one fits. `K`-competitive
    for the sequence of choices. The first set, which nobody has paid for, starts without credit.
    """
    return Controller(init=_init_landlord, admit=_admit_landlord, replan=None)


def _init_use(*, num_adapters: int, dtype: Any, **unused: Any) -> UseState:
    del unused
    return UseState(probability=jnp.zeros((num_adapters,), dtype))


def _admit_fastlibra(
    params: FastLibraParams, state: UseState, inputs: AdmitInputs
) -> tuple[UseState, Admission]:
    decayed = params.decay * state.probability
    probability = decayed.at[inputs.adapter].add(1.0 - params.decay)
    worth = probability * inputs.paging_cost
    admission = admit_on_miss(inputs, worth if inputs.room is None else worth / inputs.size)
    return UseState(probability=probability), admission


def fastlibra() -> Controller:
    """Evicts the resident with the least expected cost of its absence, `p_i c_i` (per size).

    After FastLibra (arXiv:2505.03756), of which we know the abstract: its swapper decides by one
    cost model what to hold. Taken from it: the value of holding an adapter is how probable its
    use is times what loading it costs. Ours: `p_i` is an exponentially decayed share of the
    choices, and every miss admits. Left out: KV caches and their dependency on adapters, loads
    while the memory is idle, and all that depends on queues.
    """
    return Controller(init=_init_use, admit=_admit_fastlibra, replan=None)


def _init_arc(*, num_adapters: int, resident: Array, dtype: Any) -> ArcState:
    return ArcState(
        place=jnp.where(resident, T1, NOWHERE).astype(jnp.int32),
        stamp=jnp.arange(-num_adapters, 0, dtype=jnp.int32),
        target=jnp.zeros((), dtype),
        clock=jnp.zeros((), jnp.int32),
    )


def _arc_target(state: ArcState, place: Array, slots: Array, sizes: dict[int, Array]) -> Array:
    """`p` after a miss whose adapter is at `place`: ghosts of a list enlarge that list."""
    dtype = state.target.dtype
    recent, frequent = sizes[B1].astype(dtype), sizes[B2].astype(dtype)
    # |B2| / |B1| where that is above 1; B1 is not empty where its step is used.
    up = jnp.maximum(frequent / jnp.maximum(recent, 1.0), 1.0)
    down = jnp.maximum(recent / jnp.maximum(frequent, 1.0), 1.0)
    grown = jnp.minimum(state.target + up, slots.astype(dtype))
    shrunk = jnp.maximum(state.target - down, 0.0)
    return jnp.where(place == B1, grown, jnp.where(place == B2, shrunk, state.target))


def _admit_arc(params: Any, state: ArcState, inputs: AdmitInputs) -> tuple[ArcState, Admission]:
    del params
    adapter, slots = inputs.adapter, inputs.cache_slots
    members = {at: state.place == at for at in (T1, T2, B1, B2)}
    sizes = {at: jnp.sum(inside, dtype=jnp.int32) for at, inside in members.items()}
    oldest = {at: least_resident(state.stamp, inside)[0] for at, inside in members.items()}
    came_from = state.place[adapter]
    miss = ~inputs.resident[adapter] & jnp.any(inputs.resident)
    target = jnp.where(miss, _arc_target(state, came_from, slots, sizes), state.target)

    new = miss & (came_from == NOWHERE)
    recent = sizes[T1] + sizes[B1]
    seen_once = new & (recent == slots) & (sizes[T1] == slots)  # T1 fills the cache: no ghost
    forget_b1 = new & (recent == slots) & (sizes[T1] < slots)
    forget_b2 = new & (recent < slots) & (sum(sizes.values()) == 2 * slots)
    above = sizes[T1].astype(target.dtype)
    exceeds = (above > target) | ((came_from == B2) & (above == target))
    from_t1 = seen_once | ((sizes[T1] >= 1) & exceeds)
    outgoing = jnp.where(from_t1, oldest[T1], oldest[T2])

    place = _put(state.place, oldest[B1], NOWHERE, forget_b1)
    place = _put(place, oldest[B2], NOWHERE, forget_b2)
    ghost = jnp.where(seen_once, NOWHERE, jnp.where(from_t1, B1, B2))
    place = _put(place, outgoing, ghost, miss)
    moved = miss | inputs.resident[adapter]
    place = _put(place, adapter, jnp.where(new, T1, T2), moved)
    stamp = _put(state.stamp, outgoing, state.clock, miss)
    stamp = _put(stamp, adapter, state.clock, moved)
    state = ArcState(place=place, stamp=stamp, target=target, clock=state.clock + 1)
    return state, _exchange(inputs, outgoing, miss)


def arc() -> Controller:
    """Adaptive replacement cache (Megiddo and Modha 2003, figure 4) on the choices.

    `T1` holds residents used once, `T2` those used again; `B1` and `B2` remember whom they
    evicted, and a use of one of those moves the target size of `T1`. The first set starts in
    `T1`, the lowest index at its least recently used end.
    """
    return Controller(init=_init_arc, admit=_admit_arc, replan=None)


def _init_lecar(*, num_adapters: int, dtype: Any, **unused: Any) -> LecarState:
    del unused
    zeros = jnp.zeros((num_adapters,), jnp.int32)
    return LecarState(
        last_use=zeros - 1,
        uses=zeros,
        history=zeros,
        evicted_at=zeros,
        weight=jnp.full((2,), 0.5, dtype),
        clock=jnp.zeros((), jnp.int32),
    )


def _lecar_weight(params: LecarParams, state: LecarState, inputs: AdmitInputs) -> Array:
    """`[2]` weights after a miss: the expert that evicted the adapter loses."""
    dtype = state.weight.dtype
    age = (state.clock - state.evicted_at[inputs.adapter]).astype(dtype)
    slots = jnp.maximum(inputs.cache_slots, 1).astype(dtype)
    regret = jnp.exp(jnp.log(jnp.asarray(params.discount, dtype)) * (age / slots))
    blamed = state.history[inputs.adapter] == jnp.array([BY_LRU, BY_LFU], jnp.int32)
    weight = state.weight * jnp.exp(jnp.where(blamed, -params.learning_rate * regret, 0.0))
    weight = jnp.clip(weight / jnp.sum(weight), LEAST_WEIGHT, 1.0 - LEAST_WEIGHT)
    return jnp.where(jnp.any(blamed), weight, state.weight)


def _admit_lecar(
    params: LecarParams, state: LecarState, inputs: AdmitInputs
) -> tuple[LecarState, Admission]:
    adapter, hit = inputs.adapter, inputs.resident[inputs.adapter]
    by_recency, any_resident = least_resident(state.last_use, inputs.resident)
    by_frequency, _ = least_resident(state.uses, inputs.resident)
    miss = ~hit & any_resident
    weight = _lecar_weight(params, state, inputs)
    uniform = uniform_from_bits(jax.random.bits(own_key(inputs.policy_bits), (), jnp.uint32))
    recency = uniform.astype(weight.dtype) < weight[0]
    outgoing = jnp.where(recency, by_recency, by_frequency)

    known = hit | (state.history[adapter] != NOWHERE)
    uses = jnp.where(known, state.uses[adapter] + 1, 1)
    history = _put(state.history, adapter, NOWHERE, jnp.ones_like(hit))
    expert = jnp.where(recency, BY_LRU, BY_LFU)
    # Where both name the same victim, neither is to blame.
    remembered = miss & (by_recency != by_frequency)
    inside = history == expert
    full = jnp.sum(inside, dtype=jnp.int32) >= inputs.cache_slots
    oldest, _ = least_resident(state.evicted_at, inside)
    history = _put(history, oldest, NOWHERE, remembered & full)
    history = _put(history, outgoing, expert, remembered)
    state = LecarState(
        last_use=state.last_use.at[adapter].set(state.clock),
        uses=state.uses.at[adapter].set(uses),
        history=history,
        evicted_at=_put(state.evicted_at, outgoing, state.clock, miss),
        weight=weight,
        clock=state.clock + 1,
    )
    return state, _exchange(inputs, outgoing, miss)


def lecar() -> Controller:
    """LeCaR (Vietri et al. 2018): LRU or LFU evicts, by lot with weights that regrets move.

    Each expert's last `K` evictions are remembered. A miss of one of them, `n` requests after its
    eviction, multiplies that expert's weight by `exp(-rate d^n)`, `d = discount^(1/K)`. As
    in the authors' published code, weights stay within `[0.01, 0.99]`, an adapter that both
    would evict enters no history, and uses are counted while an adapter is resident or remembered.
    """
    return Controller(init=_init_lecar, admit=_admit_lecar, replan=None, randomised=True)
