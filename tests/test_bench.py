"""The benchmark: its arithmetic, its baselines, its check of what was chosen, the command."""

import csv
import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest

from polar_jax import cli, kernels, lanes, terminal
from polar_jax.bench import arithmetic, baselines, engine, limits, runs, scaling
from polar_jax.bench.arithmetic import Cache, Limits, Sample, Work
from polar_jax.bench.commands import Bench
from polar_jax.kernels import blocked_rounds, native_rounds

TINY = "bench --shapes 3x2 --lanes 1 --rounds 256 --repeats 2 --seconds 0.001 --policies full_cache"


def stream(num_lanes: int = 3, rounds: int = 120, shape: tuple[int, int] = (5, 4)):
    """Contexts on the unit sphere and linear rewards with noise, in float32."""
    rng = np.random.default_rng(0)
    n, d = shape
    context = rng.standard_normal((num_lanes, rounds, d))
    context /= np.linalg.norm(context, axis=-1, keepdims=True)
    theta = rng.standard_normal((num_lanes, n, d))
    utility = np.einsum("lnd,lkd->lnk", context, theta)
    noise = 0.1 * rng.standard_normal((num_lanes, rounds))
    return baselines.Stream(*(part.astype(np.float32) for part in (context, utility, noise)))


def reference_actions(given: baselines.Stream, lane: int) -> list[int]:
    """LinUCB in float64, the inverse computed anew in every round."""
    _, n, num_adapters = given.utility.shape
    d = given.context.shape[-1]
    precision = np.repeat(baselines.RIDGE * np.eye(d)[None], num_adapters, axis=0)
    rewards = np.zeros((num_adapters, d))
    chosen = []
    for t in range(n):
        x = given.context[lane, t].astype(np.float64)
        scores = []
        for a in range(num_adapters):
            inverse = np.linalg.inv(precision[a])
            scores.append(inverse @ rewards[a] @ x + baselines.ALPHA * np.sqrt(x @ inverse @ x))
        # Adapters that were never tried tie up to rounding: the first one is chosen.
        best = int(np.flatnonzero(np.array(scores) >= max(scores) - 1e-12)[0])
        reward = float(given.utility[lane, t, best]) + float(given.noise[lane, t])
        precision[best] += np.outer(x, x)
        rewards[best] += reward * x
        chosen.append(best)
    return chosen


@pytest.fixture(scope="module")
def ready() -> engine.Ready:
    return engine.Ready(lanes.Shape(3, 2), 3, 256, [engine.PLAIN])


# --- arithmetic


def test_work_of_one_adapter_and_one_feature_counted_by_hand() -> None:
    # Score: 2 for the width, 2 for the mean, 1 for x^2. Update: 2 for v = A x, 2 for A - v v',
    # and 6 for growth, surprise and the estimate.
    assert arithmetic.work(1, 1) == Work(operations=15, state_bytes=16, stream_bytes=16)


@pytest.mark.parametrize(("n", "d"), [(15, 16), (64, 32), (256, 64)])
def test_work_follows_the_formula_and_the_state_that_is_stored(n: int, d: int) -> None:
    needed, p = arithmetic.work(n, d), d * (d + 1) // 2
    assert needed.operations == 2 * n * (p + d) + 3 * p + 2 * d * d + 6 * d
    packed = sum(2 - (i == j) for i in range(d) for j in range(i + 1))
    assert packed == d * d
    assert arithmetic.packed_numbers(d) == len(np.tril_indices(d)[0])
    stored = arithmetic.lane_state_bytes(n, d)
    assert needed.state_bytes == stored + 4 * (p + d)
    # Looked at in pairs, half as much is read for each; as much is written and computed.
    assert arithmetic.work(n, d, 2) == needed._replace(state_bytes=stored / 2 + 4 * (p + d))


