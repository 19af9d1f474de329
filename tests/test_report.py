"""The report, its figures and its words: whole, self-contained, true to the numbers."""

import io
import math
import re
from typing import Any

import numpy as np
import pages
import pytest
import rich.console

from polar_jax import (
    console,
    drawing,
    figures,
    labels,
    metrics,
    policies,
    report,
    statistics,
    summary,
)
from polar_jax.lanes import PolicyResult, Progress, Results

HORIZON = 1_000
CURVE_ROUND = np.array([1, 10, 100, 1_000])


def result(regret: list[float]) -> PolicyResult:
    seeds = np.array(regret, np.float64)
    totals = {name: np.zeros(seeds.size) for name in metrics.PARTS}
    totals |= {
        "regret": seeds,
        "regret_routing": 0.5 * seeds,
        "regret_forced": 0.25 * seeds,
        "regret_caching": 0.25 * seeds,
        "regret_switching": 0.25 * seeds,
        "loss_to_full": seeds + 1_000.0,
        "page_ins": np.full(seeds.size, 250.0),
        "paging_ms": np.full(seeds.size, 2_000.0),
    }
    curves = {
        name: total[:, None] * np.array([0.01, 0.1, 0.5, 1.0]) for name, total in totals.items()
    }
    return PolicyResult(totals=totals, curves=curves, rounds=None, decisions=None)


def results(**regrets: list[float]) -> Results:
    seeds = len(next(iter(regrets.values())))
    return Results(
        policies={name: result(regret) for name, regret in regrets.items()},
        curve_round=CURVE_ROUND,
        oracle_set=np.zeros((seeds, 3), bool),
        oracle_exact=True,
        paging_cost=np.zeros((seeds, 3)),
        paging_ms=np.zeros((seeds, 3)),
        tile=32,
        num_devices=1,
        compile_seconds=1.0,
        run_seconds=1.0,
        num_decisions=1,
    )


@pytest.fixture
def run() -> Results:
    return results(
        lru=[300.0, 320.0, 280.0],
        polar_experts=[100.0, 90.0, 120.0],
        oracle_cache=[10.0, 11.0, 12.0],
    )


def manifest(**changes: Any) -> dict[str, Any]:
    plain = {
        "problem": {"num_adapters": 3, "cache_slots": 1, "context_dim": 2, "horizon": HORIZON},
        "environment": {"name": "sticky"},
        "paging": {"origin": "file 'loads.csv', 3 adapters", "price_per_ms": 0.02},
        "policy_settings": {"alpha": 0.5, "thompson_scale": None},
        "seeds": [0, 1, 2],
        "base_seed": 0,
        "created": "2026-01-01",
        "machine": {"cpu": "a processor", "device_kind": "cpu"},
        "num_devices": 2,
        "tile": 32,
        "seconds_compiling": 1.0,
        "seconds_running": 2.0,
        "decisions_per_second": 123,
        "versions": {"jax": "1"},
        "git": None,
    }
    return {**plain, **changes}


def page(run: Results, **changes: Any) -> str:
    comparison = summary.compare(run, HORIZON)
    return report.render(comparison, manifest(**changes), figures.regret_png(run))


def test_the_page_is_whole_and_refers_to_nothing_outside(run: Results) -> None:
    text = page(run)
    tags = pages.Tags()
    tags.feed(text)
    assert tags.open == []
    assert len(tags.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in tags.sources)
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text


def test_text_from_users_is_escaped(run: Results) -> None:
    origin = "file '<script>alert(1)</script>.csv', 3 adapters"
    text = page(run, paging={"origin": origin, "price_per_ms": 0.02})
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_least_regret_wins_and_oracles_do_not_take_part(run: Results) -> None:
    comparison = summary.compare(run, HORIZON)
    assert [policy.name for policy in comparison.policies] == [
        "oracle_cache",
        "polar_experts",
        "lru",
    ]
    assert comparison.best == "polar_experts"
    said = report.verdict(comparison)
    assert said.startswith("POLAR-E has the least regret")
    assert "LRU comes next with 300 ± 12, 197 more" in said
    assert "not chance alone" in said


def test_differences_are_paired_and_antisymmetric(run: Results) -> None:
    comparison = summary.compare(run, HORIZON)
    gap = comparison.differences["lru", "polar_experts"]
    expected = statistics.paired_difference([300.0, 320.0, 280.0], [100.0, 90.0, 120.0])
    assert gap == expected
    assert comparison.differences["polar_experts", "lru"].mean == -gap.mean


