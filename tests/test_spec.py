"""Specs of sweeps: what a file means, what it is refused for, and what changes its hash."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_jax import config, draws, environments, policies, replay_streams, routers
from polar_jax.config import RunConfig
from polar_jax.io import arrivals, package_data, replay_files
from polar_jax.sweep import grid, spec

quick = settings(derandomize=True, deadline=None, max_examples=60)
whole = st.integers(1, 10**6)
HASH_BEFORE_TIERS = "cf71ba5d8ed8cb0df153e54dbaf20ff25478cc6c33f4773dd3375a9b95d9515e"
NOWHERE = pathlib.Path("/nonexistent")
EXAMPLE = """
title = "What do slots buy?"
description = "A longer text."
filters = ["cache_slots <= num_adapters"]
[fixed]
adapters = 4
policies = ["polar_plus", "lru"]
seeds = 3
[axes]
horizon = {from = 1e3, to = 1e5, points = 3, scale = "log"}
slots = [2, 8]
[[zip]]
environment = ["clustered", "rotating", "rotating"]
period = [2000, 500, 2000]
[scaling]
axis = "horizon"
[report]
x = "slots"
"""


def parsed(text: str, folder: pathlib.Path = NOWHERE) -> spec.Spec:
    """A spec called `study`."""
    return spec.parse(text, name="study", folder=folder)


def axis(text: str) -> tuple[object, ...]:
    """The values of the slowest axis of a spec, which is the one that is not policy."""
    return parsed(text).axes[0].values


# What a file means


def test_the_names_checked_without_jax_are_the_engines() -> None:
    assert config.POLICIES == policies.NAMES
    assert config.ENVIRONMENTS == environments.NAMES
    assert config.ORDERS == replay_streams.ORDERS
    assert config.BENCHMARKS == replay_streams.BENCHMARKS
    assert config.TRACES == arrivals.TRACES
    assert config.REPLAY_SUFFIXES == replay_files.SUFFIXES
    assert tuple(routers.BETAS) == config.BETAS
    assert routers.PRIORS == config.PRIORS
    assert config.MAX_STAY == draws.MAX_STAY
    assert config.MEASURED_TIERS == package_data.TIERS
    assert set(config.DEFAULT_POLICIES) <= set(config.POLICIES)


def test_reading_a_spec_loads_neither_jax_nor_polars() -> None:
    program = (
        "import sys, pathlib; from polar_jax.sweep import spec\n"
        "spec.parse('', name='a', folder=pathlib.Path())\n"
        "print(*[n for n in ('jax', 'polars', 'pyarrow', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert done.stdout.strip() == ""


def test_every_option_of_a_run_is_one_of_the_spec_or_of_the_command_line() -> None:
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    assert {*grid.KINDS, *grid.ON_COMMAND_LINE} == fields


def test_an_example_becomes_its_configurations() -> None:
    found = parsed(EXAMPLE)
    assert [one.name for one in found.axes] == [
        *("horizon", "cache_slots", "environment", "period", "policy")
    ]
    assert [one.zipped for one in found.axes] == [None, None, 0, 0, None]
    assert found.axes[0].values == (1000, 10_000, 100_000)
    # 3 horizons, 1 of 2 slots, 3 zipped rows, 2 policies; 3 seeds.
    assert (len(found.configurations), found.num_lanes) == (18, 54)
    first = found.configurations[0]
    assert first.values == {
        "horizon": 1000,
        "cache_slots": 2,
        "environment": "clustered",
        "period": 2000,
        "policy": "polar_plus",
    }
    assert (first.config.slots, first.config.horizon, first.config.seeds) == (2, 1000, 3)
    assert first.config.policies == ("polar_plus",)
    assert (found.scaling_axis, found.report_x, found.padding) == ("horizon", "cache_slots", "auto")


def test_policies_vary_fastest_then_the_last_axis_of_the_file() -> None:
    found = parsed(
        '[axes]\npolicies = ["lru", "lfu"]\nslots = [2, 1]\n[[zip]]\nalpha = [1, 0]\n'
        "[[zip]]\nridge = [3, 2]\n"
    )
    rows = [tuple(one.values[axis.name] for axis in found.axes) for one in found.configurations]
    assert [one.name for one in found.axes] == ["cache_slots", "alpha", "ridge", "policy"]
    assert rows == list(itertools.product([2, 1], [1.0, 0.0], [3.0, 2.0], ["lru", "lfu"]))
    assert [one.index for one in found.configurations] == list(range(16))


def test_indices_are_counted_after_the_filters() -> None:
    found = parsed('filters = ["alpha > 0"]\n[axes]\nalpha = [0, 1]\npolicy = ["lru", "lfu"]')
    assert [(one.index, one.values["alpha"]) for one in found.configurations] == [(0, 1), (1, 1)]


def test_the_example_of_the_manual_is_a_spec_of_the_size_it_says() -> None:
    page = (pathlib.Path(__file__).parents[1] / "docs" / "sweep_spec.md").read_text("utf-8")
    example = "\n".join(
        line[4:]
        for line in page.partition("Adapters and slots make")[0].splitlines()
        if line.startswith("    ")
    )
    found = parsed(example)
    assert (len(found.configurations), found.num_lanes) == (918, 58_752)
    assert f"{len(found.configurations)} configurations and {found.num_lanes:,} lanes" in page


def test_an_empty_file_is_the_defaults_of_a_run() -> None:
    found = parsed("")
    assert [one.values["policy"] for one in found.configurations] == list(config.DEFAULT_POLICIES)
    assert found.configurations[0].config == RunConfig(
        policies=(config.DEFAULT_POLICIES[0],),
        costs=config.MEASURED_COSTS,
        slots=config.DEFAULT_SLOTS,
        adapters=config.DEFAULT_ADAPTERS,
        context_dim=config.DEFAULT_CONTEXT_DIM,
    )
    assert "policies" not in found.fixed
    assert found.fixed["costs"] == config.MEASURED_COSTS


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ('policies = "all"', config.POLICIES),
        ('policy = ["all"]', config.POLICIES),
        ('policies = "lru, polar"', ("lru", "polar")),
        ('policies = ["lru"]', ("lru",)),
    ],
)
def test_policies_are_an_axis_however_they_are_written(line: str, names: tuple[str, ...]) -> None:
    for table in ("fixed", "axes"):
        found = parsed(f"[{table}]\n{line}")
        assert [(one.name, one.values) for one in found.axes] == [("policy", names)]


def test_columns_are_accepted_as_names_of_options() -> None:
    by_column = parsed(
        '[fixed]\nbase_seed = 7\npolicy = "lru"\n[axes]\nnum_adapters = [4, 5]\ncache_slots = [1]'
    )
    by_option = parsed(
        '[fixed]\nseed = 7\npolicies = "lru"\n[axes]\nadapters = [4, 5]\nslots = [1]'
    )
    assert by_column.configurations == by_option.configurations
    assert by_column.axes == by_option.axes


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("horizon = 1e3", "horizon", 1000),
        ("alpha = 1", "alpha", 1.0),
        ("switching_term = false", "switching_term", False),
        ('costs = "synthetic:2"', "costs", "synthetic:2"),
        ("segments = 3", "segments", 3),
    ],
)
def test_values_take_their_options_type(line: str, option: str, value: object) -> None:
    found = parsed(f"[fixed]\n{line}")
    for held in (getattr(found.configurations[0].config, option), found.fixed[option]):
        assert held == value
        assert type(held) is type(value)


def test_paging_files_are_relative_to_the_specs_folder(tmp_path: pathlib.Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("adapter,ms\nx,1\n")
    fixed = parsed('[fixed]\npaging = "a.csv"', tmp_path)
    assert fixed.configurations[0].config.paging == tmp_path / "a.csv"
    assert (fixed.fixed["paging"], "costs" in fixed.fixed) == ("a.csv", False)
    crossed = parsed('[axes]\npaging = ["a.csv", "b.csv"]', tmp_path)
    assert crossed.axes[0].values == ("a.csv", "b.csv")
    assert crossed.configurations[-1].config.paging == tmp_path / "b.csv"


# Ranges


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("alpha = {from = 0, to = 0.3, points = 4}", (0.0, 0.1, 0.2, 0.3)),
        ("alpha = {from = 0, to = 0.3, step = 0.1}", (0.0, 0.1, 0.2, 0.3)),
        ("alpha = {from = 0, to = 0.35, step = 0.1}", (0.0, 0.1, 0.2, 0.3)),
        ("alpha = {from = 2, to = 2, points = 1}", (2.0,)),
        ('alpha = {from = 0.01, to = 1, points = 3, scale = "log"}', (0.01, 0.1, 1.0)),
        ("slots = {from = 1, to = 4, step = 1}", (1, 2, 3, 4)),
        ("slots = {from = 1, to = 3, points = 10}", (1, 2, 3)),
        ('horizon = {from = 1e3, to = 1e4, points = 3, scale = "log"}', (1000, 3162, 10_000)),
    ],
)
def test_ranges_include_their_ends_and_round_whole_options(
    given: str, values: tuple[float, ...]
) -> None:
    found = axis(f"[axes]\n{given}")
    assert found == values
    assert {type(one) for one in found} == {type(values[0])}


@quick
@given(ends=st.tuples(whole, whole), points=st.integers(2, 40), log=st.booleans())
def test_whole_ranges_rise_without_repeats_between_their_ends(
    ends: tuple[int, int], points: int, log: bool
) -> None:
    low, high = sorted(ends)
    scale = "log" if log else "linear"
    ends_and_points = {"from": low, "to": high, "points": points}
    found = grid.expand("it", "horizon", {**ends_and_points, "scale": scale})
    assert (found[0], found[-1]) == (low, high)
    assert list(found) == sorted(set(found))
    assert len(found) <= points
    if not log and high - low >= points:
        assert len(found) == points


@quick
@given(
    low=st.floats(1e-300, 1e300),
    ratio=st.floats(1.0, 1e6),
    points=st.integers(2, 40),
    log=st.booleans(),
)
def test_ranges_of_floats_keep_their_ends_and_stay_between(
    low: float, ratio: float, points: int, log: bool
) -> None:
    high = low * ratio
    scale = "log" if log else "linear"
    found = grid.expand("it", "alpha", {"from": low, "to": high, "points": points, "scale": scale})
    assert (len(found), found[0], found[-1]) == (points, low, high)
    assert all(low <= one <= high for one in found)
    assert list(found) == sorted(found)


# Hash and manifest


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('title = "What do slots buy?"', 'title = "Other"', True),
        ("[scaling]", "# A remark.\n[scaling]", True),
        ('axis = "horizon"', 'axis = "slots"', True),
        ('x = "slots"', 'x = "horizon"', True),
        ("adapters = 4\n", "", False),
        ("adapters = 4\n", "num_adapters = 4.0\nalpha = 0.5\n", True),
        ("adapters = 4\n", 'adapters = 4\ncosts = "qwen2.5-7b"\n', True),
        ('title = "What do slots buy?"', 'padding = "auto"', True),
        ('title = "What do slots buy?"', 'padding = "always"', False),
        ("slots = [2, 8]", "slots = [2]", True),
        ("slots = [2, 8]", "slots = [2, 1]", False),
        ("seeds = 3", "seeds = 4", False),
        ('["polar_plus", "lru"]', '["lru", "polar_plus"]', False),
        ("adapters = 4\n", "adapters = 4\nnoise = 0.2\n", False),
        ("period = [2000, 500, 2000]", "period = [2000, 501, 2000]", False),
    ],
)
def test_the_hash_is_that_of_the_rows(old: str, new: str, same: bool) -> None:
    assert EXAMPLE.count(old) == 1
    assert (parsed(EXAMPLE).spec_hash == parsed(EXAMPLE.replace(old, new)).spec_hash) == same


def test_an_axis_of_one_value_is_a_column_and_hashed_as_one() -> None:
    assert parsed("[fixed]\nalpha = 1").spec_hash != parsed("[axes]\nalpha = [1]").spec_hash


def test_the_hash_follows_a_paging_files_content_not_its_place(tmp_path: pathlib.Path) -> None:
    text = '[fixed]\npaging = "a.csv"'
    hashes = []
    for folder, content in (("one", "1"), ("two", "1"), ("three", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text(f"adapter,ms\nx,{content}\n")
        hashes.append(parsed(text, tmp_path / folder).spec_hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_every_option_that_decides_rows_is_hashed() -> None:
    base = parsed('[fixed]\npolicies = "lru"')
    changed = {
        **{"adapters": 14, "slots": 3, "context_dim": 7, "horizon": 9, "seeds": 2, "seed": 1},
        **{"policies": "lfu", "environment": "sticky", "clusters": 5, "zipf": 1, "spread": 1},
        **{"theta_spread": 1, "stay": 0.5, "segments": 2, "period": 3, "costs": "synthetic:1"},
        **{"price_per_ms": 1, "alpha": 1, "ridge": 2, "noise": 1, "epoch_length": 5, "window": 9},
        **{"switching_term": False, "beta": "theory", "tier": "cold"},
        **{"capacity_bytes": 4, "prior": "pooled"},
    }
    of_replays = {"order", "arrivals", "missing", "benchmark"}  # See test_replay_sweeps.
    # A file's hash, and sizes that need a capacity, have tests of their own.
    assert {*changed, "paging", "size_bytes", *of_replays} == set(grid.KINDS)
    first = {option: "" if option == "policies" else 'policies = "lru"\n' for option in changed}
    hashes = {
        parsed(f"[fixed]\n{first[option]}{option} = {json.dumps(value)}").spec_hash
        for option, value in changed.items()
    }
    assert len(hashes | {base.spec_hash}) == len(changed) + 1


def test_an_option_that_came_later_changes_no_hash_where_it_is_not_set() -> None:
    # The hash of this text before there were tiers: sweeps stored then are gone on with.
    found = parsed('[fixed]\npolicies = "lru"\nseeds = 2').spec_hash
    assert found == HASH_BEFORE_TIERS


def test_a_tier_is_an_axis_and_goes_with_measured_costs() -> None:
    found = parsed('[axes]\ntier = ["memory", "disk+memory", "cold", "remote"]')
    assert [one.name for one in found.axes] == ["tier", "policy"]
    assert {one.config.tier for one in found.configurations} == set(found.axes[0].values)
    with pytest.raises(spec.SpecError, match=r"tier must be one of disk\+memory, .*got 'dsk'"):
        parsed('[fixed]\ntier = "dsk"')
    with pytest.raises(spec.SpecError, match="tier goes with measured load times, got tier 'cold'"):
        parsed('[fixed]\ntier = "cold"\ncosts = "synthetic:1"')


def test_the_hash_is_sha256_of_the_axes_columns_and_of_every_option_as_json() -> None:
    head = {"columns": ["cache_slots", "policy"], "padding": "auto", "schema": spec.SCHEMA}
    rows = [
        {
            **{opt: getattr(RunConfig(), opt) for opt in grid.KINDS if opt not in grid.LATER},
            **{
                "adapters": 15,
                "context_dim": 8,
                "policies": ["lru"],
                "seeds": 2,
                "slots": slots,
                "costs": "qwen2.5-7b",
            },
        }
        for slots in (1, 2)
    ]
    text = "".join(
        json.dumps(part, sort_keys=True, separators=(",", ":")) for part in (head, *rows)
    )
    found = parsed('[fixed]\npolicies = "lru"\nseeds = 2\n[axes]\nslots = [1, 2]')
    assert found.spec_hash == hashlib.sha256(text.encode()).hexdigest()


def test_a_manifest_gets_every_field_in_plain_values() -> None:
    found = parsed(EXAMPLE)
    told = found.describe()
    assert json.loads(json.dumps(told)) == told
    assert set(told) == {
        *("name", "title", "description", "spec_hash", "spec_text", "fixed", "axes", "filters"),
        *("num_configurations", "num_lanes", "seeds", "scaling", "report"),
    }
    assert told["axes"][1] == {"name": "cache_slots", "values": [2, 8], "zipped": None}
    assert (told["scaling"], told["report"]) == (
        {"axis": "horizon"},
        {"x": "cache_slots", "chosen_on": None},
    )
    assert (told["num_configurations"], told["num_lanes"], told["seeds"]) == (18, 54, 3)
    assert (told["spec_text"], told["spec_hash"]) == (EXAMPLE, found.spec_hash)
    axes = {grid.option_of(one.name) for one in found.axes}
    unset = {"paging", "segments", "epoch_length", *grid.LATER} - {"benchmark"}
    assert set(told["fixed"]) == set(grid.KINDS) - axes - unset


def test_without_hints_the_manifest_says_so() -> None:
    told = parsed("").describe()
    assert (told["scaling"], told["report"], told["title"]) == (
        None,
        {"x": None, "chosen_on": None},
        "",
    )
