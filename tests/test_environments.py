"""Request streams: what they are functions of, their structure, and their statistics.

A statistical test fails on a correct build with probability at most `ALPHA` (Hoeffding's
inequality, or Laurent and Massart's for a variance); each has a control that must fail.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

from polar_jax import draws, environments
from polar_jax.types import Environment, Rounds

ALPHA = 1e-6  # Chance that a correct build fails one statistical test in this file.
BLOCK = draws.BLOCK
BLOCKS = 400
NUM_ROUNDS = BLOCKS * BLOCK
# Compiling is most of the work here, and no bit depends on how well it is done.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SIZES = {"num_adapters": 9, "context_dim": 4}


@functools.cache
def programs(env: Environment, num_adapters: int, context_dim: int) -> tuple[Any, Any]:
    """Jitted `instance` and `rounds` of an environment."""
    masks = {"active": np.ones(num_adapters, bool), "features": np.ones(context_dim, bool)}
    make = functools.partial(env.instance, **masks)
    return quick_jit(make), quick_jit(env.rounds)


@functools.cache
def stream(
    name: str,
    *,
    blocks: int = 4,
    seed: int = 0,
    num_clusters: int = 6,
    num_segments: int | None = None,
    num_adapters: int = 9,
    context_dim: int = 4,
    **constants: Any,
) -> tuple[environments.Instance, Rounds]:
    """An instance and its first rounds, as NumPy arrays."""
    env = environments.environment(name, num_clusters=num_clusters, num_segments=num_segments)
    params = environments.environment_params(env, **{"horizon": blocks * BLOCK, **constants})
    make, draw = programs(env, num_adapters, context_dim)
    key = jax.random.key(seed)
    instance = make(key, params)
    drawn = [draw(key, params, instance, np.int32(block)) for block in range(blocks)]
    return jax.tree.map(np.asarray, instance), jax.tree.map(lambda *x: np.concatenate(x), *drawn)


def clusters(instance: environments.Instance, rounds: Rounds) -> np.ndarray:
    """The cluster of every round of a stream without spread: its context is a centre."""
    return np.argmax(rounds.context @ instance.centres.T, axis=1)


def hoeffding(trials: int, tests: int = 1) -> float:
    """Deviation of a mean of `[0, 1]` variables that is exceeded with chance `ALPHA`."""
    return math.sqrt(math.log(2 * tests / ALPHA) / (2 * trials))


@pytest.mark.parametrize("name", environments.NAMES)
def test_environment_contract(name):
    instance, rounds = stream(name)
    count = 4 * BLOCK
    assert rounds.context.shape == (count, SIZES["context_dim"])
    assert rounds.utility.shape == (count, SIZES["num_adapters"])
    assert rounds.policy_bits.shape == (count, 2)
    shapes = [rounds.noise.shape, rounds.latency_uniform.shape, rounds.reservoir_slot.shape]
    assert shapes == [(count,)] * 3
    assert rounds.benchmark is rounds.arrival_gap is None
    dtypes = [x.dtype.name for x in rounds[:6]]
    assert dtypes == ["float32"] * 4 + ["int32", "uint32"]
    assert np.all(np.linalg.norm(rounds.context, axis=1) <= 1 + 1e-6)
    assert all(np.all(np.isfinite(x)) for x in rounds[:4])
    if name == "bernoulli":
        assert np.all((rounds.utility >= 0) & (rounds.utility <= 1))
        assert np.all((rounds.noise >= 0) & (rounds.noise < 1))
    else:
        linear = rounds.context @ instance.theta.T
        np.testing.assert_allclose(rounds.utility, linear, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(instance.theta, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", environments.NAMES)
def test_a_block_depends_on_the_key_and_its_number_alone(name):
    env = environments.environment(name)
    params = environments.environment_params(env, horizon=1000)
    make, block = programs(env, **SIZES)
    instance = make(jax.random.key(1), params)
    late = block(jax.random.key(1), params, instance, np.int32(3))
    block(jax.random.key(1), params, instance, np.int32(0))
    again = block(jax.random.key(1), params, instance, np.int32(3))
    jax.tree.map(np.testing.assert_array_equal, late, again)
    other_block = block(jax.random.key(1), params, instance, np.int32(2))
    other_key = block(jax.random.key(2), params, instance, np.int32(3))
    for other in (other_block, other_key):
        for field in ("context", "noise", "latency_uniform", "policy_bits"):
            assert not np.array_equal(getattr(late, field), getattr(other, field))


def test_blocks_drawn_together_are_those_drawn_one_by_one():
    env = environments.environment("sticky")
    params = environments.environment_params(env, horizon=4 * BLOCK)
    instance, single = stream("sticky")
    drawn = quick_jit(jax.vmap(env.rounds, (None, None, None, 0)))(
        jax.random.key(0), params, instance, np.arange(4, dtype=np.int32)
    )
    together = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn)
    for field in ("noise", "latency_uniform", "reservoir_slot", "policy_bits"):
        np.testing.assert_array_equal(getattr(single, field), getattr(together, field))
    np.testing.assert_allclose(single.context, together.context, atol=1e-6)


def test_more_adapters_or_features_leave_the_others_draws_alone():
    small, rounds = stream("isotropic")
    large, more = stream("isotropic", num_adapters=17)
    np.testing.assert_array_equal(small.theta, large.theta[:9])
    np.testing.assert_allclose(rounds.utility, more.utility[:, :9], atol=1e-6)
    # Normalising another vector rescales it; the direction within the first features stays.
    _, wide = stream("isotropic", context_dim=6)
    cut = wide.context[:, :4] / np.linalg.norm(wide.context[:, :4], axis=1, keepdims=True)
    np.testing.assert_allclose(rounds.context, cut, atol=1e-5)
    few, _ = stream("clustered")
    many, _ = stream("clustered", num_adapters=17)
    np.testing.assert_array_equal(few.centres, many.centres)


def test_adapters_are_spread_evenly_over_clusters_and_shuffled():
    instance, _ = stream("clustered", theta_spread=0.0, num_adapters=12)
    other, _ = stream("clustered", theta_spread=0.0, num_adapters=12, seed=1)
    homes = [np.argmax(one.theta @ one.centres.T, axis=1) for one in (instance, other)]
    for home in homes:
        np.testing.assert_array_equal(np.bincount(home, minlength=6), [2] * 6)
    assert not np.array_equal(homes[0], homes[1])


@pytest.mark.parametrize("stay", [0.5, 0.9])
def test_a_sticky_stream_keeps_its_cluster_until_a_jump_and_then_goes_where_the_draw_says(stay):
    constants = {"num_clusters": 40, "zipf": 0.0, "spread": 0.0, "context_dim": 8, "blocks": 12}
    # With `stay` 0 every round jumps: the stream itself is the list of targets.
    instance, always = stream("sticky", stay=0.0, **constants)
    targets = clusters(instance, always)
    got = clusters(instance, stream("sticky", stay=stay, **constants)[1])
    current, kept = targets[0], 0
    for t in range(len(got)):
        if got[t] != current:
            assert got[t] == targets[t]
            current = got[t]
        else:
            kept += 1
    assert abs(kept / len(got) - stay) < 0.06


def test_drifting_is_sticky_with_more_segments_of_permuted_popularity():
    instance, _ = stream("drifting")
    assert instance.popularity.shape == (32, 6)
    shares = np.diff(instance.popularity, axis=1, prepend=0.0)
    for share in shares:
        np.testing.assert_allclose(np.sort(share), np.sort(shares[0]), atol=1e-6)
    assert len(np.unique(np.round(shares, 4), axis=0)) > 16
    assert np.all(np.diff(shares[0]) < 0)
    same, sticky = stream("sticky", num_segments=32)
    drifting = stream("drifting")[1]
    np.testing.assert_array_equal(same.popularity, instance.popularity)
    np.testing.assert_array_equal(sticky.context, drifting.context)


def test_each_segment_of_a_sticky_stream_has_its_own_popularity():
    instance, rounds = stream("sticky", stay=0.0, spread=0.0, blocks=BLOCKS)
    parts = clusters(instance, rounds).reshape(4, -1)
    shares = np.diff(instance.popularity, axis=1, prepend=0.0)
    bound = hoeffding(parts.shape[1], tests=24)
    seen = np.stack([np.bincount(part, minlength=6) / part.size for part in parts])
    assert np.all(np.abs(seen - shares) <= bound)
    # Control: the segments are not interchangeable.
    assert not np.all(np.abs(seen - shares[[1, 2, 3, 0]]) <= bound)


@pytest.mark.parametrize(("num_clusters", "pairs"), [(6, 3), (5, 2), (2, 1)])
def test_a_rotating_stream_serves_one_pair_of_clusters_per_period(num_clusters, pairs):
    constants = {"num_clusters": num_clusters, "spread": 0.0, "period": 100}
    instance, rounds = stream("rotating", **constants)
    got = clusters(instance, rounds)
    for start in range(0, len(got) - 99, 100):
        first = 2 * (start // 100 % pairs)
        assert set(got[start : start + 100]) == {first, first + 1}


def test_a_single_cluster_is_enough_for_every_stream():
    for name in ("sticky", "rotating"):
        assert np.all(np.isfinite(stream(name, num_clusters=1, blocks=1)[1].utility))


@pytest.mark.parametrize(("zipf", "consistent"), [(1.2, True), (1.3, False)])
def test_clusters_are_as_popular_as_their_rank_says(zipf, consistent):
    instance, rounds = stream("clustered", spread=0.0, blocks=BLOCKS)
    weights = np.arange(1.0, 7.0) ** -zipf
    seen = np.bincount(clusters(instance, rounds), minlength=6) / NUM_ROUNDS
    worst = np.max(np.abs(seen - weights / weights.sum()))
    assert (worst <= hoeffding(NUM_ROUNDS, tests=6)) == consistent


@pytest.mark.parametrize(("stay", "consistent"), [(0.73, True), (0.75, False)])
def test_the_cluster_is_kept_with_the_stated_probability(stay, consistent):
    # Under a uniform popularity the rounds that change cluster are independent of each other.
    constants = {"num_clusters": 40, "zipf": 0.0, "spread": 0.0, "context_dim": 8}
    instance, rounds = stream("sticky", blocks=BLOCKS, **constants)
    changes = np.mean(np.diff(clusters(instance, rounds)) != 0)
    expected = (1 - stay) * (1 - 1 / 40)
    assert (abs(changes - expected) <= hoeffding(NUM_ROUNDS - 1)) == consistent


@pytest.mark.parametrize(("rule", "consistent"), [(np.floor, True), (np.rint, False)])
def test_binary_rewards_are_one_as_often_as_the_utility_says(rule, consistent):
    _, rounds = stream("bernoulli", blocks=BLOCKS)
    rewards = rule(rounds.utility[:, 2].astype(float) + rounds.noise)
    gap = abs(np.mean(np.clip(rewards, 0, 1)) - np.mean(rounds.utility[:, 2].astype(float)))
    assert (gap <= hoeffding(NUM_ROUNDS)) == consistent


@pytest.mark.parametrize(("noise", "consistent"), [(0.1, True), (0.103, False)])
def test_reward_noise_has_the_stated_deviation(noise, consistent):
    # Laurent and Massart: the mean of n squared normals leaves 1 by this with chance ALPHA.
    _, rounds = stream("clustered", blocks=BLOCKS)
    budget = math.log(2 / ALPHA) / NUM_ROUNDS
    bound = 2 * math.sqrt(budget) + 2 * budget
    ratio = np.mean((rounds.noise.astype(float) / noise) ** 2)
    assert (abs(ratio - 1) <= bound) == consistent


@pytest.mark.parametrize(("share", "consistent"), [(1.0, True), (1.5, False)])
def test_the_reservoir_takes_a_round_as_often_as_a_uniform_sample_does(share, consistent):
    _, rounds = stream("clustered", blocks=BLOCKS)
    slots = draws.RESERVOIR_SLOTS
    np.testing.assert_array_equal(rounds.reservoir_slot[:slots], np.arange(slots))
    taken = rounds.reservoir_slot[slots:] >= 0
    expected = share * np.mean(slots / np.arange(slots + 1, NUM_ROUNDS + 1))
    assert (abs(np.mean(taken) - expected) <= hoeffding(taken.size)) == consistent
    assert rounds.reservoir_slot.max() == slots - 1


@pytest.mark.parametrize(("seed", "consistent"), [(0, True), (1, False)])
def test_utilities_of_one_seed_belong_to_its_own_instance(seed, consistent):
    instance, _ = stream("clustered", seed=seed)
    _, rounds = stream("clustered", seed=0)
    same = np.allclose(rounds.utility, rounds.context @ instance.theta.T, atol=1e-5)
    assert same == consistent


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"noise": -0.1}, "noise must be a finite number at least 0, got -0.1"),
        ({"noise": math.nan}, "noise .*got nan"),
        ({"zipf": math.inf}, "zipf .*got inf"),
        ({"spread": -1.0}, "spread .*got -1"),
        ({"theta_spread": -1.0}, "theta_spread .*got -1"),
        ({"stay": 0.95}, r"stay must be a number in \[0, 0.9\], got 0.95"),
        ({"stay": -0.1}, "stay .*got -0.1"),
        ({"stay": math.nan}, "stay .*got nan"),
        ({"period": 0}, "period .*got 0"),
        ({"horizon": 0}, "horizon .*got 0"),
    ],
)
def test_constants_out_of_range_are_refused_with_the_value(constants, message):
    env = environments.environment("sticky")
    with pytest.raises(ValueError, match=message):
        environments.environment_params(env, **{"horizon": 100, **constants})


@pytest.mark.parametrize(
    ("name", "counts", "message"),
    [
        ("stiky", {}, r"environment must be one of .*got 'stiky' \(did you mean 'sticky'\?\)"),
        ("clustered", {"num_clusters": 0}, "num_clusters .*got 0"),
        ("sticky", {"num_segments": 0}, "num_segments .*got 0"),
    ],
)
def test_unknown_streams_and_empty_counts_are_refused(name, counts, message):
    with pytest.raises(ValueError, match=message):
        environments.environment(name, **counts)


def test_equal_environments_are_one_object_so_that_they_share_programs():
    assert environments.environment("sticky") is environments.environment("sticky")
