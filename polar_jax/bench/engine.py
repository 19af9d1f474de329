"""The engine as it is measured: a kernel alone on ready rounds, and whole runs."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polar_jax import (
    chunks,
    draws,
    environments,
    kernels,
    lane_calls,
    lane_maps,
    lanes,
    policies,
    programs,
    replay_streams,
    simulate,
)
from polar_jax.bench.arithmetic import FLOAT, Sample, packed_numbers
from polar_jax.bench.baselines import ALPHA, RIDGE, Stream
from polar_jax.types import Decisions

# Every adapter is resident, so that this is LinUCB and nothing else, as the baselines are.
PLAIN = "full_cache"
FEW_CHUNKS = 8  # of the shortest whole run that is timed at few lanes
_ROUNDED_UP = 1.3  # memory beside what is counted: temporaries


def experiment(
    shape: lanes.Shape, names: Sequence[str], *, num_lanes: int, horizon: int
) -> lanes.Experiment:
    """Policies on a clustered stream, a third of the adapters resident.

    Args:
      shape: `(N, d)`.
      names: the policies.
      num_lanes: seeds.
      horizon: `T`.
    """
    n, d = shape
    env = environments.environment("clustered")
    settings = policies.Settings(alpha=ALPHA, ridge=RIDGE)
    made = [
        policies.policy(
            name,
            num_adapters=n,
            cache_slots=max(1, n // 3),
            context_dim=d,
            horizon=horizon,
            settings=settings,
        )
        for name in names
    ]
    return lanes.Experiment(
        problem=made[0].problem,
        environment=env,
        environment_params=environments.environment_params(env, horizon=horizon),
        costs=lanes.Costs(),
        policies=made,
        seeds=range(num_lanes),
    )


def taken(kernel: str, policy: str, shape: tuple[int, int]) -> str:
    """The kernel that serves a policy where `kernel` is asked for."""
    exp = experiment(lanes.Shape(*shape), [policy], num_lanes=1, horizon=draws.BLOCK)
    return kernels.taken(kernel, exp.policies[0].rule, shape, sized=False)


def filled_lanes(shape: lanes.Shape, num_lanes: int, platform: str) -> int:
    """Lanes that are computed for so many: whole tiles on every device that is used."""
    width = wave_width(shape, num_lanes, platform)
    return -(-num_lanes // width) * width


def wave_width(shape: lanes.Shape, num_lanes: int, platform: str) -> int:
    """Lanes that run side by side on all devices that a run of so many lanes uses."""
    tile = programs.tile_width(shape, platform)
    return tile * programs.place(-(-num_lanes // tile), None).num_devices


def chunk_rounds(shape: lanes.Shape, names: Sequence[str], num_lanes: int, most: int | None) -> int:
    """Rounds of a call: as many as a run of so many lanes has, and no more than asked for."""
    platform = jax.devices()[0].platform
    tile = programs.tile_width(shape, platform)
    horizon = FEW_CHUNKS * (chunks.LONGEST if num_lanes < tile else chunks.MAX_ROUNDS)
    exp = experiment(shape, names, num_lanes=1, horizon=horizon)
    rounds = chunks.chunk_rounds(exp, tile, platform, lanes=num_lanes)
    return rounds if most is None else min(most, rounds)


def ready_bytes(shape: lanes.Shape, num_lanes: int, rounds: int, num_policies: int) -> int:
    """Memory of ready lanes, estimated: rounds, and each policy's states and decisions."""
    n, d = shape
    state = FLOAT * (n * (2 * d * d + packed_numbers(d) + 3 * d + 16) + 512 * d)
    decided = rounds * (n + 5 * FLOAT)
    drawn = rounds * FLOAT * (n + d + 6)
    return int(_ROUNDED_UP * num_lanes * (drawn + num_policies * (state + decided)))


class _Wave(NamedTuple):
    """A wave's inputs on the devices."""

    inputs: Any  # LaneInputs
    rounds: Any  # Rounds
    data: list[Any]  # PolicyData of every policy
    carry: list[Any]  # (LaneState, Decisions) of every policy, replaced as they are served
    begin: Callable[[int], Any]  # the first (LaneState, Decisions) of a policy by its number


