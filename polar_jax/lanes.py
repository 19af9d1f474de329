"""Many lanes at once: the only place with `jit`, lane `vmap`, tiles, devices and donation.

A *lane* is one simulation: one policy on one seed. A *tile* is the fixed number of
lanes that one device runs side by side; since `vmap` over another width may round
differently, a lane's result depends on the width alone, and the width depends on the
shapes and the kind of device alone. See `docs/architecture.md`, "Determinism".
"""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polar_jax import checks, environments, epochs, metrics, oracles, paging, simulate
from polar_jax.policies import Policy, Problem
from polar_jax.types import ChunkClock, Decisions, Environment, LaneInputs, LaneState, Rounds

# Rounds per compiled call: whole blocks, and short enough to answer Ctrl-C at once.
CHUNK_ROUNDS = 4 * environments.BLOCK
_TILE = {"cpu": 32}
_TILE_ACCELERATOR = 4_096
# A tile's state and one chunk of its rounds must fit in this many bytes.
_TILE_BYTES = {"cpu": 2**30}
_TILE_BYTES_ACCELERATOR = 8 * 2**30
# Uses of a seed's key beside the environment's own streams, which count from 0.
_ORACLE_STREAM, _COST_STREAM = 1_001, 1_002
_LANES, _SHARED = PartitionSpec("lanes"), PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Costs:
    """Where paging costs come from: a measured table, or synthetic draws per seed.

    Attributes:
      price_per_ms: utility lost per millisecond of latency, at least 0 (above 0 for
        synthetic costs, whose milliseconds are the costs divided by it).
      table: measured latencies, or None.
      synthetic_mean: mean of the synthetic costs, units of utility; read without a table.
    """

    price_per_ms: float = 0.0154
    table: paging.PagingTable | None = None
    synthetic_mean: float = 0.3

    def __post_init__(self) -> None:
        synthetic = self.table is None
        checks.finite_at_least("price_per_ms", self.price_per_ms, 0.0, above=synthetic)
        checks.finite_at_least("synthetic cost", self.synthetic_mean, 0.0)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of a run, apart from the kind of device.

    Attributes:
      problem: sizes.
      environment: the request stream.
      environment_params: its constants.
      costs: paging costs.
      policies: the policies, run on the same requests.
      seeds: the seeds; each gives one lane per policy.
      base_seed: shifts all seeds to other random numbers.
      dtype: floating dtype of the decisions; float64 needs `jax_enable_x64`.
    """

    problem: Problem
    environment: Environment
    environment_params: environments.EnvironmentParams
    costs: Costs
    policies: Sequence[Policy]
    seeds: Sequence[int]
    base_seed: int = 0
    dtype: Any = np.float32

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError("policies must name at least one policy, got none.")
        checks.distinct("policies", [policy.name for policy in self.policies])
        if len(self.seeds) == 0:
            raise ValueError("seeds must hold at least one seed, got none.")
        for seed in (*self.seeds, self.base_seed):
            checks.between("seed", seed, 0, 2**31 - 1, whole=True)


class PolicyResult(NamedTuple):
    """One policy's figures, float64 on the host; `S` seeds, `P` curve rounds."""

    totals: dict[str, np.ndarray]  # [S] sums over the run, by name in metrics.PARTS
    curves: dict[str, np.ndarray]  # [S, P] running sums, by name in metrics.PARTS
    rounds: Rounds | None  # [S, T, ...] only where decisions were kept
    decisions: Decisions | None  # [S, T, ...] only where they were kept


class Results(NamedTuple):
    """What `run` returns."""

    policies: dict[str, PolicyResult]
    curve_round: np.ndarray  # [P] int64, counted from 1
    oracle_set: np.ndarray  # [S, N] bool, the static oracle
    oracle_exact: bool
    paging_cost: np.ndarray  # [S, N]
    tile: int
    num_devices: int
    compile_seconds: float
    run_seconds: float
    num_decisions: int


class Progress(NamedTuple):
    """What a progress callback receives."""

    phase: str  # "compiling" or "running"
    done: int  # programs or decisions
    total: int


