"""What the compiled calls of a lane compute: setup, draw, oracle, start, advance.

Unbatched pure functions; `lane_maps` maps them over lanes, `programs` compiles them. Also the
plain descriptions they are built from: `Costs` and `Experiment`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polar_jax import (
    cache_search,
    capacity,
    checks,
    environments,
    epochs,
    kernels,
    oracles,
    paging,
    replanning,
    replay_streams,
    simulate,
)
from polar_jax.policies import Policy, Problem
from polar_jax.types import ChunkClock, Decisions, Environment, LaneInputs, LaneState, Rounds

# Uses of a seed's key beside the environment's own streams, which count from 0.
_ORACLE_STREAM, _COST_STREAM = 1_001, 1_002
_SCHEDULE = tuple(field.name for field in dataclasses.fields(epochs.Schedule))


@dataclasses.dataclass(frozen=True)
class Costs:
    """Where paging costs come from: a measured table, or synthetic draws per seed.

    Attributes:
      price_per_ms: utility lost per millisecond of latency, at least 0 (1e-9 for
        synthetic costs, whose milliseconds are the costs divided by it).
      table: measured latencies, or None.
      synthetic_mean: mean of the synthetic costs, units of utility; read without a table.
    """

    price_per_ms: float = 0.0154
    table: paging.PagingTable | None = None
    synthetic_mean: float = 0.3

    def __post_init__(self) -> None:
        synthetic = self.table is None
        least = checks.MIN_PRICE if synthetic else 0.0
        checks.finite_at_least("price_per_ms", self.price_per_ms, least)
        checks.finite_at_least("synthetic cost", self.synthetic_mean, 0.0)


class Shape(NamedTuple):
    """Sizes that programs are compiled for; at least a problem's own."""

    num_adapters: int
    context_dim: int


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of a run, apart from the kind of device.

    Attributes:
      problem: sizes.
      environment: the request stream.
      environment_params: its constants, and the data that it replays.
      costs: paging costs.
      policies: the policies, run on the same requests.
      seeds: the seeds; each gives one lane per policy.
      base_seed: shifts all seeds to other random numbers.
      dtype: floating dtype of the decisions; float64 needs `jax_enable_x64`.
      shape: sizes to compile for where they are more than the problem's. Padding shares
        programs between problems; results are equal to about 1e-5, not bitwise.
      shorter_horizons: up to 48 rounds at which curves must hold a value as well.
    """

    problem: Problem
    environment: Environment
    environment_params: environments.EnvironmentParams | replay_streams.ReplayParams
    costs: Costs
    policies: Sequence[Policy]
    seeds: Sequence[int]
    base_seed: int = 0
    dtype: Any = np.float32
    shape: Shape | None = None
    shorter_horizons: tuple[int, ...] = ()

    @property
    def compiled_shape(self) -> Shape:
        """Sizes that the programs are compiled for."""
        return self.shape or Shape(self.problem.num_adapters, self.problem.context_dim)

    def __post_init__(self) -> None:
        own = Shape(self.problem.num_adapters, self.problem.context_dim)
        if any(room < size for room, size in zip(self.compiled_shape, own, strict=True)):
            raise ValueError(f"shape must be at least the problem's {own}, got {self.shape}.")
        replay_streams.check_sizes(self.environment_params, own.num_adapters, own.context_dim)
        epochs.curve_rounds(self.problem.horizon, self.shorter_horizons)
        if not self.policies:
            raise ValueError("policies must name at least one policy, got none.")
        checks.distinct("policies", [policy.name for policy in self.policies])
        for policy in self.policies:
            if policy.problem != self.problem:
                raise ValueError(
                    f"policy {policy.name!r} must be made for the experiment's {self.problem}, "
                    f"got one for {policy.problem}."
                )
        if len(self.seeds) == 0:
            raise ValueError("seeds must hold at least one seed, got none.")
        # What lies between the ends of a range is whole and in range where they are.
        seeds = self.seeds
        ends = (seeds[0], seeds[-1]) if isinstance(seeds, range) else tuple(seeds)
        for seed in (*ends, self.base_seed):
            checks.between("seed", seed, 0, 2**31 - 1, whole=True)


class Setup(NamedTuple):
    """What is fixed for a seed, on the device."""

    key: Array  # of the run's own rounds
    oracle_key: Array  # of rounds that are independent of the run's own
    instance: Any
    inputs: LaneInputs


class Needs(NamedTuple):
    """Which random numbers any policy reads; the others are not drawn."""

    latency: bool
    reservoir: bool
    bits: bool


def stream_key(base_seed: Array, seed: Array) -> Array:
    """A seed's key: it depends on nothing else, so policies see the same requests."""
    return jax.random.fold_in(jax.random.key(base_seed, impl="threefry2x32"), seed)


