"""What is beside the router in a run: random numbers, figures, refreshes, and a call as a whole.

Usage, from the repository's root::

    python tests/bench/parts_of_a_run.py            # the figures of docs/performance.md
    python tests/bench/parts_of_a_run.py --small    # a quick look

Draws the requests of a chunk and sums up the figures of one that was served, as `polar-jax run`
does, in turns, with XLA and with the native library: nanoseconds per decision and core. Then, in
milliseconds, one refresh of a tile's statistics, and a chunk that is served between two boundaries,
kernel and figures included, of one lane and of a tile on every core. Medians, as Markdown.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from polar_jax import (
    chunks,
    draws,
    epochs,
    kernels,
    lane_calls,
    lane_maps,
    lanes,
    manifest,
    programs,
)
from polar_jax.bench import engine

SHAPES = (lanes.Shape(15, 16), lanes.Shape(64, 32))
POLICY, ROUNDS = "lru", 1_024
NAMES = ("xla", "native")


def drawing(
    shape: lanes.Shape, num_lanes: int, place: programs.Placement, *, side_by_side: bool = False
) -> dict[str, Any]:
    """Calls that draw a chunk of a clustered stream, by kernel."""
    exp = engine.experiment(shape, [POLICY], num_lanes=num_lanes, horizon=ROUNDS)
    env, params = exp.environment, exp.environment_params
    keys = jax.vmap(lane_calls.stream_key, (None, 0))(jnp.int32(0), jnp.arange(num_lanes))
    whole = {"active": jnp.ones(shape[0], bool), "features": jnp.ones(shape[1], bool)}
    instance = jax.jit(jax.vmap(lambda key: env.instance(key, params, **whole)))(keys)
    constants = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_lanes, *jnp.shape(x))), params)
    lane_args = place.lanes((jnp.ones(num_lanes, bool), keys, instance, constants))
    calls = {}
    for name in NAMES:
        needs = lane_calls.Needs(latency=False, reservoir=False, bits=False)
        draw = functools.partial(lane_calls.draw, env, needs, jnp.float32, name)
        blocks = ROUNDS // draws.BLOCK
        tile = lane_maps.drawn_shapes(draw, blocks)
        given = (*lane_args, jnp.int32(1), ())
        if side_by_side:
            call = lane_maps._over_devices(tile, place.mesh, 4, 2, False)
            calls[name] = functools.partial(call, *given)
            continue
        call = lane_maps.over_blocks(draw, place.mesh, num_blocks=blocks)
        calls[name] = _again(call, place.zeros(place.shapes(tile, given)), given)
    return calls


def _again(call: Any, room: Any, given: tuple[Any, ...]) -> Callable[[], Any]:
    """A draw whose rounds lie where those of the last one lay, as in a run."""
    rooms = [room]

    def draw() -> Any:
        rooms[0] = call(rooms[0], *given)
        return rooms[0]

    return draw


def summing(shape: lanes.Shape, num_lanes: int, place: programs.Placement) -> dict[str, Any]:
    """Calls that sum up the figures of a chunk, by kernel, after a policy has served it."""
    ready = engine.Ready(shape, num_lanes, ROUNDS, [POLICY])
    ready.compile("native", kernels.run_rounds("native"), POLICY)
    ready.serve("native", POLICY, ready.rounds)
    wave = ready.waves[0]
    oracle_set = wave.carry[0][0].resident
    # A mark every 100 rounds, as in the middle of a run.
    interval = jnp.arange(ready.rounds, dtype=jnp.int32) // 100

    def sums(kernel: str, rounds: Any, decisions: Any, inputs: Any, held: Any, at: Any) -> Any:
        return kernels.chunk_sums(kernel)(
            *(rounds, decisions, inputs, held, jnp.zeros((), jnp.float32), at),
            num_intervals=epochs.NUM_INTERVALS,
        )[0]

    given = (wave.rounds, wave.carry[0][1], wave.inputs, oracle_set, interval)
    over = functools.partial(lane_maps.over_lanes, mesh=place.mesh, lanes=4, shared=1)
    return {name: functools.partial(over(functools.partial(sums, name)), *given) for name in NAMES}


def measure(calls: dict[str, Callable[[], Any]], decisions: int, repeats: int) -> list[str]:
    """Nanoseconds per decision and core of each call, sampled in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for name in calls:
        jax.block_until_ready(calls[name]())
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - began)
    cores = len(jax.devices())
    return [f"{1e9 * cores * statistics.median(seconds[name]) / decisions:.0f}" for name in NAMES]


