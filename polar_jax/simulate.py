"""The two timescales: `run_rounds` is the fast one, `run_chunk` wraps the slow one round it.

Pure functions of one lane: no `jit`, no `vmap` over lanes, no files (`lane_maps` and
`lanes` have those). The order of events in a round is that of `docs/model.md`, "Order of events".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import linalg, routers
from polar_jax.types import (
    Admission,
    AdmitInputs,
    Choice,
    ChunkClock,
    Decisions,
    LaneInputs,
    LaneState,
    PolicyParams,
    ReplanInputs,
    Rounds,
    RouteInputs,
    RouterState,
    Rule,
    Scores,
)


class Lane(NamedTuple):
    """One lane's constants: what is compiled (`rule`) and what is data."""

    rule: Rule
    params: PolicyParams
    inputs: LaneInputs
    quotas: Array  # [M] int32, exploration quota of each epoch
    subsets: Any  # cache_search.SubsetTable of the controller, shared by all lanes
    binary_reward: bool


def init_lane(lane: Lane, resident: Array, *, context_dim: int) -> LaneState:
    """The state before the first round.

    Args:
      lane: the lane.
      resident: `[N]` bool, the set given for round 1, at no cost.
      context_dim: `d`.

    Returns:
      The state; its floating dtype is that of the paging costs.
    """
    num_adapters = resident.shape[0]
    dtype = lane.inputs.paging_cost.dtype
    return LaneState(
        router=routers.init(
            lane.params.router,
            num_adapters=num_adapters,
            context_dim=context_dim,
            dtype=dtype,
            pooled=lane.rule.router.pooled,
        ),
        controller=lane.rule.controller.init(
            num_adapters=num_adapters, resident=resident, dtype=dtype
        ),
        resident=resident,
        pending_loads=jnp.zeros_like(resident),
        sample=jnp.zeros((lane.rule.window, context_dim), dtype),
        backlog_ms=jnp.zeros((), dtype),
    )


def _empty_decisions(num_rounds: int, num_adapters: int, dtype: Any) -> Decisions:
    return Decisions(
        adapter=jnp.zeros((num_rounds,), jnp.int32),
        forced=jnp.zeros((num_rounds,), bool),
        resident=jnp.zeros((num_rounds, num_adapters), bool),
        switch_cost=jnp.zeros((num_rounds,), dtype),
        switch_ms=jnp.zeros((num_rounds,), dtype),
        loads=jnp.zeros((num_rounds,), jnp.int32),
    )


def _admit(
    lane: Lane, state: LaneState, scores: Scores, adapter: Array, policy_bits: Array
) -> tuple[Any, Admission]:
    admit = lane.rule.controller.admit
    if admit is None:
        nothing = jnp.zeros_like(state.resident)
        return state.controller, Admission(resident=state.resident, bought=nothing)
    return admit(
        lane.params.controller,
        state.controller,
        AdmitInputs(
            scores=scores,
            adapter=adapter,
            resident=state.resident,
            paging_cost=lane.inputs.paging_cost,
            switch_cost=lane.inputs.switch_cost,
            size=lane.inputs.size,
            active=lane.inputs.active,
            cache_slots=lane.inputs.cache_slots,
            policy_bits=policy_bits,
            room=lane.inputs.room,
        ),
    )


def route_inputs(lane: Lane, quota: Array, state: LaneState, round_: Rounds) -> RouteInputs:
    """What the router sees of one round (the fields of `Rounds` without their leading axis)."""
    return RouteInputs(
        context=round_.context,
        utility=round_.utility if round_.benchmark is None else round_.benchmark,
        policy_bits=round_.policy_bits,
        resident=state.resident,
        paging_cost=lane.inputs.paging_cost,
        quota=quota,
        active=lane.inputs.active,
        num_features=lane.inputs.num_features,
    )


def serve(
    lane: Lane, state: LaneState, scores: Scores, choice: Choice, round_: Rounds
) -> tuple[LaneState, Array, Decisions]:
    """Serves one request with the chosen adapter: everything but learning from it.

    Args:
      lane: the lane.
      state: before the request.
      scores: what the adapter was chosen on.
      choice: the adapter.
      round_: one round.

    Returns:
      `(state with the statistics unchanged, [] reward, the decision)`.
    """
    inputs, (adapter, forced) = lane.inputs, choice
    reward = round_.utility[adapter] + round_.noise
    if lane.binary_reward:
        reward = jnp.floor(reward)
    controller, admission = _admit(lane, state, scores, adapter, round_.policy_bits)
    unpaid = admission.bought | state.pending_loads
    entered = admission.resident & ~state.resident
    decision = Decisions(
        adapter=adapter,
        forced=forced,
        resident=state.resident,
        switch_cost=jnp.sum(jnp.where(unpaid, inputs.switch_cost, 0.0)),
        switch_ms=jnp.sum(jnp.where(unpaid, inputs.paging_ms, 0.0)),
        loads=jnp.sum(entered, dtype=jnp.int32) + jnp.sum(state.pending_loads, dtype=jnp.int32),
    )
    served = state.replace(
        controller=controller,
        resident=admission.resident,
        pending_loads=jnp.zeros_like(state.pending_loads),
    )
    return served, reward, decision


