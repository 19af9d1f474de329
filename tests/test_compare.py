"""Comparing two folders: matched rows, paired differences, and what does not match."""

import io
import math
import re
from typing import Any

import polars as pl
import pytest
import rich.console
import sweep_rows

from polar_jax.sweep import compare
from polar_jax.sweep.compare import Comparison

AXES: dict[str, list[Any]] = {"horizon": [1_000, 2_000], "cache_slots": [1, 4]}


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return sweep_rows.make_rows(AXES, ("polar_plus", "lru"), seeds=5)


def printed(comparison: Comparison) -> str:
    console = rich.console.Console(file=io.StringIO(), width=200)
    compare.print_comparison(console, comparison)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def moved(rows: pl.DataFrame, where: pl.Expr, figure: str, by: list[float]) -> pl.DataFrame:
    """The rows with a figure changed by a number per seed where `where` holds."""
    step = pl.col("seed").replace_strict(list(range(len(by))), by, return_dtype=pl.Float64)
    return rows.with_columns(
        pl.when(where).then(pl.col(figure) + step).otherwise(figure).alias(figure)
    )


def test_a_table_equals_itself_to_the_last_bit(rows: pl.DataFrame) -> None:
    found = compare.compare(rows, rows.sample(fraction=1.0, shuffle=True, seed=1))
    assert (found.matched, found.identical) == (rows.height, rows.height)
    assert (found.only_left, found.only_right) == (0, 0)
    assert not any(one.told_apart for one in found.differences)
    assert "40 of 40 matched rows agree to the last bit" in printed(found)


def test_the_smallest_change_of_one_row_is_counted(rows: pl.DataFrame) -> None:
    last_bit = pl.col("regret") * (1.0 + 2.0**-52)
    here = (pl.col("configuration") == 3) & (pl.col("seed") == 2)
    other = rows.with_columns(pl.when(here).then(last_bit).otherwise("regret").alias("regret"))
    assert compare.compare(rows, other).identical == rows.height - 1


def test_differences_are_right_minus_left_seed_by_seed(rows: pl.DataFrame) -> None:
    where = (
        (pl.col("policy") == "lru") & (pl.col("horizon") == 2_000) & (pl.col("cache_slots") == 4)
    )
    other = moved(rows, where, "regret", [1.0, 2.0, 3.0, 4.0, 5.0])
    first, second, *_ = compare.compare(rows, other).differences
    assert first.where["policy"] == "lru"
    assert (first.where["horizon"], first.where["cache_slots"]) == (2_000, 4)
    gap = first.figures["regret"]
    assert float(gap.mean) == pytest.approx(3.0)
    # Student's t with 4 degrees of freedom.
    assert float(gap.half_width) == pytest.approx(2.776445 * math.sqrt(2.5 / 5.0))
    assert first.told_apart
    assert second.clearness == 0.0


def test_what_chance_explains_is_not_told_apart(rows: pl.DataFrame) -> None:
    other = moved(rows, pl.col("policy") == "lru", "loss_to_full", [9.0, -9.0, 8.0, -8.0, 1.0])
    found = compare.compare(rows, other)
    assert sum(one.clearness > 0.0 for one in found.differences) == 4
    assert not any(one.told_apart for one in found.differences)


def test_unmatched_rows_of_both_are_counted(rows: pl.DataFrame) -> None:
    left = rows.filter(pl.col("seed") < 4)
    right = rows.filter((pl.col("seed") > 0) & (pl.col("policy") == "lru"))
    found = compare.compare(left, right)
    assert (found.matched, found.only_left, found.only_right) == (12, 20, 4)
    assert {one.seeds for one in found.differences} == {3}
    text = printed(found)
    assert "20 rows of the first have no match" in text
    assert "4 rows of the second have no match" in text


def test_a_run_matches_a_sweep_of_the_same_sizes(rows: pl.DataFrame) -> None:
    sweep = sweep_rows.make_rows({"alpha": [0.5]}, ("polar_plus", "lru"), seeds=3)
    kept = ["configuration", "run_horizon", "padded_adapters", "padded_dim", "mean_paging_cost"]
    run = sweep.drop(*kept, "alpha").with_columns(pl.col("horizon").cast(pl.Int32))
    found = compare.compare(run, sweep)
    assert found.identical == 6
    assert found.ignored == ("alpha",)
    assert "Not matched on alpha" in printed(found)
    del rows


def test_nothing_in_common_says_which_columns_differ(rows: pl.DataFrame) -> None:
    with pytest.raises(
        ValueError, match="horizon is 1000, 2000 in one and 77 in the other"
    ) as told:
        compare.compare(rows, rows.filter(horizon=1_000).with_columns(horizon=pl.lit(77)))
    assert "cache_slots" not in str(told.value)


def test_values_in_common_but_no_combination_is_said(rows: pl.DataFrame) -> None:
    left = rows.filter((pl.col("horizon") == 1_000) == (pl.col("cache_slots") == 1))
    right = rows.filter((pl.col("horizon") == 1_000) != (pl.col("cache_slots") == 1))
    with pytest.raises(ValueError, match="no combination"):
        compare.compare(left, right)


def test_rows_that_the_shared_columns_do_not_tell_apart_are_refused(rows: pl.DataFrame) -> None:
    sweep = sweep_rows.make_rows({"alpha": [0.1, 0.5]}, ("lru",), seeds=2)
    with pytest.raises(ValueError, match=r"first table .* \(alpha\)"):
        compare.compare(sweep, sweep.filter(alpha=0.1).drop("alpha"))
    with pytest.raises(ValueError, match="need the columns regret"):
        compare.compare(rows, rows.drop("regret"))


def test_one_seed_is_never_told_apart(rows: pl.DataFrame) -> None:
    one = rows.filter(seed=0)
    found = compare.compare(one, moved(one, pl.col("policy") == "lru", "regret", [1.0]))
    assert max(d.clearness for d in found.differences) == math.inf
    assert not any(d.told_apart for d in found.differences)
    assert "nan" not in printed(found)


def test_at_most_forty_lines_are_printed_clearest_first() -> None:
    rows = sweep_rows.make_rows({"alpha": [n / 50 for n in range(50)]}, ("lru",), seeds=3)
    other = rows.with_columns(regret=pl.col("regret") + 1.0 + pl.col("alpha") * pl.col("seed"))
    text = printed(compare.compare(rows, other))
    lines = re.findall(r"^lru +(\S+)", text, re.MULTILINE)
    assert len(lines) == compare.MOST_LINES
    assert lines[:3] == ["0", "0.02", "0.04"]
    assert "10 more differ less clearly" in text


def test_settings_left_open_match_each_other(rows: pl.DataFrame) -> None:
    open_ = rows.with_columns(
        epoch_length=pl.lit(None, pl.Int64), costs=pl.lit(None, pl.String), segments=pl.lit(4)
    )
    assert compare.compare(open_, open_).identical == rows.height
    with pytest.raises(ValueError, match="epoch_length is default in one and 64 in the other"):
        compare.compare(open_, open_.with_columns(epoch_length=pl.lit(64)))
