"""Compiled programs over many lanes: what is compiled, for which devices, with what memory.

A *tile* is the fixed number of lanes that one device runs side by side; since `vmap` over
another width may round differently, a lane's result depends on the width alone, and the
width depends on the shapes and the kind of device alone. A *wave* is one tile on every
device. See `docs/architecture.md`, "Determinism".
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from polar_jax import chunks, draws, kernels, lane_calls, lane_maps, oracles, processes
from polar_jax.lane_calls import Experiment, Needs, Setup, Shape
from polar_jax.types import ChunkClock, LaneState, Rounds

_TILE = {"cpu": 32}
_TILE_ACCELERATOR = 4_096
# A tile's state and one chunk of its rounds must fit in this many bytes.
_TILE_BYTES = {"cpu": 2**30}
_TILE_BYTES_ACCELERATOR = 8 * 2**30
# Run once per seed, so compiling it fast is worth more than running it fast.
_QUICK_COMPILE = {"cpu": {"xla_backend_optimization_level": 1}}
# A host that waits for every call leaves nothing to overlap; accelerators keep a queue.
_MAX_IN_FLIGHT = {"cpu": 1}
_MAX_IN_FLIGHT_ACCELERATOR = 4


def tile_width(shape: Shape, platform: str) -> int:
    """Lanes that one device runs side by side: a function of shapes and kind of device.

    Args:
      shape: sizes that the programs are compiled for.
      platform: "cpu", "gpu" or "tpu".

    Returns:
      The tile, at least 1.
    """
    lane_bytes = sum(_lane_bytes(shape))
    budget = _TILE_BYTES.get(platform, _TILE_BYTES_ACCELERATOR)
    width = _TILE.get(platform, _TILE_ACCELERATOR)
    while width > 1 and width * lane_bytes > budget:
        width //= 2
    return width


def _lane_bytes(shape: Shape) -> tuple[int, int]:
    """Estimated bytes of a lane: one policy's state, and what all policies share."""
    n, d = shape
    # Statistics are kept twice while they are updated; a chunk holds contexts,
    # utilities and decisions; the oracle sees its sample twice; a replan holds every
    # sampled direction.
    chunk = chunks.MAX_ROUNDS * chunks.round_bytes(n, d)
    other = 2 * oracles.ORACLE_CONTEXTS * n + draws.RESERVOIR_SLOTS * (n * d + 64)
    return 4 * 2 * n * d * (3 * d + 4), chunk + 4 * other