def step(lane: Lane, quota: Array, state: LaneState, round_: Rounds) -> tuple[LaneState, Decisions]:
    """Serves one request.

    Args:
      lane: the lane.
      quota: `[]` int32, exploration quota of this round's epoch.
      state: before the request.
      round_: one round (the fields of `Rounds` without their leading axis).

    Returns:
      `(state after it, the decision)`.
    """
    router, params = lane.rule.router, lane.params.router
    route = route_inputs(lane, quota, state, round_)
    scores = router.score(params, state.router, route)
    choice = router.select(params, state.router, scores, route)
    served, reward, decision = serve(lane, state, scores, choice, round_)
    learnt = routers.observe(state.router, round_.context, choice.adapter, reward, scores)
    return served.replace(router=learnt), decision


def run_rounds(
    lane: Lane,
    quota: Array,
    state: LaneState,
    rounds: Rounds,
    decisions: Decisions,
    start: Array,
    stop: Array,
) -> tuple[LaneState, Decisions]:
    """The fast timescale: serves rounds `start` to `stop - 1` of a chunk.

    Args:
      lane: the lane.
      quota: `[]` int32, exploration quota of these rounds.
      state: before round `start`.
      rounds: the chunk's `n` rounds.
      decisions: `n` rounds, filled up to `start`.
      start: `[]` int32, data: how many rounds are served never makes a new program.
      stop: `[]` int32, at most `n`.

    Returns:
      `(state, decisions)` with rounds `start` to `stop - 1` served and filled in.
    """

    def body(t: Array, carry: tuple[LaneState, Decisions]) -> tuple[LaneState, Decisions]:
        state, decisions = carry
        one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, t, keepdims=False), rounds)
        state, decision = step(lane, quota, state, one)
        write = jax.lax.dynamic_update_index_in_dim
        return state, jax.tree.map(lambda all_, x: write(all_, x, t, 0), decisions, decision)

    return jax.lax.fori_loop(start, stop, body, (state, decisions))


def refresh(state: RouterState, counted: Array) -> RouterState:
    """`linalg.refresh` of a lane's statistics, whether it counts or only fills up a tile."""
    del counted
    return linalg.refresh(state)


def _recent(state: LaneState, rounds: Rounds, stop: Array) -> Array:
    """`[W, d]` the last `W` contexts up to `stop` rounds into the chunk."""
    seen = jnp.concatenate([state.sample, rounds.context])
    return jax.lax.dynamic_slice_in_dim(seen, stop, state.sample.shape[0])


def _reservoir(state: LaneState, rounds: Rounds, stop: Array) -> Array:
    """`[W, d]` the uniform reservoir after `stop` rounds of the chunk."""
    position = jnp.arange(rounds.context.shape[0], dtype=jnp.int32)
    written = (position < stop) & (rounds.reservoir_slot >= 0)
    # Slot W does not exist, so what is not written is dropped; the last write wins.
    size = state.sample.shape[0]
    slot = jnp.where(written, rounds.reservoir_slot, size)
    last = jnp.full((size,), -1, jnp.int32).at[slot].max(position, mode="drop")
    return jnp.where(last[:, None] >= 0, rounds.context[jnp.maximum(last, 0)], state.sample)


def _sample(lane: Lane, state: LaneState, rounds: Rounds, stop: Array) -> Array:
    sample = _reservoir if lane.rule.sample == "reservoir" else _recent
    return sample(state, rounds, stop)


def _sample_weight(lane: Lane, served: Array, dtype: Any) -> Array:
    """`[W]` 1 for the contexts of rounds that took place, 0 for padding."""
    slots = jnp.arange(lane.rule.window, dtype=jnp.int32)
    filled = slots if lane.rule.sample == "reservoir" else lane.rule.window - 1 - slots
    return (filled < served).astype(dtype)


