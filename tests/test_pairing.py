"""Which folders may be compared seed by seed, and what is told of those that may."""

import json
import pathlib
import re
from typing import Any

import polars as pl
import pytest
import sweep_rows
from sweep_helpers import FACTS, MANIFEST

from polar_jax import cli
from polar_jax.sweep import compare, pairing, store

RESULTS = ["configuration", "run_horizon", "padded_adapters", "padded_dim", "mean_paging_cost"]


def run_folder(path: pathlib.Path, rows: pl.DataFrame, **options: Any) -> pathlib.Path:
    """The folder of a `polar-jax run` with these options."""
    path.mkdir()
    rows.drop(RESULTS, strict=False).write_parquet(path / "results.parquet")
    (path / "manifest.json").write_text(json.dumps({"options": options}))
    return path


def sweep_folder(path: pathlib.Path, rows: pl.DataFrame, **fixed: Any) -> pathlib.Path:
    """The folder of a sweep with these fixed options."""
    opened = store.create_or_open(path, MANIFEST | {"fixed": fixed, "num_lanes": rows.height})
    opened.write_shard(0, rows.to_arrow(), FACTS)
    return path


def made(axes: dict[str, list[Any]] | None = None) -> pl.DataFrame:
    rows = sweep_rows.make_rows(axes or {}, ("lru", "static"), seeds=3)
    return rows if axes and "environment" in axes else rows.drop("environment", strict=False)


def lines(left: pathlib.Path, right: pathlib.Path) -> list[str]:
    return pairing.paired(pairing.read(left), pairing.read(right))[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 7}, "base_seed is 0 in the first and 7 in the second"),
        ({"environment": "sticky"}, "environment is clustered in the first and sticky in the s"),
        ({"clusters": 4}, "clusters is 6 in the first and 4 in the second"),
        ({"theta_spread": 0.5}, "theta_spread is 0.35 in the first and 0.5 in the second"),
        ({"zipf": 0.0}, "zipf is 1.2 in the first and 0 in the second"),
        ({"costs": "synthetic:0.3"}, "costs is qwen2.5-7b in the first and synthetic:0.3 in"),
        ({"tier": "cold"}, "tier is disk+memory in the first and cold in the second"),
        ({"paging": "a.csv"}, "paging is default in the first and a.csv in the second"),
    ],
)
@pytest.mark.parametrize("make", [run_folder, sweep_folder])
def test_folders_with_other_draws_are_refused(
    tmp_path: pathlib.Path, options: dict[str, Any], said: str, make: Any
) -> None:
    left, right = run_folder(tmp_path / "a", made()), make(tmp_path / "b", made(), **options)
    with pytest.raises(ValueError, match=re.escape(f"rows cannot be paired by seed, as {said}")):
        lines(left, right)
    assert lines(right, right) == []


def test_other_options_that_differ_are_told(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = sweep_folder(tmp_path / "a", made(), alpha=0.5, beta="constant")
    right = run_folder(tmp_path / "b", made(), alpha=1.0, beta="theory", noise=0.2)
    assert lines(left, right) == [
        "alpha 0.5 in the first, 1 in the second",
        "beta constant in the first, theory in the second",
        "noise 0.1 in the first, 0.2 in the second",
    ]
    assert cli.main(["compare", str(left), str(right)]) == 0
    assert "alpha 0.5 in the first, 1 in the second." in capsys.readouterr().out


def test_the_command_refuses_in_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left, right = run_folder(tmp_path / "a", made()), run_folder(tmp_path / "b", made(), seed=1)
    assert cli.main(["compare", str(left), str(right)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "base_seed is 0 in the first and 1 in the second" in line


def test_an_option_that_the_stream_does_not_read_draws_nothing(tmp_path: pathlib.Path) -> None:
    left = run_folder(tmp_path / "a", made(), period=500)
    right = run_folder(tmp_path / "b", made())
    assert lines(left, right) == ["period 500 in the first, 2,000 in the second"]
    moving = made({"environment": ["clustered", "rotating"]})
    left = sweep_folder(tmp_path / "c", moving, period=500)
    right = sweep_folder(tmp_path / "d", moving)
    with pytest.raises(ValueError, match="period is 500 in the first and 2,000 in the second"):
        lines(left, right)


def test_rows_of_an_axis_are_matched_with_what_the_other_folder_fixes(
    tmp_path: pathlib.Path,
) -> None:
    axes: dict[str, list[Any]] = {"alpha": [0.1, 0.5], "epoch_length": [None, 64]}
    left, right, told = pairing.paired(
        pairing.read(sweep_folder(tmp_path / "a", made(axes))),
        pairing.read(run_folder(tmp_path / "b", made(), alpha=0.5)),
    )
    assert told == []
    found = compare.compare(left.rows, right.rows)
    assert (found.matched, found.only_left, found.only_right) == (6, 18, 0)
    assert found.ignored == ()
    assert all(one.where["alpha"] == 0.5 for one in found.differences)


@pytest.mark.parametrize(("text", "said"), [(None, "is missing"), ("{}", "is damaged")])
def test_rows_of_a_run_without_its_options_are_refused(
    tmp_path: pathlib.Path, text: str | None, said: str
) -> None:
    folder = run_folder(tmp_path / "a", made())
    (folder / "manifest.json").unlink()
    if text is not None:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        pairing.read(folder)
