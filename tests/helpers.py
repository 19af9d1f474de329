"""Builders shared by the engine's tests, and the way from its output to the reference."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from reference import ReferenceLane, ReferenceProblem, ReferenceRounds, ReferenceSettings

from polar_jax import (
    controllers,
    environments,
    lanes,
    online_submodular,
    policies,
    problems,
    routers,
)
from polar_jax.types import AdmitInputs, Controller, Rounds, Scores


def make_experiment(
    names: Sequence[str] | None = None,
    *,
    environment: str = "clustered",
    adapters: int = 7,
    slots: int = 3,
    dim: int = 5,
    horizon: int = 1500,
    seeds: Sequence[int] = (0, 1),
    settings: policies.Settings | None = None,
    dtype: Any = np.float32,
    made: Sequence[policies.Policy] | None = None,
    costs: lanes.Costs | None = None,
    size_bytes: Sequence[int] | None = None,
    capacity_bytes: int = 0,
    **constants: float,
) -> lanes.Experiment:
    """An experiment on a small problem; `made` policies take the place of `names`.

    Sizes in bytes, where given, take the place of `adapters` and `slots`.
    """
    sizes = problems.Problem(adapters, slots, dim, horizon)
    if size_bytes is not None:
        sizes = problems.sized_problem(size_bytes, capacity_bytes, context_dim=dim, horizon=horizon)
    env = environments.environment(environment)
    return lanes.Experiment(
        problem=sizes,
        environment=env,
        environment_params=environments.environment_params(
            env, horizon=horizon, **{"period": 500, **constants}
        ),
        costs=costs or lanes.Costs(),
        policies=made
        or [policies.policy(name, **sizes._asdict(), settings=settings) for name in names or ()],
        seeds=seeds,
        dtype=dtype,
    )


@contextlib.contextmanager
def double_precision(*, optimised: bool = False) -> Iterator[None]:
    """Float64 in every thread: programs are compiled outside the caller's own thread.

    Float64 tests are about rules, not about speed: compiling them quickly halves their time,
    unless few programs run often (`optimised`).
    """
    changes = {"jax_enable_x64": True, "jax_disable_most_optimizations": not optimised}
    before = {name: jax.config.read(name) for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def run_kept(experiment: lanes.Experiment) -> lanes.Results:
    """Runs with all decisions kept, in the dtype that the experiment asks for.

    In chunks of 1,024 rounds, as full tiles are run: few lanes would have longer ones.
    """
    options: dict[str, Any] = {"keep_decisions": True, "chunk_rounds": 1_024}
    if experiment.dtype == np.float64:
        with double_precision():
            return lanes.run(experiment, **options)
    return lanes.run(experiment, **options)


def thompson_normals(bits: np.ndarray, num_adapters: int) -> np.ndarray:
    """`[T, N]` normals of the Thompson router from its `[T, 2]` bits."""

    def normals(one: jax.Array) -> jax.Array:
        return routers.thompson_normal(one, num_adapters=num_adapters)

    return np.asarray(jax.vmap(normals)(jnp.asarray(bits)))


def expert_uniforms(bits: np.ndarray) -> np.ndarray:
    """`[T]` numbers of LeCaR's lots from the `[T, 2]` bits."""

    def uniform(one: jax.Array) -> jax.Array:
        drawn = jax.random.bits(controllers.own_key(one), (), jnp.uint32)
        return routers.uniform_from_bits(drawn)

    return np.asarray(jax.vmap(uniform)(jnp.asarray(bits)))


def slot_gumbels(bits: np.ndarray, num_adapters: int) -> np.ndarray:
    """`[T, N, N]` Gumbel numbers of the slots' draws from the `[T, 2]` bits."""

    def gumbels(one: jax.Array, slot: jax.Array) -> jax.Array:
        return online_submodular.slot_noise(one, slot, num_adapters=num_adapters)

    slots = jnp.arange(num_adapters, dtype=jnp.int32)
    by_slot = jax.vmap(gumbels, in_axes=(None, 0))
    return np.asarray(jax.vmap(by_slot, in_axes=(0, None))(jnp.asarray(bits), slots))


def reference_rounds(
    experiment: lanes.Experiment, result: lanes.PolicyResult, lane: int
) -> ReferenceRounds:
    """The requests of one lane as the reference reads them."""
    assert result.rounds is not None
    one = jax.tree.map(lambda x: np.asarray(x)[lane], result.rounds)
    return rounds_of(one, binary=experiment.environment.binary_reward)


