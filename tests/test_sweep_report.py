"""A sweep's report: winners, knees and exponents on known data; the page, figures and tables."""

import html
import io
import os
import pathlib
import re
from typing import Any

import numpy as np
import pages
import polars as pl
import pytest
from matplotlib.image import imread
from sweep_rows import LEARNT, Rows, facts, sweep

from polar_jax import labels
from polar_jax.sweep import findings, layouts, report, report_tables, slots, studies, words

ALL = tuple(labels.LABELS)


def seen(page: str) -> str:
    """What a reader of the page sees, without tags."""
    body = page[page.index("<main>") :]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


@pytest.fixture(scope="module")
def crossed() -> Rows:
    return sweep({"horizon": [4_000, 20_000, 100_000], "cache_slots": [1, 4, 8, 15]}, seeds=8)


@pytest.fixture(scope="module")
def page(crossed: Rows) -> str:
    return report.render(*crossed, facts())


def test_the_page_is_whole_and_refers_to_nothing_outside(page: str) -> None:
    tags = pages.Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    assert "http" not in page
    assert "<script" not in page


def test_the_page_says_what_was_run_and_the_numbers_of_the_rows(crossed: Rows, page: str) -> None:
    table, text = crossed[0], seen(page)
    assert "How does the loss grow?" in text
    assert "4 policies (POLAR+, POLAR-E, LRU and Oracle)" in text
    assert "requests T 4,000, 20,000 and 100,000; cache slots K 1, 4, 8 and 15" in text
    assert "price per ms 0.0154" in text
    assert "8 seeds each, 48 configurations, 384 simulations" in text
    here = table.filter(horizon=4_000, cache_slots=1)
    mean = {p: float(np.mean(here.filter(policy=p)["loss_to_full"].to_numpy())) for p in LEARNT}
    ranked = sorted(LEARNT, key=lambda policy: mean[policy])
    # The winner's row: best, second, and every ratio.
    row = text[text.index("T = 4,000, K = 1 ") :][:200]
    assert re.match(rf"T = 4,000, K = 1 +{re.escape(labels.label(ranked[0]).name)}", row)
    for policy in ranked[1:]:
        assert f"{mean[policy] / mean[ranked[0]]:.2f} [" in row


def test_a_partial_sweep_is_ranked_on_seeds_that_all_policies_have() -> None:
    table, manifest = sweep({"cache_slots": [1, 2]}, LEARNT, seeds=6)
    hard = table.with_columns(
        loss_to_full=pl.when(policy="lru", seed=5).then(1e-3).otherwise(pl.col("loss_to_full"))
    )
    # Without seed 5 of the others, the easy seed of LRU has to count for nothing.
    kept = hard.filter((pl.col("policy") == "lru") | (pl.col("seed") < 5))
    kept = kept.filter((pl.col("cache_slots") == 1) | (pl.col("policy") != "polar_plus"))
    grid = studies.grid(kept, manifest)
    first, second = studies.winners(grid)
    assert first.seeds == second.seeds == 5
    assert (first.missing, second.missing) == ((), ("polar_plus",))
    text = seen(report.render(kept, manifest, facts(shards_done=1, failures=["shard 3: <disk>"])))
    assert "Partial: 1 of 4 shards" in text
    assert "shard 3: <disk>" in text


def test_one_seed_gives_means_and_no_intervals(tmp_path: pathlib.Path) -> None:
    table, manifest = sweep({"cache_slots": [1, 4, 8]}, seeds=1)
    page = report.render(table, manifest, facts())
    assert "One seed" in seen(page)
    assert "nan" not in seen(page).lower()
    report.write(tmp_path, table, manifest, facts())
    low = pl.read_csv(tmp_path / "summary.csv")["regret_low"]
    assert low.is_null().all() or low.is_nan().all()


def test_a_sweep_of_one_combination_has_a_report(tmp_path: pathlib.Path) -> None:
    written = report.write(tmp_path, *sweep({}, ("lru", "polar")), facts())
    assert tmp_path / "report.html" in written
    assert "is best" in seen((tmp_path / "report.html").read_text("utf-8"))


