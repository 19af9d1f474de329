"""`simulate.run_rounds` as one persistent Pallas kernel: a lane's state stays on chip.

One program serves one lane (`vmap` makes a grid of them). It loads the lane's state once,
carries it through a loop over the rounds, reads contexts, utilities and noise as it goes, and
writes one decision per round. The inverses are folded into half their size (`folded.py`). The
sums that only a refresh reads are added afterwards, by matrix products (`recent.py`).

The program itself is `pallas_step.py`; here the arrays are filled up to powers of two, which
changes no choice, and cut again. On a CPU it runs in interpret mode, which is for tests.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from polar_jax import linalg, routers
from polar_jax.kernels import folded, pallas_admission, pallas_step, recent
from polar_jax.kernels.pallas_step import Carried
from polar_jax.simulate import Lane
from polar_jax.types import Decisions, LaneState, Rounds, Rule

# An H100 multiprocessor has 256 KiB of registers. A lane's state and the round's temporaries
# share them, and a state that does not fit is spilled to memory every round.
ON_CHIP_BYTES = 200 * 1024
# A thread has 255 registers, and the round needs some: compiled for an H100, this many numbers
# of the state per thread spill nothing, and more warps than that only add instructions.
_STATE_PER_THREAD = 144
_THREADS_PER_WARP, _MAX_WARPS = 32, 16


def _power_of_two(size: int) -> int:
    """The least power of two that is at least `size` and 2."""
    return max(2, 1 << (size - 1).bit_length())


def state_numbers(num_adapters: int, context_dim: int) -> int:
    """Numbers that a lane's statistics take on chip, padding included."""
    n, d = _power_of_two(num_adapters), _power_of_two(context_dim)
    return n * (d * d // 2 + d // 2 + d + 3)


def fits(num_adapters: int, context_dim: int) -> bool:
    """Whether a lane's statistics stay on chip in float32; see `ON_CHIP_BYTES`."""
    return 4 * state_numbers(num_adapters, context_dim) <= ON_CHIP_BYTES


def supports(rule: Rule, *, sized: bool = False) -> bool:
    """Whether the kernel serves a rule.

    Args:
      rule: router and controller. LinUCB with each exploration and schedule; fixed sets, epoch
        controllers without admission, LRU, LFU, GDSF, residency values and POLAR-E.
      sized: whether adapters differ in size; slots only are supported.
    """
    if sized or rule.router.pooled or rule.router.randomised or rule.controller.randomised:
        return False
    known = [
        routers.linucb(exploration=exploration, beta=beta)
        for exploration in ("none", "quota", "relevant")
        for beta in routers.BETAS
    ]
    return rule.router in known and pallas_admission.masked_rule(rule.controller) is not None


# Arrays whose axis is experts; every other first axis is adapters, every second one experts.
_OVER_EXPERTS = ("loss", "value_decay")


def _fill(values: Array, shape: tuple[int, ...]) -> Array:
    """An array extended by zeros to `shape`; bools as int32, scalars with one element."""
    values = values.astype(jnp.int32) if values.dtype == jnp.bool_ else values
    values = values[None] if values.ndim == 0 else values
    room = [(0, new - old) for new, old in zip(shape, values.shape, strict=True)]
    return jnp.pad(values, room) if any(more for _, more in room) else values


def _fill_tree(tree: Any, num_adapters: int, num_experts: int) -> Any:
    """Constants or memory of a controller as a kernel reads them."""

    def filled(path: Any, leaf: Array) -> Array:
        sizes = (num_adapters, num_experts)
        if path and getattr(path[-1], "name", "") in _OVER_EXPERTS:
            sizes = (num_experts,)
        return _fill(leaf, sizes[: leaf.ndim] or (1,))

    return jax.tree_util.tree_map_with_path(filled, tree)


def _restore(values: Array, like: Array) -> Array:
    """The inverse of `_fill`."""
    cut = values[tuple(slice(size) for size in like.shape)] if like.ndim else values[0]
    return cut.astype(like.dtype)


def _num_warps(num_adapters: int, context_dim: int) -> int:
    threads = state_numbers(num_adapters, context_dim) // _STATE_PER_THREAD
    return min(_MAX_WARPS, max(1, _power_of_two(threads) // _THREADS_PER_WARP))


def _sizes(state: LaneState) -> tuple[int, int, int]:
    """Adapters, features and experts on chip."""
    num_adapters, context_dim = state.router.theta_hat.shape
    num_experts = state.controller.loss.shape[0] if hasattr(state.controller, "loss") else 1
    return _power_of_two(num_adapters), _power_of_two(context_dim), _power_of_two(num_experts)


def _given(
    lane: Lane, limits: list[Any], rounds: Rounds, params: Any, sizes: tuple[int, int, int]
) -> pallas_step.Given:
    inputs, (n, d, e) = lane.inputs, sizes
    costs = inputs.paging_cost, inputs.switch_cost, inputs.paging_ms
    # What fills up divides by its size in GDSF's priorities, so it gets one.
    size = jnp.pad(inputs.size, (0, n - inputs.size.shape[0]), constant_values=1.0)
    num_rounds = rounds.noise.shape[0]
    return pallas_step.Given(
        limits=jnp.stack([jnp.asarray(one, jnp.int32) for one in limits]),
        params=_fill_tree(params, n, e),
        active=_fill(inputs.active, (n,)),
        costs=(*(_fill(cost, (n,)) for cost in costs), size),
        context=folded.halves(_fill(rounds.context, (num_rounds, d))),
        square=jnp.einsum("td,td->t", rounds.context, rounds.context, precision=linalg.HIGHEST),
        utility=_fill(rounds.utility, (num_rounds, n)),
        noise=rounds.noise,
    )


def _carried(state: LaneState, sizes: tuple[int, int, int]) -> Carried:
    router, (n, d, e) = state.router, sizes
    return Carried(
        inverse=folded.fold(_fill(router.precision_inv, (n, d, d))),
        theta_hat=folded.halves(_fill(router.theta_hat, (n, d))),
        pulls=_fill(router.pulls, (n,)),
        resident=_fill(state.resident, (n,)),
        pending=_fill(state.pending_loads, (n,)),
        memory=_fill_tree(state.controller, n, e),
    )


def _described(tree: Any) -> Any:
    return jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype), tree)


def _streams(rounds: Rounds, num_adapters: int) -> Decisions:
    """Shapes of the decisions as they leave the chip; what is true or false takes a byte."""
    dtype = rounds.noise.dtype
    shape = rounds.noise.shape
    kinds = {"forced": jnp.int8, "switch_cost": dtype, "switch_ms": dtype}
    streams: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(shape, kinds.get(name, jnp.int32)) for name in Decisions._fields
    }
    streams["resident"] = jax.ShapeDtypeStruct((*shape, num_adapters), jnp.int8)
    return Decisions(**streams)


