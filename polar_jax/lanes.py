"""Many lanes at once: the only place with `jit`, lane `vmap`, tiles, devices and donation.

A *lane* is one simulation: one policy on one seed. A *tile* is the fixed number of
lanes that one device runs side by side; since `vmap` over another width may round
differently, a lane's result depends on the width alone, and the width depends on the
shapes and the kind of device alone. See `docs/architecture.md`, "Determinism".
"""

import concurrent.futures
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from polar_jax import (
    cache_search,
    environments,
    epochs,
    lane_calls,
    metrics,
    oracles,
    simulate,
)
from polar_jax.lane_calls import Costs, Experiment, Setup
from polar_jax.policies import Policy, Problem
from polar_jax.results import PolicyResult, Progress, Results, Wave, join, policy_results
from polar_jax.types import ChunkClock, LaneState, Rounds

__all__ = ["Costs", "Experiment", "PolicyResult", "Progress", "Results", "run", "tile_width"]

# Rounds per compiled call: whole blocks, and short enough to answer Ctrl-C at once.
CHUNK_ROUNDS = 4 * environments.BLOCK
_TILE = {"cpu": 32}
_TILE_ACCELERATOR = 4_096
# A tile's state and one chunk of its rounds must fit in this many bytes.
_TILE_BYTES = {"cpu": 2**30}
_TILE_BYTES_ACCELERATOR = 8 * 2**30
_LANES, _SHARED = PartitionSpec("lanes"), PartitionSpec()
# Run once per seed, so compiling it fast is worth more than running it fast.
_QUICK_COMPILE = {"cpu": {"xla_backend_optimization_level": 1}}


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
    # utilities and decisions; the oracle sees its sample twice; a replan holds every
    # sampled direction, and the enumeration one chunk of contexts for every subset.
    chunk = CHUNK_ROUNDS * (3 * n + 2 * d + 16) + 2 * oracles.ORACLE_CONTEXTS * n
    planned = (
        simulate.SAMPLE_ROUNDS * n * d + cache_search.EXACT_CHUNK * oracles.EXACT_ORACLE_SUBSETS
    )
    lane_bytes = 4 * (2 * n * d * (3 * d + 4) + chunk + planned)
    budget = _TILE_BYTES.get(platform, _TILE_BYTES_ACCELERATOR)
    width = _TILE.get(platform, _TILE_ACCELERATOR)
    while width > 1 and width * lane_bytes > budget:
        width //= 2
    return width


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


def _signature(args: Sequence[Any]) -> Any:
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return structure, shapes


class _Job(NamedTuple):
    """One program to compile: what it is known by, how to build it, example arguments."""

    key: Any
    build: Callable[[], Any]
    args: tuple[Any, ...]
    options: dict[str, Any] | None = None

    def name(self) -> Any:
        """What the executable is cached under."""
        return self.key, _signature(self.args)


_COMPILED: dict[Any, Any] = {}


def _compiled(job: _Job) -> Any:
    """The executable of a job, compiled once per process."""
    name = job.name()
    if name not in _COMPILED:
        _COMPILED[name] = job.build().lower(*job.args).compile(job.options)
    return _COMPILED[name]


class _Programs(NamedTuple):
    """Compiled calls of one experiment on one mesh; start and advance, one per policy."""

    setup: Callable[..., Setup]
    draw: Callable[..., Rounds]
    pick: Callable[..., Array]
    oracle: Callable[..., Array]
    start: list[Callable[..., LaneState]]
    advance: list[Callable[..., Any]]


