"""Tiers: taking one, adding some up, and what a run says that it was charged by."""

import csv
import json
import pathlib

import numpy as np
import pytest

from polar_jax import cli, configured, paging, terminal
from polar_jax.config import RunConfig
from polar_jax.io import package_data, qwen_paging_table, read_measurements, read_paging_table
from polar_jax.sweep import spec

ROWS = """adapter,tier,ms,size_bytes
a,Disk,10,100
a,disk,20,100
a,disk-warm,5,100
a,memory,2,100
a,memory,4,100
b,disk,30,200
b,disk-warm,6,200
b,memory,8,200
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "loads.csv"
    path.write_text(ROWS)
    return path


@pytest.mark.parametrize(
    ("tier", "means", "called"),
    [
        (None, [18.0, 38.0], "disk+memory"),
        ("disk+memory", [18.0, 38.0], "disk+memory"),
        (" Memory + DISK ", [18.0, 38.0], "memory+disk"),
        ("disk-warm+memory", [8.0, 14.0], "disk-warm+memory"),
        ("disk+disk-warm", [20.0, 36.0], "disk+disk-warm"),
    ],
)
def test_tiers_of_a_file_add_up_and_a_warm_one_only_where_asked_for(
    file: pathlib.Path, tier: str | None, means: list[float], called: str
) -> None:
    table = read_paging_table(file, tier=tier)
    assert table.mean_ms.tolist() == means
    assert (table.samples_ms, table.tier) == (None, called)


def test_one_tier_keeps_its_samples(file: pathlib.Path) -> None:
    table = read_paging_table(file, tier="disk")
    assert table.tier == "disk"
    assert paging.draw_arrays(table)[0].tolist() == [[10.0, 20.0], [30.0, 0.0]]
    assert read_paging_table(file, tier="disk-warm").mean_ms.tolist() == [5.0, 6.0]


def test_a_warm_tier_gives_way_to_its_own_alone(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "loads.csv"
    file.write_text("adapter,tier,ms\na,disk-warm,1\na,memory,2\n")
    assert read_paging_table(file).tier == "disk-warm+memory"
    file.write_text("adapter,tier,ms\na,disk,1\na,disk,3\na,disk-warm,2\n")
    table = read_paging_table(file)
    assert (table.tier, table.samples_ms is None) == ("disk", False)


def test_a_tier_may_have_a_plus_in_its_name(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "loads.csv"
    file.write_text("adapter,tier,ms\na,disk+memory,1\na,other,2\n")
    assert read_paging_table(file, tier="disk+memory").mean_ms.tolist() == [1.0]


@pytest.mark.parametrize("tier", ["dsk", "disk+dsk", "disk+disk", "", "+", "disk,memory"])
def test_tiers_that_a_file_does_not_have_are_refused(file: pathlib.Path, tier: str) -> None:
    with pytest.raises(ValueError, match=r"loads.csv': tier must be one of disk, disk-warm, mem"):
        read_paging_table(file, tier=tier)


def test_an_adapter_without_the_tier_asked_for_is_refused(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "loads.csv"
    file.write_text("adapter,tier,ms\na,disk,1\nb,remote,9\n")
    assert read_paging_table(file).tier == "disk,remote"
    with pytest.raises(ValueError, match=r"'b' must have rows of every tier \(disk\), got none"):
        read_paging_table(file, tier="disk")


def test_measurements_are_read_as_they_stand(file: pathlib.Path) -> None:
    found = read_measurements(file)
    assert list(found["a"].tiers["disk"]) == [10.0, 20.0]
    assert list(found["b"].tiers) == ["disk", "disk-warm", "memory"]
    assert found["b"].size_bytes == 200


def origin_loads() -> dict[tuple[int, str], np.ndarray]:
    path = pathlib.Path(package_data.__file__).parents[1] / "data" / "qwen2_5_7b_paging.csv"
    found: dict[tuple[int, str], list[float]] = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        found.setdefault((int(row["adapter_rank"]), row["tier"]), []).append(float(row["ms"]))
    return {key: np.array(values) for key, values in found.items()}


@pytest.mark.parametrize("tier", ["memory", "disk"])
def test_a_shipped_tier_alone_is_its_loads(tier: str) -> None:
    table = qwen_paging_table(4, tier=tier)
    padded, count = paging.draw_arrays(table)
    for row, rank in enumerate((8, 16, 32, 8)):
        loads = origin_loads()[rank, tier]
        np.testing.assert_array_equal(padded[row, : count[row]], loads.astype(np.float32))
    assert table.tier == tier


def test_the_cold_loads_are_the_first_of_each_run_and_slower_than_all_of_it() -> None:
    # A run is 150 lines of the file: 50 disk loads, a CPU-to-GPU load behind each, 50 more.
    path = pathlib.Path(package_data.__file__).parents[1] / "data" / "qwen2_5_7b_paging.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    firsts: dict[int, list[float]] = {}
    for start in range(0, 900, 150):
        run = rows[start : start + 150]
        assert len({row["adapter_rank"] for row in run}) == 1
        disk = [float(row["ms"]) for row in run if row["tier"] == "disk"]
        assert (len(disk), run[0]["tier"]) == (50, "disk")
        assert disk[0] == max(disk)
        firsts.setdefault(int(run[0]["adapter_rank"]), []).append(disk[0])
    assert firsts == {16: [70.2245, 38.4524], 32: [125.0891], 8: [53.4258, 22.4751, 20.8424]}
    loads = origin_loads()
    table = qwen_paging_table(3, tier="cold")
    expected = [np.mean(firsts[rank]) + loads[rank, "memory"].mean() for rank in (8, 16, 32)]
    np.testing.assert_allclose(table.mean_ms, expected, rtol=1e-12)
    np.testing.assert_allclose(table.mean_ms, [35.5, 58.0, 128.5], atol=0.06)
    assert paging.draw_arrays(table)[1].tolist() == [300, 200, 100]
    assert table.tier == "cold disk+memory"


def test_remote_loads_have_the_published_quantiles_and_no_rank() -> None:
    table = qwen_paging_table(5, tier="remote")
    padded, count = paging.draw_arrays(table)
    assert (count == package_data.REMOTE_SAMPLES).all()
    assert (padded == padded[0]).all()
    samples = package_data.remote_samples()
    # Samples are the quantiles at levels (j + 0.5) / n, which is Hazen's rule.
    found = np.quantile(samples, [0.05, 0.5, 0.99], method="hazen")
    np.testing.assert_allclose(found, [1_100.0, 4_400.0, 8_200.0], atol=0.6)
    assert (np.diff(samples) > 0).all()
    assert (samples.min(), samples.max()) == pytest.approx((752, 8258), abs=1)
    np.testing.assert_allclose(table.mean_ms, 4_452.7, atol=0.1)


def test_the_default_tier_is_what_it_was() -> None:
    table, named = qwen_paging_table(6), qwen_paging_table(6, tier="disk+memory")
    np.testing.assert_array_equal(table.mean_ms, named.mean_ms)
    np.testing.assert_allclose(table.mean_ms[:3], [13.251, 19.142, 25.854], atol=1e-3)


def test_an_unknown_shipped_tier_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of disk\+memory, memory, disk, cold, re"):
        qwen_paging_table(3, tier="tape")


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        (None, "vLLM 0.8.5 (arXiv:2508.08343), tier disk+memory"),
        ("cold", "vLLM 0.8.5 (arXiv:2508.08343), tier cold"),
        ("remote", "three published quantiles"),
    ],
)
def test_a_run_says_by_which_tier_it_charges(tier: str | None, said: str) -> None:
    found = configured.configure(RunConfig(tier=tier))
    assert said in found.paging_origin
    assert ("not measured" in found.paging_origin) == (tier == "remote")


def test_a_run_takes_a_tier_of_a_file(
    file: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "prepare_jax", lambda _, **__: None)
    assert configured.configure(RunConfig(adapters=2, slots=1, paging=file)).paging_origin.endswith(
        "2 adapters, tier disk+memory"
    )
    out = tmp_path / "out"
    words = "run --adapters 2 --slots 1 --context-dim 2 --horizon 50 --seeds 1 --policies no_cache"
    words = [*words.split(), "--paging", str(file), "--tier", "memory", "--out", str(out)]
    assert cli.main([*words, "--quiet"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["paging"]["tier"], manifest["paging"]["mean_ms"]) == ("memory", [3.0, 8.0])
    assert manifest["paging"]["origin"].endswith("2 adapters, tier memory")
    assert manifest["options"]["tier"] == "memory"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--tier tape",
            "--tier must be one of disk+memory, memory, disk, cold, remote; got 'tape'",
        ),
        ("--tier cold --costs synthetic:1", "--tier goes with measured load times, got --tier"),
        ("--paging loads.csv --tier tape", "tier must be one of disk, disk-warm, memory"),
    ],
)
def test_tiers_that_cannot_be_are_one_line(
    file: pathlib.Path,
    words: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(terminal, "prepare_jax", lambda _, **__: None)
    monkeypatch.chdir(file.parent)
    assert cli.main(["run", "--adapters", "2", "--slots", "1", *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_sweep_varies_the_tier(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import polars as pl

    from polar_jax import sweep

    monkeypatch.setattr(terminal, "prepare_jax", lambda _, **__: None)
    monkeypatch.chdir(tmp_path)
    text = """
[fixed]
adapters = 3
slots = 1
context_dim = 2
horizon = 60
seeds = 2
policies = "no_cache"
[axes]
tier = ["memory", "disk+memory", "cold", "remote"]
"""
    pathlib.Path("tiers.toml").write_text(text)
    assert spec.read(pathlib.Path("tiers.toml")).num_lanes == 8
    assert cli.main(["sweep", "run", "tiers.toml", "--out", "out", "--quiet"]) == 0
    rows = sweep.load(pathlib.Path("out"))
    paid = rows.group_by("tier").agg(pl.col("paging_ms_per_request").mean())
    ms = dict(paid.iter_rows())
    assert ms["memory"] < ms["disk+memory"] < ms["cold"] < ms["remote"]
    # With no cache every request pages in; latencies are drawn from the tier's own.
    assert 2 < ms["memory"] < 6 < 9 < ms["disk+memory"]
    assert 733 < ms["remote"] < 8_278
