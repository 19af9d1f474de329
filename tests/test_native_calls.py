"""What the native kernel's library makes beside the rounds: random bits, and sums of figures."""

import functools
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polar_jax import (
    draws,
    environments,
    epochs,
    kernels,
    lane_calls,
    lane_maps,
    metrics,
    programs,
    simulate,
)
from polar_jax.kernels import native_build, native_metrics, native_refresh, random_bits
from polar_jax.types import Decisions, LaneInputs, Rounds

pytestmark = pytest.mark.skipif(
    native_build.native().path is None, reason=f"no native kernel: {native_build.native().reason}"
)
BLOCKS = 3

ROUNDS = BLOCKS * draws.BLOCK
_KERNELS = ("xla", "native")


@pytest.mark.parametrize("shape", [(), (1,), (7,), (256,), (256, 2), (3, 5, 2)])
def test_bits_are_jaxs(shape):
    keys = draws.keys(jax.random.key(5, impl="threefry2x32"), 6)
    expected = jax.jit(jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32)))(keys)
    got = jax.jit(
        jax.vmap(
            lambda key: jax.random.bits(random_bits.apart(key, native=True), shape, jnp.uint32)
        )
    )
    np.testing.assert_array_equal(got(keys), expected)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16])
def test_bits_of_other_widths_and_other_uses_of_a_key_are_jaxs(dtype, native):
    plain = jax.random.key(11, impl="threefry2x32")
    faster = random_bits.apart(plain, native=native)
    for use in (
        lambda key: jax.random.bits(key, (9,), dtype),
        lambda key: jax.random.key_data(jax.random.fold_in(key, 3)),
        lambda key: jax.random.key_data(jax.random.split(key, 4)),
        lambda key: jax.random.permutation(key, 20),
        lambda key: jax.random.bits(key, (0,), jnp.uint32),
    ):
        np.testing.assert_array_equal(use(faster), use(plain))


@functools.cache
def _drawing(name: str, kernel: str) -> Any:
    env = environments.environment(name)
    needs = lane_calls.Needs(True, True, True)
    draw = functools.partial(lane_calls.draw, env, needs, jnp.float32, kernel)
    call = lane_maps.over_blocks(draw, programs.place(1, 1).mesh, num_blocks=BLOCKS)
    shapes = lane_maps.drawn_shapes(draw, BLOCKS)

    def drawn(*given: Any) -> Any:
        room = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(shapes, *given))
        return call(room, *given)

    return drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    # Five features in seven: jax 0.12 compiles them otherwise with bits of its own mixed in.
    [*((name, (7, 5, 5)) for name in environments.NAMES), ("clustered", (15, 16, 32))],
)
def test_streams_are_the_same_to_the_bit(name, sizes):
    num_adapters, dim, lanes = sizes
    env = environments.environment(name)
    params = environments.environment_params(env, horizon=4 * ROUNDS)
    keys = jax.vmap(lane_calls.stream_key, (None, 0))(jnp.int32(0), jnp.arange(lanes))
    whole = {"active": jnp.ones(num_adapters, bool), "features": jnp.ones(dim, bool)}
    instance = jax.vmap(lambda key: env.instance(key, params, **whole))(keys)
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, *jnp.shape(x))), params)
    given = jnp.ones(lanes, bool), keys, instance, params, jnp.int32(2), ()
    expected, got = (_drawing(name, kernel)(*given) for kernel in _KERNELS)
    assert expected.context.shape == (lanes, ROUNDS, dim)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(one, other)


def test_lanes_drawn_side_by_side_are_those_drawn_in_turn_but_for_rounding():
    # As accelerators draw them; there, lanes that do not count are drawn as well.
    env, lanes = environments.environment("drifting"), 3
    params = environments.environment_params(env, horizon=4 * ROUNDS)
    whole = {"active": jnp.ones(7, bool), "features": jnp.ones(5, bool)}
    keys = jax.vmap(lane_calls.stream_key, (None, 0))(jnp.int32(3), jnp.arange(lanes))
    instance = jax.vmap(lambda key: env.instance(key, params, **whole))(keys)
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, *jnp.shape(x))), params)
    counted = jnp.arange(lanes) < 2
    given = counted, keys, instance, params, jnp.int32(2), ()
    draw = functools.partial(
        lane_calls.draw, env, lane_calls.Needs(True, True, True), jnp.float32, "xla"
    )
    got = jax.jit(lane_maps.drawn_shapes(draw, BLOCKS))(*given)
    for one, other in zip(got, _drawing("drifting", "xla")(*given), strict=True):
        if one is not None:
            # Sums of five products, added in another order.
            np.testing.assert_allclose(one[:2], other[:2], rtol=1e-5, atol=1e-6)
            assert not np.any(other[2])