def replan(
    lane: Lane,
    state: LaneState,
    contexts: Array,
    weight: Array,
    amortised_rounds: Array,
    policy_bits: Array,
) -> LaneState:
    """The slow timescale: chooses the set for the next rounds.

    Args:
      lane: a lane whose controller replans.
      state: after the epoch's last round, statistics refreshed.
      contexts: `[W, d]` sampled contexts.
      weight: `[W]` 0 where the sample is padding.
      amortised_rounds: `[]` rounds over which a load is amortised.
      policy_bits: `[2]` uint32, of the round just served.

    Returns:
      The state with the new set; its loads are booked to the next round.
    """
    search = lane.rule.controller.replan
    if search is None:
        return state
    router = state.router
    theta = linalg.estimates(router)
    mean = jnp.einsum("md,nd->mn", contexts, theta, precision=linalg.HIGHEST)
    mean = jnp.where(lane.inputs.active[None, :], mean, -jnp.inf)
    width = linalg.sample_widths(router, contexts, lane.params.router.ridge)
    one = RouteInputs(
        context=contexts[0],
        utility=mean[0],
        policy_bits=jnp.zeros((2,), jnp.uint32),
        resident=state.resident,
        paging_cost=lane.inputs.paging_cost,
        quota=jnp.zeros((), jnp.int32),
        active=lane.inputs.active,
        num_features=lane.inputs.num_features,
    )
    beta = lane.rule.router.score(lane.params.router, router, one).beta
    controller, resident = search(
        lane.params.controller,
        state.controller,
        ReplanInputs(
            mean=mean,
            optimistic=mean + beta[None, :] * width,
            weight=weight,
            resident=state.resident,
            paging_cost=lane.inputs.paging_cost,
            switch_cost=lane.params.planned_switching * lane.inputs.switch_cost,
            cache_slots=lane.inputs.cache_slots,
            amortised_rounds=amortised_rounds,
            policy_bits=policy_bits,
            active=lane.inputs.active,
            subsets=lane.subsets,
            room=lane.inputs.room,
        ),
    )
    loads = resident & ~state.resident
    return state.replace(controller=controller, resident=resident, pending_loads=loads)


def _if_due(
    due: Array, act: Callable[[LaneState, Array], LaneState], state: LaneState, segment: Array
) -> LaneState:
    # A loop of no round or one: it changes the state where it lies. A branch that does nothing
    # copies all of it, which took longer than serving the requests of a chunk.
    return jax.lax.fori_loop(0, due.astype(jnp.int32), lambda _, now: act(now, segment), state)


def run_chunk(
    lane: Lane,
    state: LaneState,
    rounds: Rounds,
    clock: ChunkClock,
    *,
    kernel: Callable[..., tuple[LaneState, Decisions]] = run_rounds,
    refresh: Callable[[RouterState, Array], RouterState] = refresh,
) -> tuple[LaneState, Decisions]:
    """Serves a chunk of `n` rounds and acts at the epoch boundaries within it.

    The boundaries come from the shared clock, so all lanes of a call act or
    none does (a branch on a lane's own state would run the cache search every round).

    Args:
      lane: the lane.
      state: before the chunk.
      rounds: `n` rounds; those past the horizon are not served.
      clock: boundaries of the chunk.
      kernel: the fast timescale: `run_rounds`, or a kernel that does the same faster.
      refresh: the statistics' refresh, or a kernel's.

    Returns:
      `(state, decisions of the n rounds)`.
    """
    num_rounds, num_adapters = rounds.utility.shape
    dtype = state.router.theta_hat.dtype
    decisions = _empty_decisions(num_rounds, num_adapters, dtype)
    sampled = lane.rule.controller.replan is not None

    def refreshed(state: LaneState, _: Array) -> LaneState:
        return state.replace(router=refresh(state.router, lane.inputs.counted))

    def replanned(state: LaneState, segment: Array) -> LaneState:
        state, stop = refreshed(state, segment), clock.stop[segment]
        weight = _sample_weight(lane, clock.first_round + stop, dtype)
        contexts = _sample(lane, state, rounds, stop)
        rounds_ahead = clock.amortised_rounds[segment].astype(dtype)
        return replan(lane, state, contexts, weight, rounds_ahead, rounds.policy_bits[stop - 1])

    def serve_segment(
        segment: Array, carry: tuple[LaneState, Decisions, Array]
    ) -> tuple[LaneState, Decisions, Array]:
        state, decisions, start = carry
        stop = clock.stop[segment]
        quota = lane.quotas[clock.epoch[segment]]
        state, decisions = kernel(lane, quota, state, rounds, decisions, start, stop)
        action = clock.action[segment]
        if sampled:
            state = _if_due(action == 2, replanned, state, segment)
        due = action == 1 if sampled else action > 0
        return _if_due(due, refreshed, state, segment), decisions, stop

    start = jnp.zeros((), jnp.int32)
    state, decisions, stop = jax.lax.fori_loop(
        0, clock.num_segments, serve_segment, (state, decisions, start)
    )
    if sampled:
        state = state.replace(sample=_sample(lane, state, rounds, stop))
    return state, decisions