def test_no_rows_are_an_error() -> None:
    table, manifest = sweep({"cache_slots": [1]})
    with pytest.raises(ValueError, match="no rows"):
        report.render(table.clear(), manifest, facts())


@pytest.mark.parametrize(
    ("slots_run", "loss", "knee"),
    [
        ([1, 2, 3, 4, 5, 6], [100.0, 60.0, 40.0, 30.0, 29.0, 28.5], 4),
        # Each step is worth the same share: none is left out.
        ([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0], 4),
        # Two slots save 3 in 41 from 4 to 6: 1.5 each, less than 5 % of 41.
        ([1, 2, 4, 6], [50.0, 30.0, 12.0, 9.0], 4),
        # A step that saves nothing before one that does is not the knee.
        ([1, 2, 3, 4, 5], [10.0, 6.0, 6.0, 2.0, 1.9], 4),
        # 6 % of the whole is worth a slot, 4 % is not.
        ([1, 2, 3, 4], [100.0, 10.0, 4.0, 0.0], 3),
        # Of 30 equal steps none saves 5 %, and all pay.
        (list(range(1, 32)), [float(31 - k) for k in range(31)], 31),
        # The same with a tail of slots that save next to nothing.
        (list(range(1, 32)), [float(max(20 - k, 0)) for k in range(31)], 21),
        ([1, 2, 3], [1.0, 2.0, 3.0], 1),
        ([1, 2, 3], [1.0, 1.0, 1.0], 1),
    ],
)
def test_the_knee_is_where_further_slots_stop_saving(
    slots_run: list[int], loss: list[float], knee: int
) -> None:
    at = int(slots.place(np.array(slots_run), np.array(loss)))
    assert slots_run[at] == knee


def test_the_knee_has_the_best_policys_savings_and_an_interval_over_seeds() -> None:
    axes = {"price_per_ms": [0.0154, 0.1], "cache_slots": [1, 2, 4, 6, 8, 12, 15]}
    table, manifest = sweep(axes, seeds=12)
    grid = studies.grid(table, manifest)
    first, second = slots.knees(grid)
    assert first.where == {"price_per_ms": 0.0154}
    assert first.best not in ("oracle",)
    mine = table.filter(policy=second.best, price_per_ms=0.1).group_by("cache_slots")
    mean = dict(mine.agg(pl.col("loss_to_full").mean() / 20_000).iter_rows())
    np.testing.assert_allclose(
        second.curves[second.best].loss.mean, [mean[k] for k in axes["cache_slots"]]
    )
    np.testing.assert_allclose(second.saving.mean[1], (mean[2] - mean[4]) / 2.0)
    assert second.knee is not None
    assert second.low <= second.knee <= second.high
    kept = (mean[1] - mean[second.knee]) / (mean[1] - mean[15])
    assert second.kept.low < kept < second.kept.high
    text = slots.sentence(second, grid, None)
    assert text.startswith(f"At price per ms = 0.1: {second.knee} slots give {100 * kept:.0f} % of")
    assert text in seen(report.render(table, manifest, facts()))


def test_slots_that_save_nothing_do_not_pay() -> None:
    axes = {"cache_slots": [1, 2, 3]}
    table, manifest = sweep(axes, seeds=8)
    noise = np.random.default_rng(3).normal(100.0, 1.0, table.height)
    flat = studies.grid(table.with_columns(loss_to_full=pl.Series(noise)), manifest)
    (knee,) = slots.knees(flat)
    assert not knee.pays
    assert "do not pay" in slots.sentence(knee, flat, 0.0154)
    (control,) = slots.knees(studies.grid(table, manifest))
    assert control.pays