def estimated_bytes(shape: Shape, num_policies: int, platform: str) -> int:
    """Memory of a wave on one device, estimated from shapes alone.

    Args:
      shape: sizes that the programs are compiled for.
      num_policies: policies that run side by side.
      platform: "cpu", "gpu" or "tpu".
    """
    state, shared = _lane_bytes(shape)
    # A state is updated in place but for the policy that is being served.
    return tile_width(shape, platform) * (state // 2 * (num_policies + 1) + shared)


class Placement(NamedTuple):
    """Devices, and how arrays lie on them."""

    mesh: Mesh
    platform: str

    @property
    def num_devices(self) -> int:
        """How many devices there are."""
        return self.mesh.size

    def lanes(self, values: Any) -> Any:
        """Spreads arrays with a lane axis over the devices."""
        return processes.put(values, NamedSharding(self.mesh, lane_maps.LANES))

    def shared(self, values: Any) -> Any:
        """Copies arrays to every device: a call that is handed host arrays does so each time."""
        return processes.put(values, NamedSharding(self.mesh, lane_maps.SHARED))

    def zeros(self, shapes: Any) -> Any:
        """Arrays with a lane axis of some shapes, all zeros, made where they lie."""
        return _zeros(shapes, NamedSharding(self.mesh, lane_maps.LANES))()

    def host(self, values: Array) -> np.ndarray:
        """An array with a lane axis on the host, whichever processes have its parts."""
        return processes.fetch(values)

    def shapes(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Shapes of what a program over lanes returns, spread over the devices."""
        sharding = NamedSharding(self.mesh, lane_maps.LANES)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(function, *args),
        )


@functools.cache
def _zeros(shapes: Any, sharding: NamedSharding) -> Callable[[], Any]:
    def made() -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return jax.jit(made, out_shardings=sharding)


def place(num_tiles: int, num_devices: int | None) -> Placement:
    """The devices for a run.

    Args:
      num_tiles: tiles of work; more devices than that are not used by one process alone.
      num_devices: at most so many; all where None.
    """
    devices = jax.devices()
    if processes.count() > 1:
        # A process without a device of the mesh could not call a program.
        return Placement(Mesh(np.asarray(devices), ("lanes",)), devices[0].platform)
    limit = len(devices) if num_devices is None else min(num_devices, len(devices))
    used = devices[: max(1, min(limit, num_tiles))]
    return Placement(Mesh(np.asarray(used), ("lanes",)), devices[0].platform)


class Program(NamedTuple):
    """One program: what it is, how to build it, example arguments."""

    kind: str  # "setup", "draw", "pick", "oracle", "start" or "advance"
    key: Any  # what it is known by, beside the shapes of its arguments
    build: Callable[[], Any]
    args: tuple[Any, ...]
    options: dict[str, Any] | None = None

    def name(self) -> Any:
        """What the executable is cached under."""
        return (self.kind, *self.key), _signature(self.args)


def _signature(args: Any) -> Any:
    leaves, structure = jax.tree.flatten(args)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


_COMPILED: dict[Any, Any] = {}


def forget() -> None:
    """Drops every compiled program of this process, and the memory that they are mapped to."""
    _COMPILED.clear()
    _FAMILIES.clear()
    _zeros.cache_clear()


def _compiled(program: Program) -> Any:
    """The executable of a program, compiled once per process."""
    name = program.name()
    if name not in _COMPILED:
        _COMPILED[name] = program.build().lower(*program.args).compile(program.options)
    return _COMPILED[name]


class WaveInputs(NamedTuple):
    """What a wave is given: arrays with a lane axis, then arrays that all lanes share."""

    seed: Any  # [L] int32
    base_seed: Any  # [L] int32
    stream: Any  # environment constants, [L] each
    costs: dict[str, Any]  # lane_calls.cost_arrays, [L, ...] each
    counted: Any  # [L] bool, False for copies of the last lane that fill up its tile
    data: list[Any]  # lane_calls.PolicyData per policy, [L, ...] each
    sizes: Any  # lane_calls.Sizes
    replayed: Any  # replay_streams.ReplayData, () where the stream is synthetic
    oracle_subsets: Any  # cache_search.SubsetTable
    subsets: Any  # cache_search.SubsetTable of the controllers


class Programs(NamedTuple):
    """Compiled calls of one experiment; start and advance, one per policy."""

    setup: Callable[..., Setup]
    draw: Callable[..., Rounds]
    pick: Callable[..., Array]
    oracle: Callable[..., Array]
    start: list[Callable[..., LaneState]]
    advance: list[Callable[..., Any]]
    rounds_shapes: Rounds  # of shapes, the memory that a draw takes
    state_shapes: list[Any]  # LaneState of shapes, one per policy
    wave_bytes: int  # device memory that a wave needs on one device


_FAMILIES: dict[Any, Programs] = {}


class Family:
    """The programs that an experiment needs on some devices."""

    def __init__(
        self, experiment: Experiment, placement: Placement, *, chunk: int, keep: bool
    ) -> None:
        self._experiment, self._placement = experiment, placement
        self._chunk, self._keep = chunk, keep
        self.needs = needs_of(experiment)
        self.kernel = kernels.chosen(placement.platform)

    def programs(self, inputs: WaveInputs, clocks: Sequence[ChunkClock]) -> list[Program]:
        """Every program, the four that no policy changes first, then two per policy."""
        exp, mesh = self._experiment, self._placement.mesh
        env, shape, dtype = exp.environment, exp.compiled_shape, exp.dtype
        known = (env, shape, dtype, mesh)

        def over(function: Callable[..., Any], *fixed: Any, **axes: Any) -> Callable[[], Any]:
            bound = functools.partial(function, *fixed)
            return functools.partial(lane_maps.over_lanes, bound, mesh, **axes)

        setup = over(lane_calls.setup, env, shape, dtype, lanes=5, shared=2)
        setup_args = (
            *(inputs.seed, inputs.base_seed, inputs.stream, inputs.costs, inputs.counted),
            *(inputs.sizes, inputs.replayed),
        )
        fixed = self._placement.shapes(setup(), setup_args)
        draw = self._drawing(inputs, fixed)
        rounds = draw.args[0]
        pick = over(lane_calls.pick, lanes=2, shared=2, donate=True)
        sample = self.sample_shape(inputs.seed.size)
        picks = np.zeros(self._chunk, np.int32)
        pick_args = (sample, lane_calls.known(rounds), picks, np.int32(0))
        oracle = over(lane_calls.oracle, lanes=2, shared=2)
        weight = np.zeros(oracles.ORACLE_CONTEXTS, dtype)
        oracle_args = (fixed.inputs, sample, weight, inputs.oracle_subsets)
        chosen = self._placement.shapes(oracle(), oracle_args)
        quick = _QUICK_COMPILE.get(self._placement.platform)
        programs = [
            Program("setup", known, setup, setup_args, quick),
            draw,
            Program("pick", (shape, mesh), pick, pick_args, quick),
            Program("oracle", (shape, mesh), oracle, oracle_args),
        ]
        for policy, data, clock in zip(exp.policies, inputs.data, clocks, strict=True):
            sized = exp.problem.differing is not None
            kernel = kernels.Taken(
                kernels.taken(self.kernel, policy.rule, shape, sized=sized), self.kernel
            )
            rule = (policy.rule, env.binary_reward, shape, mesh)
            start = over(lane_calls.start, policy, shape, lanes=3, shared=0)
            start_args = (fixed.inputs, chosen, data)
            state = self._placement.shapes(start(), start_args)
            advance = over(
                lane_calls.advance,
                *(policy, env, self._keep, kernel),
                lanes=5,
                shared=2,
                donate=True,
            )
            args = (state, fixed.inputs, chosen, rounds, data, clock, inputs.subsets)
            programs.append(Program("start", (policy.rule, shape, mesh), start, start_args, quick))
            programs.append(Program("advance", (self._keep, kernel, *rule), advance, args))
        return programs

    def _drawing(self, inputs: WaveInputs, fixed: Any) -> Program:
        """What draws a chunk; the first of its arguments are rounds, whose memory it takes."""
        exp, mesh = self._experiment, self._placement.mesh
        block = functools.partial(
            lane_calls.draw, exp.environment, self.needs, exp.dtype, self.kernel
        )
        num_blocks = self._chunk // draws.BLOCK
        given = (
            *(inputs.counted, fixed.key, fixed.instance, inputs.stream),
            *(np.int32(0), inputs.replayed),
        )
        rounds = self._placement.shapes(lane_maps.drawn_shapes(block, num_blocks), given)
        known = (exp.environment, exp.compiled_shape, exp.dtype, mesh)
        build = functools.partial(lane_maps.over_blocks, block, mesh, num_blocks=num_blocks)
        key = (self.needs, self._chunk, self.kernel, *known)
        return Program("draw", key, build, (rounds, *given))

    def sample_shape(self, num_lanes: int) -> Any:
        """Shape of the oracle's sample, with room for the last chunk's picks."""
        exp = self._experiment
        rows = oracles.ORACLE_CONTEXTS + self._chunk
        return jax.ShapeDtypeStruct(
            (num_lanes, rows, exp.compiled_shape.num_adapters),
            jnp.dtype(exp.dtype),
            sharding=NamedSharding(self._placement.mesh, lane_maps.LANES),
        )

    def compile(
        self,
        inputs: WaveInputs,
        clocks: Sequence[ChunkClock],
        progress: Callable[[int, int], None],
    ) -> Programs:
        """The compiled programs; experiments that differ in data alone are traced once.

        Args:
          inputs: of any wave.
          clocks: of any chunk, one per policy.
          progress: told how many programs of how many are compiled.
        """
        exp = self._experiment
        name = (
            tuple(policy.rule for policy in exp.policies),
            (exp.environment, exp.compiled_shape, np.dtype(exp.dtype)),
            (self.needs, self._chunk, self._keep, self.kernel, self._placement.mesh),
            _signature((inputs, clocks)),
        )
        if name in _FAMILIES:
            progress(0, 0)
        else:
            _FAMILIES[name] = self._compile(self.programs(inputs, clocks), progress)
        return _FAMILIES[name]

    def _compile(
        self, programs: Sequence[Program], progress: Callable[[int, int], None]
    ) -> Programs:
        """Compiles programs side by side."""
        distinct = {program.name(): program for program in programs}
        pool = concurrent.futures.ThreadPoolExecutor(max_workers=4)
        try:
            progress(0, len(distinct))
            futures = [pool.submit(_compiled, program) for program in distinct.values()]
            for count, future in enumerate(concurrent.futures.as_completed(futures), 1):
                future.result()
                progress(count, len(distinct))
        finally:
            # Where `progress` raised, what is being compiled ends and the rest never begins.
            pool.shutdown(cancel_futures=True)
        done = [_compiled(program) for program in programs]
        advances = programs[5::2]
        return Programs(
            setup=done[0],
            draw=done[1],
            pick=done[2],
            oracle=done[3],
            start=done[4::2],
            advance=done[5::2],
            rounds_shapes=programs[1].args[0],
            state_shapes=[program.args[0] for program in advances],
            wave_bytes=_wave_bytes(programs, done) // self._placement.num_devices,
        )


def chunk_of_full_tiles(experiment: Experiment, platform: str) -> int:
    """Rounds of a call that suit full tiles: with it, runs of few lanes and of many share programs.

    Args:
      experiment: what would run.
      platform: "cpu", "gpu" or "tpu".
    """
    tile = tile_width(experiment.compiled_shape, platform)
    return chunks.chunk_rounds(experiment, tile, platform)


def needs_of(experiment: Experiment) -> Needs:
    """Which random numbers any policy of an experiment reads."""
    rules = [policy.rule for policy in experiment.policies]
    return Needs(
        latency=experiment.costs.table is not None,
        reservoir=any(rule.sample == "reservoir" for rule in rules),
        bits=any(rule.router.randomised or rule.controller.randomised for rule in rules),
    )


def _nbytes(values: Any) -> int:
    return sum(int(np.prod(one.shape)) * one.dtype.itemsize for one in jax.tree.leaves(values))


def _wave_bytes(programs: Sequence[Program], compiled: Sequence[Any]) -> int:
    """Memory of a wave: all policies' states, one chunk of rounds, the largest call's own."""
    states = sum(_nbytes(program.args[0]) for program in programs[5::2])
    # A replay's data lies on the device once, however many waves there are.
    rounds = _nbytes(programs[5].args[3]) + _nbytes(programs[1].args[6])
    own = [_own_bytes(one) for one in compiled]
    return states + rounds + max(own)


def _own_bytes(compiled: Any) -> int:
    """Temporaries and outputs of a compiled call, as XLA planned them."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    fresh = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.temp_size_in_bytes + fresh)


def device_memory(platform: str) -> int | None:
    """Bytes of memory of one device; the host's share on CPU, None where nobody tells."""
    if platform != "cpu":
        stats = jax.local_devices()[0].memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else int(limit)
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None
    return whole // jax.local_device_count()


def waves_in_flight(wave_bytes: int, platform: str, memory_limit: int | None) -> int:
    """How many waves run side by side, from the programs' own memory analysis.

    Args:
      wave_bytes: memory of a wave on one device.
      platform: kind of device.
      memory_limit: bytes that may be used on one device; four fifths of what it has where
        None.

    Returns:
      At least 1. It changes no result: a tile's width does not depend on memory.

    Raises:
      MemoryError: if not even one wave fits.
    """
    limit, have = memory_limit, device_memory(platform)
    if limit is None and have is not None:
        limit = have * 4 // 5
    most = _MAX_IN_FLIGHT.get(platform, _MAX_IN_FLIGHT_ACCELERATOR)
    if limit is None:
        return 1
    limit = processes.least(limit)
    if wave_bytes > limit:
        raise MemoryError(
            f"one tile needs {wave_bytes / 2**20:,.0f} MiB per device and "
            f"{limit / 2**20:,.0f} MiB are allowed; raise the memory limit, or run fewer "
            "policies at once or a smaller problem."
        )
    return max(1, min(most, limit // max(wave_bytes, 1)))