@pytest.mark.parametrize(
    ("lane_bytes", "needed", "floor", "bound_by"),
    [
        (10, Work(1_000, 100, 10), 1_000.0, "arithmetic"),
        (10, Work(10, 1_000, 10), 250.0, "small"),
        (11, Work(10, 1_000, 10), 500.0, "large"),
        (21, Work(10, 1_000, 10), 1_010.0, "memory"),
        (10, Work(10, 10, 1_000), 1_000.0, "memory"),
    ],
)
def test_the_floor_is_the_slowest_of_what_a_decision_needs(
    lane_bytes: int, needed: Work, floor: float, bound_by: str
) -> None:
    caches = (Cache("small", 10, 4e9), Cache("large", 20, 2e9))
    found = arithmetic.floor_ns(needed, Limits(1e9, 1e9, caches), lane_bytes)
    assert found == (pytest.approx(floor), bound_by)


def test_a_cache_that_nobody_timed_is_no_limit() -> None:
    within = Limits(1e9, 1e9, (Cache("on chip", 10, float("inf")),))
    assert arithmetic.floor_ns(Work(1, 10**6, 2), within, 10) == (pytest.approx(2.0), "memory")


def test_rates_are_medians_and_ratios_are_paired() -> None:
    samples = [Sample(100, 1.0), Sample(100, 0.1), Sample(100, 0.5)]
    assert arithmetic.rate(samples) == 200.0
    assert arithmetic.spread(samples) == pytest.approx(9.0)
    # A machine that is ten times slower in the second repeat slows both: the ratio stays 2.
    twice = [Sample(100, 0.5), Sample(100, 5.0), Sample(100, 0.5)]
    base = [Sample(100, 1.0), Sample(100, 10.0), Sample(100, 1.0)]
    assert arithmetic.paired_ratio(twice, base) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="as many as the baseline's 3, got 2"):
        arithmetic.paired_ratio(twice[:2], base)


def test_samples_are_taken_in_turn_with_the_repeats_outermost() -> None:
    order: list[str] = []

    def take(kind: str) -> Sample:
        order.append(kind)
        return Sample(len(order), 1.0)

    found = arithmetic.interleaved(["a", "b"], 3, take)
    assert "".join(order) == "ababab"
    assert [[one.decisions for one in row] for row in found] == [[1, 3, 5], [2, 4, 6]]


@pytest.mark.parametrize(("one", "amount"), [(0.1, 10), (1e-9, 100), (10.0, 2), (0.0, 100)])
def test_a_sample_is_as_long_as_asked_for_within_bounds(one: float, amount: int) -> None:
    assert arithmetic.amount_for(1.0, one, least=2, most=100) == amount


@pytest.mark.parametrize(
    ("one", "whole", "rounds"),
    [
        (1e-4, 1_024, 5_000),  # Seconds of a round, of all lanes: long enough by itself.
        (1e-3, 1_024, 1_024),  # A whole call is within reach.
        (5e-3, 1_024, 400),  # As long as patience has it.
        (5e-3, 0, 100),  # Whole runs and baselines have no call to fill.
        (1.0, 1_024, None),  # Even the shortest sample is too long.
    ],
)
def test_a_kernel_serves_whole_calls_where_patience_allows(
    one: float, whole: int, rounds: int | None
) -> None:
    row = runs.Row("kernel", "native, full_cache", 15, 16, 8_192, 8_192, all_cores=True)
    job = runs._Job(
        row, lambda count: Sample(count, one * count), least=16, most=2**20, whole=whole
    )
    plan = runs.Plan([(15, 16)], [8_192], [engine.PLAIN], 1_024, 5, 0.5, 1_000)
    sized = runs._calibrated(plan, job, None)
    assert (None if sized is None else sized.row.rounds) == rounds
    assert bool(row.skipped) is (rounds is None)


# --- baselines and their check


INSTALLED, MISSING = baselines.installed()


@pytest.mark.parametrize("kind", INSTALLED, ids=lambda kind: kind.name)
def test_baselines_choose_what_the_reference_chooses(kind: baselines.Kind) -> None:
    given = stream()
    if kind.name in ("obp", "mabwiser"):
        given = baselines.Stream(*(part[:1] for part in given))
    chosen = kind.make(given).serve(0, given.noise.shape[1])
    for lane in range(chosen.shape[1]):
        assert baselines.worst_gap(given, lane, chosen[:, lane]) <= kind.tolerance
        # Obp's ties go to the last, ours to the first; in float32, ties fall either way.
        if kind.tolerance == baselines.EXACT and kind.name != "obp":
            assert chosen[:, lane].tolist() == reference_actions(given, lane)