def refreshing(shape: lanes.Shape, kernel: str, num_lanes: int) -> Callable[[], Any]:
    """A call that refreshes a tile's statistics on one core, after a chunk was served."""
    ready = engine.Ready(shape, num_lanes, ROUNDS, [POLICY])
    ready.compile("native", kernels.run_rounds("native"), POLICY)
    ready.serve("native", POLICY, ready.rounds)
    state, counted = ready.waves[0].carry[0][0].router, ready.waves[0].inputs.counted
    return functools.partial(jax.jit(jax.vmap(kernels.refresh(kernel))), state, counted)


def serving(shape: lanes.Shape, num_lanes: int) -> Callable[[], Any]:
    """A call that serves a chunk between two boundaries; it goes on from where it ended."""
    ready = engine.Ready(shape, num_lanes, ROUNDS, [POLICY])
    wave, inputs = ready.waves[0], ready._inputs(0)
    exp = engine.experiment(shape, [POLICY], num_lanes=num_lanes, horizon=200_000)
    clock = chunks.chunk_clocks(exp, 5 * ROUNDS, ROUNDS)[0]
    held = jnp.copy(wave.carry[0][0].resident)  # as the state is given away
    states = [wave.carry[0][0]]

    def serve() -> Any:
        given = (wave.inputs, held, wave.rounds, wave.data[0], clock, inputs.subsets)
        states[0], sums, _ = ready._calls.advance[0](states[0], *given)
        return states[0], sums

    return serve


def milliseconds(call: Callable[[], Any], repeats: int) -> str:
    """The median time of a call."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return f"{1e3 * statistics.median(seconds):.2f}"


def main(words: list[str]) -> int:
    """Measures and prints; the exit code."""
    parser = argparse.ArgumentParser(description="What is beside the router in a run.")
    parser.add_argument("--small", action="store_true", help="one shape, few samples")
    options = parser.parse_args(words)
    jax.config.update("jax_num_cpu_devices", manifest.usable_cores())
    kernels.check("parts_of_a_run", "native", "cpu")
    print("| (N, d) | part | xla | native |\n|---|---|---|---|")
    for shape in SHAPES[:1] if options.small else SHAPES:
        tile = programs.tile_width(shape, "cpu")
        place = programs.place(len(jax.devices()), None)
        num_lanes = tile * place.num_devices
        beside = functools.partial(drawing, side_by_side=True)
        parts = {"random numbers": drawing, "the same, lanes side by side": beside}
        for part, make in (parts | {"figures": summing}).items():
            calls = make(shape, num_lanes, place)
            told = measure(calls, num_lanes * ROUNDS, 5 if options.small else 41)
            print(f"| ({shape[0]}, {shape[1]}) | {part} | {' | '.join(told)} |", flush=True)
    parts = ("a refresh, XLA", "native", "one lane alone", "a chunk, one lane", "32 lanes a core")
    print(f"\n| (N, d), ms | {' | '.join(parts)} |\n|---|---|---|---|---|---|")
    repeats = 5 if options.small else 41
    for shape in SHAPES[:1] if options.small else SHAPES:
        tile = programs.tile_width(shape, "cpu")
        num_lanes = tile * len(jax.devices())
        calls = (
            *(refreshing(shape, name, tile) for name in NAMES),
            *(refreshing(shape, "native", 1), serving(shape, 1), serving(shape, num_lanes)),
        )
        told = [milliseconds(call, repeats) for call in calls]
        print(f"| ({shape[0]}, {shape[1]}) | {' | '.join(told)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