class Sizes(NamedTuple):
    """A problem's own sizes, as data of programs that may be compiled for more."""

    num_adapters: Any  # [] int32
    cache_slots: Any  # [] int32
    context_dim: Any  # [] int32
    room: Any = None  # types.Room where adapters differ in size


def sizes(problem: Problem, shape: Shape, dtype: Any) -> Sizes:
    """The sizes of a problem, as host arrays."""
    held = problem.differing
    room = None if held is None else capacity.room(held, shape.num_adapters, dtype)
    own = problem.num_adapters, problem.cache_slots, problem.context_dim
    return Sizes(*(np.int32(size) for size in own), room=room)


def _lane_inputs(
    key: Array, costs: dict[str, Array], active: Array, counted: Array, own: Sizes, dtype: Any
) -> LaneInputs:
    drawn = paging.draw_synthetic_cost(
        jax.random.fold_in(key, _COST_STREAM),
        costs["synthetic_mean"],
        num_adapters=active.shape[0],
    ).astype(dtype)
    price = costs["price_per_ms"].astype(dtype)
    measured = costs["mean_ms"].astype(dtype)
    synthetic = costs["synthetic"]
    cost = jnp.where(active, jnp.where(synthetic, drawn, price * measured), 0.0)
    return LaneInputs(
        paging_cost=cost,
        switch_cost=cost,
        paging_ms=jnp.where(synthetic, cost / jnp.where(synthetic, price, 1.0), measured),
        size=jnp.ones_like(cost) if own.room is None else own.room.relative,
        cache_slots=own.cache_slots,
        active=active,
        num_features=own.context_dim,
        samples_ms=costs["samples_ms"],
        sample_count=costs["sample_count"],
        counted=counted,
        room=own.room,
    )


def cost_arrays(
    costs: Costs, num_adapters: int, padded_adapters: int, dtype: Any
) -> dict[str, np.ndarray]:
    """What `setup` needs of the costs, as host arrays; `[N, 0]` samples where there are none."""
    if costs.table is None:
        mean_ms = np.zeros(num_adapters)
        samples = np.zeros((num_adapters, 0), np.float32), np.ones(num_adapters, np.int32)
    else:
        table = paging.take(costs.table, num_adapters)
        mean_ms, samples = table.mean_ms, paging.draw_arrays(table)
    room = padded_adapters - num_adapters
    return {
        "synthetic": np.asarray(costs.table is None),
        "price_per_ms": np.asarray(costs.price_per_ms, dtype),
        "synthetic_mean": np.asarray(costs.synthetic_mean, dtype),
        "mean_ms": _with_room(np.asarray(mean_ms, dtype), room, 0),
        "samples_ms": _with_room(samples[0], room, 0),
        "sample_count": _with_room(samples[1], room, 1),
    }


def _with_room(values: np.ndarray, room: int, filled: int) -> np.ndarray:
    """Values of adapters, and those of as many more as there is room for."""
    if not room:
        return values
    more = np.full((room, *values.shape[1:]), filled, values.dtype)
    return np.concatenate([values, more])


