"""Lanes: results that depend on their own seed alone, shared programs, exact sums."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polar_jax import chunks, kernels, lanes, metrics, paging, policies, programs

NAMES = ("polar_plus", "polar_experts", "lru")
SEEDS = tuple(range(40))  # More than one tile: two devices, or two waves on one.
HORIZON = 1300


def run(
    names: Sequence[str] = NAMES,
    seeds: Sequence[int] = SEEDS,
    *,
    num_devices: int | None = None,
    chunk_rounds: int | None = None,
    keep: bool = False,
    **options: Any,
) -> lanes.Results:
    """A run on the small sticky problem that most tests here share."""
    sizes: dict[str, Any] = {"environment": "sticky", "horizon": HORIZON}
    experiment = helpers.make_experiment(names, seeds=seeds, **(sizes | options))
    return lanes.run(
        experiment, num_devices=num_devices, chunk_rounds=chunk_rounds, keep_decisions=keep
    )


@functools.cache
def whole() -> lanes.Results:
    """All policies and seeds on every device."""
    return run()


def assert_bitwise_equal(
    got: lanes.Results, seeds: Sequence[int], names: Sequence[str] = NAMES
) -> None:
    """Totals, curves and oracle sets of `got` are those of the whole run."""
    expected, rows = whole(), list(seeds)
    np.testing.assert_array_equal(got.oracle_set, expected.oracle_set[rows])
    np.testing.assert_array_equal(got.paging_cost, expected.paging_cost[rows])
    for name in names:
        for part in metrics.PARTS:
            ours, theirs = got.policies[name], expected.policies[name]
            np.testing.assert_array_equal(ours.totals[part], theirs.totals[part][rows])
            np.testing.assert_array_equal(ours.curves[part], theirs.curves[part][rows])


@pytest.mark.slow
def test_two_devices_and_one_give_the_same_bits():
    assert whole().num_devices == len(jax.devices()) == 2
    alone = run(num_devices=1)
    assert alone.num_devices == 1
    assert_bitwise_equal(alone, SEEDS)


@pytest.mark.slow
def test_the_order_of_seeds_changes_no_bit():
    order = np.random.default_rng(0).permutation(SEEDS).tolist()
    assert_bitwise_equal(run(seeds=order), order)


@pytest.mark.parametrize("seeds", [pytest.param((33,), marks=pytest.mark.slow), (7, 5, 39)])
def test_a_seed_gives_the_same_bits_whatever_runs_beside_it(seeds):
    assert_bitwise_equal(run(seeds=seeds), seeds)


def test_other_policies_beside_it_change_no_bit_of_a_policy():
    # `random` reads random numbers that the others do not: another program draws them.
    assert_bitwise_equal(run(("random", "lru"), seeds=(0, 1)), (0, 1), ("lru",))
    assert_bitwise_equal(run(("polar_experts",), seeds=(0, 1)), (0, 1), ("polar_experts",))


def test_without_the_static_oracle_only_what_is_measured_against_it_changes():
    got = lanes.run(
        helpers.make_experiment(NAMES, seeds=SEEDS, environment="sticky", horizon=HORIZON),
        static_oracle=False,
    )
    assert not got.oracle_set.any()
    for name in NAMES:
        ours, theirs = got.policies[name].totals, whole().policies[name].totals
        for part in metrics.PARTS:
            against = part in ("regret", "regret_caching")
            assert np.array_equal(ours[part], theirs[part]) != against, part


def test_another_base_seed_gives_other_lanes():
    experiment = helpers.make_experiment(("lru",), environment="sticky", horizon=HORIZON)
    moved = lanes.run(dataclasses.replace(experiment, base_seed=1))
    assert not np.any(moved.paging_cost == whole().paging_cost[:2])


@functools.cache
def kept() -> lanes.Results:
    """Two policies with all decisions."""
    return run(("polar_plus", "polar_experts"), seeds=(0, 1), keep=True)


@pytest.mark.slow
def test_keeping_decisions_changes_none():
    for name in ("polar_plus", "polar_experts"):
        for part in ("page_ins", "loads"):
            np.testing.assert_array_equal(
                kept().policies[name].totals[part], whole().policies[name].totals[part][:2]
            )


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rounds", [256, 768, 1280])
def test_chunks_of_any_length_give_bitwise_the_same(chunk_rounds: int):
    other = run(("polar_plus", "polar_experts"), seeds=(0, 1), keep=True, chunk_rounds=chunk_rounds)
    for name, result in other.policies.items():
        expected = kept().policies[name]
        jax.tree.map(np.testing.assert_array_equal, result.decisions, expected.decisions)
        jax.tree.map(np.testing.assert_array_equal, result.rounds, expected.rounds)
        for part in metrics.PARTS:
            np.testing.assert_array_equal(result.totals[part], expected.totals[part])
            np.testing.assert_array_equal(result.curves[part], expected.curves[part])


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rounds", [256, 1_024, None])
def test_rounds_that_lie_where_others_lay_are_the_same(chunk_rounds: int | None):
    # Kept rounds never share memory; those that are dropped do, chunk after chunk.
    horizon = 5_000 if chunk_rounds else chunks.LONGEST + 700
    expected = run(NAMES, seeds=(0, 1), horizon=horizon, keep=True, chunk_rounds=1_280)
    other = run(NAMES, seeds=(0, 1), horizon=horizon, chunk_rounds=chunk_rounds)
    for name in NAMES:
        for part in metrics.PARTS:
            ours, theirs = other.policies[name], expected.policies[name]
            np.testing.assert_array_equal(ours.curves[part], theirs.curves[part])


def advance_programs() -> set[Any]:
    """Keys of the compiled programs that serve requests."""
    return {name for name in programs._COMPILED if name[0][0] == "advance"}


def test_policies_that_differ_in_data_alone_share_a_program():
    whole()
    before = advance_programs()
    held = ("cost_blind", "no_forced", "polar_experts")
    run(held, seeds=(0, 1), settings=policies.Settings(alpha=0.2, margin=0.1), noise=0.3)
    assert {name[0][1:] for name in advance_programs() - before} == set()
    run(("lru", "polar_experts"), seeds=(0, 1), horizon=300, slots=2)
    run(("polar_experts",), seeds=(0, 1), settings=policies.Settings(first_epoch=10))
    assert advance_programs() == before


def test_all_fixed_sets_share_one_program():
    before = len(advance_programs())
    run(("static", "no_cache", "full_cache", "oracle_cache"), seeds=(0, 1), horizon=64)
    assert len(advance_programs()) == before + 1


def hlo_of(name: str) -> str:
    """The compiled text of the program that serves a policy's requests, without decisions."""
    whole()
    sizes = policies.Problem(num_adapters=7, cache_slots=3, context_dim=5, horizon=HORIZON)
    rule = policies.policy(name, **sizes._asdict()).rule
    found = [key for key in advance_programs() if key[0][1] is False and rule in key[0]]
    return programs._COMPILED[found[0]].as_text()


