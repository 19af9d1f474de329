"""Many lanes at once: policies on seeds, in waves of tiles, chunk by chunk.

A *lane* is one simulation: one policy on one seed. This module is the host's loop;
`programs.py` has what is compiled, and on which devices it runs. Between chunks a run is a
`Snapshot` of arrays, from which it goes on bit by bit as if nothing had happened.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from polar_jax import chunks, draws, epochs, lane_calls, oracles, programs, replay_streams
from polar_jax.lane_calls import Costs, Experiment, Shape
from polar_jax.programs import tile_width
from polar_jax.results import PolicyResult, Progress, Results, Wave, results_of
from polar_jax.snapshots import PER_LANE, Snapshot, StoppedError, Watch, WaveState, finished_waves

__all__ = [
    "Costs",
    "Experiment",
    "PolicyResult",
    "Progress",
    "Results",
    "Shape",
    "Snapshot",
    "StoppedError",
    "run",
    "run_many",
    "tile_width",
]


def run(experiment: Experiment, **options: Any) -> Results:
    """Runs every policy on every seed of one experiment.

    Args:
      experiment: what to run.
      **options: of `run_many`.

    Returns:
      The results, in the order of `experiment.seeds`.
    """
    return run_many([experiment], **options)[0]


def run_many(
    experiments: Sequence[Experiment],
    *,
    num_devices: int | None = None,
    chunk_rounds: int | None = None,
    keep_decisions: bool = False,
    static_oracle: bool = True,
    memory_limit: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    watch: Watch | None = None,
    resume: Snapshot | None = None,
) -> list[Results]:
    """Runs experiments that differ in numbers alone, their lanes side by side.

    Args:
      experiments: equal in problem, environment, shape, dtype, horizons and in the rules and
        schedules of their policies; free in seeds, costs and every constant.
      num_devices: at most so many devices; all of them where None. It changes no result.
      chunk_rounds: rounds per compiled call, a multiple of 256; as many as suit the shape and
        the number of lanes where None. It changes no result.
      keep_decisions: also return all rounds and decisions; memory then grows with `T`.
      static_oracle: find every lane's static oracle. Without, it is the empty set, also for
        policies that hold it, and neither regret nor `oracle_exact` means anything: for timing
        what a run does for each request.
      memory_limit: bytes to use on one device; most of what it has where None. It changes
        no result.
      progress: called on the host after each step.
      watch: may take snapshots and stop the run.
      resume: a snapshot of the same call, to go on from.

    Returns:
      The results of each experiment, in the order of its seeds.

    Raises:
      ValueError: for experiments that cannot share programs, or a chunk that is not a whole
        number of blocks.
      MemoryError: if one tile needs more memory than is allowed.
      StoppedError: if the watch said so.
    """
    if chunk_rounds is not None and (chunk_rounds < 1 or chunk_rounds % draws.BLOCK):
        raise ValueError(
            f"chunk_rounds must be a positive multiple of {draws.BLOCK}, got {chunk_rounds}."
        )
    if len({lane_calls.kinship(experiment) for experiment in experiments}) != 1:
        raise ValueError(
            "experiments must be equal in problem, environment, shape, dtype, horizons and in "
            f"their policies' rules and schedules; got {len(experiments)} that are not."
        )
    job = _Run(
        experiments,
        num_devices=num_devices,
        chunk_rounds=chunk_rounds,
        keep=keep_decisions,
        static_oracle=static_oracle,
        memory_limit=memory_limit,
    )
    return job.execute(progress or (lambda _: None), watch, resume)


def memory(experiments: Sequence[Experiment], **options: Any) -> int:
    """Bytes that a run needs on one device, as the compiler planned them; runs nothing.

    Args:
      experiments: of `run_many`.
      **options: `num_devices` and `chunk_rounds` of `run_many`.
    """
    return _Run(experiments, **options).compile(lambda _: None).wave_bytes


class _Run:
    """One call of `run_many`."""

    def __init__(
        self,
        experiments: Sequence[Experiment],
        *,
        num_devices: int | None = None,
        chunk_rounds: int | None = None,
        keep: bool = False,
        static_oracle: bool = True,
        memory_limit: int | None = None,
    ) -> None:
        self.experiments, self.first = experiments, experiments[0]
        self.keep, self.static_oracle, self.memory_limit = keep, static_oracle, memory_limit
        lane = [(cell, seed) for cell, one in enumerate(experiments) for seed in one.seeds]
        self.cell = np.asarray([cell for cell, _ in lane], np.int32)
        self.seed = np.asarray([seed for _, seed in lane], np.int32)
        platform = jax.devices()[0].platform
        self.tile = tile_width(self.first.compiled_shape, platform)
        self.place = programs.place(-(-self.seed.size // self.tile), num_devices)
        self.chunk = chunk_rounds or chunks.chunk_rounds(
            self.first, self.tile, platform, lanes=None if keep else self.seed.size
        )
        self.sampled = lane_calls.oracle_rounds(self.first.environment, self.first.problem.horizon)
        self.cells = self._cell_arrays()
        self.shared = self._shared_arrays()
        self.report: Callable[[Progress], None] = lambda _: None
        self.watch: Watch | None = None

    def _cell_arrays(self) -> tuple[Any, Any, Any, Any]:
        """Numbers of every experiment, stacked: base seed, stream, costs, policies' data."""
        shape, dtype = self.first.compiled_shape, self.first.dtype

        def stacked(values: list[Any]) -> Any:
            return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *values)

        return (
            np.asarray([one.base_seed for one in self.experiments], np.int32),
            stacked([self._stream(one)[0] for one in self.experiments]),
            stacked(
                [
                    lane_calls.cost_arrays(one.costs, *lane_calls.adapter_counts(one), dtype)
                    for one in self.experiments
                ]
            ),
            [
                stacked([lane_calls.policy_data(policy, shape, dtype) for policy in same])
                for same in zip(*(one.policies for one in self.experiments), strict=True)
            ],
        )

    def _stream(self, experiment: Experiment) -> tuple[Any, Any]:
        """A stream's constants, and the data that it replays, which kin have in common."""
        return replay_streams.split(experiment.environment_params, *self.first.compiled_shape)

    def _shared_arrays(self) -> tuple[Any, Any, Any, Any]:
        problem, shape = self.first.problem, self.first.compiled_shape
        tables = lane_calls.subset_tables(problem, shape)
        replayed = self._stream(self.first)[1]
        sizes = lane_calls.sizes(problem, shape, self.first.dtype)
        return self.place.shared((sizes, replayed, *tables))

    @property
    def _num_policies(self) -> int:
        return len(self.first.policies)

    @property
    def _num_waves(self) -> int:
        return -(-self.seed.size // self._width)

    @property
    def _width(self) -> int:
        return self.tile * self.place.num_devices

    def _inputs(self, wave: int) -> programs.WaveInputs:
        """A wave's inputs on the devices; copies of the last lane, not counted, fill it up."""
        lanes = np.arange(wave * self._width, (wave + 1) * self._width)
        counted = lanes < self.seed.size
        lanes = np.minimum(lanes, self.seed.size - 1)
        cell = self.cell[lanes]
        base, stream, costs, data = jax.tree.map(lambda values: values[cell], self.cells)
        own = self.place.lanes((self.seed[lanes], base, stream, costs, counted, data))
        sizes, replayed, *tables = self.shared
        return programs.WaveInputs(
            *own,
            sizes=sizes,
            replayed=replayed,
            oracle_subsets=tables[0],
            subsets=tables[1],
        )

    def compile(self, report: Callable[[Progress], None]) -> programs.Programs:
        """The programs; those that an earlier run compiled are not compiled again."""
        family = programs.Family(self.first, self.place, chunk=self.chunk, keep=self.keep)
        self.sample_shape = family.sample_shape(self._width)
        return family.compile(
            self._inputs(0),
            chunks.chunk_clocks(self.first, 0, self.chunk),
            lambda done, total: report(Progress("compiling", done, total)),
        )

    def execute(
        self,
        report: Callable[[Progress], None],
        watch: Watch | None,
        resume: Snapshot | None,
    ) -> list[Results]:
        self.report, self.watch = report, watch
        began = time.perf_counter()
        self.calls = self.compile(report)
        compiled = time.perf_counter()
        in_flight = programs.waves_in_flight(
            self.calls.wave_bytes, self.place.platform, self.memory_limit
        )
        waves = finished_waves(resume, width=self._width, num_policies=self._num_policies)
        if resume is not None and not self._fits(resume, in_flight):
            resume = None
        while len(waves) < self._num_waves:
            flight = range(len(waves), min(len(waves) + in_flight, self._num_waves))
            waves += self._fly(flight, waves, resume)
            resume = None
        seconds = time.perf_counter() - compiled
        return self._collect(waves, compiled - began, seconds)

    def _fly(self, flight: Sequence[int], done: list[Wave], resume: Snapshot | None) -> list[Wave]:
        """Runs a few waves through the whole horizon, chunk by chunk."""
        tiles = [
            WaveState(self._inputs(wave), self._num_policies, self.place.host) for wave in flight
        ]
        position = resume.position if resume is not None else {}
        for number, tile in enumerate(tiles):
            self._prepare(tile, number, resume)
        horizon = self.first.problem.horizon
        skip = position.get("calls", 0)
        for first in range(position.get("first_round", 0), horizon, self.chunk):
            self._progress(flight, first)
            clocks = chunks.chunk_clocks(self.first, first, self.chunk)
            for number in range(len(tiles) * self._num_policies):
                if number < skip:
                    continue
                self._call(tiles[number // self._num_policies], number, first, clocks)
                if self.watch is not None and self.watch.stopping():
                    self.watch.save(self._snapshot(done, tiles, first, number + 1))
                    raise StoppedError
            skip = 0
            for tile in tiles:
                # The host looks at what it keeps where it lies.
                tile.room, tile.current = None if self.keep else tile.current, None
            if self.watch is not None and self.watch.due():
                self.watch.save(self._snapshot(done, tiles, first + self.chunk, 0))
        self._progress(flight, horizon)
        return [self._landed(tile) for tile in tiles]

    def _prepare(self, tile: WaveState, number: int, resume: Snapshot | None) -> None:
        """Environment instances, oracle sets and the policies' first states."""
        inputs = tile.inputs
        tile.setup = self._settled(
            self.calls.setup(
                *(inputs.seed, inputs.base_seed, inputs.stream, inputs.costs, inputs.counted),
                *(inputs.sizes, inputs.replayed),
            )
        )
        if resume is not None and f"{number}/chosen" in resume.arrays:
            self._restore(tile, number, resume)
            return
        tile.chosen = self._oracle_sets(tile)
        tile.states = [
            self._settled(start(tile.setup.inputs, tile.chosen, data))
            for start, data in zip(self.calls.start, inputs.data, strict=True)
        ]

    def _oracle_sets(self, tile: WaveState) -> Array:
        """The static oracle of every lane."""
        if not self.static_oracle:
            nothing = np.zeros((self._width, self.first.compiled_shape.num_adapters), bool)
            return self.place.lanes(nothing)
        independent = self.first.environment.independent
        key = tile.setup.oracle_key if independent else tile.setup.key
        empty = np.zeros(self.sample_shape.shape, self.sample_shape.dtype)
        sample, filled = self.place.lanes(empty), 0
        for first in np.unique(self.sampled // self.chunk) * self.chunk:
            block = np.int32(first // draws.BLOCK)
            rounds = self._draw(tile, key, block)
            picks, count = chunks.picks_of_chunk(self.sampled, int(first), self.chunk)
            sample = self._settled(
                self.calls.pick(sample, lane_calls.known(rounds), picks, np.int32(filled))
            )
            filled, tile.room = filled + count, rounds
        weight = np.arange(oracles.ORACLE_CONTEXTS) < filled
        return self._settled(
            self.calls.oracle(
                tile.setup.inputs,
                sample,
                weight.astype(self.first.dtype),
                tile.inputs.oracle_subsets,
            )
        )

    def _draw(self, tile: WaveState, key: Array, block: np.int32) -> Any:
        """The rounds of a chunk, where those of the one before lay."""
        given, room = tile.inputs, tile.room
        tile.room = None
        if room is None:
            room = self.place.zeros(self.calls.rounds_shapes)
        lanes = (given.counted, key, tile.setup.instance, given.stream)
        return self.calls.draw(room, *lanes, block, given.replayed)

    def _call(self, tile: WaveState, number: int, first: int, clocks: Sequence[Any]) -> None:
        """One policy through one chunk."""
        policy = number % self._num_policies
        if tile.current is None:
            block = np.int32(first // draws.BLOCK)
            # Not waited for: each device goes on to what needs it.
            tile.current = self._draw(tile, tile.setup.key, block)
            if self.keep:
                tile.rounds.append(jax.tree.map(self.place.host, tile.current))
        served = self.calls.advance[policy](
            tile.states[policy],
            tile.setup.inputs,
            tile.chosen,
            tile.current,
            tile.inputs.data[policy],
            clocks[policy],
            tile.inputs.subsets,
        )
        # The device works on this chunk while the host adds the one before.
        tile.add(policy)
        tile.states[policy], sums, decisions = self._settled(served)
        tile.waiting[policy] = sums, clocks[policy].interval
        if self.keep:
            tile.decisions[policy].append(jax.tree.map(self.place.host, decisions))

    def _settled(self, values: Any) -> Any:
        """Waits for `values` on CPU, where a queue gains nothing.

        The host's cores are busy either way, and no more than one policy's chunk is in flight
        when Ctrl-C is pressed. Accelerators keep their queue full.
        """
        return jax.block_until_ready(values) if self.place.platform == "cpu" else values

    def _landed(self, tile: WaveState) -> Wave:
        for policy in range(self._num_policies):
            tile.add(policy)
        return Wave(
            oracle_set=self.place.host(tile.chosen),
            paging_cost=self.place.host(tile.setup.inputs.paging_cost),
            paging_ms=self.place.host(tile.setup.inputs.paging_ms),
            sums=tile.totals,
            rounds=tile.rounds,
            decisions=tile.decisions,
        )

    def _snapshot(
        self, done: list[Wave], tiles: list[WaveState], first_round: int, calls: int
    ) -> Snapshot:
        arrays: dict[str, np.ndarray] = {}
        for name in PER_LANE if done else ():
            arrays[f"done/{name}"] = np.concatenate([getattr(wave, name) for wave in done])
        for policy in range(self._num_policies if done else 0):
            arrays[f"done/sums/{policy}"] = np.concatenate([wave.sums[policy] for wave in done])
        for number, tile in enumerate(tiles):
            arrays[f"{number}/chosen"] = self.place.host(tile.chosen)
            for policy in range(self._num_policies):
                tile.add(policy)
                arrays[f"{number}/totals/{policy}"] = tile.totals[policy]
                for leaf, values in enumerate(jax.tree.leaves(tile.states[policy])):
                    arrays[f"{number}/state/{policy}/{leaf}"] = self.place.host(values)
        if calls == len(tiles) * self._num_policies:
            first_round, calls = first_round + self.chunk, 0
        position = {
            "lanes": len(done) * self._width,
            "first_round": first_round,
            "calls": calls,
            "flight": len(tiles),
            "chunk": self.chunk,
            "width": self._width,
        }
        return Snapshot(position, arrays)

    def _fits(self, resume: Snapshot, in_flight: int) -> bool:
        """Whether the lanes in progress can go on: same width, same calls."""
        then = resume.position
        left = self._num_waves - then["lanes"] // self._width
        now = self._width, self.chunk, min(in_flight, left)
        return now == (then["width"], then["chunk"], then["flight"])

    def _restore(self, tile: WaveState, number: int, resume: Snapshot) -> None:
        """Puts a tile where the snapshot left it."""
        tile.chosen = self.place.lanes(resume.arrays[f"{number}/chosen"])
        for policy, shapes in enumerate(self.calls.state_shapes):
            tile.totals[policy] = resume.arrays[f"{number}/totals/{policy}"].copy()
            leaves, structure = jax.tree.flatten(shapes)
            values = [
                resume.arrays[f"{number}/state/{policy}/{leaf}"] for leaf in range(len(leaves))
            ]
            tile.states.append(self.place.lanes(jax.tree.unflatten(structure, values)))

    def _progress(self, flight: Sequence[int], rounds: int) -> None:
        horizon, policies = self.first.problem.horizon, self._num_policies
        before = min(flight[0] * self._width, self.seed.size)
        lanes = min((flight[-1] + 1) * self._width, self.seed.size) - before
        done = (before * horizon + lanes * min(rounds, horizon)) * policies
        self.report(Progress("running", done, self.seed.size * horizon * policies))

    def _collect(
        self, waves: list[Wave], compile_seconds: float, run_seconds: float
    ) -> list[Results]:
        problem = self.first.problem
        bounds = np.cumsum([0, *(len(one.seeds) for one in self.experiments)])
        return [
            results_of(
                waves,
                slice(int(bounds[cell]), int(bounds[cell + 1])),
                names=[policy.name for policy in one.policies],
                marks=epochs.curve_rounds(problem.horizon, one.shorter_horizons),
                oracle_exact=oracles.oracle_is_exact(
                    problem.num_adapters, problem.cache_slots, problem.differing
                ),
                tile=self.tile,
                num_devices=self.place.num_devices,
                compile_seconds=compile_seconds,
                run_seconds=run_seconds,
            )
            for cell, one in enumerate(self.experiments)
        ]