def _serve(
    policy: policies.Policy,
    kernel: Callable[..., Any],
    carry: tuple[Any, Decisions],
    inputs: Any,
    rounds: Any,
    data: lane_calls.PolicyData,
    stop: jax.Array,
) -> tuple[Any, Decisions]:
    """One lane through the rounds before `stop`."""
    state, decisions = carry
    lane = simulate.Lane(policy.rule, data.params, inputs, data.quotas, (), False)
    quota, start = jnp.asarray(data.quotas)[0], jnp.zeros((), jnp.int32)
    return kernel(lane, quota, state, rounds, decisions, start, stop)


def _no_decisions(num_lanes: int, rounds: int, num_adapters: int) -> Decisions:
    shape = (num_lanes, rounds)
    return Decisions(
        adapter=jnp.zeros(shape, jnp.int32),
        forced=jnp.zeros(shape, bool),
        resident=jnp.zeros((*shape, num_adapters), bool),
        switch_cost=jnp.zeros(shape, jnp.float32),
        switch_ms=jnp.zeros(shape, jnp.float32),
        loads=jnp.zeros(shape, jnp.int32),
    )


class Ready:
    """Lanes whose rounds are drawn and lie on the devices: what a kernel is timed on.

    The rounds are drawn as a run draws them, waves of tiles as a run has them; lanes that
    fill up a tile are not counted.
    """

    def __init__(
        self, shape: lanes.Shape, num_lanes: int, rounds: int | None, names: Sequence[str]
    ) -> None:
        self.platform = jax.devices()[0].platform
        self.num_lanes, self.names = num_lanes, tuple(names)
        self.rounds = chunk_rounds(shape, names, num_lanes, rounds)
        self.width = wave_width(shape, num_lanes, self.platform)
        tile = programs.tile_width(shape, self.platform)
        self._place = programs.place(-(-num_lanes // tile), None)
        self._experiment = experiment(shape, names, num_lanes=num_lanes, horizon=self.rounds)
        self._kernels: dict[tuple[str, int], Any] = {}
        # All of a run's programs, which whole runs of the same policies need as well.
        family = programs.Family(self._experiment, self._place, chunk=self.rounds, keep=False)
        clocks = chunks.chunk_clocks(self._experiment, 0, self.rounds)
        self._calls = family.compile(self._inputs(0), clocks, lambda *_: None)
        self.waves = [self._wave(number) for number in range(-(-num_lanes // self.width))]

    def _inputs(self, number: int) -> programs.WaveInputs:
        """What the programs of a wave are given, as `lanes.run` has it."""
        exp, place, width = self._experiment, self._place, self.width
        shape, dtype = exp.compiled_shape, exp.dtype
        stream, replayed = replay_streams.split(exp.environment_params, *shape)
        costs = lane_calls.cost_arrays(exp.costs, *lane_calls.adapter_counts(exp), dtype)
        data = [lane_calls.policy_data(policy, shape, dtype) for policy in exp.policies]

        def spread(leaf: Any) -> np.ndarray:
            return np.broadcast_to(np.asarray(leaf), (width, *np.shape(leaf)))

        # Copies of the last lane fill a tile up, as in a run.
        seeds = np.arange(number * width, (number + 1) * width, dtype=np.int32)
        counted = seeds < self.num_lanes
        seeds = np.minimum(seeds, np.int32(self.num_lanes - 1))
        *same, data = jax.tree.map(spread, (np.int32(0), stream, costs, data))
        own = place.lanes((seeds, *same, counted, data))
        sizes = lane_calls.sizes(exp.problem, shape, dtype)
        tables = lane_calls.subset_tables(exp.problem, shape)
        return programs.WaveInputs(*own, *place.shared((sizes, replayed, *tables)))

    def _wave(self, number: int) -> _Wave:
        calls, place, given = self._calls, self._place, self._inputs(number)
        shape = self._experiment.compiled_shape
        fixed = calls.setup(
            *(given.seed, given.base_seed, given.stream, given.costs, given.counted),
            *(given.sizes, given.replayed),
        )
        drawn_for = (given.counted, fixed.key, fixed.instance, given.stream)
        room = place.zeros(calls.rounds_shapes)
        rounds = calls.draw(room, *drawn_for, np.int32(0), given.replayed)
        none = place.lanes(np.zeros((self.width, shape.num_adapters), bool))

        def begin(policy: int) -> Any:
            state = calls.start[policy](fixed.inputs, none, given.data[policy])
            nothing = _no_decisions(self.width, self.rounds, shape.num_adapters)
            return state, place.lanes(nothing)

        carry = [begin(policy) for policy in range(len(calls.start))]
        return jax.block_until_ready(_Wave(fixed.inputs, rounds, given.data, carry, begin))

    def restart(self, policy: str) -> None:
        """Forgets what every lane of a policy has learnt: kernels share their lanes."""
        number = self.names.index(policy)
        for wave in self.waves:
            wave.carry[number] = wave.begin(number)

    def stream(self, most_lanes: int) -> Stream:
        """The first wave's rounds on the host, of as many lanes as are counted and allowed."""
        rounds, count = self.waves[0].rounds, min(self.num_lanes, most_lanes)
        parts = (rounds.context, rounds.utility, rounds.noise)
        return Stream(*(np.ascontiguousarray(np.asarray(part)[:count]) for part in parts))

    def compile(self, name: str, kernel: Callable[..., Any], policy: str) -> None:
        """Compiles a kernel for a policy; it is then known as `name`."""
        number, wave = self.names.index(policy), self.waves[0]
        function = functools.partial(_serve, self._experiment.policies[number], kernel)
        call = lane_maps.over_lanes(function, self._place.mesh, lanes=4, shared=1, donate=True)
        args = (wave.carry[number], wave.inputs, wave.rounds, wave.data[number], np.int32(0))
        self._kernels[name, number] = call.lower(*args).compile()

    def serve(self, name: str, policy: str, rounds: int) -> Sample:
        """Serves so many rounds of every lane, the drawn ones again and again, and times it."""
        number = self.names.index(policy)
        call = self._kernels[name, number]
        began = time.perf_counter()
        for wave in self.waves:
            for first in range(0, rounds, self.rounds):
                stop = np.int32(min(self.rounds, rounds - first))
                same = (wave.inputs, wave.rounds, wave.data[number], stop)
                wave.carry[number] = call(wave.carry[number], *same)
                if self.platform == "cpu":
                    jax.block_until_ready(wave.carry[number])
        jax.block_until_ready([wave.carry[number] for wave in self.waves])
        return Sample(rounds * self.num_lanes, time.perf_counter() - began)

    def chosen(self, policy: str) -> np.ndarray:
        """`[L, n]` adapters that the first wave's last decisions chose."""
        carry = self.waves[0].carry[self.names.index(policy)]
        return np.asarray(carry[1].adapter)[: min(self.num_lanes, self.width)]


def whole_run(
    shape: lanes.Shape, policy: str, *, num_lanes: int, horizon: int, chunk: int
) -> Sample:
    """Everything that a run does for each request, timed: requests, decisions, metrics.

    Compilation is left out, and so is what a run does once whatever its length: instances, and
    the static oracle, which is not searched at all unless the policy holds it. On an accelerator,
    whose queue hides where that ends, instances count.

    Args:
      shape: `(N, d)`.
      policy: its name.
      num_lanes: seeds.
      horizon: `T`.
      chunk: rounds of a call.
    """
    exp = experiment(shape, [policy], num_lanes=num_lanes, horizon=horizon)
    serving = _Serving()
    held = exp.policies[0].first_set == "oracle"
    results = lanes.run(exp, chunk_rounds=chunk, static_oracle=held, progress=serving)
    on_host = jax.devices()[0].platform == "cpu"
    return Sample(results.num_decisions, serving.seconds if on_host else results.run_seconds)


class _Serving:
    """Adds up the time between progress reports that serve requests."""

    def __init__(self) -> None:
        self.seconds, self._done, self._at = 0.0, 0, 0.0

    def __call__(self, progress: lanes.Progress) -> None:
        if progress.phase != "running":
            return
        now = time.perf_counter()
        # A report without a new decision begins a wave: its set-up lies before it.
        if progress.done > self._done:
            self.seconds += now - self._at
        self._done, self._at = progress.done, now
