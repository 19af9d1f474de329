"""Orders of a replay's requests: passes, domains, stays, arrivals; functions of key and block.

A statistical test fails on a correct build with probability at most `ALPHA` (Hoeffding's
inequality); each has a control that must fail.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from replay_data import made

from polar_jax import draws, replay_streams, replays
from polar_jax.types import Environment, Rounds

ALPHA = 1e-6  # Chance that a correct build fails one statistical test in this file.
BLOCK = draws.BLOCK
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def programs(env: Environment) -> tuple[Any, Any]:
    """Jitted `instance` and `rounds` of an environment."""
    return quick_jit(env.instance), quick_jit(env.rounds)


def stream(
    replay: replays.Replay, order: str, *, blocks: int = 4, seed: int = 0, **constants: Any
) -> tuple[np.ndarray, Rounds]:
    """Which requests the first blocks hold, and their rounds."""
    segments = constants.pop("num_segments", None)
    env = replay_streams.replay_environment(replay, order=order, num_segments=segments)
    if order == "trace":
        constants.setdefault("gap_ms", np.arange(1.0, 50.0))
    params = replay_streams.replay_params(env, replay, **{"horizon": blocks * BLOCK, **constants})
    key = jax.random.key(seed)
    masks = {
        "active": np.ones(replay.utilities.shape[1], bool),
        "features": np.ones(replay.contexts.shape[1], bool),
    }
    make, draw = programs(env)
    instance = make(key, params, **masks)
    drawn = [draw(key, params, instance, np.int32(block)) for block in range(blocks)]
    rounds = jax.tree.map(lambda *x: np.concatenate(x), *drawn)
    # Contexts are distinct, so that each tells its request.
    known = {row.tobytes(): i for i, row in enumerate(replay.contexts)}
    return np.array([known[row.tobytes()] for row in rounds.context]), rounds


def hoeffding(trials: int, tests: int = 1) -> float:
    """Deviation of a mean of `[0, 1]` variables that is exceeded with chance `ALPHA`."""
    return math.sqrt(math.log(2 * tests / ALPHA) / (2 * trials))


@functools.cache
def _shuffles(sizes: tuple[int, ...], passes: int) -> list[np.ndarray]:
    words = jnp.array([123, 456], jnp.uint32)
    shuffle = quick_jit(jax.vmap(draws.shuffled, (None, None, 0, None, None)))
    return [
        np.asarray(
            shuffle(
                jnp.arange(size, dtype=jnp.int32),
                jnp.int32(size),
                jnp.arange(passes, dtype=jnp.int32),
                jnp.int32(7),
                words,
            )
        )
        for size in sizes
    ]


def _one_shuffle(deck: int, words: tuple[int, int]) -> np.ndarray:
    cards = jnp.arange(100, dtype=jnp.int32)
    seeds = jnp.array(words, jnp.uint32)
    first = jnp.int32(0)
    return np.asarray(draws.shuffled(cards, jnp.int32(100), first, jnp.int32(deck), seeds))


@pytest.mark.slow
def test_shuffles_are_permutations_of_every_size():
    sizes = (1, 2, 3, 4, 5, 7, 15, 16, 17, 63, 255, 256, 257, 1000, 4500)
    for size, found in zip(sizes, _shuffles(sizes, 8), strict=True):
        np.testing.assert_array_equal(np.sort(found), np.tile(np.arange(size), (8, 1)))
    # Decks and seeds are shuffled apart.
    base = _one_shuffle(7, (123, 456))
    for deck, words in ((8, (123, 456)), (7, (124, 456)), (7, (123, 457))):
        assert np.mean(base == _one_shuffle(deck, words)) < 0.2


@pytest.mark.parametrize("size", [2, 3, 10, pytest.param(300, marks=pytest.mark.slow)])
def test_every_card_is_as_likely_in_every_place(size):
    passes = 20_000
    found = _shuffles((size,), passes)[0]
    places = range(min(size, 12))
    bound = hoeffding(passes, tests=len(places) ** 2)
    share = np.array([[np.mean(found[:, i] == j) for j in places] for i in places])
    assert np.abs(share - 1 / size).max() <= bound
    # The control: cards that are never moved are found out.
    assert 1 - 1 / size > bound


def test_pairs_of_three_cards_take_all_six_orders_alike():
    found = _shuffles((3,), 20_000)[0]
    codes = found[:, 0] * 3 + found[:, 1]
    share = np.array([np.mean(codes == code) for code in (1, 2, 3, 5, 6, 7)])
    bound = hoeffding(20_000, tests=6)
    assert np.abs(share - 1 / 6).max() <= bound
    assert np.abs(np.array([1, 0, 0, 0, 0, 0]) - 1 / 6).max() > bound


@pytest.mark.parametrize("order", replay_streams.ORDERS)
def test_stream_contract(order):
    replay = made()
    requests, rounds = stream(replay, order)
    np.testing.assert_array_equal(rounds.utility, replay.utilities[requests])
    assert not rounds.noise.any()
    assert rounds.benchmark is None
    dtypes = [rounds.context.dtype, rounds.utility.dtype, rounds.latency_uniform.dtype]
    assert [dtype.name for dtype in dtypes] == ["float32"] * 3
    again, _ = stream(replay, order)
    np.testing.assert_array_equal(requests, again)
    other, _ = stream(replay, order, seed=1)
    assert np.mean(requests == other) < 0.5
    # Two blocks of the run are those of a longer one: nothing is carried from block to block.
    longer, _ = stream(replay, order, blocks=6, horizon=4 * BLOCK)
    np.testing.assert_array_equal(longer[: 4 * BLOCK], requests)


@pytest.mark.slow
def test_requests_that_the_record_leaves_out_never_come():
    replay = made(order=np.arange(20, 80))
    for order in replay_streams.ORDERS:
        requests, _ = stream(replay, order)
        assert set(requests.tolist()) <= set(range(20, 80))


def test_the_recorded_order_is_kept_from_a_drawn_start():
    order = np.random.default_rng(5).integers(0, 300, 700)
    replay = made(order=order)
    starts = set()
    for seed in range(4):
        requests, _ = stream(replay, "recorded", seed=seed)
        doubled = np.concatenate([order, order])
        found = [s for s in range(700) if np.array_equal(doubled[s : s + 700], requests[:700])]
        assert len(found) == 1
        starts.add(found[0])
        # Later passes: the same domains, reshuffled requests.
        second = doubled[found[0] : found[0] + 1024 - 700]
        domains = replay.domains
        np.testing.assert_array_equal(domains[requests[700:]], domains[second])
        assert np.mean(requests[700:] == second) < 0.2
    assert len(starts) == 4


def test_passes_over_a_record_without_repeats_hold_every_request_once():
    replay = made(num_requests=200)
    for order in ("recorded", "shuffled"):
        requests, _ = stream(replay, order)
        passes = requests[:1000].reshape(5, 200)
        np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(200), (5, 1)))
        assert len({one.tobytes() for one in passes}) == 5


@pytest.mark.parametrize("order", ["independent", "sticky", "drifting", "trace"])
def test_a_domain_repeats_no_request_within_a_pass_of_its_deck(order):
    replay = made(num_requests=900)
    requests, _ = stream(replay, order)
    for domain, size in enumerate(np.bincount(replay.domains)):
        for first in range(0, len(requests) - size, size):
            window = requests[first : first + size]
            mine = window[replay.domains[window] == domain]
            assert len(set(mine.tolist())) == len(mine)


def test_independent_domains_follow_their_popularity_and_seeds_order_it():
    replay = made(num_requests=900)
    blocks = 40
    tops = set()
    expected = np.array([1, 2**-1.2, 3**-1.2])
    for seed in range(8):
        requests, _ = stream(replay, "independent", blocks=blocks, seed=seed, zipf=1.2)
        share = np.bincount(replay.domains[requests], minlength=3) / len(requests)
        gap = np.abs(np.sort(share)[::-1] - expected / expected.sum()).max()
        assert gap <= hoeffding(len(requests), tests=24)
        tops.add(int(np.argmax(share)))
    assert len(tops) > 1
    # The control: popularity that is alike does not pass for zipf 1.2.
    requests, _ = stream(replay, "independent", blocks=blocks, zipf=0.0)
    share = np.bincount(replay.domains[requests], minlength=3) / len(requests)
    assert np.abs(np.sort(share)[::-1] - expected / expected.sum()).max() > hoeffding(len(requests))


def stays(replay: replays.Replay, requests: np.ndarray) -> float:
    """Share of requests in the domain of the one before."""
    domains = replay.domains[requests]
    return float(np.mean(domains[1:] == domains[:-1]))


@pytest.mark.parametrize("order", ["sticky", "trace"])
def test_requests_stay_in_their_domain_as_often_as_asked(order):
    replay = made(num_requests=900)
    # With popularity alike, a jump lands in the same domain a third of the time. Hoeffding
    # for a mean of independent stays; within a trace they are independent given the gaps.
    gaps = np.random.default_rng(3).exponential(200.0, 997)
    constants: dict[str, Any] = {"zipf": 0.0, "blocks": 40, "gap_ms": gaps}
    for stay in (0.0, 0.5, 0.8):
        requests, _ = stream(replay, order, stay=stay, **constants)
        expected = stay + (1 - stay) / 3
        # Half the rounds are independent of one another, and so are the others.
        bound = 2 * hoeffding(len(requests) // 2, tests=12) + (0.01 if order == "trace" else 0.0)
        assert abs(stays(replay, requests) - expected) <= bound
        assert abs(stays(replay, requests) - (expected + 0.2)) > bound


def test_a_trace_keeps_its_domain_in_bursts_and_leaves_it_after_pauses():
    replay = made(num_requests=900)
    gaps = np.tile([1.0, 1.0, 1.0, 5_000.0], 50)
    requests, rounds = stream(replay, "trace", zipf=0.0, stay=0.6, gap_ms=gaps, blocks=40)
    assert rounds.arrival_gap is not None
    domains, gap = replay.domains[requests], rounds.arrival_gap
    same = domains[1:] == domains[:-1]
    burst, pause = same[gap[1:] == 1.0].mean(), same[gap[1:] == 5_000.0].mean()
    assert burst > 0.8
    assert pause < 0.5


def test_arrival_gaps_are_the_traces_from_a_drawn_start_round_and_round():
    gaps = np.random.default_rng(1).random(300).astype(np.float32)
    doubled = np.tile(gaps, 8)
    starts = set()
    for seed in range(3):
        _, rounds = stream(made(), "sticky", gap_ms=gaps, seed=seed)
        assert rounds.arrival_gap is not None
        found = [
            s for s in range(300) if np.array_equal(doubled[s : s + 4 * BLOCK], rounds.arrival_gap)
        ]
        assert len(found) == 1
        starts |= set(found)
    assert len(starts) == 3


def test_outcomes_of_0_and_1_bring_the_linear_benchmark_unless_refused():
    binary, real = made(binary=True), made()
    for replay, benchmark, linear in (
        (binary, "auto", True),
        (binary, "utilities", False),
        (real, "auto", False),
        (real, "linear", True),
    ):
        requests, rounds = stream(replay, "shuffled", benchmark=benchmark)
        assert (rounds.benchmark is not None) == linear
        if linear:
            fitted = replays.cross_fitted(replay.contexts, replay.utilities)
            np.testing.assert_array_equal(rounds.benchmark, fitted[requests])


@pytest.mark.parametrize(
    ("order", "constants", "message"),
    [
        ("sorted", {}, "order"),
        ("sticky", {"num_segments": 0}, r"num_segments must be .* got 0"),
        ("sticky", {"stay": 0.95}, r"stay .*0\.9.* got 0\.95"),
        ("sticky", {"zipf": -1.0}, "zipf"),
        ("sticky", {"zipf": math.nan}, "zipf"),
        ("recorded", {"gap_ms": []}, "gap_ms must be one or more"),
        ("recorded", {"gap_ms": [1.0, -1.0]}, r"gap_ms\[1\] must be"),
        ("recorded", {"gap_ms": [math.nan]}, r"gap_ms\[0\] must be"),
        ("trace", {"gap_ms": None}, "needs the times between arrivals"),
        ("recorded", {"benchmark": "best"}, "benchmark"),
        ("recorded", {"horizon": 0}, "horizon"),
    ],
)
def test_constants_out_of_range_are_refused(order, constants, message):
    with pytest.raises(ValueError, match=message):
        stream(made(), order, **constants)


def test_parameters_belong_to_the_replay_of_their_environment():
    env = replay_streams.replay_environment(made(seed=1))
    with pytest.raises(ValueError, match="made of the same replay"):
        replay_streams.replay_params(env, made(seed=2), horizon=10)


def test_equal_streams_are_equal_and_others_are_not():
    one = replay_streams.replay_environment(made(), order="sticky")
    assert one is replay_streams.replay_environment(made(), order="sticky", num_segments=4)
    assert one != replay_streams.replay_environment(made(), order="trace")
    assert one != replay_streams.replay_environment(made(seed=9), order="sticky")