def kinship(experiment: Experiment) -> Any:
    """What experiments must have in common to run side by side; hashable."""
    policies = tuple(
        (one.rule, *(getattr(one.schedule, part).tobytes() for part in _SCHEDULE))
        for one in experiment.policies
    )
    samples = cost_arrays(experiment.costs, *adapter_counts(experiment), np.float32)
    return (
        experiment.problem,
        experiment.environment,
        replay_streams.fingerprint(experiment.environment_params),
        experiment.compiled_shape,
        np.dtype(experiment.dtype),
        experiment.shorter_horizons,
        policies,
        samples["samples_ms"].shape,
    )


def adapter_counts(experiment: Experiment) -> tuple[int, int]:
    """Adapters of an experiment, and those that its programs are compiled for."""
    return experiment.problem.num_adapters, experiment.compiled_shape.num_adapters


def setup(
    env: Environment,
    shape: Shape,
    dtype: Any,
    seed: Array,
    base_seed: Array,
    params: Any,
    costs: dict[str, Array],
    counted: Array,
    own: Sizes,
    data: Any,
) -> Setup:
    """Draws the environment instance and the costs of one seed."""
    params = replay_streams.joined(params, data)
    key = stream_key(base_seed, seed)
    active = jnp.arange(shape.num_adapters, dtype=jnp.int32) < own.num_adapters
    features = jnp.arange(shape.context_dim, dtype=jnp.int32) < own.context_dim
    instance = env.instance(key, params, active=active, features=features)
    inputs = _lane_inputs(key, costs, active, counted, own, dtype)
    return Setup(key, jax.random.fold_in(key, _ORACLE_STREAM), instance, inputs)


def draw(
    env: Environment,
    needs: Needs,
    dtype: Any,
    kernel: str,
    key: Array,
    instance: Any,
    params: Any,
    block: Array,
    data: Any,
) -> Rounds:
    """The rounds of a block, cast to the run's dtype."""
    params = replay_streams.joined(params, data)
    rounds = env.rounds(kernels.keys(kernel, key), params, instance, block)
    unread = {
        "latency_uniform": needs.latency,
        "reservoir_slot": needs.reservoir,
        "policy_bits": needs.bits,
    }
    blanks = {
        name: jnp.zeros_like(getattr(rounds, name)) for name, read in unread.items() if not read
    }
    # Drawn in float32 whatever the dtype: JAX draws other numbers in float64.
    floats = ("context", "utility", "noise", "benchmark", "arrival_gap")
    given = {name: getattr(rounds, name) for name in floats}
    cast = {name: one.astype(dtype) for name, one in given.items() if one is not None}
    return rounds._replace(**cast, **blanks)


def known(rounds: Rounds) -> Array:
    """`[..., N]` what perfect routing knows of the rounds: `C*` is chosen on it."""
    return rounds.utility if rounds.benchmark is None else rounds.benchmark


