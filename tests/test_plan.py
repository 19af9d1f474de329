"""From a spec to programs, cells and shards: what is shared, what is not, and what is said."""

import collections
import pathlib
import random
from typing import Any

import interrupt_sweep
import numpy as np
import pytest

from polar_jax import chunks, policies, programs
from polar_jax.io import package_data
from polar_jax.lane_calls import Shape
from polar_jax.sweep import anytime, costs, memory, plan, run, spec

HERE = pathlib.Path()
SWEEPS = pathlib.Path(__file__).parents[1] / "sweeps"


def planned(text: str, **options: Any) -> plan.Plan:
    """The plan of a spec given as text."""
    return plan.make(spec.parse(text, name="test", folder=HERE), **options)


def five_hundred(policy: str, horizon: int) -> str:
    """500 random configurations of one policy on one environment."""
    rng = random.Random(0)
    rows = set()
    while len(rows) < 500:
        adapters = rng.randint(8, 24)
        rows.add(
            (
                adapters,
                rng.randint(0, adapters),
                rng.randint(4, 16),
                round(rng.uniform(0.1, 2.0), 3),
                round(rng.uniform(0.001, 0.1), 4),
            )
        )
    names = ("adapters", "slots", "context_dim", "alpha", "price_per_ms")
    columns = dict(zip(names, zip(*sorted(rows), strict=True), strict=True))
    lists = (f"{name} = {list(values)}" for name, values in columns.items())
    return (
        f'[fixed]\nseeds = 64\nhorizon = {horizon}\npolicies = ["{policy}"]\n[[zip]]\n'
        + "\n".join(lists)
    )


@pytest.mark.parametrize("policy", ["polar", "polar_plus", "polar_experts"])
@pytest.mark.parametrize("horizon", [2_000, 20_000])
def test_five_hundred_configurations_need_nine_lane_programs_at_most(policy, horizon):
    made = planned(five_hundred(policy, horizon))
    assert 1 < len(made.programs("advance")) <= 9
    described = run.describe(made, None)
    listed = {name for bucket in described["buckets"] for name in bucket["programs"]}
    assert listed == set(made.programs())
    kinds = collections.Counter(name.split()[0].rstrip(":") for name in listed)
    assert set(kinds) == {"setup", "draw", "pick", "oracle", "start", "advance"}
    assert max(kinds.values()) <= 9
    assert all(bucket["padding"] for bucket in described["buckets"])
    assert sum(shard.rows for shard in made.shards) == made.spec.num_lanes == 32_000


MIXED = """
[fixed]
adapters = 5
seeds = 3
horizon = 300
policies = ["lru", "polar_plus", "static", "no_cache"]
[axes]
context_dim = [3, 4]
slots = [1, 2]
noise = [0.1, 0.2]
alpha = [0.2, 0.5]
"""


@pytest.mark.slow
def test_the_programs_that_are_listed_are_those_that_are_compiled(tmp_path):
    made = planned(MIXED + 'environment = ["clustered", "bernoulli"]')
    before = set(programs._COMPILED)
    outcome = run.execute(made, tmp_path / "out", run.Options(), lambda _: None, run.Stop())
    assert outcome.failed == {}
    compiled = collections.Counter(key[0][0] for key in set(programs._COMPILED) - before)
    listed = collections.Counter(name.split()[0].rstrip(":") for name in made.programs())
    assert compiled == listed


def test_segments_make_no_other_program_of_a_stream_that_has_none():
    made = planned(MIXED + "segments = [1, 2, 3]\nenvironment = ['clustered', 'sticky']")
    # One of clustered, and one of sticky for each number of segments, per pair of sizes.
    assert len(made.programs("setup")) == 4 * len(made.buckets)
    assert len({(cell.experiment.environment) for b in made.buckets for cell in b.cells}) == 4


def test_programs_with_one_description_are_counted_apart():
    text = "[fixed]\nseeds = 2\nhorizon = 300\npolicies = ['lru']\n"
    made = planned(text + "[axes]\ncosts = ['qwen2.5-7b', 'synthetic:0.3']\n")
    # Tables of measured latencies and none: what they are handed differs in shape.
    assert len(made.programs("advance")) == 2
    assert len(set(made.programs("advance"))) == 1


OFTEN = """
[fixed]
adapters = 5
context_dim = 3
slots = 2
seeds = 3
horizon = 2_000
policies = ["polar"]
[axes]
epoch_length = [1, 700]
"""


