"""Who wins in a sweep: rankings, margins, ties, and sweeps of a single policy."""

import re
from typing import Any

import numpy as np
import polars as pl
import pytest
from sweep_rows import LEARNT, facts, sweep

from polar_jax.sweep import findings, report, report_tables, studies, words


def with_loss(losses: dict[str, list[float]]) -> studies.Grid:
    """One combination whose losses to full memory are given, a list over seeds per policy."""
    table, manifest = sweep({}, tuple(losses), seeds=len(next(iter(losses.values()))))
    known = {
        (policy, seed): value for policy, row in losses.items() for seed, value in enumerate(row)
    }
    loss = [known[row["policy"], row["seed"]] for row in table.to_dicts()]
    return studies.grid(table.with_columns(pl.Series("loss_to_full", loss)), manifest)


def test_oracles_never_win() -> None:
    grid = with_loss({"oracle": [1.0, 1.0], "lru": [5.0, 6.0], "full_cache": [0.0, 0.0]})
    (winner,) = studies.winners(grid)
    assert winner.best == "lru"
    assert winner.second is None
    assert set(winner.ratios) == {"lru"}
    assert "only policy" in words.verdict([winner], studies.records([winner]), grid)


@pytest.mark.parametrize(("gap", "told_apart"), [(1.0, True), (0.0, False)])
def test_a_margin_counts_only_where_its_interval_excludes_zero(
    gap: float, told_apart: bool
) -> None:
    swing = [100.0, 200.0, 300.0, 400.0]  # what seeds do to both, removed by pairing
    noise = [0.3, -0.3, 0.3, -0.2]
    lru = [base + gap + extra for base, extra in zip(swing, noise, strict=True)]
    (winner,) = studies.winners(with_loss({"polar_plus": swing, "lru": lru}))
    assert winner.best == "polar_plus"
    assert winner.told_apart is told_apart
    assert winner.level == (() if told_apart else ("lru",))
    assert winner.margin is not None
    assert float(winner.margin.mean) == pytest.approx(gap + 0.025)


def test_the_best_may_be_chosen_on_seeds_that_do_not_judge_it() -> None:
    # LRU is lucky on the first two seeds and worse on the others.
    losses = {"polar_plus": [10.0, 10.0, 10.0, 10.0, 10.0], "lru": [9.0, 9.0, 12.0, 13.0, 11.0]}
    on_all = studies.winners(with_loss(losses))[0]
    assert on_all.best == "polar_plus"
    grid = with_loss(losses)._replace(chosen_on=2)
    (winner,) = studies.winners(grid)
    assert (winner.best, winner.second, winner.seeds) == ("lru", "polar_plus", 3)
    assert winner.ratios["polar_plus"].value == pytest.approx(10.0 / 12.0)
    assert winner.margin is not None
    assert float(winner.margin.mean) == pytest.approx(-2.0)
    found = {one.policy: one for one in studies.records([winner])}
    assert found["polar_plus"].surely == 1
    assert "chosen on the first 2 seeds" in words.judged(grid)
    assert studies.winners(grid._replace(chosen_on=5)) == []


def test_equal_policies_share_the_win() -> None:
    equal = [1.0, 2.0, 4.0]
    grid = with_loss({"polar_experts": equal, "polar_plus": equal, "lru": [2.0, 3.0, 5.0]})
    winners = studies.winners(grid)
    assert set(winners[0].tied) == {"polar_plus", "polar_experts"}
    assert not winners[0].told_apart
    found = {one.policy: one for one in studies.records(winners)}
    assert [found[name].best for name in LEARNT] == [1, 1, 0]
    assert [found[name].worst for name in LEARNT] == pytest.approx([1.0, 1.0, 10.0 / 7.0])


def test_losses_of_zero_are_no_division() -> None:
    (winner,) = studies.winners(with_loss({"polar": [0.0, 0.0], "lru": [1.0, 2.0], "lfu": [0, 0]}))
    assert winner.ratios["lfu"] == (1.0, 1.0, 1.0)
    assert winner.ratios["lru"].value == np.inf