def test_the_reference_loop_and_that_over_lanes_are_always_there() -> None:
    names = [kind.name for kind in baselines.KINDS]
    assert names[0] == baselines.REFERENCE
    assert {kind.name for kind in INSTALLED} | set(MISSING) == set(names)
    assert not {"NumPy loop", "NumPy over lanes"} & set(MISSING)
    assert all(MISSING.values())


def test_a_package_that_is_missing_is_said_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = baselines.KINDS[2]._replace(module="there_is_no_such_package")
    monkeypatch.setattr(baselines, "KINDS", (baselines.KINDS[0], lacking))
    there, missing = baselines.installed()
    assert [kind.name for kind in there] == ["NumPy loop"]
    assert missing == {"numba": "No module named 'there_is_no_such_package'"}


def test_a_stream_repeats_and_a_baseline_goes_on_where_it_was() -> None:
    given = stream()
    whole, parts = baselines.NumpyLoop(given), baselines.NumpyLoop(given)
    expected = whole.serve(0, 150)
    assert np.array_equal(np.concatenate([parts.serve(0, 70), parts.serve(70, 80)]), expected)


def test_the_check_measures_how_far_a_choice_is_from_the_best() -> None:
    given = stream()
    chosen = np.array(reference_actions(given, 1))
    assert baselines.worst_gap(given, 1, chosen) <= baselines.EXACT
    known = baselines.Statistics(5, 4)
    for t in range(50):
        x = given.context[1, t].astype(np.float64)
        known.observe(x, chosen[t], float(given.utility[1, t, chosen[t]] + given.noise[1, t]))
    scores = known.scores(given.context[1, 50].astype(np.float64))
    worst = int(scores.argmin())
    wrong = np.append(chosen[:50], worst)
    assert baselines.worst_gap(given, 1, wrong) == pytest.approx(scores.max() - scores[worst])
    assert baselines.worst_gap(given, 1, wrong) > baselines.SINGLE


def _never_explores(given: baselines.Stream) -> np.ndarray:
    return np.zeros((given.noise.shape[1], 1), int)


def _of_another_lane(given: baselines.Stream) -> np.ndarray:
    return np.array(reference_actions(given, 2))[:, None]


@pytest.mark.parametrize("control", [_never_explores, _of_another_lane])
def test_what_chooses_wrongly_is_not_timed(control: Callable[..., np.ndarray]) -> None:
    given = stream()
    row = runs.Row("baseline", "wrong", 5, 4, 1, 1, all_cores=False, tolerance=baselines.SINGLE)
    with pytest.raises(ArithmeticError, match=r"baseline 'wrong' chose adapters .* below the best"):
        runs.check_choices(control(given), given, row)
    right = np.array(reference_actions(given, 0))[:, None]
    assert runs.check_choices(right, given, row) <= baselines.EXACT


# --- the engine


def test_the_kernel_on_ready_rounds_chooses_what_the_reference_chooses(ready: engine.Ready) -> None:
    ready.compile("xla", kernels.run_rounds("xla"), engine.PLAIN)
    sample = ready.serve("xla", engine.PLAIN, 200)
    assert sample.decisions == 600  # 3 lanes, not the tile they are served in
    chosen, given = ready.chosen(engine.PLAIN), ready.stream(64)
    assert chosen.shape[0] == given.context.shape[0] == 3
    for lane in range(3):
        assert baselines.worst_gap(given, lane, chosen[lane, :200]) <= baselines.SINGLE
    assert ready.serve("xla", engine.PLAIN, 300).decisions == 900


def test_lanes_that_fill_up_tiles_are_known_and_not_counted() -> None:
    shape, devices = lanes.Shape(3, 2), len(jax.devices("cpu"))
    tile = lanes.tile_width(shape, "cpu")
    assert engine.filled_lanes(shape, 1, "cpu") == tile
    assert engine.filled_lanes(shape, tile + 1, "cpu") == 2 * tile
    many = 3 * devices * tile - 1
    assert engine.filled_lanes(shape, many, "cpu") == 3 * devices * tile
    assert engine.ready_bytes(shape, 20, 256, 2) == 2 * engine.ready_bytes(shape, 10, 256, 2)