def rounds_of(one: Rounds, *, binary: bool) -> ReferenceRounds:
    """One lane's rounds as the reference reads them."""
    bits, num_adapters = np.asarray(one.policy_bits), one.utility.shape[1]
    return ReferenceRounds(
        context=np.asarray(one.context),
        utility=np.asarray(one.utility),
        noise=np.asarray(one.noise),
        binary_reward=binary,
        policy_bits=bits,
        thompson_normal=thompson_normals(bits, num_adapters),
        reservoir_slot=np.asarray(one.reservoir_slot),
        expert_uniform=expert_uniforms(bits),
        slot_gumbel=slot_gumbels(bits, num_adapters),
    )


def reference_problem(
    experiment: lanes.Experiment, results: lanes.Results, lane: int
) -> ReferenceProblem:
    """The costs of one lane as the reference reads them; loads cost what page-ins do."""
    cost = np.asarray(results.paging_cost[lane], np.float64)
    held = experiment.problem.memory
    return ReferenceProblem(
        paging_cost=cost,
        switch_cost=cost,
        paging_ms=cost / experiment.costs.price_per_ms,
        cache_slots=experiment.problem.cache_slots,
        size_bytes=() if held is None else held.size_bytes,
        capacity_bytes=None if held is None else held.capacity_bytes,
    )


def reference_settings(settings: policies.Settings | None) -> ReferenceSettings:
    """The policies' constants under the reference's names."""
    own = settings or policies.Settings()
    return ReferenceSettings(
        alpha=own.alpha,
        ridge=own.ridge,
        theory_beta=own.beta == "theory",
        pooled_prior=own.prior == "pooled",
        sigma=own.sigma,
        delta=own.delta,
        theta_bound=own.theta_bound,
        first_epoch=own.first_epoch,
        quota_scale=own.quota_scale,
        half_life=own.value_half_life,
        margin=own.margin,
        value_beta_max=own.value_beta_max,
        half_lives=own.expert_half_lives,
        score_half_life=own.score_half_life,
        score_growth=own.score_growth,
        epsilon=own.epsilon,
        thompson_scale=own.thompson_scale,
        epoch_length=own.epoch_length,
        switching_term=own.switching_term,
        window=own.window,
        use_reservoir=own.sample == "reservoir",
        solver_plus=own.search_plus,
        use_half_life=own.use_half_life,
        lecar_learning_rate=own.lecar_learning_rate,
        lecar_discount=own.lecar_discount,
        hedge_scale=own.hedge_scale,
    )


def scores_of(mean: jax.Array, width: jax.Array | float = 0.0) -> Scores:
    """Scores as a router gives them; directions are not read by controllers."""
    width = jnp.broadcast_to(jnp.asarray(width, jnp.float32), mean.shape)
    beta = jnp.full_like(mean, 0.5)
    return Scores(
        mean=mean,
        width=width,
        beta=beta,
        index=mean + beta * width,
        direction=jnp.zeros((*mean.shape, 1), jnp.float32),
    )


def served(
    resident: jax.Array,
    adapter: int | jax.Array,
    mean: jax.Array,
    cost: jax.Array,
    width: jax.Array | float = 0.0,
    *,
    bits: jax.Array | None = None,
) -> AdmitInputs:
    """A request that `adapter` has served; loads cost what page-ins do, the set is full."""
    return AdmitInputs(
        scores=scores_of(mean, width),
        adapter=jnp.asarray(adapter, jnp.int32),
        resident=resident,
        paging_cost=cost,
        switch_cost=cost,
        size=jnp.ones_like(cost),
        policy_bits=jnp.zeros((2,), jnp.uint32) if bits is None else bits,
        cache_slots=jnp.sum(resident, dtype=jnp.int32),
        active=jnp.ones_like(resident),
    )


def start_of(controller: Controller, resident: jax.Array) -> Any:
    """What a controller remembers before the first request."""
    return controller.init(num_adapters=resident.shape[0], resident=resident, dtype=jnp.float32)


def engine_lane(
    experiment: lanes.Experiment, result: lanes.PolicyResult, lane: int
) -> ReferenceLane:
    """One lane's decisions in the reference's own record; the model itself is not kept."""
    assert result.decisions is not None
    done = jax.tree.map(lambda x: np.asarray(x)[lane], result.decisions)
    num_adapters = experiment.problem.num_adapters
    return ReferenceLane(
        actions=done.adapter.astype(np.int64),
        forced=done.forced,
        resident=done.resident,
        switching=done.switch_cost.astype(np.float64),
        loads=done.loads.astype(np.int64),
        switching_ms=done.switch_ms.astype(np.float64),
        final_resident=done.resident[-1],
        theta_hat=np.zeros((num_adapters, experiment.problem.context_dim)),
        pulls=np.bincount(done.adapter, minlength=num_adapters),
    )