def test_a_share_that_is_not_known_is_left_out_of_the_sentence() -> None:
    table, manifest = sweep({"cache_slots": [1, 2, 3]}, ("lru",), seeds=8)
    # One seed gains so much that the mean saves: in a resample without it nothing does.
    gain = pl.when(pl.col("seed") == 0).then(50.0).otherwise(-1.0)
    first = pl.col("cache_slots") == 1
    table = table.with_columns(loss_to_full=100.0 + pl.when(first).then(gain).otherwise(0.0))
    grid = studies.grid(table, manifest)
    (knee,) = slots.knees(grid)
    assert not np.isfinite(knee.kept.low)
    # Its interval is wide, so that sentence is another; this one is for certain wholes.
    certain = knee._replace(whole=knee.whole._replace(half_width=np.float64(0.0)))
    text = slots.sentence(certain, grid, None)
    assert "nan" not in text
    assert "inf" not in text
    assert "(the knee itself is" in text


def test_the_price_is_told_where_it_makes_the_costs() -> None:
    for fixed, told in (({}, True), ({"costs": "synthetic:0.3"}, False)):
        table, manifest = sweep({"cache_slots": [1, 4, 8]}, LEARNT, seeds=3)
        found = findings.study(table, manifest | {"fixed": manifest["fixed"] | fixed})
        text = slots.sentence(found.knees[0], found.grid, found.price)
        assert ("price per ms = 0.0154" in text) is told
    axes = {"costs": ["synthetic:0.3", "qwen2.5-7b"], "cache_slots": [1, 4, 8]}
    found = findings.study(*sweep(axes, LEARNT, seeds=3))
    drawn, measured = (slots.sentence(knee, found.grid, found.price) for knee in found.knees)
    assert "price per ms" not in drawn
    assert "price per ms = 0.0154" in measured


def test_exponents_of_a_known_law_are_found_drawn_and_written(tmp_path: pathlib.Path) -> None:
    axes = {"horizon": [10_000, 30_000, 100_000, 300_000, 1_000_000]}
    table, manifest = sweep(axes, LEARNT, seeds=16, scaling={"axis": "horizon"})
    manifest["fixed"]["beta"] = "theory"
    written = report.write(tmp_path, table, manifest, facts())
    assert tmp_path / "figures" / "exponents.png" in written
    rows = pl.read_csv(tmp_path / "exponents.csv").filter(figure="regret_routing")
    assert rows.height == len(LEARNT)
    assert ((rows["slope"] - 0.5).abs() < 0.1).all()
    assert rows["theory"].to_list() == [0.5] * len(LEARNT)
    text = seen((tmp_path / "report.html").read_text("utf-8"))
    assert "Exponents against theory" in text
    assert f"{rows['slope'][0]:.2f} [{rows['slope_low'][0]:.2f}" in text
    # The power law, and what it was fitted over, is more than the last decade.
    assert set(rows["points_from"]) == {10_000.0}
    assert set(rows["fitted_from"]) == {100_000.0}
    assert "T 10,000 to 1,000,000" in text
    law = rows.row(by_predicate=pl.col("policy") == "lru", named=True)
    assert f"{law['factor']:.3g} [{law['factor_low']:.3g}, {law['factor_high']:.3g}]" in text


def test_a_power_law_that_the_data_do_not_determine_is_a_dash() -> None:
    axes = {"horizon": [10_000, 30_000, 100_000, 300_000]}
    table, manifest = sweep(axes, ("lru",), seeds=16, scaling={"axis": "horizon"})
    flat = findings.study(table.with_columns(regret=pl.lit(7.0)), manifest)
    fit = next(one for one in flat.fits if one.figure == "regret")
    assert fit.power is not None
    assert np.isnan(fit.power.exponent.estimate)
    assert "nan" not in report_tables.fit_row(fit).lower()


