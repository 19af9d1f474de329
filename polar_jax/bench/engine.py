"""The engine as it is measured: a kernel alone on ready rounds, and whole runs."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polar_jax import (
    environments,
    lane_calls,
    lanes,
    policies,
    programs,
    replay_streams,
    simulate,
)
from polar_jax.bench.arithmetic import FLOAT, Sample, packed_numbers
from polar_jax.bench.baselines import ALPHA, RIDGE, Stream
from polar_jax.types import Decisions

# Every adapter is resident, so that this is LinUCB and nothing else, as the baselines are;
# the cheapest rule that admits; the one that we recommend.
PLAIN = "full_cache"
POLICIES = (PLAIN, "lru", "polar_experts")
FEW = (PLAIN, "polar_experts")
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


def filled_lanes(shape: lanes.Shape, num_lanes: int, platform: str) -> int:
    """Lanes that are computed for so many: whole tiles on every device that is used."""
    width = wave_width(shape, num_lanes, platform)
    return -(-num_lanes // width) * width


def wave_width(shape: lanes.Shape, num_lanes: int, platform: str) -> int:
    """Lanes that run side by side on all devices that a run of so many lanes uses."""
    tile = programs.tile_width(shape, platform)
    return tile * programs.place(-(-num_lanes // tile), None).num_devices


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
    fill up a tile are computed and not counted.
    """

    def __init__(self, shape: lanes.Shape, num_lanes: int, rounds: int, names: Sequence[str]):
        self.platform = jax.devices()[0].platform
        self.num_lanes, self.rounds, self.names = num_lanes, rounds, tuple(names)
        self.width = wave_width(shape, num_lanes, self.platform)
        tile = programs.tile_width(shape, self.platform)
        self._place = programs.place(-(-num_lanes // tile), None)
        self._experiment = experiment(shape, names, num_lanes=num_lanes, horizon=rounds)
        self._kernels: dict[tuple[str, int], Any] = {}
        self.waves = [self._wave(number) for number in range(-(-num_lanes // self.width))]

    @functools.cached_property
    def _calls(self) -> tuple[Any, Any, list[Any]]:
        exp, mesh = self._experiment, self._place.mesh
        env, shape, dtype = exp.environment, exp.compiled_shape, exp.dtype
        needs = programs.needs_of(exp)
        setup = functools.partial(lane_calls.setup, env, shape, dtype)
        draw = functools.partial(lane_calls.draw, env, needs, self.rounds, dtype)
        starts = [functools.partial(lane_calls.start, policy, shape) for policy in exp.policies]
        return (
            programs.over_lanes(setup, mesh, lanes=4, shared=2),
            programs.over_lanes(draw, mesh, lanes=3, shared=2),
            [programs.over_lanes(start, mesh, lanes=3, shared=0) for start in starts],
        )

    def _wave(self, number: int) -> _Wave:
        exp, place, width = self._experiment, self._place, self.width
        shape, dtype = exp.compiled_shape, exp.dtype
        stream, replayed = replay_streams.split(exp.environment_params, *shape)
        costs = lane_calls.cost_arrays(exp.costs, *lane_calls.adapter_counts(exp), dtype)
        data = [lane_calls.policy_data(policy, shape, dtype) for policy in exp.policies]

        def spread(leaf: Any) -> np.ndarray:
            return np.broadcast_to(np.asarray(leaf), (width, *np.shape(leaf)))

        seeds = np.arange(number * width, (number + 1) * width, dtype=np.int32)
        same = jax.tree.map(spread, (np.int32(0), stream, costs, data))
        seed, base, stream, costs, data = place.lanes((seeds, *same))
        sizes, replayed = place.shared((lane_calls.sizes(exp.problem, shape, dtype), replayed))
        setup, draw, starts = self._calls
        fixed = setup(seed, base, stream, costs, sizes, replayed)
        rounds = draw(fixed.key, fixed.instance, stream, np.int32(0), replayed)
        none = place.lanes(np.zeros((width, shape.num_adapters), bool))
        carry = [
            (
                start(fixed.inputs, none, one),
                place.lanes(_no_decisions(width, self.rounds, shape.num_adapters)),
            )
            for start, one in zip(starts, data, strict=True)
        ]
        return jax.block_until_ready(_Wave(fixed.inputs, rounds, data, carry))

    def stream(self, most_lanes: int) -> Stream:
        """The first wave's rounds on the host, of as many lanes as are counted and allowed."""
        rounds, count = self.waves[0].rounds, min(self.num_lanes, most_lanes)
        parts = (rounds.context, rounds.utility, rounds.noise)
        return Stream(*(np.ascontiguousarray(np.asarray(part)[:count]) for part in parts))

    def compile(self, name: str, kernel: Callable[..., Any], policy: str) -> None:
        """Compiles a kernel for a policy; it is then known as `name`."""
        number, wave = self.names.index(policy), self.waves[0]
        function = functools.partial(_serve, self._experiment.policies[number], kernel)
        call = programs.over_lanes(function, self._place.mesh, lanes=4, shared=1, donate=True)
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


def whole_run(shape: lanes.Shape, policy: str, num_lanes: int, horizon: int) -> Sample:
    """Everything that a run does for each request, timed: requests, decisions, metrics.

    Compilation is left out, and so is what a run does once whatever its length (instances
    and static oracle); on an accelerator, whose queue hides where that ends, it counts.
    """
    exp = experiment(shape, [policy], num_lanes=num_lanes, horizon=horizon)
    serving = _Serving()
    results = lanes.run(exp, progress=serving)
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
