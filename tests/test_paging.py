"""Paging tables as arrays: validation, prices, and draws from an adapter's measurements.

Statistical tests here are wrong with a correct build with probability at most `ALPHA`
each (Hoeffding's inequality and a union bound); each has a control that must fail.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_jax import paging
from polar_jax.io import qwen_paging_table

ALPHA = 1e-6  # Chance that a correct build fails one statistical test in this file.
NUM_DRAWS = 100_000
SAMPLES = ([4.0], [1.0, 2.0, 3.0], [7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0])

quick = settings(derandomize=True, deadline=None, max_examples=60)
latencies = st.floats(0.0, paging.MAX_MS, allow_nan=False)
draw_batch = jax.jit(jax.vmap(paging.draw_ms, in_axes=(None, None, None, 0)))


@pytest.fixture
def table():
    return paging.make_table(
        ["a", "b", "c"], samples_ms=SAMPLES, size_bytes=[10, 20, 30], tier="disk"
    )


def test_table_packs_ragged_samples_and_takes_their_mean(table):
    assert table.adapters == ("a", "b", "c")
    np.testing.assert_array_equal(table.mean_ms, [4.0, 2.0, 8.5])
    np.testing.assert_array_equal(table.sample_count, [1, 3, 7])
    np.testing.assert_array_equal(table.samples_ms[1], [1, 2, 3, 0, 0, 0, 0])
    np.testing.assert_array_equal(table.size_bytes, [10, 20, 30])
    dtypes = [x.dtype.name for x in (table.mean_ms, table.samples_ms, table.sample_count)]
    assert dtypes == ["float64", "float32", "int32"]


def test_table_with_means_only_has_no_samples():
    table = paging.make_table(["a", "b"], mean_ms=[1.0, 0.0])
    assert table.samples_ms is None
    assert table.sample_count is None
    assert table.size_bytes is None


def test_table_cannot_be_changed_and_shares_no_memory_with_its_input():
    given_ms = np.array([1.0, 2.0])
    table = paging.make_table(["a", "b"], mean_ms=given_ms)
    given_ms[0] = 99.0
    assert table.mean_ms[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        table.mean_ms[0] = 3.0


@pytest.mark.parametrize(
    ("adapters", "fields", "message"),
    [
        (["a"], {"mean_ms": [math.nan]}, r"mean_ms\[0\] \(adapter 'a'\).*got nan"),
        (["a"], {"mean_ms": [math.inf]}, "got inf"),
        (["a", "b"], {"mean_ms": [1.0, -2.5]}, r"mean_ms\[1\] \(adapter 'b'\).*got -2.5"),
        (["a"], {"mean_ms": [1e300]}, r"in \[0, 1e\+09\], got 1e\+300"),
        (["a"], {"mean_ms": ["slow"]}, "numbers of ms, got .*slow"),
        (["a"], {"mean_ms": [[1.0]]}, r"list of one or more numbers.*shape \(1, 1\)"),
        (["a", "b"], {"mean_ms": [1.0]}, r"each of 2 adapters, got shape \(1,\)"),
        (["a"], {"samples_ms": [[1.0], [2.0]]}, r"each of 1 adapters, got shape \(2,\)"),
        (["a"], {"samples_ms": [[1.0, -1.0]]}, r"samples_ms of adapter 'a'\[1\].*got -1"),
        (["a"], {"samples_ms": [[]]}, "one or more numbers"),
        (["a", "a "], {"mean_ms": [1.0, 2.0]}, "distinct, got 'a' at 0 and 1"),
        (["a", " "], {"mean_ms": [1.0, 2.0]}, r"adapters\[1\] must be printable.*got ' '"),
        (["a\nb"], {"mean_ms": [1.0]}, "printable"),
        ([3], {"mean_ms": [1.0]}, r"adapters\[0\].*got 3"),
        ([], {"mean_ms": []}, "one or more names"),
        ("ab", {"mean_ms": [1.0, 2.0]}, "one or more names, got 'ab'"),
        (["a"], {}, "exactly one of mean_ms and samples_ms, got neither"),
        (["a"], {"mean_ms": [1.0], "samples_ms": [[1.0]]}, "got both"),
        (["a"], {"mean_ms": [1.0], "size_bytes": [0]}, r"size_bytes\[0\].*got 0"),
        (["a"], {"mean_ms": [1.0], "size_bytes": [1.5]}, "whole numbers"),
        (["a"], {"mean_ms": [1.0], "size_bytes": [1, 2]}, r"got shape \(2,\)"),
    ],
)
def test_bad_measurements_are_refused_with_the_value(adapters, fields, message):
    with pytest.raises(ValueError, match=message):
        paging.make_table(adapters, **fields)


def test_cost_is_price_times_mean(table):
    np.testing.assert_array_equal(paging.paging_cost(table, 0.5), [2.0, 1.0, 4.25])
    np.testing.assert_array_equal(paging.paging_cost(table, 0.0), [0.0, 0.0, 0.0])


@pytest.mark.parametrize("price", [math.nan, math.inf, -0.1, 1e308])
def test_unusable_price_is_refused(table, price):
    with pytest.raises(ValueError, match=r"price_per_ms must .*got"):
        paging.paging_cost(table, price)


def test_take_keeps_the_first_adapters_and_drops_needless_padding(table):
    taken = paging.take(table, 2)
    assert taken.adapters == ("a", "b")
    np.testing.assert_array_equal(taken.samples_ms, [[4, 0, 0], [1, 2, 3]])
    np.testing.assert_array_equal(taken.mean_ms, [4.0, 2.0])
    np.testing.assert_array_equal(taken.size_bytes, [10, 20])
    assert paging.take(paging.make_table(["a", "b"], mean_ms=[1, 2]), 1).samples_ms is None


@pytest.mark.parametrize("num_adapters", [4, 0, -1])
def test_take_says_how_many_adapters_there_are(table, num_adapters):
    with pytest.raises(ValueError, match=rf"holds 3 adapters, got {num_adapters}\."):
        paging.take(table, num_adapters)


@pytest.mark.parametrize("num_adapters", [1.5, True, "2", None])
def test_take_wants_a_whole_number(table, num_adapters):
    with pytest.raises(ValueError, match="whole number"):
        paging.take(table, num_adapters)


def draw_many(samples_ms, sample_count, adapter, uniforms):
    """Draws from one adapter, jitted and batched, under strict promotion rules."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        return draw_batch(
            jnp.asarray(samples_ms), jnp.asarray(sample_count), jnp.int32(adapter), uniforms
        )