@pytest.mark.parametrize("named", ["environment", "alpha"])
def test_what_is_zipped_with_the_scaling_axis_reaches_the_fits(named: str) -> None:
    horizons = [10_000, 30_000, 100_000, 300_000]
    other = {"environment": ["rotating"] * 4, "alpha": [0.1, 0.2, 0.3, 0.4]}[named]
    axes = {"horizon": horizons, named: other}
    options: dict[str, Any] = {"seeds": 16, "scaling": {"axis": "horizon"}}
    found = findings.study(*sweep(axes, ("lru",), zipped=tuple(axes), **options))
    reasons = {one.why_not for one in found.fits if one.figure == "regret"}
    wanted = {
        "environment": "regret can be negative on rotating streams",
        "alpha": "alpha changes along horizon too",
    }
    assert [str(reason).startswith(wanted[named]) for reason in reasons] == [True]
    # Steps that share a horizon are told apart by the rest of their block.
    twice = {
        "horizon": [*horizons, *horizons],
        "environment": ["clustered"] * 4 + ["sticky"] * 4,
    }
    found = findings.study(*sweep(twice, ("lru",), zipped=tuple(twice), **options))
    fitted = [dict(one.group)["environment"] for one in found.fits if one.slope is not None]
    assert fitted.count("clustered") > fitted.count("sticky") == 1


def test_without_a_scaling_axis_there_are_no_exponents(
    tmp_path: pathlib.Path, crossed: Rows
) -> None:
    names = {path.name for path in report.write(tmp_path, *crossed, facts())}
    assert not {"exponents.csv", "exponents.png"} & names
    assert {"summary.csv", "winners.csv", "ratios.csv", "slots.csv", "report.html"} <= names


def test_the_summary_has_means_and_intervals_of_every_configuration(crossed: Rows) -> None:
    table, manifest = crossed
    rows = studies.summaries(studies.grid(table, manifest))
    assert rows.height == manifest["num_configurations"]
    one = rows.row(by_predicate=(pl.col("configuration") == 5), named=True)
    hits = table.filter(configuration=5)["paging_ms_per_request"].to_numpy()
    error = hits.std(ddof=1) / np.sqrt(8)
    assert one["seeds"] == 8
    assert one["paging_ms_per_request_mean"] == pytest.approx(hits.mean())
    assert one["paging_ms_per_request_error"] == pytest.approx(error)
    # Student's t with 7 degrees of freedom.
    assert one["paging_ms_per_request_high"] == pytest.approx(
        hits.mean() + 2.3646 * error, rel=1e-4
    )


def test_a_failed_write_leaves_the_old_page_and_no_stray_file(
    tmp_path: pathlib.Path, crossed: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("old")

    def full(_: object, target: object) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"(?i)no space"):
        report.write(tmp_path, *crossed, facts())
    assert (tmp_path / "report.html").read_text() == "old"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "report.html"]


def test_figures_of_many_policies_and_axes_are_pictures_of_a_sane_size() -> None:
    streams = ["clustered", "rotating", "rotating"]
    axes = {
        "environment": streams,
        "period": [2_000, 500, 2_000],
        "costs": ["synthetic:0.3", "synthetic:3"],
        "cache_slots": [1, 2, 4, 8, 12, 15],
    }
    table, manifest = sweep(axes, ALL, seeds=2, zipped=("environment", "period"))
    found = findings.study(table, manifest)
    drawn = report.draw(found)
    assert set(drawn) == {"winners", "ratios", "axis_costs", "axis_cache_slots", "slots"}
    for name, png in drawn.items():
        pixels = imread(io.BytesIO(png), format="png")
        height, width, _ = pixels.shape
        assert 1_000 <= width <= 2_600, name
        assert 300 <= height <= 3_300, name
        assert pixels[..., :3].std() > 0.05, name


def test_zipped_options_are_one_axis_and_named_by_what_they_change() -> None:
    axes = {"environment": ["clustered", "rotating", "rotating"], "period": [7, 500, 2_000]}
    table, manifest = sweep(axes, zipped=("environment", "period"))
    (axis,) = studies.grid(table, manifest).axes
    assert axis.values == ("clustered", "rotating, period 500", "rotating, period 2,000")
    assert axis.numbers is None


def test_a_value_left_open_is_drawn_and_ranked_as_one_of_its_axis() -> None:
    table, manifest = sweep({"epoch_length": [None, 64], "cache_slots": [1, 4]}, LEARNT, seeds=2)
    found = findings.study(table, manifest)
    assert len(found.winners) == 4
    assert found.grid.place(found.winners[0].where) == "epoch length of POLAR = default, K = 1"
    assert "axis_cache_slots" in report.draw(found)