# --- the command


@pytest.fixture
def in_empty_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "prepare_jax", lambda _, **__: None)


@pytest.mark.slow
@pytest.mark.usefixtures("in_empty_folder")
def test_the_command_measures_prints_and_writes_everything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*TINY.split(), "--json", "found.json"]) == 0
    shown = capsys.readouterr()
    for said in ("matrix product", "3 adapters x 2 features, 1 lane:", "NumPy loop", "everything"):
        assert said in shown.out
    assert "measuring all: 100 %" in shown.err
    found = json.loads(pathlib.Path("found.json").read_text("utf-8"))
    assert found["machine"]["cpu"] in shown.out
    assert found["kernel_of_whole_runs"] in kernels.available("cpu")
    assert len(found["limits"]["samples"]["all"]["operations"]) == 2
    (case,) = found["cases"]
    assert (case["num_adapters"], case["context_dim"], case["lanes"]) == (3, 2, 1)
    assert case["per_decision"] == arithmetic.work(3, 2)._asdict()
    rows = {(row["group"], row["name"]): row for row in case["rows"]}
    assert {group for group, _ in rows} == {"baseline", "kernel", "everything"}
    loop = rows["baseline", "NumPy loop"]
    assert loop["ratio"] == 1.0
    for row in rows.values():
        if not row["skipped"]:
            assert len(row["samples"]) == 2
            rates = [one["decisions"] / one["seconds"] for one in row["samples"]]
            assert row["decisions_per_second"] == pytest.approx(np.median(rates))
            assert row["fraction_of_limit"] == pytest.approx(row["floor_ns"] / row["ns"])
    # Nothing is written over unless asked; it is said before anything is measured.
    assert cli.main([*TINY.split(), "--json", "found.json"]) == terminal.BAD_INPUT
    assert "--json 'found.json' already exists; allowed are" in capsys.readouterr().err


@pytest.mark.usefixtures("in_empty_folder")
def test_lanes_that_do_not_fit_are_left_out_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = runs.Plan([(3, 2)], [1], [engine.PLAIN], 256, 1, 1e-3, 1_000)
    ((case),) = runs.measure(plan, _quick_machine(), lambda *_: None)
    kernel = next(row for row in case.rows if row.group == "kernel")
    assert kernel.rate is None
    assert "ready lanes need" in kernel.skipped
    assert "(--memory-limit)" in kernel.skipped
    assert case.rows[0].ratio == 1.0
    del capsys


def test_rows_stand_beside_the_floor_of_the_kernel_that_serves_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "native" not in kernels.available("cpu"):
        pytest.skip("without a C++ compiler nothing is looked at in pairs")
    monkeypatch.setenv(kernels.VARIABLE, "native")
    names = ("xla", "native", "blocked")
    plan = runs.Plan([(3, 2)], [1], [engine.PLAIN, "arc"], 256, 1, 1e-3, 1_000, False, 8, names)
    found = {
        (job.row.group, job.row.name): job.row.requests_per_read
        for job in runs._jobs(plan, (3, 2), 1, *runs._ready(plan, (3, 2), 1))
    }
    assert found == {
        ("baseline", baselines.REFERENCE): 1,
        ("kernel", "xla, full_cache"): 1,
        ("kernel", "xla, arc"): 1,
        ("kernel", "native, full_cache"): native_rounds.TOGETHER,
        ("kernel", "native, arc"): 1,  # XLA serves what the kernel does not have.
        ("kernel", "blocked, full_cache"): blocked_rounds.BLOCK,
        ("kernel", "blocked, arc"): blocked_rounds.BLOCK,
        ("everything", "full_cache"): native_rounds.TOGETHER,
        ("everything", "arc"): 1,
    }


