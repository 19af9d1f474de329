"""One round of a lane on chip: what the program of `pallas_rounds.py` does.

Written with what Pallas' Triton backend lowers: arrays whose sizes are powers of two,
products that are broadcast and summed, one-hot masks in place of gathers and scatters.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import routers
from polar_jax.kernels import folded, pallas_admission
from polar_jax.kernels.pallas_admission import entry
from polar_jax.simulate import Lane
from polar_jax.types import Decisions, RouteInputs, Router, RouterState, Scores


class Given(NamedTuple):
    """What a kernel reads; vectors are padded, scalars have one element, bools are int32."""

    limits: Any  # [4] int32: start, stop, quota, number of features
    params: Any  # (routers.RouterParams, constants of the controller)
    active: Any  # [N]
    costs: Any  # ([N] paging_cost, [N] switch_cost, [N] paging_ms, [N] size)
    context: Any  # folded.Halves, [n, h] each
    square: Any  # [n], x^T x
    utility: Any  # [n, N]
    noise: Any  # [n]


class Carried(NamedTuple):
    """A lane's state on chip."""

    inverse: Any  # folded.Folded of N matrices
    theta_hat: Any  # folded.Halves, [N, h] each
    pulls: Any  # [N] int32
    resident: Any  # [N] bool
    pending: Any  # [N] bool
    memory: Any  # the controller's


class Constants(NamedTuple):
    """What a lane's rounds have in common, loaded."""

    router: Any
    controller: Any
    quota: Array
    num_features: Array
    active: Array
    paging_cost: Array
    switch_cost: Array
    paging_ms: Array
    size: Array


def _read(ref: Any, like: Any) -> Array:
    """A kernel's value of what was filled from an array like `like`."""
    values = ref[0] if like.ndim == 0 else ref[...]
    return values != 0 if like.dtype == jnp.bool_ else values


def _write(ref: Any, values: Array) -> None:
    values = values.astype(ref.dtype)
    if values.ndim == 0:
        ref[0] = values
    else:
        ref[...] = values


class _Learnt(NamedTuple):
    """The part of `RouterState` that schedules and choices read."""

    pulls: Array
    theta_hat: Array


class _Request(NamedTuple):
    """One round as a kernel reads it."""

    context: folded.Halves
    square: Array  # [], x^T x
    utility: Array  # [N]
    noise: Array  # []


class _Scored(NamedTuple):
    """`routers.Router.score` from folded inverses, and what it scored from and for."""

    scores: Scores
    squared: Array  # [N], x^T V_i^-1 x as the inverses have it
    learnt: RouterState
    route: RouteInputs


def _score(router: Router, fixed: Constants, now: Carried, request: _Request) -> _Scored:
    squared = folded.quadratic(now.inverse, request.context)
    # Untouched adapters share one number, as in `linalg.widths`.
    shared = jnp.where(now.pulls == 0, request.square / fixed.router.ridge, squared)
    width = jnp.sqrt(jnp.maximum(shared, 0.0))
    mean = jnp.where(fixed.active, folded.inner(now.theta_hat, request.context), -jnp.inf)
    # Of the request itself these choices and schedules read nothing.
    route = RouteInputs(
        context=mean,
        utility=mean,
        policy_bits=fixed.quota,
        resident=now.resident,
        paging_cost=fixed.paging_cost,
        quota=fixed.quota,
        active=fixed.active,
        num_features=fixed.num_features,
    )
    learnt = cast(RouterState, _Learnt(now.pulls, width))
    beta_of = routers.beta_of(router)
    if beta_of is None:
        raise ValueError("the router must be one that `supports` accepts.")
    beta = beta_of(fixed.router, learnt, route)
    scores = Scores(mean, width, beta, index=mean + beta * width, direction=width)
    return _Scored(scores, squared, learnt, route)


def _learn(now: Carried, scored: _Scored, x: folded.Halves, here: Array, reward: Array) -> Carried:
    """`linalg.rank_one_update` of what stays on chip."""
    direction = folded.product(folded.selected(now.inverse, here), x)
    growth = 1.0 + entry(here, scored.squared)
    surprise = (reward - entry(here, scored.scores.mean)) / growth
    root = jax.lax.rsqrt(growth)
    mask = here.astype(surprise.dtype)[:, None]
    theta = zip(now.theta_hat, direction, strict=True)
    return now._replace(
        inverse=folded.downdated(now.inverse, here, folded.Halves(*(root * v for v in direction))),
        theta_hat=folded.Halves(*(old + mask * (surprise * v)[None, :] for old, v in theta)),
        pulls=now.pulls + here.astype(jnp.int32),
    )


def _serve(
    lane: Lane,
    fixed: Constants,
    now: Carried,
    request: _Request,
    admit: pallas_admission.AdmitFn,
) -> tuple[Carried, Decisions]:
    """`simulate.step` on chip."""
    scored = _score(lane.rule.router, fixed, now, request)
    scores = scored.scores
    select = lane.rule.router.select
    adapter, forced = select(fixed.router, scored.learnt, scores, scored.route)
    here = pallas_admission.one_hot(adapter, request.utility.shape[0])
    reward = entry(here, request.utility) + request.noise
    reward = jnp.floor(reward) if lane.binary_reward else reward
    memory, resident, bought = admit(
        fixed.controller,
        now.memory,
        pallas_admission.Seen(
            optimistic=lambda most: scores.mean + jnp.minimum(scores.beta, most) * scores.width,
            mean=scores.mean,
            here=here,
            resident=now.resident,
            paging_cost=fixed.paging_cost,
            switch_cost=fixed.switch_cost,
            size=fixed.size,
        ),
    )
    unpaid, loads = bought | now.pending, (resident & ~now.resident).astype(jnp.int32)
    decision = Decisions(
        adapter=adapter,
        forced=forced,
        resident=now.resident,
        switch_cost=entry(unpaid, fixed.switch_cost),
        switch_ms=entry(unpaid, fixed.paging_ms),
        loads=jnp.sum(loads + now.pending.astype(jnp.int32), dtype=jnp.int32),
    )
    learned = _learn(now, scored, request.context, here, reward)
    nothing = jnp.zeros_like(resident)
    return learned._replace(resident=resident, pending=nothing, memory=memory), decision


def kernel(lane: Lane, like: tuple[Any, Any, Carried], *refs: Any) -> None:
    """The program of one lane: loads, serves rounds `start` to `stop - 1`, stores."""
    given, before, after, done = refs
    params_like, vector_like, carried_like = like
    router, controller = jax.tree.map(_read, given.params, params_like)
    fixed = Constants(
        router,
        controller,
        given.limits[2],
        given.limits[3],
        _read(given.active, carried_like.resident),
        *(_read(ref, vector_like) for ref in given.costs),
    )
    admit = pallas_admission.masked_rule(lane.rule.controller, carried_like.memory)
    if admit is None:
        raise ValueError("the rule must be one that `supports` accepts.")

    def body(t: Array, now: Carried) -> Carried:
        context = folded.Halves(*(half[t, :] for half in given.context))
        request = _Request(context, given.square[t], given.utility[t, :], given.noise[t])
        now, decision = _serve(lane, fixed, now, request, admit)
        for ref, value in zip(done, decision, strict=True):
            value = value.astype(ref.dtype)
            if value.ndim:
                ref[t, :] = value
            else:
                ref[t] = value
        return now

    start = jax.tree.map(_read, before, carried_like)
    end = jax.lax.fori_loop(given.limits[0], given.limits[1], body, start)
    jax.tree.map(_write, after, end)