def oracle_rounds(env: Environment, horizon: int) -> np.ndarray:
    """Rounds, counted from 0, that `C*` is chosen on.

    Streams of independent draws: the first 4,096 of a stream that is independent of
    the run's own. Others, in hindsight: every `ceil(T / 4096)`-th of the run's own.
    """
    if env.independent:
        return np.arange(oracles.ORACLE_CONTEXTS)
    return np.arange(0, horizon, -(-horizon // oracles.ORACLE_CONTEXTS))


def pick(sample: Array, utility: Array, rounds: Array, first: Array) -> Array:
    """Writes the utilities of some rounds of a chunk into the oracle's sample.

    Args:
      sample: `[m + n, N]`; what is written beyond the chunk's picks is overwritten later.
      utility: `[n, N]` of the chunk's `n` rounds.
      rounds: `[n]` int32 rounds to take, as many as there are and then any.
      first: `[]` int32, where in the sample the first of them belongs.

    Returns:
      The sample.
    """
    return jax.lax.dynamic_update_slice(sample, utility[rounds], (first, jnp.int32(0)))


def oracle(
    inputs: LaneInputs, sample: Array, weight: Array, table: cache_search.SubsetTable
) -> Array:
    """`[N]` the static oracle's set from the first of `sample`, with weights `[m]`."""
    utility, slots = sample[: oracles.ORACLE_CONTEXTS], inputs.cache_slots
    return oracles.oracle_of(
        utility, inputs.paging_cost, weight, inputs.active, slots, table, inputs.room
    )


def subset_tables(
    problem: Problem, shape: Shape
) -> tuple[cache_search.SubsetTable, cache_search.SubsetTable]:
    """Subsets that the oracle and the controllers enumerate."""
    held = problem.differing
    if held is not None:
        return (
            oracles.oracle_fitting_sets(held, shape.num_adapters),
            replanning.controller_fitting_sets(held, shape.num_adapters),
        )
    own = problem.num_adapters, problem.cache_slots
    return (
        oracles.oracle_subsets(*own, shape.num_adapters),
        replanning.controller_subsets(*own, shape.num_adapters),
    )


class PolicyData(NamedTuple):
    """The traced part of a policy: NumPy arrays on the host."""

    params: Any  # PolicyParams in the run's dtype
    quotas: Any  # [32] int32
    use_oracle: Any  # [] bool, start from the oracle's set
    first: Any  # [N] bool, the set to start from otherwise


# Sets that do not depend on how many adapters fit: whether they hold an adapter.
_HELD = {"all": True, "none": False}


def policy_data(policy: Policy, shape: Shape, dtype: Any) -> PolicyData:
    """A policy's constants in the run's dtype, and the set that it starts from."""
    problem = policy.problem
    first = np.zeros(shape.num_adapters, bool)
    first[: problem.num_adapters] = problem.first_set()
    if policy.first_set in _HELD:
        first[: problem.num_adapters] = _HELD[policy.first_set]
    quotas = np.full(32, policy.quotas[-1], np.int32)  # a horizon below 2^31 has no more epochs
    quotas[: policy.quotas.size] = policy.quotas[:32]

    def cast(leaf: Any) -> np.ndarray:
        return np.asarray(leaf, dtype)

    return PolicyData(
        params=jax.tree.map(cast, policy.params),
        quotas=quotas,
        use_oracle=np.asarray(policy.first_set == "oracle"),
        first=first,
    )


def start(
    policy: Policy,
    shape: Shape,
    inputs: LaneInputs,
    oracle_set: Array,
    data: PolicyData,
) -> LaneState:
    """The state of one lane before its first round."""
    resident = jnp.where(data.use_oracle, oracle_set, data.first)
    lane = simulate.Lane(policy.rule, data.params, inputs, data.quotas, (), False)
    return simulate.init_lane(lane, resident, context_dim=shape.context_dim)


def advance(
    policy: Policy,
    env: Environment,
    keep: bool,
    kernel: kernels.Taken,
    state: LaneState,
    inputs: LaneInputs,
    oracle_set: Array,
    rounds: Rounds,
    data: PolicyData,
    clock: ChunkClock,
    subsets: cache_search.SubsetTable,
) -> tuple[LaneState, Array, Decisions | None]:
    """One chunk of one lane: decisions, then their figures summed over curve intervals."""
    lane = simulate.Lane(policy.rule, data.params, inputs, data.quotas, subsets, env.binary_reward)
    state, decisions = simulate.run_chunk(
        *(lane, state, rounds, clock),
        kernel=kernels.run_rounds(kernel.rounds),
        refresh=kernels.refresh(kernel.beside),
    )
    sums, backlog = kernels.chunk_sums(kernel.beside)(
        *(rounds, decisions, inputs, oracle_set, state.backlog_ms, jnp.asarray(clock.interval)),
        num_intervals=epochs.NUM_INTERVALS,
    )
    state = state.replace(backlog_ms=backlog)
    return state, sums, decisions if keep else None