def counters(text: str | None, name: str) -> list[str]:
    """Types of the counters of compiled loops: a scalar, or one per lane."""
    assert text is not None
    loops = [line for line in text.splitlines() if " while(" in line and f'{name}"' in line]
    return [line.partition("= (")[2].partition("]")[0] + "]" for line in loops]


def test_replans_and_refreshes_happen_for_all_lanes_or_none():
    # One loop of no round or one for each, whose count the lanes share; without a kernel of its
    # own the loop over rounds is one more.
    loops = 3 if kernels.chosen("cpu") == "xla" else 2
    assert counters(hlo_of("polar_plus"), "vmap()/while/body/while") == ["s32[]"] * loops
    # The choice between enumeration and local search stays a branch.
    assert " conditional(" in hlo_of("polar_plus")

    # Control: what hangs on a lane's own state runs until the last lane is done.
    def own(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, x.astype(jnp.int32), lambda _, y: jnp.sin(y), x)

    lowered = jax.jit(jax.vmap(own)).lower(jnp.zeros(4, jnp.float32))
    assert counters(lowered.compile().as_text(), "while") == ["s32[4]"]


def test_sums_stay_exact_over_many_chunks():
    long = run(("polar_experts",), seeds=(0,), horizon=20_000, keep=True, chunk_rounds=1_024)
    result = long.policies["polar_experts"]
    assert result.rounds is not None
    assert result.decisions is not None
    utility = result.rounds.utility[0].astype(float)
    decisions = jax.tree.map(lambda x: np.asarray(x[0]), result.decisions)
    chosen = np.arange(20_000), decisions.adapter
    missed = ~decisions.resident[chosen]
    paid = np.where(missed, long.paging_cost[0].astype(float)[decisions.adapter], 0.0)
    net = utility[chosen] - paid - decisions.switch_cost
    loss = utility.max(axis=1) - net
    scale = 1.0 + np.sum(np.abs(net))
    assert abs(result.totals["net_utility"][0] - np.sum(net)) <= 1e-6 * scale
    assert abs(result.totals["loss_to_full"][0] - np.sum(loss)) <= 1e-6 * scale
    assert result.totals["page_ins"][0] == missed.sum()
    parts = [result.curves[f"regret_{part}"] for part in ("routing", "caching", "switching")]
    spread = 1.0 + sum(np.abs(part) for part in parts)
    assert np.all(np.abs(sum(parts) - result.curves["regret"]) <= 1e-6 * spread)


