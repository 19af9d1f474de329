"""`simulate.run_rounds` in blocks of rounds that are scored ahead by matrix products.

Contexts do not depend on decisions. So for a block of `S` rounds with contexts `X` `[S, d]`
every adapter's `Q_i = X V_i^-1 X^T` and `M_i = X theta_i` are known before the first of them;
inside the block one observation changes `Q` and `M` of the chosen adapter by rank one, and
the inverses and estimates are brought up to date once at its end. The same numbers up to
rounding, but the inverses are read once per block, not once per round.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import linalg, routers, simulate
from polar_jax.kernels import recent
from polar_jax.simulate import Lane
from polar_jax.types import Decisions, LaneState, Rounds, RouterState, Rule, Scores

BLOCK = 32


class _Ahead(NamedTuple):
    """What is known of a block's rounds, brought up to date by each decision."""

    products: Array  # [N, S, d], V_i^-1 x_s from before the block
    square: Array  # [N, S, S], Q
    mean: Array  # [N, S], M
    norm: Array  # [S], x_s^T x_s


class _Learnt(NamedTuple):
    """What a block's decisions have taught, row by row; zeros where nothing was served."""

    adapter: Array  # [S] int32, -1 where not served
    direction: Array  # [S, d], V_a^-1 x_s at the time
    against: Array  # [S, S], x_t^T V_a^-1 x_s at the time, of every round t
    growth: Array  # [S], 1 + x_s^T V_a^-1 x_s
    surprise: Array  # [S], reward less what was expected
    reward: Array  # [S]


def supports(rule: Rule) -> bool:
    """Whether blocks serve a rule: any router on LinUCB's scores, without a pooled prior."""
    return not rule.router.pooled and routers.beta_of(rule.router) is not None


def _ahead(router: RouterState, contexts: Array) -> _Ahead:
    """Scores a block's contexts `[S, d]` with every adapter."""
    high = linalg.HIGHEST
    products = jnp.einsum("nij,sj->nsi", router.precision_inv, contexts, precision=high)
    return _Ahead(
        products=products,
        square=jnp.einsum("nsi,ti->nst", products, contexts, precision=high),
        mean=jnp.einsum("ni,si->ns", router.theta_hat, contexts, precision=high),
        norm=jnp.einsum("si,si->s", contexts, contexts, precision=high),
    )


def _nothing_learnt(contexts: Array) -> _Learnt:
    size, context_dim = contexts.shape
    zeros = jnp.zeros((size,), contexts.dtype)
    return _Learnt(
        adapter=jnp.full((size,), -1, jnp.int32),
        direction=jnp.zeros((size, context_dim), contexts.dtype),
        against=jnp.zeros((size, size), contexts.dtype),
        growth=jnp.ones_like(zeros),
        surprise=zeros,
        reward=zeros,
    )


def _scores(lane: Lane, router: RouterState, ahead: _Ahead, s: Array, route: Any) -> Scores:
    """`routers.Router.score` of round `s` of a block."""
    params, active = lane.params.router, lane.inputs.active
    rows = jax.lax.dynamic_index_in_dim(ahead.square, s, 1, keepdims=False)
    squared = jax.lax.dynamic_index_in_dim(rows, s, 1, keepdims=False)
    # Untouched adapters share one number, as in `linalg.widths`.
    squared = jnp.where(router.pulls == 0, ahead.norm[s] / params.ridge, squared)
    width = jnp.sqrt(jnp.maximum(squared, 0.0))
    mean = jax.lax.dynamic_index_in_dim(ahead.mean, s, 1, keepdims=False)
    mean = jnp.where(active, mean, -jnp.inf)
    beta_of = routers.beta_of(lane.rule.router)
    if beta_of is None:
        raise ValueError("the rule must be one that `supports` accepts.")
    beta = beta_of(params, router, route)
    # Directions are read by the update alone, which blocks have of their own.
    direction = jnp.zeros_like(router.theta_hat)
    return Scores(mean, width, beta, index=mean + beta * width, direction=direction)


def _learn(
    ahead: _Ahead, learnt: _Learnt, s: Array, adapter: Array, reward: Array
) -> tuple[_Ahead, _Learnt]:
    """Adds the observation of round `s`: rank one on the chosen adapter's `Q` and `M`."""
    square, against = ahead.square[adapter], ahead.square[adapter, s]
    growth = 1.0 + against[s]
    surprise = reward - ahead.mean[adapter, s]
    # V_a^-1 x_s now, from what it was before the block and the block's own observations.
    since = jnp.where(learnt.adapter == adapter, learnt.against[:, s] / learnt.growth, 0.0)
    spent = jnp.einsum("s,sd->d", since, learnt.direction, precision=linalg.HIGHEST)
    scaled = against * jax.lax.rsqrt(growth)
    ahead = ahead._replace(
        square=ahead.square.at[adapter].set(square - scaled[:, None] * scaled[None, :]),
        mean=ahead.mean.at[adapter].add(surprise / growth * against),
    )
    return ahead, _Learnt(
        adapter=learnt.adapter.at[s].set(adapter),
        direction=learnt.direction.at[s].set(ahead.products[adapter, s] - spent),
        against=learnt.against.at[s].set(against),
        growth=learnt.growth.at[s].set(growth),
        surprise=learnt.surprise.at[s].set(surprise),
        reward=learnt.reward.at[s].set(reward),
    )