def test_excess_is_that_of_the_loss_to_full_memory(run: Results) -> None:
    excess = summary.compare(run, HORIZON).policy("lru").excess
    assert excess == pytest.approx(1_300.0 / (1_000.0 + 310.0 / 3.0) - 1.0)


def test_one_seed_shows_dashes_and_no_verdict_on_chance() -> None:
    run = results(lru=[300.0], polar_experts=[100.0])
    assert "one seed cannot tell" in report.verdict(summary.compare(run, HORIZON))
    text = page(run)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)
    assert "\N{EN DASH}" in text


def test_close_policies_may_differ_by_chance() -> None:
    run = results(lru=[300.0, 100.0], lfu=[101.0, 300.0])
    assert "may be chance" in report.verdict(summary.compare(run, HORIZON))


def test_oracles_alone_are_not_ranked() -> None:
    run = results(oracle=[0.0, 0.0], full_cache=[-20.0, -30.0])
    assert "not ranked" in report.verdict(summary.compare(run, HORIZON))
    pages.Tags().feed(page(run))


def test_a_searched_oracle_makes_the_regret_a_lower_bound(run: Results) -> None:
    assert "lower bound" not in page(run)
    assert "lower bound" in page(run._replace(oracle_exact=False))


def test_every_policy_has_a_label_of_its_own_and_one_sentence(run: Results) -> None:
    looks = [labels.label(name) for name in policies.NAMES]
    assert set(labels.LABELS) == set(policies.NAMES)
    assert len({look.name for look in looks}) == len(looks)
    assert len({(look.colour, look.dashes) for look in looks}) == len(looks)
    text = page(run)
    for name in run.policies:
        assert labels.label(name).does.replace("'", "&#x27;") in text
    assert labels.label("my_own").name == "my_own"


@pytest.mark.parametrize(
    "regrets",
    [
        {"lru": [-500.0, -450.0], "static": [900.0, 1_000.0]},
        {"oracle": [0.0, 0.0]},
        {"lru": [1e-7, 2e-7]},
        {"lru": [1e9, 2e9], "static": [3.0, 4.0]},
        {name: [float(i), i + 1.0] for i, name in enumerate(policies.NAMES)},
    ],
)
def test_figures_are_drawn_for_any_sign_and_size(regrets: dict[str, list[float]]) -> None:
    run = results(**regrets)
    comparison = summary.compare(run, HORIZON)
    for png in (
        figures.regret_png(run),
        figures.parts_png(comparison),
        figures.serving_png(comparison),
    ):
        assert png.startswith(b"\x89PNG")


def test_labels_are_moved_apart_in_order_and_stay_on_the_axis() -> None:
    heights = [0.0, 0.01, 0.5, 0.51, 0.52, 0.99, 1.0]
    places = drawing.spread(heights, gap=0.1)
    assert np.all(np.diff(places) >= 0.1 - 1e-9)
    assert places[0] >= 0.0
    assert places[-1] <= 1.0 + 1e-9
    assert drawing.spread([0.2, 0.6], gap=0.1) == [0.2, 0.6]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0001, "0"),
        (1234.6, "1,235"),
        (-98.76, "\N{MINUS SIGN}98.8"),
        (2.345, "2.35"),
        (0.0773, "0.077"),
        (math.nan, "\N{EN DASH}"),
    ],
)
def test_numbers_are_short_and_readable(value: float, text: str) -> None:
    assert summary.number(value) == text


def test_a_mean_is_shown_to_the_digits_of_its_error() -> None:
    estimate = statistics.Estimate(np.array(1234.56), np.array(7.89), np.array(15.0))
    assert summary.with_error(estimate) == "1,234.6 ± 7.9"


def test_progress_without_a_terminal_is_a_line_per_phase(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with console.ProgressView() as view:
        for phase, done in (("compiling", 0), ("compiling", 4), ("running", 0), ("running", 4)):
            view(Progress(phase, done, 4))
        view(Progress("running", 4, 4))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["compiled", "made"]


@pytest.mark.parametrize(("width", "headers"), [(132, 1), (76, 2)])
def test_the_table_is_split_rather_than_cut(run: Results, width: int, headers: int) -> None:
    out = io.StringIO()
    wide = rich.console.Console(file=out, width=width)
    console.print_results(wide, summary.compare(run, HORIZON))
    text = out.getvalue()
    assert text.count("policy ") == headers
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for shown in ("polar_experts", "103.3 ± 8.8", "1,103.3 ± 8.8", "75.0 %", "2.00"):
        assert shown in text
