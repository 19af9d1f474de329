"""Routers: cache-aware LinUCB and the baselines, over shared ridge statistics.

A router is a pair of pure functions (`Router`): `score` turns statistics and a request
into an index per adapter, `select` chooses. `linalg.init_statistics` and
`observe` start and update the statistics of every router.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import checks, linalg
from polar_jax.types import Choice, RouteInputs, Router, RouterState, Scores


class RouterParams(flax.struct.PyTreeNode):
    """Traced constants of every router: sweeping them never recompiles."""

    alpha: Array | float = 0.5  # [], confidence factor of the constant schedule, units of utility
    ridge: Array | float = 1.0  # [], regularisation, above 0
    sigma: Array | float = 0.1  # [], sub-Gaussian constant of the noise (theory's schedule)
    delta: Array | float = 0.05  # [], probability that theory's schedule may fail
    theta_bound: Array | float = 1.0  # [], bound on the norm of every theta (theory's schedule)
    cost_weight: Array | float = 1.0  # [], of the paging cost in the index; 0: cost-blind
    margin: Array | float = 0.2  # [], an explored adapter may be this far below the best index
    epsilon: Array | float = 0.05  # [], probability of a uniform choice (epsilon-greedy)
    thompson_scale: Array | float = 0.5  # [], width of the sampled utilities (Thompson sampling)


def constant_beta(params: RouterParams, state: RouterState, inputs: RouteInputs) -> Array:
    """`[N]` confidence factor `alpha`; it carries no guarantee."""
    del inputs
    return jnp.broadcast_to(params.alpha, state.pulls.shape)


def theory_beta(params: RouterParams, state: RouterState, inputs: RouteInputs) -> Array:
    """`[N]` factor `sigma sqrt(d log((1 + n_i/ridge) N/delta)) + sqrt(ridge) S`.

    Abbasi-Yadkori, Pal and Szepesvari (2011), Theorem 2, with the determinant bounded
    by the pulls and the failure probability shared by the adapters.
    """
    dtype = state.theta_hat.dtype
    num_adapters = jnp.sum(inputs.active).astype(dtype)
    context_dim = jnp.asarray(inputs.num_features).astype(dtype)
    growth = 1.0 + state.pulls.astype(dtype) / params.ridge
    radius = jnp.sqrt(context_dim * jnp.log(growth * num_adapters / params.delta))
    return params.sigma * radius + jnp.sqrt(params.ridge) * params.theta_bound


BETAS = {"constant": constant_beta, "theory": theory_beta}
# What is expected of an adapter that was never tried: nothing, or what all have in common.
PRIORS = ("zero", "pooled")


def _ucb_score(beta_of: Callable[..., Array]) -> Callable[..., Scores]:
    """Optimistic scores `mean + beta * width` with the given factor."""

    def score(params: RouterParams, state: RouterState, inputs: RouteInputs) -> Scores:
        direction = linalg.directions(state, inputs.context)
        mean = jnp.einsum("ni,i->n", state.theta_hat, inputs.context, precision=linalg.HIGHEST)
        mean = mean + linalg.prior_means(state, direction, inputs.context)
        # Adapters that only fill up a shape are worth less than any other.
        mean = jnp.where(inputs.active, mean, -jnp.inf)
        width = linalg.widths(direction, inputs.context, state.pulls, params.ridge)
        beta = beta_of(params, state, inputs)
        return Scores(
            mean=mean, width=width, beta=beta, index=mean + beta * width, direction=direction
        )

    return score


# One function object per schedule: equal routers must compare equal, so that policies
# that differ in data alone share a compiled program.
_SCORES = {name: _ucb_score(beta_of) for name, beta_of in BETAS.items()}


def beta_of(router: Router) -> Callable[..., Array] | None:
    """The schedule of a router that scores as LinUCB does, None for others."""
    found = [BETAS[name] for name, score in _SCORES.items() if score == router.score]
    return found[0] if found else None


def net_of_paging(params: RouterParams, index: Array, inputs: RouteInputs) -> Array:
    """`[N]` index less the paging cost of every adapter that is not resident."""
    return index - jnp.where(inputs.resident, 0.0, params.cost_weight * inputs.paging_cost)


def _choose(adapter: Array, forced: Array | None = None) -> Choice:
    forced = jnp.zeros((), bool) if forced is None else forced
    return Choice(adapter=adapter.astype(jnp.int32), forced=forced)


def _best(values: Array) -> Array:
    return jnp.argmax(values).astype(jnp.int32)


def _select_argmax(
    params: RouterParams, state: RouterState, scores: Scores, inputs: RouteInputs
) -> Choice:
    del state
    return _choose(_best(net_of_paging(params, scores.index, inputs)))


def _select_quota(
    params: RouterParams, state: RouterState, scores: Scores, inputs: RouteInputs
) -> Choice:
    """POLAR+: the least-chosen adapter while any is below its quota."""
    pulls = jnp.where(inputs.active, state.pulls, jnp.iinfo(jnp.int32).max)
    forced = jnp.min(pulls) < inputs.quota
    least = jnp.argmin(pulls).astype(jnp.int32)
    best = _best(net_of_paging(params, scores.index, inputs))
    return _choose(jnp.where(forced, least, best), forced)


def _select_relevant(
    params: RouterParams, state: RouterState, scores: Scores, inputs: RouteInputs
) -> Choice:
    """POLAR-E: an adapter below its quota, only where it may be the best, cost left out.

    A choice that has to page in at more than one unit of utility counts as so many.
    """
    price = jnp.where(inputs.resident, 1.0, jnp.maximum(inputs.paging_cost, 1.0))
    spent = state.pulls.astype(scores.index.dtype) * price
    quota = jnp.asarray(inputs.quota).astype(spent.dtype)
    starved = jnp.where(spent < quota, scores.index, -jnp.inf)
    forced = jnp.max(starved) >= jnp.max(scores.index) - params.margin
    best = _best(net_of_paging(params, scores.index, inputs))
    return _choose(jnp.where(forced, _best(starved), best), forced)


def _select_epsilon_greedy(
    params: RouterParams, state: RouterState, scores: Scores, inputs: RouteInputs
) -> Choice:
    del state
    uniform = uniform_from_bits(inputs.policy_bits[0]).astype(scores.mean.dtype)
    explore = uniform < params.epsilon
    best = _best(net_of_paging(params, scores.mean, inputs))
    return _choose(jnp.where(explore, _uniform_adapter(inputs), best))


def _select_thompson(
    params: RouterParams, state: RouterState, scores: Scores, inputs: RouteInputs
) -> Choice:
    # One context per round and independent adapters: sampling theta_i from
    # N(theta_hat_i, scale^2 V_i^-1) and sampling its utility directly are the same.
    del state
    normal = thompson_normal(inputs.policy_bits, num_adapters=scores.mean.shape[0])
    sampled = scores.mean + params.thompson_scale * scores.width * normal.astype(scores.mean.dtype)
    return _choose(_best(net_of_paging(params, sampled, inputs)))


def _select_random(
    params: RouterParams, state: RouterState, scores: Scores, inputs: RouteInputs
) -> Choice:
    del params, state, scores
    return _choose(_uniform_adapter(inputs))


def _select_perfect(
    params: RouterParams, state: RouterState, scores: Scores, inputs: RouteInputs
) -> Choice:
    del state, scores
    return _choose(_best(net_of_paging(params, inputs.utility, inputs)))


def uniform_from_bits(bits: Array) -> Array:
    """Float32 uniform on `[0, 1)` from the upper 24 of 32 random bits."""
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def thompson_normal(policy_bits: Array, *, num_adapters: int) -> Array:
    """`[N]` standard normals of one round from its `[2]` uint32 policy bits.

    Padding changes none of them: with JAX's partitionable threefry a longer vector starts
    with the shorter one (tested).
    """
    key = jax.random.wrap_key_data(policy_bits, impl="threefry2x32")
    return jax.random.normal(key, (num_adapters,), jnp.float32)


def _uniform_adapter(inputs: RouteInputs) -> Array:
    num_adapters = jnp.sum(inputs.active, dtype=jnp.uint32)
    return (inputs.policy_bits[1] % num_adapters).astype(jnp.int32)


_SELECTS = {"none": _select_argmax, "quota": _select_quota, "relevant": _select_relevant}


def linucb(*, exploration: str = "none", beta: str = "constant") -> Router:
    """Cache-aware LinUCB: `argmax_i (mean_i + beta_i width_i - c_i [i not resident])`.

    Li et al. (2010), with the paging cost inside the index as POLAR has it
    (arXiv:2604.16583). Ties go to the lowest index.

    Args:
      exploration: "none"; "quota", POLAR+'s forced exploration of the least-chosen
        adapter; "relevant", POLAR-E's, only where the adapter may be the best.
      beta: "constant" (`alpha`) or "theory" (the self-normalised bound).

    Returns:
      The router; equal arguments give equal routers.

    Raises:
      ValueError: for an unknown exploration or schedule.
    """
    checks.one_of("exploration", exploration, _SELECTS)
    checks.one_of("beta", beta, _SCORES)
    return Router(_SCORES[beta], _SELECTS[exploration])


def epsilon_greedy(*, beta: str = "constant") -> Router:
    """Greedy on the estimated means, a uniform adapter with probability `epsilon`."""
    return Router(_SCORES[beta], _select_epsilon_greedy, randomised=True)


def linear_thompson(*, beta: str = "constant") -> Router:
    """Linear Thompson sampling (Agrawal and Goyal 2013) with width `thompson_scale`."""
    return Router(_SCORES[beta], _select_thompson, randomised=True)


def uniform_random(*, beta: str = "constant") -> Router:
    """Every adapter with the same probability, whatever is resident."""
    return Router(_SCORES[beta], _select_random, randomised=True)


def perfect() -> Router:
    """Knows the expected utilities: a check of the metrics, not a policy."""
    return Router(_SCORES["constant"], _select_perfect)


def init(
    params: RouterParams,
    *,
    num_adapters: int,
    context_dim: int,
    dtype: Any = jnp.float32,
    pooled: bool = False,
) -> RouterState:
    """Statistics before the first request, for any router; `pooled` is the router's own."""
    return linalg.init_statistics(
        params.ridge,
        num_adapters=num_adapters,
        context_dim=context_dim,
        dtype=dtype,
        pooled=pooled,
    )


def observe(
    state: RouterState, context: Array, adapter: Array, reward: Array, scores: Scores
) -> RouterState:
    """Adds `(context, adapter, reward)` to the statistics, for any router."""
    return linalg.rank_one_update(state, context, adapter, reward, scores.direction[adapter])
