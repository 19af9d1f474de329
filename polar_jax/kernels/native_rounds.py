"""The native kernel as a drop-in for `simulate.run_rounds`: packs, calls, unpacks.

Its other half is C++ (`native/`): one lane after the other, all rounds of a segment at once,
with the lane's statistics in the processor's fastest cache. It holds the LinUCB family with
slots; `supports` says which rules, and everything else takes the XLA path.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import controllers, experts, routers
from polar_jax.simulate import Lane
from polar_jax.types import Decisions, LaneState, Rounds, Rule

TOGETHER = 2  # requests that are looked at together, `kMost` of lane.h
# Numbers are the kernel's own: `Selection` and `ControllerKind` of lane.h.
_SELECTIONS = {"none": 0, "quota": 1, "relevant": 2}
_FIXED, _LRU, _LFU, _GDSF, _VALUE, _EXPERTS = range(6)
_ROUTERS = {
    routers.linucb(exploration=exploration, beta=beta): (selection, beta == "theory")
    for exploration, selection in _SELECTIONS.items()
    for beta in routers.BETAS
}
_ADMISSIONS = {
    None: _FIXED,
    controllers.lru().admit: _LRU,
    controllers.lfu().admit: _LFU,
    controllers.gdsf().admit: _GDSF,
    controllers.residency_value().admit: _VALUE,
    experts.admit: _EXPERTS,
}


class _Memory(NamedTuple):
    """A controller's memory and constants as the kernel reads them."""

    numbers: Array  # constants
    floats: Array
    counts: Array  # int32


def supports(rule: Rule, *, sized: bool) -> bool:
    """Whether the kernel has a rule: LinUCB with slots, and admission that it knows.

    Args:
      rule: what would be compiled.
      sized: whether adapters differ in size.
    """
    known = rule.router._replace(pooled=False) in _ROUTERS and rule.controller.admit in _ADMISSIONS
    return known and not sized


def run_rounds(
    lane: Lane,
    quota: Array,
    state: LaneState,
    rounds: Rounds,
    decisions: Decisions,
    start: Array,
    stop: Array,
) -> tuple[LaneState, Decisions]:
    """`simulate.run_rounds` for a rule that `supports` knows: same arguments, same results.

    Sums are added in another order, so that statistics differ by rounding.
    """
    router = state.router
    dtype = router.theta_hat.dtype
    kind = _ADMISSIONS[lane.rule.controller.admit]
    selection, theory = _ROUTERS[lane.rule.router._replace(pooled=False)]
    memory = _packed(kind, lane.params.controller, state.controller, dtype)
    pooled, nothing = router.pooled, jnp.zeros((1,), dtype)
    common = (nothing, nothing) if pooled is None else (pooled.precision_inv, pooled.theta)
    # What only fills up a tile is served no round.
    fixed = _fixed(
        lane, rounds, memory, (start, jnp.where(lane.inputs.counted, stop, start), quota)
    )
    changed = (
        *(router.precision_inv, router.precision_recent, router.reward_recent),
        *(router.theta_hat, router.pulls, state.resident, state.pending_loads),
        *(memory.floats, memory.counts, *decisions, *common),
    )
    call = jax.ffi.ffi_call(
        "polar_rounds_f64" if dtype == jnp.float64 else "polar_rounds_f32",
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in changed],
        vmap_method="broadcast_all",
        input_output_aliases={len(fixed) + i: i for i in range(len(changed))},
    )
    flags = {"theory": theory, "binary": lane.binary_reward, "pooled": pooled is not None}
    out = call(*fixed, *changed, selection=selection, controller=kind, **flags)
    names = ("precision_inv", "precision_recent", "reward_recent", "theta_hat", "pulls")
    if pooled is not None:
        router = router.replace(pooled=pooled.replace(precision_inv=out[-2], theta=out[-1]))
    state = state.replace(
        router=router.replace(**dict(zip(names, out[:5], strict=True))),
        controller=_unpacked(kind, state.controller, *out[7:9]),
        resident=out[5],
        pending_loads=out[6],
    )
    return state, Decisions(*out[9:-2])


def _fixed(
    lane: Lane, rounds: Rounds, memory: _Memory, span: tuple[Array, Array, Array]
) -> tuple[Array, ...]:
    """What the kernel reads and leaves as it is, in its order."""
    inputs, params, dtype = lane.inputs, lane.params.router, rounds.utility.dtype
    given = (
        *(params.alpha, params.ridge, params.sigma, params.delta, params.theta_bound),
        *(params.cost_weight, params.margin, inputs.num_features, jnp.sum(inputs.active)),
    )
    costs = (inputs.paging_cost, inputs.switch_cost, inputs.paging_ms, inputs.size)
    return (
        *(rounds.context, rounds.utility, rounds.noise),
        jnp.stack([jnp.asarray(x, jnp.int32) for x in span]),
        jnp.concatenate([_flat(dtype, *given), memory.numbers]),
        jnp.stack([cost.astype(dtype) for cost in costs]),
        inputs.active,
    )


def _flat(dtype: Any, *values: Array | float) -> Array:
    """Values one after the other; one 0 where there are none, as no array is empty."""
    arrays = [jnp.asarray(value).astype(dtype).reshape(-1) for value in values]
    return jnp.concatenate(arrays) if arrays else jnp.zeros((1,), dtype)


def _packed(kind: int, params: Any, memory: Any, dtype: Any) -> _Memory:
    floats, counts, numbers = [], [], []
    if kind in (_LRU, _LFU):
        counts = [memory.priority, memory.clock]
    elif kind == _GDSF:
        floats = [memory.priority, memory.uses, memory.clock]
    elif kind == _VALUE:
        floats, numbers = [memory.priority], [params.decay]
    elif kind == _EXPERTS:
        floats = [memory.loss, memory.value, memory.deficit, memory.real_deficit]
        counts = [memory.sets, memory.last_use, memory.clock]
        numbers = [
            *(params.value_decay, params.score_half_life),
            *(params.score_growth, params.beta_max),
        ]
    return _Memory(_flat(dtype, *numbers), _flat(dtype, *floats), _flat(jnp.int32, *counts))


def _unpacked(kind: int, memory: Any, floats: Array, counts: Array) -> Any:
    def cut(flat: Array, *like: Array) -> list[Array]:
        ends = [0]
        for one in like:
            ends.append(ends[-1] + one.size)
        return [
            flat[first:last].reshape(one.shape).astype(one.dtype)
            for first, last, one in zip(ends, ends[1:], like, strict=False)
        ]

    if kind in (_LRU, _LFU):
        priority, clock = cut(counts, memory.priority, memory.clock)
        return memory.replace(priority=priority, clock=clock)
    if kind == _GDSF:
        priority, uses, clock = cut(floats, memory.priority, memory.uses, memory.clock)
        return memory.replace(priority=priority, uses=uses, clock=clock)
    if kind == _VALUE:
        return memory.replace(priority=cut(floats, memory.priority)[0])
    if kind == _EXPERTS:
        loss, value, deficit, real = cut(
            floats, memory.loss, memory.value, memory.deficit, memory.real_deficit
        )
        sets, last_use, clock = cut(counts, memory.sets, memory.last_use, memory.clock)
        return memory.replace(
            **{"sets": sets, "loss": loss, "value": value, "deficit": deficit},
            **{"last_use": last_use, "clock": clock, "real_deficit": real},
        )
    return memory