def test_limits_of_a_ratio_are_those_of_resampled_pairs() -> None:
    base = np.array([1.0, 10.0, 3.0, 7.0, 2.0])
    grid = with_loss({"polar": base.tolist(), "lru": (1.3 * base).tolist(), "lfu": [9.0] * 5})
    (winner,) = studies.winners(grid)
    # A constant factor has no spread, however much the seeds differ; another policy has.
    assert winner.ratios["lru"] == pytest.approx((1.3, 1.3, 1.3))
    low, high = winner.ratios["lfu"].low, winner.ratios["lfu"].high
    assert 9.0 / 8.0 < low < winner.ratios["lfu"].value < high < 9.0


def test_exact_ties_are_named_and_no_margin_is_told() -> None:
    equal = [1.0, 2.0, 4.0]
    grid = with_loss({"polar_experts": equal, "polar_plus": equal, "lru": [2.0, 3.0, 5.0]})
    winners = studies.winners(grid)
    text = words.verdict(winners, studies.records(winners), grid)
    assert text == "By loss to full memory, POLAR+ and POLAR-E are best and tie exactly."
    table, manifest = sweep({"cache_slots": [1, 2]}, LEARNT, seeds=3)
    tied = pl.when(pl.col("cache_slots") == 1).then(7.0).otherwise("loss_to_full")
    tied = table.with_columns(loss_to_full=tied)
    found = findings.study(tied, manifest)
    assert sum(one.shared for one in found.records) == 3
    said = words.verdict(found.winners, found.records, found.grid)
    assert "beyond chance, 1 an exact tie with another)" in said
    assert "exact tie</td>" in report.render(tied, manifest, facts())


def test_a_policy_without_others_wins_nothing() -> None:
    table, manifest = sweep({"cache_slots": [1, 2]}, LEARNT, seeds=3)
    # Of the second combination one policy is done.
    some = table.filter((pl.col("cache_slots") == 1) | (pl.col("policy") == "lru"))
    found = findings.study(some, manifest)
    assert [one.contested for one in found.winners] == [True, False]
    assert {one.of for one in found.records} == {1}
    assert words.verdict(found.winners, found.records, found.grid).startswith("By loss to full")
    assert "only LRU" in report.render(some, manifest, facts(shards_done=1))
    apart = table.filter((pl.col("cache_slots") == 1) == (pl.col("policy") == "lru"))
    apart = apart.filter(pl.col("policy") != "polar_plus")
    found = findings.study(apart, manifest)
    assert words.verdict(found.winners, found.records, found.grid).startswith("No combination has")


def one_policy() -> tuple[pl.DataFrame, dict[str, Any]]:
    """A sweep of one policy whose loss is least at epochs of 64, at K = 4 of 16."""
    axes = {"cache_slots": [1, 4], "epoch_length": [16, 64, 256]}
    table, manifest = sweep(axes, ("polar",), seeds=4, report={"x": "epoch_length"})
    best = pl.when(pl.col("cache_slots") == 4).then(16).otherwise(64)
    loss = pl.col("horizon") * (1.0 + 0.01 * pl.col("seed") + (pl.col("epoch_length") != best))
    return table.with_columns(loss_to_full=loss), manifest


def test_a_sweep_of_one_policy_answers_where_along_its_axis_it_loses_least() -> None:
    table, manifest = one_policy()
    found = findings.study(table, manifest)
    assert found.x == found.grid.axis("epoch_length")
    assert found.records == []
    assert not {"winners", "ratios"} & report.draw(found).keys()
    frames = report_tables.frames(found.summary, found.winners, found.knees, found.fits)
    assert set(frames) == {"summary"}
    page = report.render(table, manifest, facts())
    assert "POLAR is the only policy that was run. Of 2 combinations of the other axes" in page
    assert (
        "is least at epoch length of POLAR = 16 in 1 and epoch length of POLAR = 64 in 1." in page
    )
    assert "Where each policy wins" not in page
    assert "could run on a server" not in page
    # 1.015 on average; Student's t with 3 degrees of freedom, 3.1824, times 0.00645.
    row = re.escape("<td>K = 1, epoch length of POLAR = 64</td>")
    assert re.search(row + r"<td>1\.0[12] ± 0\.02\d?</td>", page)


def test_more_policy_combinations_than_a_table_holds_make_no_map_of_one_policy() -> None:
    axes = {"cache_slots": [1, 2, 3, 4, 5, 6], "alpha": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    found = findings.study(*sweep(axes, ("lru", "oracle"), seeds=2))
    assert "winners" not in report.draw(found)
    said = words.verdict(found.winners, found.records, found.grid)
    assert said == "LRU is the only policy that was run, oracles aside."