def test_what_is_zipped_with_the_policies_is_a_constant_of_each_and_no_axis() -> None:
    table, manifest = sweep({"horizon": [4_000, 20_000]}, LEARNT, seeds=3)
    window = pl.when(pl.col("policy") == "polar_plus").then(4_096).otherwise(512)
    table = table.with_columns(window.alias("window"))
    manifest["axes"][-1]["zipped"] = 0
    manifest["axes"].append({"name": "window", "values": [4_096, 512, 512], "zipped": 0})
    grid = studies.grid(table, manifest)
    assert [axis.column for axis in grid.axes] == ["horizon"]
    assert [set(one.ratios) for one in studies.winners(grid)] == [set(LEARNT)] * 2
    # One policy with two values: they have to be told apart.
    twice = pl.concat([table, table.with_columns(window=pl.lit(64, pl.Int32))])
    assert [axis.column for axis in studies.grid(twice, manifest).axes] == ["horizon", "window"]


def test_numbers_zipped_together_stay_an_axis_of_numbers() -> None:
    axes = {"horizon": [1_000, 4_000], "period": [10, 10]}
    table, manifest = sweep(axes, zipped=("horizon", "period"))
    (axis,) = studies.grid(table, manifest).axes
    assert (axis.column, axis.numbers) == ("horizon", (1_000.0, 4_000.0))


def test_zipped_numbers_that_no_single_one_tells_apart_are_joined() -> None:
    axes = {"alpha": [0.1, 0.1, 1.0, 1.0], "noise": [0.1, 1.0, 0.1, 1.0]}
    table, manifest = sweep(axes, seeds=3, zipped=("alpha", "noise"))
    grid = studies.grid(table, manifest)
    (axis,) = grid.axes
    assert axis.column == "alpha, noise"
    assert axis.values[1] == "confidence factor alpha 0.1, reward noise 1"
    assert len(axis.values) == len(studies.winners(grid)) == 4
    assert (studies.summaries(grid)["seeds"] == 3).all()


def test_rows_that_no_axis_tells_apart_are_refused() -> None:
    table, manifest = sweep({"alpha": [0.1, 1.0]}, seeds=2)
    with pytest.raises(ValueError, match="the same seed and policy"):
        studies.winners(studies.grid(table, manifest | {"axes": []}))


def test_further_axes_are_held_and_not_averaged() -> None:
    axes = {
        "horizon": [1_000, 2_000, 3_000, 4_000, 5_000],
        "cache_slots": [1, 2, 3],
        "alpha": [0.1, 0.2, 0.3],
        "ridge": [1.0, 9.0],
    }
    grid = studies.grid(*sweep(axes, ("lru",), seeds=2))
    lay = layouts.layout(grid, ["cache_slots"])
    assert lay.columns is not None
    assert lay.rows is not None
    assert (lay.columns[0].column, lay.columns[1]) == ("horizon", (1_000, 2_000, 4_000, 5_000))
    assert lay.rows[0].column == "alpha"
    assert lay.held == {"ridge": 1.0}
    text = words.held(grid, lay)
    assert "4 of 5 values of requests T have panels." in text
    assert "ridge is held at 1" in text


def test_text_from_users_is_escaped() -> None:
    table, manifest = sweep({"cache_slots": [1, 2]})
    manifest |= {"title": "<b>a</b>", "description": "x < y", "spec_text": "<script>1</script>"}
    page = report.render(table, manifest, facts(mixed=["<i>two</i> kinds of CPU"]))
    assert "<b>a</b>" not in page
    assert "<script" not in page
    assert "<i>two" not in page
    assert "x < y" in seen(page)


def test_the_words_of_a_figure_name_its_part() -> None:
    assert words.figure("regret_caching") == "regret, part of caching"
    assert words.figure("loss_to_full", per_request=True) == "loss to full memory per request"