def tile_width(problem: Problem, platform: str) -> int:
    """Lanes that one device runs side by side: a function of shapes and kind of device.

    Args:
      problem: sizes; `N` and `d` are read.
      platform: "cpu", "gpu" or "tpu".

    Returns:
      The tile, at least 1.
    """
    n, d = problem.num_adapters, problem.context_dim
    # Statistics are kept twice while they are updated; a chunk holds contexts,
    # utilities and decisions.
    lane_bytes = 4 * (2 * n * d * (3 * d + 4) + CHUNK_ROUNDS * (3 * n + 2 * d + 16))
    budget = _TILE_BYTES.get(platform, _TILE_BYTES_ACCELERATOR)
    width = _TILE.get(platform, _TILE_ACCELERATOR)
    while width > 1 and width * lane_bytes > budget:
        width //= 2
    return width


class _Setup(NamedTuple):
    """What is fixed for a seed, on the device."""

    key: Array
    instance: Any
    inputs: LaneInputs
    oracle_set: Array


def _float(dtype: Any, tree: Any) -> Any:
    """Casts the floating leaves of a tree; the streams themselves stay float32."""

    def cast(leaf: Any) -> Array:
        array = jnp.asarray(leaf)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(cast, tree)


def _stream_key(base_seed: Array, seed: Array) -> Array:
    """A seed's key: it depends on nothing else, so policies see the same requests."""
    return jax.random.fold_in(jax.random.key(base_seed, impl="threefry2x32"), seed)


def _lane_inputs(key: Array, costs: dict[str, Array], cache_slots: Array, dtype: Any) -> LaneInputs:
    num_adapters = costs["mean_ms"].shape[0]
    drawn = paging.draw_synthetic_cost(
        jax.random.fold_in(key, _COST_STREAM), costs["synthetic_mean"], num_adapters=num_adapters
    ).astype(dtype)
    price = costs["price_per_ms"].astype(dtype)
    measured = costs["mean_ms"].astype(dtype)
    synthetic = costs["synthetic"]
    cost = jnp.where(synthetic, drawn, price * measured)
    return LaneInputs(
        paging_cost=cost,
        switch_cost=cost,
        paging_ms=jnp.where(synthetic, drawn / jnp.where(synthetic, price, 1.0), measured),
        size=jnp.ones_like(cost),
        cache_slots=cache_slots,
        samples_ms=costs["samples_ms"],
        sample_count=costs["sample_count"],
    )


def _cost_arrays(costs: Costs, num_adapters: int, dtype: Any) -> dict[str, np.ndarray]:
    if costs.table is None:
        mean_ms = np.zeros(num_adapters)
        samples = np.zeros((num_adapters, 0), np.float32), np.ones(num_adapters, np.int32)
    else:
        table = paging.take(costs.table, num_adapters)
        mean_ms, samples = table.mean_ms, paging.draw_arrays(table)
    return {
        "synthetic": np.asarray(costs.table is None),
        "price_per_ms": np.asarray(costs.price_per_ms, dtype),
        "synthetic_mean": np.asarray(costs.synthetic_mean, dtype),
        "mean_ms": np.asarray(mean_ms, dtype),
        "samples_ms": samples[0],
        "sample_count": samples[1],
    }


def _draw_blocks(env: Environment, key: Array, params: Any, instance: Any, blocks: Array) -> Rounds:
    """`[len(blocks) * BLOCK, ...]` rounds of consecutive or separate blocks."""
    drawn = jax.vmap(lambda block: env.rounds(key, params, instance, block))(blocks)
    return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), drawn)


