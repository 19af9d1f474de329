"""What a run writes: the table's columns and sums, the manifest, whole files, numbers."""

import json
import os
import pathlib
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import polar_jax
from polar_jax import config, configured, environments, experiment, figures, lanes, policies, tables

# The columns that readers of `results.parquet` rely on.
COLUMNS = [
    "policy",
    "seed",
    "num_adapters",
    "cache_slots",
    "context_dim",
    "horizon",
    "regret",
    "regret_routing",
    "regret_forced",
    "regret_caching",
    "regret_switching",
    "loss_to_full",
    "net_utility",
    "hit_rate",
    "paging_ms_per_request",
    "switching_ms_per_request",
    "waiting_ms_per_request",
    "page_ins",
    "loads",
    "oracle_exact",
    "curve_round",
    "curve_regret",
    "curve_loss_to_full",
]
SMALL = {"adapters": 5, "slots": 2, "context_dim": 3, "horizon": 600, "seeds": 3}
POLICIES = ("lru", "static", "oracle_cache")


def small(**changes: Any) -> config.RunConfig:
    return config.RunConfig(**{**SMALL, "policies": POLICIES, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[lanes.Results, pathlib.Path]:
    out = tmp_path_factory.mktemp("experiment") / "out"
    return polar_jax.run_experiment(small(out=out)), out


@pytest.fixture(scope="module")
def table(run: tuple[lanes.Results, pathlib.Path]) -> dict[str, list[Any]]:
    return pyarrow.parquet.read_table(run[1] / "results.parquet").to_pydict()


def test_a_run_writes_its_four_files_and_nothing_else(
    run: tuple[lanes.Results, pathlib.Path],
) -> None:
    names = sorted(path.name for path in run[1].iterdir())
    assert names == ["manifest.json", "regret.png", "report.html", "results.parquet"]
    assert (run[1] / "regret.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_the_promised_columns_and_a_row_per_lane(table: dict[str, list[Any]]) -> None:
    assert list(table) == COLUMNS == list(tables.COLUMNS)
    assert table["policy"] == [name for name in POLICIES for _ in range(3)]
    assert table["seed"] == [0, 1, 2] * 3
    sizes = ("num_adapters", "cache_slots", "context_dim", "horizon")
    assert {name: set(table[name]) for name in sizes} == {
        "num_adapters": {5},
        "cache_slots": {2},
        "context_dim": {3},
        "horizon": {600},
    }


def test_the_table_has_whole_numbers_where_things_are_counted(
    run: tuple[lanes.Results, pathlib.Path],
) -> None:
    schema = pyarrow.parquet.read_schema(run[1] / "results.parquet")
    for name in ("seed", "page_ins", "loads"):
        assert str(schema.field(name).type) == "int64"
    assert str(schema.field("curve_round").type) == "list<element: int64>"
    assert str(schema.field("curve_regret").type) == "list<element: double>"
    assert str(schema.field("oracle_exact").type) == "bool"


def test_parts_add_up_and_rates_agree_with_counts(table: dict[str, list[Any]]) -> None:
    column = {name: np.array(table[name]) for name in COLUMNS[6:18]}
    parts = [column[f"regret_{part}"] for part in ("routing", "caching", "switching")]
    scale = 1.0 + sum(np.abs(part) for part in parts)
    assert np.all(np.abs(column["regret"] - sum(parts)) <= 1e-6 * scale)
    np.testing.assert_allclose(column["hit_rate"], 1.0 - column["page_ins"] / 600)
    assert np.all(np.abs(column["net_utility"]) <= 1.0 + 1e-6)


def test_curves_end_at_the_totals(table: dict[str, list[Any]]) -> None:
    for row, rounds in enumerate(table["curve_round"]):
        assert rounds == sorted(set(rounds))
        assert {600 // 16, 600 // 4, 600} <= set(rounds)
        for name in ("regret", "loss_to_full"):
            curve = table[f"curve_{name}"][row]
            assert len(curve) == len(rounds)
            assert curve[-1] == table[name][row]


def test_the_manifest_says_how_to_repeat_the_run(run: tuple[lanes.Results, pathlib.Path]) -> None:
    manifest = json.loads((run[1] / "manifest.json").read_text())
    assert manifest["problem"] == {
        "num_adapters": 5,
        "cache_slots": 2,
        "context_dim": 3,
        "horizon": 600,
    }
    assert set(manifest["options"]) == set(config.RunConfig.__dataclass_fields__)
    assert manifest["seeds"] == [0, 1, 2]
    assert manifest["policies"] == list(POLICIES)
    assert manifest["paging"]["origin"].startswith("measured: Qwen2.5-7B")
    assert len(manifest["paging"]["mean_ms"]) == 5
    assert {"python", "jax", "jaxlib", "numpy", "polar_jax"} <= set(manifest["versions"])
    assert {"platform", "device_kind", "cpu"} <= set(manifest["machine"])
    assert manifest["oracle_exact"] is True
    assert manifest["decisions"] == 3 * 3 * 600
    for name in ("tile", "num_devices", "decisions_per_second", "seconds_running"):
        assert manifest[name] > 0
    assert "seconds_compiling" in manifest
    assert "git" in manifest


def test_equal_options_give_equal_tables(
    run: tuple[lanes.Results, pathlib.Path], table: dict[str, list[Any]]
) -> None:
    out = run[1].parent / "again"
    experiment.run_experiment(small(out=out, devices=1))
    assert pyarrow.parquet.read_table(out / "results.parquet").to_pydict() == table


def test_the_table_survives_a_figure_that_fails(
    run: tuple[lanes.Results, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run[1].parent / "broken"
    experiment.run_experiment(small(out=out))

    def fail(_: lanes.Results) -> bytes:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(figures, "regret_png", fail)
    with pytest.raises(RuntimeError, match="no fonts"):
        experiment.run_experiment(small(out=out, overwrite=True, seed=1))
    # The figures of the earlier run went, as they no longer belong to the table.
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "results.parquet"]
    assert json.loads((out / "manifest.json").read_text())["base_seed"] == 1


def test_numbers_that_overflow_are_reported_and_not_drawn(
    run: tuple[lanes.Results, pathlib.Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run[0].policies["lru"]
    broken = result._replace(totals={**result.totals, "regret": np.full(3, np.nan)})
    results = run[0]._replace(policies={**run[0].policies, "lru": broken})
    monkeypatch.setattr(lanes, "run", lambda *_, **__: results)
    out = run[1].parent / "overflow"
    with pytest.raises(FloatingPointError, match="figures of lru are not finite"):
        experiment.run_experiment(small(out=out))
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "results.parquet"]


def test_bad_options_leave_no_folder(tmp_path: pathlib.Path) -> None:
    for bad in ({"slots": 6}, {"environment": "cluster"}, {"policies": ("lur",)}, {"stay": 0.95}):
        with pytest.raises(ValueError, match="must be"):
            experiment.prepare(small(out=tmp_path / "out", **bad))
    assert list(tmp_path.iterdir()) == []


def test_policies_are_named_with_commas_spaces_or_all() -> None:
    names = config.policy_names(small(policies=("lru,static", "lfu, gdsf")), policies.NAMES)
    assert names == ("lru", "static", "lfu", "gdsf")
    assert config.policy_names(small(policies=("all",)), policies.NAMES) == policies.NAMES
    for bad, message in (((), "got none"), (("lru", "lru"), "lru more than once")):
        with pytest.raises(ValueError, match=message):
            config.policy_names(small(policies=bad), policies.NAMES)


def test_the_help_names_every_policy_and_environment() -> None:
    words = (config.RunConfig.__doc__ or "").replace(",", " ").replace(".", " ").split()
    assert set(policies.NAMES) <= set(words)
    assert set(environments.NAMES) <= set(words)
    assert set(config.DEFAULT_POLICIES) <= set(policies.NAMES)


def test_defaults_of_options_are_those_of_the_engine() -> None:
    settings, options = policies.Settings(), config.RunConfig()
    for name in ("alpha", "ridge", "beta", "epoch_length", "window", "switching_term"):
        assert getattr(options, name) == getattr(settings, name)
    assert options.noise == settings.sigma
    assert options.price_per_ms == lanes.Costs().price_per_ms


def test_all_adapters_of_a_paging_file_are_meant_unless_told_otherwise(tmp_path):
    file = tmp_path / "loads.csv"
    for count in (3, 20):
        rows = "".join(f"a{i},{i + 1}\n" for i in range(count))
        file.write_text("adapter,ms\n" + rows)
        os.utime(file, ns=(count, count))  # A file that has changed is read again.
        meant = configured.with_own_sizes(config.RunConfig(paging=file))
        assert meant.adapters == count
        assert config.num_slots(meant) == min(4, count)
        few = configured.with_own_sizes(config.RunConfig(paging=file, adapters=2))
        assert few.adapters == 2