@pytest.mark.parametrize("count", [1, 2, 3, 300, 2**20 + 1])
def test_draws_stay_in_range_at_both_ends(count):
    samples = np.arange(2.0, count + 3, dtype=np.float32)[None, :]  # One value of padding.
    below_one = np.nextafter(np.float32(1), np.float32(0))
    rounded_up = np.float32(1 - 1e-12)  # Exactly 1.
    ends = jnp.array([0.0, below_one, rounded_up], jnp.float32)
    drawn = draw_many(samples, np.array([count], np.int32), 0, ends)
    np.testing.assert_array_equal(drawn, [2.0, count + 1.0, count + 1.0])


@quick
@given(rows=st.lists(st.lists(latencies, min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_draw_is_always_one_of_the_adapters_own_measurements(rows):
    table = paging.make_table([f"a{i}" for i in range(len(rows))], samples_ms=rows)
    packed, lengths = paging.draw_arrays(table)
    samples = np.zeros((4, 5), np.float32)  # One shape, hence one compilation.
    count = np.ones(4, np.int32)
    samples[: len(rows), : packed.shape[1]] = packed
    count[: len(rows)] = lengths
    for adapter, row in enumerate(rows):
        samples[adapter, len(row) :] = np.nan  # A draw from padding would show.
    uniforms = jnp.linspace(0.0, 1.0, 32, endpoint=False, dtype=jnp.float32)
    for adapter, row in enumerate(rows):
        drawn = set(np.asarray(draw_batch(samples, count, jnp.int32(adapter), uniforms)).tolist())
        assert drawn == set(np.array(row, np.float32).tolist())


def test_draws_keep_the_dtype_of_the_samples_and_compile_once(table):
    traces = []

    @jax.jit
    def draw(*args):
        traces.append(1)
        return paging.draw_ms(*args)

    samples, count = map(jnp.asarray, paging.draw_arrays(table))
    for adapter in range(3):
        drawn = draw(samples, count, jnp.int32(adapter), jnp.float32(0.5))
        assert (drawn.dtype, drawn.shape, drawn.weak_type) == (jnp.float32, (), False)
    assert len(traces) == 1


def test_a_table_without_samples_draws_its_means():
    table = paging.make_table(["a", "b"], mean_ms=[3.0, 5.0])
    drawn = draw_many(*paging.draw_arrays(table), 1, jnp.array([0.0, 0.99], jnp.float32))
    np.testing.assert_array_equal(drawn, [5.0, 5.0])


def round_to_nearest(samples_ms, sample_count, adapter, uniform):
    """A plausible mistake: rounding where `draw_ms` takes the floor."""
    scaled = uniform * (sample_count[adapter] - 1).astype(jnp.float32)
    return samples_ms[adapter, jnp.round(scaled).astype(jnp.int32)]


def worst_excess(draw, samples_ms, sample_count):
    """How far frequencies leave Hoeffding's bound, over all measurements; <= 0 is consistent.

    P(|share - 1/count| >= t) <= 2 exp(-2 n t^2) for each of `bins` measurements.
    """
    bins = int(sample_count.sum())
    bound = math.sqrt(math.log(2 * bins / ALPHA) / (2 * NUM_DRAWS))
    many = jax.jit(jax.vmap(draw, in_axes=(None, None, None, 0)))
    excess = []
    for adapter, count in enumerate(sample_count):
        uniforms = jax.random.uniform(jax.random.fold_in(jax.random.key(5), adapter), (NUM_DRAWS,))
        drawn = np.asarray(
            many(jnp.asarray(samples_ms), jnp.asarray(sample_count), jnp.int32(adapter), uniforms)
        )
        shares = [np.mean(drawn == value) for value in samples_ms[adapter, :count]]
        excess += [abs(share - 1 / count) - bound for share in shares]
    return max(excess)


@pytest.mark.parametrize(
    ("draw", "consistent"), [(paging.draw_ms, True), (round_to_nearest, False)]
)
def test_every_measurement_of_an_adapter_is_equally_likely(table, draw, consistent):
    assert (worst_excess(draw, table.samples_ms, table.sample_count) <= 0) == consistent


@pytest.mark.parametrize(("center", "consistent"), [(np.mean, True), (np.median, False)])
def test_draws_average_to_the_mean_that_is_charged(center, consistent):
    # P(|average - mean| >= t) <= 2 exp(-2 n t^2 / range^2); the control charges the median.
    table = qwen_paging_table(3)
    padded, count = paging.draw_arrays(table)
    samples = padded[2, : count[2]]
    bound = np.ptp(samples) * math.sqrt(math.log(2 / ALPHA) / (2 * NUM_DRAWS))
    uniforms = jax.random.uniform(jax.random.key(6), (NUM_DRAWS,))
    drawn = draw_many(padded, count, 2, uniforms)
    gap = abs(float(np.mean(np.asarray(drawn, np.float64))) - float(center(samples)))
    assert (gap <= bound) == consistent
    assert table.mean_ms[2] == pytest.approx(float(np.mean(samples)), rel=1e-6)
