"""One table from all shards, and arrays over the axes."""

import builtins
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
from sweep_helpers import FACTS, MANIFEST, filled, rows

from polar_jax import sweep
from polar_jax.sweep import store, table

ROOT = pathlib.Path(__file__).parents[1]


def test_all_shards_make_one_sorted_table(tmp_path: pathlib.Path) -> None:
    opened = store.create_or_open(tmp_path, MANIFEST)
    for index in (3, 0, 2, 1):
        # The order of configurations need not be that of shards.
        opened.write_shard(index, rows(3 - index), FACTS)
    frame = sweep.load(str(tmp_path))
    assert frame["configuration"].to_list() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert frame["seed"].to_list() == [0, 1, 2] * 4
    assert frame["curve_round"].to_list() == [[1, 2]] * 12
    assert frame.columns == rows(0).column_names
    assert table.coverage(tmp_path) == (12, 0, 4, (), (), ())


def test_a_lane_that_is_there_twice_is_refused(tmp_path: pathlib.Path) -> None:
    filled(tmp_path).write_shard(4, rows(2), FACTS)
    for read in (table.load, table.coverage):
        with pytest.raises(store.StoreError, match="configuration 2 with seed 2 more than once"):
            read(tmp_path)
    with pytest.raises(store.StoreError, match="more than once"):
        table.load(tmp_path, columns=["regret"])


def test_columns_may_be_chosen_and_a_wrong_one_is_named(tmp_path: pathlib.Path) -> None:
    filled(tmp_path)
    frame = table.load(tmp_path, columns=["regret", "policy"])
    assert frame.columns == ["regret", "policy"]
    assert frame["regret"].to_list() == table.load(tmp_path)["regret"].to_list()
    with pytest.raises(store.StoreError, match="no column 'regrets'; nearest is 'regret'"):
        table.load(tmp_path, columns=["regrets"])


def test_missing_shards_are_counted_and_refused_on_request(tmp_path: pathlib.Path) -> None:
    opened = store.create_or_open(tmp_path, MANIFEST)
    with pytest.raises(store.StoreError, match=r"lacks 12 rows; `polar-jax sweep run"):
        table.load(tmp_path)
    opened.write_shard(2, rows(2), FACTS)
    opened.record_failure(1, "it failed", "trace")
    assert table.load(tmp_path).height == 3
    found = table.coverage(tmp_path)
    assert (found.rows, found.missing, found.shards, found.failed) == (3, 9, 1, (1,))
    with pytest.raises(store.StoreError, match="lacks 9 rows"):
        table.load(tmp_path, allow_partial=False)


def test_an_axis_may_be_whole_in_one_shard_and_broken_in_the_next(tmp_path: pathlib.Path) -> None:
    opened = store.create_or_open(tmp_path, MANIFEST)
    for index, alpha in enumerate((1, 0.5)):
        opened.write_shard(index, rows(index, 1).append_column("alpha", [[alpha]]), FACTS)
    assert table.load(tmp_path)["alpha"].to_list() == [1.0, 0.5]


def test_the_folder_of_a_plain_run_loads_as_it_is(tmp_path: pathlib.Path) -> None:
    (tmp_path / "manifest.json").write_text('{"options": {}}')
    frame = pl.DataFrame({"policy": ["lru", "polar"], "seed": [1, 0], "regret": [1.0, 2.0]})
    frame.write_parquet(tmp_path / "results.parquet")
    assert table.load(tmp_path).equals(frame)
    assert table.load(tmp_path, columns=["seed"]).equals(frame.select("seed"))
    (tmp_path / "results.parquet").write_bytes(b"PAR1")
    with pytest.raises(store.StoreError, match=r"results\.parquet' is damaged; run it again"):
        table.load(tmp_path)


def test_arrays_over_the_axes_hold_every_row_at_its_place(tmp_path: pathlib.Path) -> None:
    filled(tmp_path)
    frame = sweep.load(tmp_path)
    data = sweep.to_xarray(frame, ["policy", "cache_slots"])
    assert dict(data.sizes) == {"policy": 2, "cache_slots": 2, "seed": 3}
    assert "curve_round" not in data
    for row in frame.iter_rows(named=True):
        place = {name: row[name] for name in ("policy", "cache_slots", "seed")}
        assert data["regret"].sel(place).item() == row["regret"]
        assert data["page_ins"].sel(place).item() == row["page_ins"]
    assert data["page_ins"].dtype == np.int64
    assert data["regret"].mean("seed").dims == ("policy", "cache_slots")


def test_missing_rows_and_empty_values_become_gaps() -> None:
    frame = pl.DataFrame(
        {
            "environment": ["rotating", "rotating", "clustered"],
            "period": [500, 2000, None],
            "seed": [0, 0, 0],
            "page_ins": [1, 2, 3],
            "oracle_exact": [True, False, True],
            "note": ["a", None, "c"],
        }
    )
    data = sweep.to_xarray(frame, ["environment", "period"])
    np.testing.assert_array_equal(data["period"], [500.0, 2000.0, np.nan])
    np.testing.assert_array_equal(
        data["page_ins"].squeeze("seed"), [[np.nan, np.nan, 3.0], [1.0, 2.0, np.nan]]
    )
    np.testing.assert_array_equal(
        data["oracle_exact"].squeeze("seed"), [[np.nan, np.nan, 1.0], [1.0, 0.0, np.nan]]
    )
    assert data["note"].squeeze("seed").values.tolist() == [["", "", "c"], ["a", "", ""]]


def test_axes_that_do_not_tell_rows_apart_are_refused(tmp_path: pathlib.Path) -> None:
    filled(tmp_path)
    frame = sweep.load(tmp_path)
    with pytest.raises(ValueError, match=r"one policy, seed\. .* vary too: cache_slots\."):
        sweep.to_xarray(frame, ["policy"])
    with pytest.raises(ValueError, match="no column 'polcy'; nearest is 'policy'"):
        sweep.to_xarray(frame, ["polcy"])


def test_without_xarray_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "xarray":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "polar_jax\[xarray\]"'):
        sweep.to_xarray(pl.DataFrame({"seed": [0]}), [])


@pytest.mark.parametrize(
    "statement",
    ["import polar_jax.sweep", "from polar_jax.sweep import claims, store, table"],
)
def test_importing_the_store_loads_nothing_heavy(statement: str) -> None:
    heavy = ("jax", "polars", "pyarrow", "xarray", "matplotlib")
    text = f"import sys\n{statement}\nprint(*[n for n in {heavy} if n in sys.modules])"
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_the_package_has_the_names_it_promises_and_no_others() -> None:
    assert sorted(sweep.__all__) == ["load", "to_xarray"]
    assert set(sweep.__all__) <= set(dir(sweep))
    with pytest.raises(AttributeError, match="no attribute 'loud'"):
        _ = sweep.loud