def _oracle_sample(
    env: Environment, horizon: int, key: Array, params: Any, instance: Any
) -> tuple[Array, Array]:
    """`([m, N] utilities, [m] weights)` of the contexts that `C*` is chosen on."""
    block = environments.BLOCK
    if env.independent:
        blocks = jnp.arange(oracles.ORACLE_CONTEXTS // block, dtype=jnp.int32)
        other = jax.random.fold_in(key, _ORACLE_STREAM)
        utility = jax.lax.map(lambda b: env.rounds(other, params, instance, b).utility, blocks)
        utility = utility.reshape(-1, utility.shape[-1])
        return utility, jnp.ones(utility.shape[0], jnp.float32)
    # In hindsight, over every stride-th of the run's own contexts.
    stride = -(-horizon // oracles.ORACLE_CONTEXTS)
    starts = np.arange(0, horizon, block)
    offsets = -starts[:, None] % stride + stride * np.arange(-(-block // stride))[None, :]
    valid = (offsets < block) & (starts[:, None] + offsets < horizon)
    used = valid.any(axis=1)
    blocks = jnp.asarray(starts[used] // block, jnp.int32)
    picks = jnp.asarray(np.where(valid, offsets, 0)[used], jnp.int32)
    utility = jax.lax.map(
        lambda pair: env.rounds(key, params, instance, pair[0]).utility[pair[1]], (blocks, picks)
    )
    weight = jnp.asarray(valid[used].reshape(-1), jnp.float32)
    return utility.reshape(-1, utility.shape[-1]), weight


def _setup(
    env: Environment,
    problem: Problem,
    dtype: Any,
    seed: Array,
    base_seed: Array,
    params: Any,
    costs: dict[str, Array],
) -> _Setup:
    key = _stream_key(base_seed, seed)
    instance = env.instance(
        key, params, num_adapters=problem.num_adapters, context_dim=problem.context_dim
    )
    inputs = _lane_inputs(key, costs, jnp.int32(problem.cache_slots), dtype)
    utility, weight = _oracle_sample(env, problem.horizon, key, params, instance)
    oracle_set = oracles.static_oracle(
        utility.astype(dtype),
        inputs.paging_cost,
        weight.astype(dtype),
        cache_slots=problem.cache_slots,
    )
    return _Setup(key, instance, inputs, oracle_set)


class _Needs(NamedTuple):
    """Which random numbers any policy reads; the others are not drawn."""

    latency: bool
    reservoir: bool
    bits: bool


def _draw(
    env: Environment, needs: _Needs, dtype: Any, setup: _Setup, params: Any, first_block: Array
) -> Rounds:
    blocks = first_block + jnp.arange(CHUNK_ROUNDS // environments.BLOCK, dtype=jnp.int32)
    rounds = _draw_blocks(env, setup.key, params, setup.instance, blocks)
    unread = {
        "latency_uniform": needs.latency,
        "reservoir_slot": needs.reservoir,
        "policy_bits": needs.bits,
    }
    blanks = {
        name: jnp.zeros_like(getattr(rounds, name)) for name, read in unread.items() if not read
    }
    return _float(dtype, rounds._replace(**blanks))._replace(
        latency_uniform=blanks.get("latency_uniform", rounds.latency_uniform)
    )


class _PolicyData(NamedTuple):
    """The traced part of a policy."""

    params: Any
    quotas: Array
    use_oracle: Array  # [] bool, start from the oracle's set
    first: Array  # [N] bool, the set to start from otherwise


def _policy_data(policy: Policy, problem: Problem, dtype: Any) -> _PolicyData:
    adapters = np.arange(problem.num_adapters)
    sizes = {"all": problem.num_adapters, "none": 0}
    quotas = np.full(32, policy.quotas[-1], np.int32)  # a horizon below 2^31 has no more epochs
    quotas[: policy.quotas.size] = policy.quotas[:32]

    def cast(leaf: Any) -> np.ndarray:
        return np.asarray(leaf, dtype)

    return _PolicyData(
        params=jax.tree.map(cast, policy.params),
        quotas=quotas,
        use_oracle=np.asarray(policy.first_set == "oracle"),
        first=adapters < sizes.get(policy.first_set, problem.cache_slots),
    )


def _lane(policy: Policy, env: Environment, data: _PolicyData, setup: _Setup) -> simulate.Lane:
    return simulate.Lane(policy.rule, data.params, setup.inputs, data.quotas, env.binary_reward)


def _start(
    policy: Policy, env: Environment, problem: Problem, setup: _Setup, data: _PolicyData
) -> LaneState:
    resident = jnp.where(data.use_oracle, setup.oracle_set, data.first)
    lane = _lane(policy, env, data, setup)
    return simulate.init_lane(lane, resident, context_dim=problem.context_dim)


def _advance(
    policy: Policy,
    env: Environment,
    keep: bool,
    state: LaneState,
    setup: _Setup,
    rounds: Rounds,
    data: _PolicyData,
    clock: ChunkClock,
) -> tuple[LaneState, Array, Decisions | None]:
    """One chunk of one lane: decisions, then their figures summed over curve intervals."""
    lane = _lane(policy, env, data, setup)
    state, decisions = simulate.run_chunk(lane, state, rounds, clock)
    parts = metrics.round_parts(rounds, decisions, setup.inputs, setup.oracle_set)
    sums = metrics.interval_sums(
        parts, jnp.asarray(clock.interval), num_intervals=epochs.NUM_INTERVALS
    )
    return state, sums, decisions if keep else None


class _Programs(NamedTuple):
    """Compiled calls of one experiment on one mesh; advance and start, one per rule."""

    setup: Callable[..., _Setup]
    draw: Callable[..., Rounds]
    start: list[Callable[..., LaneState]]
    advance: list[Callable[..., Any]]


def _over_lanes(
    function: Callable[..., Any], mesh: Mesh, *, lanes: int, shared: int, donate: bool = False
) -> Any:
    """`jit` of `function` over the lanes of every device's tile.

    The first `lanes` arguments have a lane axis, the last `shared` are the same for all.
    """
    mapped = jax.vmap(function, in_axes=(0,) * lanes + (None,) * shared)
    specs = (_LANES,) * lanes + (_SHARED,) * shared
    sharded = jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=_LANES, check_vma=False)
    return jax.jit(sharded, donate_argnums=(0,) if donate else ())


_COMPILED: dict[Any, Any] = {}


def _signature(args: Sequence[Any]) -> Any:
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return structure, shapes


def _compiled(key: Any, build: Callable[[], Any], args: Sequence[Any]) -> Any:
    """The executable for `args`, compiled once per process."""
    full = (key, _signature(args), jax.config.jax_enable_x64)
    if full not in _COMPILED:
        _COMPILED[full] = build().lower(*args).compile()
    return _COMPILED[full]


def run(
    experiment: Experiment,
    *,
    num_devices: int | None = None,
    keep_decisions: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Results:
    """Runs every policy on every seed.

    Args:
      experiment: what to run.
      num_devices: at most so many devices; all of them where None. It changes no result.
      keep_decisions: also return all rounds and decisions; memory then grows with `T`.
      progress: called on the host after each step.

    Returns:
      The results, in the order of `experiment.seeds`.
    """
    return _Run(experiment, num_devices, keep_decisions, progress or (lambda _: None)).execute()


class _Run:
    """One call of `run`: its mesh, programs and sums."""

    def __init__(
        self,
        experiment: Experiment,
        num_devices: int | None,
        keep: bool,
        progress: Callable[[Progress], None],
    ) -> None:
        devices = jax.devices()
        self.experiment, self.keep, self.progress = experiment, keep, progress
        self.platform = devices[0].platform
        self.tile = tile_width(experiment.problem, self.platform)
        tiles = -(-len(experiment.seeds) // self.tile)
        limit = len(devices) if num_devices is None else min(num_devices, len(devices))
        self.num_devices = max(1, min(limit, tiles))
        self.mesh = Mesh(np.asarray(devices[: self.num_devices]), ("lanes",))
        dtype, problem = experiment.dtype, experiment.problem
        self.marks = epochs.curve_rounds(problem.horizon)
        self.data = [_policy_data(p, problem, dtype) for p in experiment.policies]
        self.costs = _cost_arrays(experiment.costs, problem.num_adapters, dtype)
        rules = [policy.rule for policy in experiment.policies]
        self.needs = _Needs(
            latency=self.costs["samples_ms"].shape[1] > 0,
            reservoir=any(rule.sample == "reservoir" for rule in rules),
            bits=any(rule.router.randomised for rule in rules),
        )

    def execute(self) -> Results:
        experiment = self.experiment
        seeds = np.asarray(experiment.seeds, np.int32)
        width = self.tile * self.num_devices
        padded = np.pad(seeds, (0, -seeds.size % width), mode="edge")
        began = time.perf_counter()
        setup_args = self._setup_args(padded[:width])
        programs = self._compile(setup_args)
        compiled = time.perf_counter()
        waves = [self._wave(programs, padded[i : i + width]) for i in range(0, padded.size, width)]
        seconds = time.perf_counter() - compiled
        return self._collect(waves, seeds.size, compiled - began, seconds)

    def _setup_args(self, seeds: np.ndarray) -> tuple[Any, ...]:
        experiment = self.experiment
        spread = jax.device_put(seeds, NamedSharding(self.mesh, _LANES))
        base = np.int32(experiment.base_seed)
        return spread, base, experiment.environment_params, self.costs

    def _clock(self, policy: Policy, first_round: int) -> ChunkClock:
        return epochs.chunk_clock(
            policy.schedule,
            self.marks,
            first_round=first_round,
            num_rounds=CHUNK_ROUNDS,
            horizon=self.experiment.problem.horizon,
        )

    def _compile(self, setup_args: tuple[Any, ...]) -> _Programs:
        """Compiles every program; those that do not wait for another, side by side."""
        exp, mesh = self.experiment, self.mesh
        env, problem, dtype = exp.environment, exp.problem, exp.dtype
        setup_function = functools.partial(_setup, env, problem, dtype)
        build_setup = functools.partial(_over_lanes, setup_function, mesh, lanes=1, shared=3)
        setup_key = ("setup", env, problem, dtype, mesh)
        draw_function = functools.partial(_draw, env, self.needs, dtype)
        build_draw = functools.partial(_over_lanes, draw_function, mesh, lanes=1, shared=2)
        draw_key = ("draw", env, self.needs, dtype, mesh)
        shapes = jax.eval_shape(build_setup(), *setup_args)
        shapes = self._sharded(shapes)
        params = exp.environment_params
        draw_args = (shapes, params, np.int32(0))
        rounds = self._sharded(jax.eval_shape(build_draw(), *draw_args))
        jobs: list[tuple[Any, Callable[[], Any], tuple[Any, ...]]] = [
            (setup_key, build_setup, setup_args),
            (draw_key, build_draw, draw_args),
        ]
        for policy, data in zip(exp.policies, self.data, strict=True):
            start = functools.partial(_start, policy, env, problem)
            build_start = functools.partial(_over_lanes, start, mesh, lanes=1, shared=1)
            shared_key = (policy.rule, env.binary_reward, mesh, problem.context_dim)
            jobs.append((("start", *shared_key), build_start, (shapes, data)))
            state = self._sharded(jax.eval_shape(build_start(), shapes, data))
            advance = functools.partial(_advance, policy, env, self.keep)
            build = functools.partial(_over_lanes, advance, mesh, lanes=3, shared=2, donate=True)
            args = (state, shapes, rounds, data, self._clock(policy, 0))
            jobs.append((("advance", self.keep, *shared_key), build, args))
        done = self._compile_jobs(jobs)
        return _Programs(done[0], done[1], done[2::2], done[3::2])

    def _compile_jobs(self, jobs: Sequence[Any]) -> list[Any]:
        distinct = {(key, _signature(args)): (key, build, args) for key, build, args in jobs}
        self.progress(Progress("compiling", 0, len(distinct)))
        with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
            futures = [pool.submit(_compiled, *job) for job in distinct.values()]
            for count, future in enumerate(concurrent.futures.as_completed(futures), 1):
                future.result()
                self.progress(Progress("compiling", count, len(distinct)))
        return [_compiled(*job) for job in jobs]

    def _sharded(self, shapes: Any) -> Any:
        sharding = NamedSharding(self.mesh, _LANES)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
        )

    def _wave(self, programs: _Programs, seeds: np.ndarray) -> Any:
        """Runs one tile on every device through the whole horizon."""
        exp = self.experiment
        horizon = exp.problem.horizon
        setup = self._settled(programs.setup(*self._setup_args(seeds)))
        states = [
            self._settled(start(setup, data))
            for start, data in zip(programs.start, self.data, strict=True)
        ]
        shape = (seeds.size, epochs.NUM_INTERVALS, len(metrics.PARTS))
        totals = [np.zeros(shape) for _ in exp.policies]
        kept: list[list[Any]] = [[] for _ in exp.policies]
        kept_rounds: list[Any] = []
        waiting: list[Array] = []
        for first in range(0, horizon, CHUNK_ROUNDS):
            block = np.int32(first // environments.BLOCK)
            rounds = self._settled(programs.draw(setup, exp.environment_params, block))
            fresh = []
            for i, policy in enumerate(exp.policies):
                states[i], sums, decisions = self._settled(
                    programs.advance[i](
                        states[i], setup, rounds, self.data[i], self._clock(policy, first)
                    )
                )
                fresh.append(sums)
                if self.keep:
                    kept[i].append(jax.tree.map(np.asarray, decisions))
            if self.keep:
                kept_rounds.append(jax.tree.map(np.asarray, rounds))
            # The device works on this chunk while the host adds the one before.
            self._add(totals, waiting)
            waiting = fresh
            self._report(seeds.size, min(first, horizon))
        self._add(totals, waiting)
        self._report(seeds.size, horizon)
        self._finished = getattr(self, "_finished", 0) + seeds.size
        return setup, totals, kept_rounds, kept

    def _settled(self, values: Any) -> Any:
        """Waits for `values` on CPU, where programs in flight together can lock up.

        Host devices share one pool of threads; a program that waits in it for another's
        output can hold the thread that the other needs (seen with jaxlib 0.10.2 and two
        devices). Accelerators keep their queue full.
        """
        return jax.block_until_ready(values) if self.platform == "cpu" else values

    def _add(self, totals: list[np.ndarray], sums: list[Array]) -> None:
        for total, one in zip(totals, jax.block_until_ready(sums), strict=bool(sums)):
            total += np.asarray(one, np.float64)

    def _report(self, lanes: int, rounds: int) -> None:
        exp = self.experiment
        policies, horizon = len(exp.policies), exp.problem.horizon
        finished = getattr(self, "_finished", 0)
        done = min(finished * horizon + lanes * rounds, len(exp.seeds) * horizon) * policies
        self.progress(Progress("running", done, len(exp.seeds) * horizon * policies))

    def _collect(
        self, waves: list[Any], num_seeds: int, compile_seconds: float, run_seconds: float
    ) -> Results:
        exp = self.experiment
        horizon, slots = exp.problem.horizon, exp.problem.cache_slots

        def lanes(values: list[Any]) -> np.ndarray:
            return np.concatenate([np.asarray(value) for value in values])[:num_seeds]

        def kept(chunks: list[list[Any]]) -> Any:
            if not self.keep:
                return None
            per_wave = [jax.tree.map(lambda *x: np.concatenate(x, 1), *one) for one in chunks]
            whole = jax.tree.map(lambda *x: np.concatenate(x)[:num_seeds, :horizon], *per_wave)
            return whole

        rounds = kept([wave[2] for wave in waves])
        results = {}
        for i, policy in enumerate(exp.policies):
            sums = lanes([wave[1][i] for wave in waves])[:, : self.marks.size]
            running = np.cumsum(sums, axis=1)
            results[policy.name] = PolicyResult(
                totals={name: running[:, -1, j] for j, name in enumerate(metrics.PARTS)},
                curves={name: running[:, :, j] for j, name in enumerate(metrics.PARTS)},
                rounds=rounds,
                decisions=kept([wave[3][i] for wave in waves]),
            )
        return Results(
            policies=results,
            curve_round=self.marks,
            oracle_set=lanes([wave[0].oracle_set for wave in waves]),
            oracle_exact=oracles.oracle_is_exact(exp.problem.num_adapters, slots),
            paging_cost=lanes([wave[0].inputs.paging_cost for wave in waves]),
            tile=self.tile,
            num_devices=self.num_devices,
            compile_seconds=compile_seconds,
            run_seconds=run_seconds,
            num_decisions=len(exp.policies) * num_seeds * horizon,
        )