def _quick_machine() -> limits.Machine:
    """A machine whose limits nobody asks for."""
    machine = limits.Machine("cpu", seconds=0.0)
    machine.samples = {}
    return machine


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--shapes 15y16", "--shapes must be adapters x features such as 15x16, each in [1, 4096]"),
        ("--shapes 5000x2", "--shapes must be a whole number in [1, 4096], got 5000."),
        ("--shapes 3x2,3x2", "--shapes must not repeat, got 3x2 more than once."),
        ("--shapes ,", "--shapes must name one or more, such as 15x16; got none."),
        ("--lanes 0", "--lanes must be whole numbers in [1, 1048576], separated by commas; got"),
        ("--policies polar_expert", "--policies must be one of polar, "),
        ("--policies lru,lru", "--policies must not repeat, got lru more than once."),
        ("--kernels abacus", "--kernels must be one of xla, native, pallas, blocked; got 'abacus'"),
        ("--kernels xla,xla", "--kernels must not repeat, got xla more than once."),
        ("--rounds 300", "--rounds must be a multiple of 256, got 300."),
        ("--repeats 0", "--repeats must be a whole number in [1, 1000], got 0."),
        ("--seconds nan", "--seconds must be a number in"),
        ("--memory-limit 0", "--memory-limit must be a finite number above 0, got 0.0."),
        ("--devices 0", "--devices must be a whole number in"),
        (
            "--scaling --json a.json",
            "--json must not be given with --scaling, whose numbers are in",
        ),
        ("--json .", "--json must be a file, got the folder '.'."),
    ],
)
@pytest.mark.usefixtures("in_empty_folder")
def test_options_that_cannot_be_used_are_one_line(
    capsys: pytest.CaptureFixture[str], options: str, said: str
) -> None:
    assert cli.main(["bench", *options.split()]) == terminal.BAD_INPUT
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_small_changes_what_was_not_asked_for() -> None:
    assert Bench(small=True).sized().lane_numbers() == [64]
    asked = Bench(small=True, lanes=("2",)).sized()
    assert asked.lane_numbers() == [2]
    assert asked.shape_numbers() == [(15, 16)]
    assert Bench().sized() == Bench()


@pytest.mark.usefixtures("in_empty_folder")
def test_scaling_is_written_as_figures_and_numbers() -> None:
    from polar_jax.bench import scaling

    machine = limits.Machine("cpu", seconds=0.1)
    for kind in limits.MEASURES:
        machine.samples["one"][kind] += [1e9]
        machine.samples["all"][kind] += [2e9]
    points = [
        scaling.Point(axis, value, _row(group, name, value))
        for axis in scaling.AXES
        for value in (4, 8)
        for group, name in (("baseline", "NumPy loop"), ("kernel", "xla, lru"))
    ]
    points.append(scaling.Point("lanes", 16, runs.Row("kernel", "xla", 4, 2, 16, 32, True)))
    points[-1].row.skipped = "too long"
    rows = list(csv.DictReader(scaling.scaling_csv(points, machine).decode().splitlines()))
    assert tuple(rows[0]) == scaling.COLUMNS
    assert float(rows[0]["ns_per_decision"]) == pytest.approx(400.0)
    assert rows[-1]["skipped"] == "too long"
    assert rows[-1]["ns_per_decision"] == ""
    assert scaling.scaling_png(points, machine).startswith(b"\x89PNG\r\n")


def _row(group: str, name: str, value: int) -> runs.Row:
    samples = [Sample(1_000, 1e-4 * value)]
    return runs.Row(group, name, 4, 2, 64, 64, all_cores=True, rounds=16, samples=samples)


def test_kernels_and_policies_look_different_in_the_figure() -> None:
    names = [
        ("kernel", f"{kernel}, {policy}")
        for kernel in kernels.NAMES
        for policy in ("full_cache", "lru", "polar_experts")
    ]
    names += [("everything", "full_cache"), ("baseline", baselines.REFERENCE)]
    rows = [runs.Row(group, name, 15, 16, 1, 1, all_cores=False) for group, name in names]
    looks = {tuple(map(str, scaling._look(row).values())) for row in rows}
    assert len(looks) == len(rows)
