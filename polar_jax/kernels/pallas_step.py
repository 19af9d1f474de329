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
from polar_jax.types import Decisions, RouteInputs, RouterState, Rule, Scores


class Given(NamedTuple):
    """What a kernel reads; vectors are padded, scalars have one element, bools are int32."""

    limits: Any  # [4] int32: start, stop, quota, number of features
    params: Any  # (routers.RouterParams, constants of the controller)
    active: Any  # [N]
    costs: Any  # ([N] paging_cost, [N] switch_cost, [N] paging_ms, [N] size)
    context: Any  # [n, d]
    utility: Any  # [n, N]
    noise: Any  # [n]


class Carried(NamedTuple):
    """A lane's state on chip."""

    inverse: Any  # Folded, [N, h, d] and [N, h]
    theta_hat: Any  # [N, d]
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


def beta_of(rule: Rule) -> Any:
    """The schedule of a LinUCB router, None for others."""
    for name, beta_of in routers.BETAS.items():
        if routers.linucb(beta=name).score == rule.router.score:
            return beta_of
    return None


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


def _score(
    rule: Rule, fixed: Constants, now: Carried, x: folded.Vector
) -> tuple[Scores, RouterState, RouteInputs]:
    """`routers.Router.score` from folded inverses; what it scored from, and for."""
    width = folded.quadratic(now.inverse, x)
    # Untouched adapters share one number, as in `linalg.widths`.
    untouched = jnp.sum(x.whole * x.whole) / fixed.router.ridge
    width = jnp.sqrt(jnp.maximum(jnp.where(now.pulls == 0, untouched, width), 0.0))
    mean = jnp.sum(now.theta_hat * x.whole[None, :], axis=1)
    mean = jnp.where(fixed.active, mean, -jnp.inf)
    route = RouteInputs(
        context=x.whole,
        utility=mean,
        policy_bits=fixed.quota,
        resident=now.resident,
        paging_cost=fixed.paging_cost,
        quota=fixed.quota,
        active=fixed.active,
        num_features=fixed.num_features,
    )
    learnt = cast(RouterState, _Learnt(now.pulls, now.theta_hat))
    beta = beta_of(rule)(fixed.router, learnt, route)
    # No choice and no admission reads the directions.
    scores = Scores(mean, width, beta, index=mean + beta * width, direction=now.theta_hat)
    return scores, learnt, route


def _learn(now: Carried, x: folded.Vector, here: Array, reward: Array) -> Carried:
    """`linalg.rank_one_update` of what stays on chip."""
    direction = folded.product(folded.selected(now.inverse, here), x)
    theta = entry(here[:, None], now.theta_hat)
    growth = 1.0 + jnp.sum(direction.whole * x.whole)
    surprise = reward - jnp.sum(theta * x.whole)
    scaled = folded.scaled(direction, jax.lax.rsqrt(growth))
    step = (surprise / growth) * direction.whole
    return now._replace(
        inverse=folded.downdated(now.inverse, here, scaled),
        theta_hat=now.theta_hat + jnp.where(here[:, None], step[None, :], 0.0),
        pulls=now.pulls + here.astype(jnp.int32),
    )


def _serve(
    lane: Lane,
    fixed: Constants,
    now: Carried,
    request: tuple[folded.Vector, Array, Array],
    admit: pallas_admission.AdmitFn,
) -> tuple[Carried, Decisions]:
    """`simulate.step` on chip."""
    x, utility, noise = request
    scores, learnt, route = _score(lane.rule, fixed, now, x)
    adapter, forced = lane.rule.router.select(fixed.router, learnt, scores, route)
    here = pallas_admission.one_hot(adapter, utility.shape[0])
    reward = entry(here, utility) + noise
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
    learned = _learn(now, x, here, reward)
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
        request = folded.vector(given.context[t, :]), given.utility[t, :], given.noise[t]
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