def _case(
    num_adapters: int, *, benchmark: bool = False, samples: bool = False, gaps: bool = False
) -> Any:
    """Arguments of `chunk_sums`, the last rounds beyond the horizon."""
    rng = np.random.default_rng(num_adapters)
    utility = rng.uniform(-1, 1, (ROUNDS, num_adapters))
    utility[:, num_adapters - num_adapters // 4 :] = -np.inf  # adapters that fill up a shape
    known = num_adapters - num_adapters // 4
    rounds = Rounds(
        context=jnp.zeros((ROUNDS, 1)),
        utility=jnp.asarray(utility),
        noise=jnp.zeros(ROUNDS),
        latency_uniform=jnp.asarray(rng.random(ROUNDS), jnp.float32),
        reservoir_slot=jnp.zeros(ROUNDS, jnp.int32),
        policy_bits=jnp.zeros((ROUNDS, 2), jnp.uint32),
        benchmark=jnp.asarray(np.where(np.isfinite(utility), utility**2, -np.inf))
        if benchmark
        else None,
        arrival_gap=jnp.asarray(rng.exponential(5.0, ROUNDS)) if gaps else None,
    )
    decisions = Decisions(
        adapter=jnp.asarray(rng.integers(0, known, ROUNDS), jnp.int32),
        forced=jnp.asarray(rng.random(ROUNDS) < 0.3),
        resident=jnp.asarray(np.repeat(rng.random((ROUNDS // 4, num_adapters)) < 0.4, 4, axis=0)),
        switch_cost=jnp.asarray(rng.random(ROUNDS)),
        switch_ms=jnp.asarray(10 * rng.random(ROUNDS)),
        loads=jnp.asarray(rng.integers(0, 3, ROUNDS), jnp.int32),
    )
    cost = jnp.asarray(rng.random(num_adapters))
    inputs = LaneInputs(
        paging_cost=cost,
        switch_cost=cost,
        paging_ms=65 * cost,
        size=jnp.ones(num_adapters),
        cache_slots=jnp.int32(3),
        active=jnp.arange(num_adapters) < known,
        num_features=jnp.int32(1),
        samples_ms=jnp.asarray(rng.random((num_adapters, 9 * samples)), jnp.float32),
        sample_count=jnp.full(num_adapters, 9, jnp.int32),
        counted=jnp.asarray(True),
    )
    interval = np.sort(rng.integers(0, epochs.NUM_INTERVALS, ROUNDS))
    interval[-100:] = -1
    oracle_set = jnp.asarray(rng.random(num_adapters) < 0.4)
    return rounds, decisions, inputs, oracle_set, jnp.zeros(()), jnp.asarray(interval, jnp.int32)


def _sums(function: Any, case: Any) -> Any:
    bound = functools.partial(function, num_intervals=epochs.NUM_INTERVALS)
    return jax.tree.map(np.asarray, jax.jit(bound)(*case))


@pytest.mark.parametrize("num_adapters", [1, 7, 16, 33])
@pytest.mark.parametrize("kind", ["plain", "benchmark", "samples", "gaps"])
def test_sums_are_those_of_metrics(num_adapters, kind):
    with helpers.double_precision():
        case = _case(num_adapters, **{} if kind == "plain" else {kind: True})
        expected, got = (_sums(one.chunk_sums, case) for one in (metrics, native_metrics))
        assert got[0].shape == (BLOCKS, epochs.NUM_INTERVALS, len(metrics.PARTS))
        assert np.count_nonzero(expected[0]) > 100
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_sums_of_float32_are_within_its_rounding_and_lanes_do_not_meet():
    one = _case(7)
    other = (*one[:3], ~one[3], *one[4:])
    left_out = (*one[:2], one[2].replace(counted=jnp.asarray(False)), *one[3:])
    order = (one, left_out, other, one)
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *order)
    bound = functools.partial(native_metrics.chunk_sums, num_intervals=epochs.NUM_INTERVALS)
    got, _ = jax.jit(jax.vmap(bound))(*lanes)
    for lane, case in zip(np.asarray(got), order, strict=True):
        expected, _ = _sums(metrics.chunk_sums, case)
        expected = expected if case[2].counted else np.zeros_like(expected)
        np.testing.assert_allclose(lane, expected, rtol=1e-5, atol=1e-4)
    assert not np.array_equal(got[0], got[2])
    np.testing.assert_array_equal(got[0], got[3])


def test_what_is_no_number_stays_in_its_interval():
    case = list(_case(7))
    rounds, interval = case[0], np.asarray(case[5])
    case[0] = rounds._replace(utility=rounds.utility.at[10, 2].set(jnp.nan))
    got, _ = _sums(native_metrics.chunk_sums, case)
    assert np.isnan(got[0, interval[10], metrics.PARTS.index("loss_to_full")])
    assert np.isnan(got).any(axis=(0, 2)).sum() == 1


def test_a_run_takes_them_with_the_native_kernel_alone():
    assert kernels.refresh("native") is native_refresh.refresh
    assert kernels.refresh("xla") is simulate.refresh
    assert kernels.chunk_sums("native") is native_metrics.chunk_sums
    assert kernels.chunk_sums("xla") is metrics.chunk_sums
    key = jax.random.key(0, impl="threefry2x32")
    native = ["native" in str(jax.random.key_impl(kernels.keys(name, key))) for name in _KERNELS]
    assert native == [False, True]