def run_rounds(
    lane: Lane,
    quota: Array,
    state: LaneState,
    rounds: Rounds,
    decisions: Decisions,
    start: Array,
    stop: Array,
    *,
    interpret: bool | None = None,
) -> tuple[LaneState, Decisions]:
    """Serves rounds `start` to `stop - 1` of a chunk on chip; see `simulate.run_rounds`.

    Args:
      lane: a lane whose rule `supports` accepts, with slots.
      quota: `[]` int32, exploration quota of these rounds.
      state: before round `start`.
      rounds: the chunk's `n` rounds.
      decisions: `n` rounds, filled up to `start`.
      start: `[]` int32.
      stop: `[]` int32, at most `n`.
      interpret: whether to run the kernel's operations one by one; on a CPU where None.

    Returns:
      `(state, decisions)` with rounds `start` to `stop - 1` served and filled in.
    """
    sizes = _sizes(state)
    params = lane.params.router, lane.params.controller
    params = jax.tree.map(lambda one: jnp.asarray(one, rounds.context.dtype), params)
    limits = [start, stop, quota, lane.inputs.num_features]
    given, carried = _given(lane, limits, rounds, params, sizes), _carried(state, sizes)
    original = Carried(
        inverse=carried.inverse,
        theta_hat=carried.theta_hat,
        pulls=state.router.pulls,
        resident=state.resident,
        pending=state.pending_loads,
        memory=state.controller,
    )
    like = _described((params, lane.inputs.paging_cost, original))
    # The lane's arrays come in as operands; what the program closes over is static.
    static = lane._replace(params=None, inputs=None, quotas=None, subsets=None)
    end, done = pl.pallas_call(
        lambda *refs: pallas_step.kernel(static, like, *refs),
        out_shape=(_described(carried), _streams(rounds, sizes[0])),
        compiler_params=triton.CompilerParams(num_warps=_num_warps(*sizes[:2]), num_stages=1),
        interpret=jax.default_backend() == "cpu" if interpret is None else interpret,
        name="polar_rounds",
    )(given, carried)
    return _finished(lane, state, rounds, decisions, (start, stop), original, end, done)


def _finished(
    lane: Lane,
    state: LaneState,
    rounds: Rounds,
    decisions: Decisions,
    span: tuple[Array, Array],
    original: Carried,
    end: Carried,
    done: Decisions,
) -> tuple[LaneState, Decisions]:
    """What the kernel left on chip and streamed out, in the engine's own form."""
    position = jnp.arange(rounds.noise.shape[0], dtype=jnp.int32)
    served = (position >= span[0]) & (position < span[1])

    def merged(old: Array, new: Array) -> Array:
        cut = new[tuple(slice(size) for size in old.shape)].astype(old.dtype)
        return jnp.where(served.reshape(-1, *[1] * (old.ndim - 1)), cut, old)

    decisions = jax.tree.map(merged, decisions, done)
    size = state.router.theta_hat.shape[1]
    num_adapters = state.resident.shape[0]
    inverse = folded.unfold(end.inverse)[:num_adapters, :size, :size]
    theta_hat = jnp.concatenate(end.theta_hat, axis=1)[:num_adapters, :size]
    final = jax.tree.map(_restore, end, original)
    ids = jnp.arange(num_adapters, dtype=jnp.int32)[None, :]
    chosen = decisions.adapter[:, None] == ids
    reward = jnp.sum(jnp.where(chosen, rounds.utility, 0.0), axis=1) + rounds.noise
    reward = jnp.floor(reward) if lane.binary_reward else reward
    router = recent.add_rounds(state.router, rounds.context, reward, decisions.adapter, *span)
    return state.replace(
        router=router.replace(precision_inv=inverse, theta_hat=theta_hat, pulls=final.pulls),
        controller=final.memory,
        resident=final.resident,
        pending_loads=final.pending,
    ), decisions