def run(
    experiment: Experiment,
    *,
    num_devices: int | None = None,
    chunk_rounds: int = CHUNK_ROUNDS,
    keep_decisions: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Results:
    """Runs every policy on every seed.

    Args:
      experiment: what to run.
      num_devices: at most so many devices; all of them where None. It changes no result.
      chunk_rounds: rounds per compiled call, a multiple of 256. It changes no result.
      keep_decisions: also return all rounds and decisions; memory then grows with `T`.
      progress: called on the host after each step.

    Returns:
      The results, in the order of `experiment.seeds`.

    Raises:
      ValueError: for a chunk that is not a whole number of blocks.
    """
    if chunk_rounds < 1 or chunk_rounds % environments.BLOCK:
        raise ValueError(
            f"chunk_rounds must be a positive multiple of {environments.BLOCK}, got {chunk_rounds}."
        )
    report = progress or (lambda _: None)
    return _Run(experiment, num_devices, chunk_rounds, keep_decisions, report).execute()


class _Run:
    """One call of `run`: its mesh, programs and sums."""

    def __init__(
        self,
        experiment: Experiment,
        num_devices: int | None,
        chunk: int,
        keep: bool,
        progress: Callable[[Progress], None],
    ) -> None:
        devices = jax.devices()
        self.experiment, self.keep, self.progress = experiment, keep, progress
        self.chunk = chunk
        self.platform = devices[0].platform
        self.tile = tile_width(experiment.problem, self.platform)
        tiles = -(-len(experiment.seeds) // self.tile)
        limit = len(devices) if num_devices is None else min(num_devices, len(devices))
        self.num_devices = max(1, min(limit, tiles))
        self.mesh = Mesh(np.asarray(devices[: self.num_devices]), ("lanes",))
        dtype, problem = experiment.dtype, experiment.problem
        self.marks = epochs.curve_rounds(problem.horizon)
        # Placed once: a call that is handed host arrays copies them to every device.
        everywhere = NamedSharding(self.mesh, _SHARED)
        self.data = jax.device_put(
            [lane_calls.policy_data(p, problem, dtype) for p in experiment.policies], everywhere
        )
        self.stream = jax.device_put(experiment.environment_params, everywhere)
        self.costs = lane_calls.cost_arrays(experiment.costs, problem.num_adapters, dtype)
        rules = [policy.rule for policy in experiment.policies]
        self.needs = lane_calls.Needs(
            latency=self.costs["samples_ms"].shape[1] > 0,
            reservoir=any(rule.sample == "reservoir" for rule in rules),
            bits=any(rule.router.randomised or rule.controller.randomised for rule in rules),
        )
        self.sampled = lane_calls.oracle_rounds(experiment.environment, problem.horizon)
        self.seeds_done = 0

    def execute(self) -> Results:
        seeds = np.asarray(self.experiment.seeds, np.int32)
        width = self.tile * self.num_devices
        padded = np.pad(seeds, (0, -seeds.size % width), mode="edge")
        began = time.perf_counter()
        programs = self._compile(padded[:width])
        compiled = time.perf_counter()
        waves = [self._wave(programs, padded[i : i + width]) for i in range(0, padded.size, width)]
        seconds = time.perf_counter() - compiled
        return self._collect(waves, seeds.size, compiled - began, seconds)

    def _setup_args(self, seeds: np.ndarray) -> tuple[Any, ...]:
        experiment = self.experiment
        spread = jax.device_put(seeds, NamedSharding(self.mesh, _LANES))
        base = np.int32(experiment.base_seed)
        return spread, base, self.stream, self.costs

    def _clock(self, policy: Policy, first_round: int) -> ChunkClock:
        return epochs.chunk_clock(
            policy.schedule,
            self.marks,
            first_round=first_round,
            num_rounds=self.chunk,
            horizon=self.experiment.problem.horizon,
        )

    def _picks(self, first_round: int) -> tuple[np.ndarray, int]:
        """Which rounds of a chunk the oracle samples, padded, and how many they are."""
        inside = (self.sampled >= first_round) & (self.sampled < first_round + self.chunk)
        picks = self.sampled[inside] - first_round
        return np.pad(picks, (0, self._most_picks() - picks.size)).astype(np.int32), picks.size

    def _most_picks(self) -> int:
        stride = int(self.sampled[1] - self.sampled[0]) if self.sampled.size > 1 else self.chunk
        return -(-self.chunk // stride)

    def _program(self, function: Callable[..., Any], *fixed: Any, **shape: Any) -> Any:
        """How to build `function`, its first arguments `fixed`, over the lanes of a wave."""
        bound = functools.partial(function, *fixed)
        return functools.partial(_over_lanes, bound, self.mesh, **shape)

    def _base_jobs(self, seeds: np.ndarray) -> tuple[list[_Job], Setup, Rounds, Array]:
        """Programs that no policy changes, and the shapes of what they return."""
        exp, mesh = self.experiment, self.mesh
        env, problem, dtype = exp.environment, exp.problem, exp.dtype
        shared = (env, dtype, mesh)
        setup = self._program(lane_calls.setup, env, problem, dtype, lanes=1, shared=3)
        draw = self._program(lane_calls.draw, env, self.needs, self.chunk, dtype, lanes=2, shared=2)
        pick = self._program(lane_calls.pick, lanes=1, shared=1)
        oracle = self._program(lane_calls.oracle, problem, lanes=2, shared=1)
        setup_args = self._setup_args(seeds)
        fixed = self._shapes(setup, setup_args)
        draw_args = (fixed.key, fixed.instance, self.stream, np.int32(0))
        rounds = self._shapes(draw, draw_args)
        pick_args = (rounds.utility, self._picks(0)[0])
        sample = jax.ShapeDtypeStruct(
            (seeds.size, oracles.ORACLE_CONTEXTS, problem.num_adapters),
            rounds.utility.dtype,
            sharding=rounds.utility.sharding,
        )
        weight = np.zeros(oracles.ORACLE_CONTEXTS, dtype)
        oracle_args = (fixed.inputs, sample, weight)
        jobs = [
            _Job(
                ("setup", problem[:3], *shared),
                setup,
                setup_args,
                _QUICK_COMPILE.get(self.platform),
            ),
            _Job(("draw", self.needs, self.chunk, *shared), draw, draw_args),
            _Job(("pick", *shared), pick, pick_args),
            _Job(("oracle", problem.cache_slots, *shared), oracle, oracle_args),
        ]
        return jobs, fixed, rounds, self._shapes(oracle, oracle_args)

    def _compile(self, seeds: np.ndarray) -> _Programs:
        """Compiles every program; those that do not wait for another, side by side."""
        exp, mesh = self.experiment, self.mesh
        env, problem = exp.environment, exp.problem
        jobs, fixed, rounds, chosen = self._base_jobs(seeds)
        num_base = len(jobs)
        for policy, data in zip(exp.policies, self.data, strict=True):
            known = (policy.rule, env.binary_reward, problem.context_dim, mesh)
            start = self._program(lane_calls.start, policy, env, problem, lanes=2, shared=1)
            start_args = (fixed.inputs, chosen, data)
            state = self._shapes(start, start_args)
            advance = self._program(
                lane_calls.advance, policy, env, self.keep, lanes=4, shared=2, donate=True
            )
            args = (state, fixed.inputs, chosen, rounds, data, self._clock(policy, 0))
            jobs.append(_Job(("start", *known), start, start_args))
            jobs.append(_Job(("advance", self.keep, *known), advance, args))
        done = self._compile_jobs(jobs)
        return _Programs(
            setup=done[0],
            draw=done[1],
            pick=done[2],
            oracle=done[3],
            start=done[num_base::2],
            advance=done[num_base + 1 :: 2],
        )

    def _compile_jobs(self, jobs: Sequence[_Job]) -> list[Any]:
        distinct = {job.name(): job for job in jobs}
        self.progress(Progress("compiling", 0, len(distinct)))
        with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
            futures = [pool.submit(_compiled, job) for job in distinct.values()]
            for count, future in enumerate(concurrent.futures.as_completed(futures), 1):
                future.result()
                self.progress(Progress("compiling", count, len(distinct)))
        return [_compiled(job) for job in jobs]

    def _shapes(self, build: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        """Shapes of what a program returns, spread over the devices."""
        sharding = NamedSharding(self.mesh, _LANES)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(build(), *args),
        )

    def _oracle_sets(self, programs: _Programs, setup: Setup) -> Array:
        """The static oracle of every lane."""
        exp = self.experiment
        key = setup.oracle_key if exp.environment.independent else setup.key
        parts = []
        for first in np.unique(self.sampled // self.chunk) * self.chunk:
            block = np.int32(first // environments.BLOCK)
            rounds = programs.draw(key, setup.instance, self.stream, block)
            picks, count = self._picks(int(first))
            parts.append(self._settled(programs.pick(rounds.utility, picks))[:, :count])
        sample = jnp.concatenate(parts, axis=1)
        short = oracles.ORACLE_CONTEXTS - sample.shape[1]
        weight = np.pad(np.ones(sample.shape[1], exp.dtype), (0, short))
        sample = jnp.pad(sample, ((0, 0), (0, short), (0, 0)))
        sample = jax.device_put(sample, NamedSharding(self.mesh, _LANES))
        return self._settled(programs.oracle(setup.inputs, sample, weight))

    def _wave(self, programs: _Programs, seeds: np.ndarray) -> Wave:
        """Runs one tile on every device through the whole horizon."""
        exp = self.experiment
        horizon = exp.problem.horizon
        setup = self._settled(programs.setup(*self._setup_args(seeds)))
        chosen = self._oracle_sets(programs, setup)
        states = [
            self._settled(start(setup.inputs, chosen, data))
            for start, data in zip(programs.start, self.data, strict=True)
        ]
        shape = (seeds.size, epochs.NUM_INTERVALS, len(metrics.PARTS))
        totals = [np.zeros(shape) for _ in exp.policies]
        kept: list[list[Any]] = [[] for _ in exp.policies]
        kept_rounds: list[Any] = []
        waiting: list[Array] = []
        for first in range(0, horizon, self.chunk):
            self._report(seeds.size, first)
            block = np.int32(first // environments.BLOCK)
            rounds = self._settled(programs.draw(setup.key, setup.instance, self.stream, block))
            fresh = []
            for i, policy in enumerate(exp.policies):
                clock = self._clock(policy, first)
                states[i], sums, decisions = self._settled(
                    programs.advance[i](
                        states[i], setup.inputs, chosen, rounds, self.data[i], clock
                    )
                )
                fresh.append(sums)
                if self.keep:
                    kept[i].append(jax.tree.map(np.asarray, decisions))
            if self.keep:
                kept_rounds.append(jax.tree.map(np.asarray, rounds))
            # An accelerator works on this chunk while the host adds the one before.
            self._add(totals, waiting)
            waiting = fresh
        self._add(totals, waiting)
        self._report(seeds.size, horizon)
        self.seeds_done += seeds.size
        return Wave(
            oracle_set=np.asarray(chosen),
            paging_cost=np.asarray(setup.inputs.paging_cost),
            paging_ms=np.asarray(setup.inputs.paging_ms),
            sums=totals,
            rounds=kept_rounds,
            decisions=kept,
        )

    def _settled(self, values: Any) -> Any:
        """Waits for `values` on CPU, where a queue gains nothing.

        The host's cores are busy either way, and at most one chunk is in flight when
        Ctrl-C is pressed. Accelerators keep their queue full.
        """
        return jax.block_until_ready(values) if self.platform == "cpu" else values

    def _add(self, totals: list[np.ndarray], sums: list[Array]) -> None:
        for total, one in zip(totals, jax.block_until_ready(sums), strict=bool(sums)):
            for block in np.moveaxis(np.asarray(one, np.float64), 1, 0):
                total += block

    def _report(self, lanes: int, rounds: int) -> None:
        exp = self.experiment
        horizon, policies = exp.problem.horizon, len(exp.policies)
        whole = len(exp.seeds) * horizon
        done = min(self.seeds_done * horizon + lanes * rounds, whole)
        self.progress(Progress("running", done * policies, whole * policies))

    def _collect(
        self, waves: list[Wave], num_seeds: int, compile_seconds: float, run_seconds: float
    ) -> Results:
        exp = self.experiment
        problem = exp.problem
        return Results(
            policies=policy_results(
                [policy.name for policy in exp.policies],
                waves,
                self.marks,
                num_seeds=num_seeds,
                horizon=problem.horizon,
            ),
            curve_round=self.marks,
            oracle_set=join([wave.oracle_set for wave in waves], num_seeds),
            oracle_exact=oracles.oracle_is_exact(problem.num_adapters, problem.cache_slots),
            paging_cost=join([wave.paging_cost for wave in waves], num_seeds),
            paging_ms=join([wave.paging_ms for wave in waves], num_seeds),
            tile=self.tile,
            num_devices=self.num_devices,
            compile_seconds=compile_seconds,
            run_seconds=run_seconds,
            num_decisions=len(exp.policies) * num_seeds * problem.horizon,
        )
