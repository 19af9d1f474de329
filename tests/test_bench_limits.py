"""The benchmark's limits: what the machine can do, its caches, and how rows stand to them."""

import pathlib

import pytest

from polar_jax import kernels, manifest
from polar_jax.bench import arithmetic, limits, record, runs, worker
from polar_jax.bench.arithmetic import Sample
from polar_jax.kernels import blocked_rounds, native_build, native_rounds


@pytest.mark.parametrize("kind", limits.MEASURES)
def test_a_worker_measures_every_limit(kind: str) -> None:
    assert worker.MEASURES[kind](1e-3) > 1e6


@pytest.mark.parametrize(
    ("name", "index", "text", "size"),
    [
        ("first_cache", "index0", "48K", 48 * 2**10),
        ("second_cache", "index2", "2M", 2**21),
        ("third_cache", "index3", "32768K", 2**25 // manifest.usable_cores()),
        ("third_cache", "index2", "2M", 0),
        ("first_cache", "index0", "unheard of", 2**15),
    ],
)
def test_caches_are_what_the_system_says_and_the_third_is_shared(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str,
    index: str,
    text: str,
    size: int,
) -> None:
    (tmp_path / index).mkdir()
    (tmp_path / index / "size").write_text(f"{text}\n", "ascii")
    monkeypatch.setattr(limits, "_SYSTEM", tmp_path)
    assert limits.cache_bytes(name, all_cores=True) == size


@pytest.mark.parametrize(
    ("text", "shared"), [("0-3", 4), ("0,2-3,64-71", 3), ("8-15", 1), ("nothing known", 2)]
)
def test_the_third_cache_is_shared_by_those_that_have_the_same(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, text: str, shared: int
) -> None:
    (tmp_path / "index3").mkdir()
    (tmp_path / "index3" / "size").write_text("12M\n", "ascii")
    (tmp_path / "index3" / "shared_cpu_list").write_text(f"{text}\n", "ascii")
    monkeypatch.setattr(limits, "_SYSTEM", tmp_path)
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(manifest, "usable_cores", lambda: 2)
    assert limits.cache_bytes("third_cache", all_cores=True) == 12 * 2**20 // shared
    assert limits.cache_bytes("third_cache", all_cores=False) == 12 * 2**20


def test_a_cache_that_is_not_there_is_no_limit(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_SYSTEM", tmp_path)
    machine = limits.Machine("cpu", seconds=0.1)
    for kind in limits.MEASURES:
        machine.samples["all"][kind] += [1e9]
    names = [cache.name for cache in machine.limits(all_cores=True).caches]
    assert names == ["first cache", "second cache"]


@pytest.mark.parametrize("words", [1, worker.FIRST[0] + 8 * worker.FIRST[1], 100_001])
def test_what_is_copied_within_caches_lies_half_a_page_apart(words: int) -> None:
    source, target = worker._half_a_page_apart(words)
    assert source.size == target.size == words
    assert (target.ctypes.data - source.ctypes.data) % worker.PAGE == worker.PAGE // 2
    assert target.ctypes.data >= source.ctypes.data + source.nbytes


def test_rows_stand_to_the_limits_of_the_cores_that_they_use() -> None:
    machine = limits.Machine("cpu", seconds=0.1)
    for kind in limits.MEASURES:
        machine.samples["one"][kind] += [1e9, 3e9, 2e9]
        machine.samples["all"][kind] += [8e9]
    row = runs.Row("kernel", "xla", 15, 16, 64, 64, all_cores=True, samples=[Sample(10, 1e-5)])
    found = record.standing(row, machine)
    assert found is not None
    needed = arithmetic.work(15, 16)
    assert found.ns == pytest.approx(1_000.0)
    assert found.floor_ns == pytest.approx(max(needed.operations, needed.state_bytes) / 8.0)
    assert found.fraction == pytest.approx(found.floor_ns / 1_000.0)
    row.all_cores = False
    single = record.standing(row, machine)
    assert single is not None
    assert single.floor_ns == pytest.approx(4.0 * found.floor_ns)
    # All caches are as fast here: half the reads, then, are half the time of reading.
    row.requests_per_read = native_rounds.TOGETHER
    read = record.standing(row, machine)
    assert read is not None
    paired = arithmetic.work(15, 16, 2)
    assert read.floor_ns == pytest.approx(max(paired.operations, paired.state_bytes) / 2.0)
    row.samples = []
    assert record.standing(row, machine) is None


def test_what_kernels_read_once_is_what_they_look_at() -> None:
    source = native_build.SOURCES.joinpath("lane.h").read_text("utf-8")
    assert f"kMost = {native_rounds.TOGETHER};" in source
    assert [kernels.requests_per_read(name) for name in ("xla", "pallas")] == [1, 1]
    assert kernels.requests_per_read("blocked") == blocked_rounds.BLOCK