def _brought_up_to_date(router: RouterState, contexts: Array, learnt: _Learnt) -> RouterState:
    """The statistics after a block; the pulls have been counted round by round."""
    ids = jnp.arange(router.pulls.shape[0], dtype=jnp.int32)
    chosen = (learnt.adapter[:, None] == ids[None, :]).astype(contexts.dtype)
    scaled = learnt.direction * jax.lax.rsqrt(learnt.growth)[:, None]
    own = chosen.T[:, :, None] * scaled[None, :, :]
    steps = (learnt.surprise / learnt.growth)[:, None] * learnt.direction
    high = linalg.HIGHEST
    router = recent.add_observations(router, contexts, learnt.reward, chosen)
    return router.replace(
        precision_inv=router.precision_inv - jnp.einsum("nsi,nsj->nij", own, own, precision=high),
        theta_hat=router.theta_hat + jnp.einsum("sn,si->ni", chosen, steps, precision=high),
    )


def _serve_block(
    lane: Lane,
    quota: Array,
    carry: tuple[LaneState, Decisions],
    rounds: Rounds,
    window: tuple[Array, Array, Array],
    *,
    block: int,
) -> tuple[LaneState, Decisions]:
    """Serves rounds `first` to `stop - 1`, all of them among the `block` from `base` on."""
    base, first, stop = window
    state, decisions = carry
    contexts = jax.lax.dynamic_slice_in_dim(rounds.context, base, block)

    def body(t: Array, carry: Any) -> Any:
        state, decisions, ahead, learnt = carry
        one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, keepdims=False), rounds)
        route = simulate.route_inputs(lane, quota, state, one)
        scores = _scores(lane, state.router, ahead, t - base, route)
        choice = lane.rule.router.select(lane.params.router, state.router, scores, route)
        state, reward, decision = simulate.serve(lane, state, scores, choice, one)
        ahead, learnt = _learn(ahead, learnt, t - base, choice.adapter, reward)
        pulls = state.router.pulls.at[choice.adapter].add(1)
        write = jax.lax.dynamic_update_index_in_dim
        decisions = jax.tree.map(lambda all_, x: write(all_, x, t, 0), decisions, decision)
        return state.replace(router=state.router.replace(pulls=pulls)), decisions, ahead, learnt

    start = state, decisions, _ahead(state.router, contexts), _nothing_learnt(contexts)
    state, decisions, _, learnt = jax.lax.fori_loop(first, stop, body, start)
    router = _brought_up_to_date(state.router, contexts, learnt)
    return state.replace(router=router), decisions


def run_rounds(
    lane: Lane,
    quota: Array,
    state: LaneState,
    rounds: Rounds,
    decisions: Decisions,
    start: Array,
    stop: Array,
    *,
    block: int = BLOCK,
) -> tuple[LaneState, Decisions]:
    """Serves rounds `start` to `stop - 1` of a chunk block by block; see `simulate.run_rounds`.

    Args:
      lane: a lane whose rule `supports` accepts.
      quota: `[]` int32, exploration quota of these rounds.
      state: before round `start`.
      rounds: the chunk's `n` rounds.
      decisions: `n` rounds, filled up to `start`.
      start: `[]` int32.
      stop: `[]` int32, at most `n`.
      block: `S`, rounds that are scored ahead.

    Returns:
      `(state, decisions)` with rounds `start` to `stop - 1` served and filled in.
    """
    num_rounds = rounds.noise.shape[0]
    block = min(block, num_rounds)

    def serve(index: Array, carry: tuple[LaneState, Decisions]) -> tuple[LaneState, Decisions]:
        first = start + index * block
        # A block that would reach past the chunk begins before its first round.
        base = jnp.minimum(first, num_rounds - block)
        window = base, first, jnp.minimum(first + block, stop)
        return _serve_block(lane, quota, carry, rounds, window, block=block)

    # No blocks where nothing is left: `stop` may be below `start`.
    num_blocks = (jnp.maximum(stop - start, 0) + block - 1) // block
    return jax.lax.fori_loop(0, num_blocks, serve, (state, decisions))
