"""Figures of a sweep's report: empty panels, styles, texts of users, and what a failure leaves."""

import pathlib
from typing import Any

import matplotlib.axes
import matplotlib.figure
import polars as pl
import pytest
from sweep_rows import LEARNT, Rows, facts, sweep

from polar_jax import cli, drawing, labels
from polar_jax.sweep import figures, findings, fit_figures, layouts, report, studies, words

HORIZONS = [10_000, 30_000, 100_000, 300_000]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written into panels, in order."""
    found: list[str] = []
    plain = matplotlib.axes.Axes.text

    def text(axes: Any, x: float, y: float, words: str, **options: Any) -> Any:
        found.append(words)
        return plain(axes, x, y, words, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "text", text)
    return found


def signed() -> Rows:
    """Regret is refused on one stream of two, loss to full memory fitted on both."""
    axes = {"environment": ["clustered", "sticky"], "horizon": HORIZONS}
    return sweep(axes, LEARNT, seeds=16, scaling={"axis": "horizon"})


def nothing_to_cache() -> Rows:
    """At K = N the caching part is exactly 0."""
    axes = {"cache_slots": [4, 15], "horizon": HORIZONS}
    table, manifest = sweep(axes, LEARNT, seeds=16, scaling={"axis": "horizon"})
    caching = pl.when(pl.col("cache_slots") == 15).then(0.0).otherwise("regret_caching")
    return table.with_columns(regret_caching=caching), manifest


def filtered() -> Rows:
    """Adapters, slots that must not exceed them, and a third axis."""
    axes = {"num_adapters": [2, 4], "cache_slots": [2, 4], "alpha": [0.1, 0.5, 1.0]}
    table, manifest = sweep(axes, LEARNT, seeds=2)
    return table.filter(pl.col("cache_slots") <= pl.col("num_adapters")), manifest


def partial() -> Rows:
    """A sweep of which the first value of one axis is done."""
    table, manifest = sweep({"noise": [0.1, 0.5], "alpha": [0.1, 0.5, 1.0]}, LEARNT, seeds=2)
    return table.filter(noise=0.1, alpha=0.1), manifest


@pytest.mark.parametrize(
    ("rows", "why"),
    [(signed, "not fitted"), (nothing_to_cache, "not fitted"), (filtered, "no rows here")],
)
def test_an_empty_panel_says_why(rows: Any, why: str, texts: list[str]) -> None:
    table, manifest = rows()
    report.render(table, manifest, facts())
    assert why in texts


def test_a_sweep_with_its_first_shard_alone_has_figures() -> None:
    table, manifest = partial()
    assert "Partial" in report.render(table, manifest, facts(shards_done=1))


def test_no_labels_are_no_error() -> None:
    figure = matplotlib.figure.Figure()
    drawing.label_ends(figure.subplots(), [], gap=0.1)


def test_held_values_are_a_combination_that_has_rows() -> None:
    axes = {
        "horizon": [1_000, 2_000, 3_000, 4_000],
        "ridge": [0.1, 1.0, 2.0, 3.0],
        "alpha": [0.1, 0.2, 0.3, 0.4],
        "num_adapters": [4, 8],
        "cache_slots": [4, 6, 8],
    }
    table, manifest = sweep(axes, ("lru",), seeds=1)
    grid = studies.grid(table.filter(pl.col("cache_slots") <= pl.col("num_adapters")), manifest)
    lay = layouts.layout(grid, ["horizon"])
    # The middle, 4 adapters with 6 slots, was filtered out.
    assert lay.held == {"num_adapters": 4, "cache_slots": 4}
    assert "(its middle value)" not in words.held(grid, lay)
    whole = studies.grid(table, manifest)
    lay = layouts.layout(whole, ["horizon"])
    assert lay.held == {"num_adapters": 4, "cache_slots": 6}
    assert "cache slots K is held at 6 (its middle value)" in words.held(whole, lay)


def test_an_axis_of_two_values_beyond_the_panels_has_a_line_style(texts: list[str]) -> None:
    axes: dict[str, list[Any]] = {
        "environment": ["clustered", "sticky"],
        "costs": ["synthetic:0.3", "synthetic:1.0"],
        "switching_term": [True, False],
        "epoch_length": [16, 64, 256, 1024],
    }
    found = findings.study(*sweep(axes, ("polar",), seeds=2))
    axis = found.grid.axis("epoch_length")
    assert axis is not None
    lay = figures.axis_layout(found.grid, axis)
    assert (lay.styles, lay.held) == (found.grid.axis("switching_term"), {})
    text = words.held(found.grid, lay)
    assert text == (
        "Dotted lines with open points: switching term = False; the others: switching term = True."
    )
    figures.axis_png(found.summary, found.grid, axis, "loss_to_full", per_request=True)
    # Both values are named beside the lines of all four panels.
    assert texts.count("switching term = True") == texts.count("switching term = False") == 4
    many = findings.study(*sweep(axes, ("polar", *LEARNT, "lfu"), seeds=2))
    assert figures.axis_layout(many.grid, axis).held == {"switching_term": True}


def test_the_knees_that_are_drawn_are_held_where_there_are_some() -> None:
    axes = {"alpha": [0.1, 0.5, 1.0], "noise": [0.1, 0.2, 0.3, 0.4], "cache_slots": [1, 4, 8]}
    table, manifest = sweep(axes, ("lru",), seeds=2)
    # The middle alpha was run with too few slots to look for a knee.
    few = (pl.col("alpha") == 0.5) & (pl.col("cache_slots") > 4)
    found = findings.study(table.filter(~few), manifest)
    knees, lay = findings.shown_knees(found)
    assert [knee.where["noise"] for knee in knees] == [0.1, 0.2, 0.3, 0.4]
    assert {knee.where["alpha"] for knee in knees} == {0.1}
    assert "alpha is held at 0.1;" in words.held(found.grid, lay)


def test_one_knee_keeps_its_title_and_slots_are_whole_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(drawing, "png", lambda figure: drawn.append(figure) or b"")
    found = findings.study(*sweep({"alpha": [0.5], "cache_slots": [1, 2, 3]}, ("lru",), seeds=2))
    figures.slots_png(found.knees, found.grid, ("lru",))
    axes = drawn[0].axes[0]
    assert axes.get_title(loc="left") == "alpha = 0.5"
    assert all(place == int(place) for place in axes.get_xticks())


def test_names_of_all_policies_lie_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(drawing, "png", lambda figure: drawn.append(figure) or b"")
    axes = {"costs": ["synthetic:0.3", "synthetic:1"], "cache_slots": [1, 4], "alpha": [0.1, 0.5]}
    found = findings.study(*sweep(axes, tuple(labels.LABELS), seeds=2))
    axis = found.grid.axis("cache_slots")
    assert axis is not None
    figures.axis_png(found.summary, found.grid, axis, "loss_to_full", per_request=True)
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0.0
    assert box.x1 <= figure.bbox.x1


def test_theory_is_named_below_the_panels_and_drawn_where_lines_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(drawing, "png", lambda figure: drawn.append(figure) or b"")
    table, manifest = sweep({"horizon": HORIZONS}, LEARNT, seeds=16, scaling={"axis": "horizon"})
    found = findings.study(table, manifest)
    fit_figures.exponents_png(found.fits, ["regret", "loss_to_full"], "horizon")
    (figure,) = drawn
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "theory: slope 0.5",
        "theory: slope 1",
    ]
    for axes in figure.axes:
        assert axes.get_legend() is None
        low, high = axes.get_ylim()
        lines = [line for line in axes.lines if line.get_label().startswith("theory")]
        assert len(lines) == 1
        assert all(low <= value <= high for value in lines[0].get_ydata())
    # A thin curve per policy: the power law, over all points.
    thin = [line for line in figure.axes[0].lines if line.get_linewidth() == 0.5]
    assert len(thin) == len(LEARNT)
    assert thin[0].get_xdata()[[0, -1]] == pytest.approx([10_000, 300_000])


def test_dollars_in_names_are_no_formulas() -> None:
    axes = {"paging": ["a $x^{$ b.csv", "c.csv"], "cache_slots": [1, 2, 4]}
    assert report.draw(findings.study(*sweep(axes, seeds=2))).keys() >= {"ratios", "slots"}


def test_tables_survive_a_figure_that_cannot_be_drawn(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise RuntimeError("Invalid vertices array.")

    monkeypatch.setattr(figures, "axis_png", fail)
    with pytest.raises(report.DrawingError, match=r"RuntimeError: Invalid vertices array.*tables"):
        report.write(tmp_path, *sweep({"cache_slots": [1, 2]}), facts())
    assert {path.name for path in tmp_path.iterdir()} == {
        *("summary.csv", "winners.csv", "ratios.csv")
    }


def test_the_command_says_in_one_line_that_a_figure_cannot_be_drawn(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> list[pathlib.Path]:
        raise report.DrawingError("a figure cannot be drawn (RuntimeError:\nodd).")

    table, manifest = sweep({"cache_slots": [1, 2]})
    monkeypatch.setattr(report, "write", fail)
    monkeypatch.setattr("polar_jax.sweep.load", lambda _: table, raising=False)
    monkeypatch.setattr(
        "polar_jax.sweep.status.read",
        lambda _: {
            "done": 1,
            "shards": 1,
            "seconds": 1.0,
            "decisions": 1,
            "errors": {},
            "mixed": [],
        },
    )

    class Folder:
        def __init__(self) -> None:
            self.manifest = manifest

        def mixed(self) -> dict[str, list[str]]:
            return {}

    monkeypatch.setattr("polar_jax.sweep.store.open_existing", lambda _: Folder())
    assert cli.main(["sweep", "report", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said == "polar-jax: error: a figure cannot be drawn (RuntimeError: odd).\n"