@pytest.mark.slow
def test_calls_are_shorter_where_they_would_replan_often(tmp_path, monkeypatch):
    large = "[fixed]\nadapters = 64\nslots = 16\nhorizon = 5000\npolicies = ['polar', 'lru']\n"
    cells = [planned(large + f"epoch_length = {n}").buckets[0].cells[0] for n in (1, 5_000)]
    assert [chunks.chunk_rounds(one.experiment, 32, "cpu") for one in cells] == [256, 1_024]
    whole = run.execute(planned(OFTEN), tmp_path / "a", run.Options(), lambda _: None, run.Stop())
    assert whole.failed == {}
    monkeypatch.setattr(chunks, "_CALL_WORK", {"cpu": 4e8})
    made = planned(OFTEN)
    assert "256 rounds a call" in " ".join(made.programs("advance"))
    before = set(programs._COMPILED)
    assert run.execute(made, tmp_path / "b", run.Options(), lambda _: None, run.Stop()).done
    compiled = collections.Counter(key[0][0] for key in set(programs._COMPILED) - before)
    listed = collections.Counter(name.split()[0].rstrip(":") for name in made.programs())
    # The setup and the start were compiled before.
    assert compiled == {name: 1 for name in ("draw", "pick", "oracle", "advance")}
    assert set(listed.values()) == {1}
    interrupt_sweep.assert_equal_rows(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_what_exact_memory_compiles_is_what_a_sweep_of_few_lanes_runs(tmp_path):
    # A run of these lanes alone would have longer calls, and programs of its own.
    made = planned(OFTEN.replace("context_dim = 3", "context_dim = 2"))
    before = set(programs._COMPILED)
    assert memory.per_bucket(made, exact=True, num_devices=None)
    compiled = set(programs._COMPILED) - before
    drawn = [name[0] for name in compiled if name[0][0] == "draw"]
    assert [parts[2] for parts in drawn] == [chunks.MAX_ROUNDS]
    assert run.execute(made, tmp_path / "a", run.Options(), lambda _: None, run.Stop()).done
    assert set(programs._COMPILED) - before == compiled


def test_replans_are_part_of_the_estimate():
    large = OFTEN.replace("context_dim = 3", "context_dim = 16").replace("seeds = 3", "seeds = 64")
    often, seldom = (planned(large.replace("[1, 700]", f"[{n}]")).seconds for n in (1, 700))
    assert 50.0 < often / seldom < 500.0


def test_configurations_of_one_stream_share_a_cell_and_its_oracle():
    made = planned(MIXED)
    cells = [cell for bucket in made.buckets for cell in bucket.cells]
    # Sizes and noise make another stream; policies and alpha do not.
    assert len(cells) == 2 * 2 * 2
    assert {len(cell.entries) for cell in cells} == {4 * 2}
    covered = sorted(entry.own for cell in cells for entry in cell.entries)
    assert covered == list(range(len(made.spec.configurations)))


def test_padding_is_where_it_is_cheaper_and_the_plan_says_why():
    several = "[fixed]\nadapters = 6\nseeds = 256\npolicies = ['lru']\n"
    several += "[axes]\ncontext_dim = [5, 6, 7, 8]\n"
    short, long = (planned(f"{several}horizon = [{T}]") for T in (1_000, 2_000_000))
    assert [bucket.shape for bucket in short.buckets] == [Shape(8, 8)]
    assert [bucket.shape for bucket in long.buckets] == [Shape(6, d) for d in (5, 6, 7, 8)]
    assert "4 pairs of sizes: about" in short.buckets[0].padding
    never = planned("padding = 'never'\n" + several + "horizon = [1000]")
    assert len(never.buckets) == 4
    assert never.buckets[0].padding == 'the spec says padding = "never"'
    one = planned("[fixed]\nadapters = 6\nseeds = 4\ncontext_dim = 5\n")
    assert [bucket.shape for bucket in one.buckets] == [Shape(6, 5)]
    always = planned("padding = 'always'\n[fixed]\nadapters = 6\nseeds = 4\ncontext_dim = 5\n")
    assert [bucket.shape for bucket in always.buckets] == [Shape(8, 8)]


def test_what_a_size_is_padded_to_depends_on_no_neighbour():
    assert [costs.rung(n) for n in (1, 4, 5, 16, 17, 33, 1_025)] == [4, 4, 8, 16, 32, 48, 2_048]


HORIZONS = """
[fixed]
adapters = 6
context_dim = 3
slots = 2
seeds = 2
policies = ["polar", "polar_plus", "polar_experts", "lru", "oracle_cache"]
[axes]
horizon = [500, 1000, 3000]
"""


def test_only_anytime_policies_on_endless_streams_are_read_off_longer_runs():
    for environment, read_off in (("clustered", 6), ("bernoulli", 6), ("sticky", 0)):
        text = HORIZONS.replace("adapters = 6", f'adapters = 6\nenvironment = "{environment}"')
        made = planned(text)
        entries = [e for bucket in made.buckets for c in bucket.cells for e in c.entries]
        assert made.num_read_off == read_off
        found = {e.policy.name.partition("#")[0] for e in entries if e.read_off}
        assert found == ({"polar_experts", "lru", "oracle_cache"} if read_off else set())
        numbers = [e.own for e in entries] + [i for e in entries for i, _ in e.read_off]
        assert sorted(numbers) == list(range(15))


def test_a_policy_that_knows_its_horizon_does_not_begin_like_a_longer_one():
    sizes: dict[str, Any] = {"num_adapters": 6, "cache_slots": 2, "context_dim": 3}
    for name, expected in (("polar_experts", True), ("lfu", True), ("polar", False)):
        long, short = (policies.policy(name, **sizes, horizon=T) for T in (9_000, 1_000))
        assert anytime.begins_like(long, short) is expected


def test_shards_are_about_as_long_as_they_should_be_and_cover_everything_once():
    text = "[fixed]\nseeds = 200\npolicies = ['lru', 'polar']\n"
    text += "[axes]\nhorizon = [1000, 100000]\nslots = [1, 2, 3]"
    made = planned(text, shard_seconds=5.0)
    assert len(made.shards) > 5
    assert [shard.index for shard in made.shards] == list(range(len(made.shards)))
    seen = collections.Counter(
        (configuration, seed)
        for shard in made.shards
        for batch in shard.batches
        for cell in batch.cells
        for entry in cell.entries
        for configuration in (entry.own, *(one for one, _ in entry.read_off))
        for seed in range(*batch.seeds)
    )
    assert set(seen.values()) == {1}
    assert len(seen) == made.spec.num_lanes
    # Two tiles at least, so that two devices have work.
    sizes = {batch.seeds[1] - batch.seeds[0] for shard in made.shards for batch in shard.batches}
    assert min(sizes - {200 % 64}) >= 64
    assert all(shard.seconds <= 5.0 or len(shard.batches) == 1 for shard in made.shards)


def test_the_plan_is_the_same_whoever_makes_it():
    first, second = planned(MIXED), planned(MIXED)
    assert [shard.decisions for shard in first.shards] == [s.decisions for s in second.shards]
    assert run.describe(first, None) | {"x": 0} == run.describe(second, None) | {"x": 0}


def test_a_paging_file_that_has_changed_is_read_again(tmp_path):
    text = """
[fixed]
adapters = 3
horizon = 500
slots = 1
paging = "costs.csv"
price_per_ms = 0.02
policies = ["lru"]
"""
    for mean_ms in (10.0, 50.0):
        rows = [f"a{i},{mean_ms + i}" for i in range(3)]
        (tmp_path / "costs.csv").write_text("\n".join(["adapter,ms", *rows, ""]), "utf-8")
        made = plan.make(spec.parse(text, name="spec", folder=tmp_path))
        table = made.shards[0].batches[0].cells[0].experiment.costs.table
        assert table is not None
        np.testing.assert_allclose(table.mean_ms, mean_ms + np.arange(3))


def test_cells_that_differ_in_a_price_share_what_is_slow_to_make(monkeypatch):
    read = []
    loads = package_data._read_loads
    monkeypatch.setattr(package_data, "_read_loads", lambda: read.append(1) or loads())
    package_data._qwen_table.cache_clear()
    prices = ", ".join(str(0.001 * (1 + one)) for one in range(40))
    made = planned(MIXED.replace("noise = [0.1, 0.2]", f"price_per_ms = [{prices}]"))
    experiments = [cell.experiment for bucket in made.buckets for cell in bucket.cells]
    assert len(experiments) == 2 * 2 * 40
    assert len(read) == 1
    assert len({id(one.costs.table) for one in experiments}) == 1
    assert len({id(one.environment_params) for one in experiments}) == 1


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_study_can_be_planned(path):
    made = plan.make(spec.read(path))
    assert made.spec.title
    assert made.spec.description
    assert made.seconds + costs.COMPILE_POLICY * len(made.programs("advance")) < 600.0
    assert np.isfinite(made.seconds)