@pytest.mark.slow
def test_sampled_latencies_come_from_the_adapters_own_measurements():
    samples = [[10.0 * i + j for j in range(1, 4)] for i in range(1, 8)]
    table = paging.make_table([f"a{i}" for i in range(7)], samples_ms=samples)
    costs = lanes.Costs(price_per_ms=0.002, table=table)
    experiment = helpers.make_experiment(("lru",), environment="sticky", horizon=400)
    sampled = dataclasses.replace(experiment, costs=costs)
    results = lanes.run(sampled, keep_decisions=True)
    result = results.policies["lru"]
    assert result.rounds is not None
    assert result.decisions is not None
    np.testing.assert_allclose(results.paging_cost[0], 0.002 * table.mean_ms, rtol=1e-6)
    for lane in range(2):
        adapter = result.decisions.adapter[lane]
        missed = ~result.decisions.resident[lane][np.arange(400), adapter]
        draw = np.floor(3 * result.rounds.latency_uniform[lane]).astype(int)
        assert len(np.unique(draw[missed])) == 3
        expected = np.sum(np.asarray(samples)[adapter, draw][missed])
        assert result.totals["paging_ms"][lane] == pytest.approx(expected, rel=1e-6)


def test_progress_counts_programs_and_then_every_decision():
    seen: list[lanes.Progress] = []
    experiment = helpers.make_experiment(("lru",), environment="sticky", horizon=HORIZON)
    results = lanes.run(experiment, progress=seen.append)
    phases = [step.phase for step in seen]
    assert phases == sorted(phases)
    compiled = [step for step in seen if step.phase == "compiling"]
    assert [step.done for step in compiled] == list(range(compiled[-1].total + 1))
    running = [step.done for step in seen if step.phase == "running"]
    assert running == sorted(running)
    assert running[-1] == seen[-1].total == results.num_decisions == 2 * HORIZON


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "seeds must hold at least one seed"),
        ({"seeds": (-1,)}, "seed must be .*got -1"),
        ({"policies": ()}, "policies must name at least one"),
        ({"base_seed": 2**31}, "seed must be .*got 2147483648"),
        ({"seeds": range(-1, 3)}, "seed must be .*got -1"),
        ({"seeds": range(2**31 - 1, 2**31 + 1)}, "seed must be .*got 2147483648"),
    ],
)
def test_experiments_that_cannot_run_are_refused(changes, message):
    experiment = helpers.make_experiment(("lru",))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(experiment, **changes)


@pytest.mark.parametrize("chunk_rounds", [0, -256, 100])
def test_chunks_are_whole_blocks(chunk_rounds):
    with pytest.raises(ValueError, match=f"multiple of 256, got {chunk_rounds}"):
        run(("lru",), seeds=(0,), chunk_rounds=chunk_rounds)


def test_a_policy_named_twice_is_refused():
    with pytest.raises(ValueError, match="policies must not repeat, got lru"):
        helpers.make_experiment(("lru", "lru"))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_tile_shrinks_with_the_problem_and_never_vanishes(platform):
    small, large, huge = (
        lanes.tile_width(lanes.Shape(n, d), platform)
        for n, d in ((15, 8), (1_000, 64), (100_000, 512))
    )
    assert small >= large >= huge == 1
