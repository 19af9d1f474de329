"""Adapters that are written and timed: shapes, whole folders, what is and is not cold."""

import array
import errno
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from polar_jax import io
from polar_jax.io.peft import PeftAdapter
from polar_jax.io.tables import Measured
from polar_jax.paging_tools import figure, files, measure, shapes, summary, synthesize
from polar_jax.paging_tools.synthesize import Recipe

SMALL = Recipe("qwen2.5-7b", 1, "qv")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("targets", "mib"),
    [
        ("qv", (4.8, 9.6, 19.2, 38.5)),
        ("qkvo", (9.6, 19.2, 38.5, 77.0)),
        ("all", (38.5, 77.0, 154.0, 308.0)),
    ],
)
def test_shapes_have_the_sizes_of_qwen_adapters(targets: str, mib: tuple[float, ...]) -> None:
    # Worked out by hand: r (inputs + outputs) numbers per module, 28 layers, 2 bytes.
    per_rank = {"qv": 11_264, "qkvo": 22_528, "all": 90_112}[targets]
    for rank, expected in zip((8, 16, 32, 64), mib, strict=True):
        size = shapes.size_bytes("qwen2.5-7b", rank, targets)
        assert size == rank * per_rank * 28 * 2
        assert size / 2**20 == pytest.approx(expected, abs=0.06)
    tensors = {t.name: t.shape for t in shapes.adapter_tensors("qwen2.5-7b", 8, targets)}
    assert len(tensors) == 28 * 2 * len(shapes.TARGETS[targets])
    stem = "base_model.model.model.layers.27.self_attn.v_proj"
    assert tensors[f"{stem}.lora_A.weight"] == (8, 3_584)
    assert tensors[f"{stem}.lora_B.weight"] == (512, 8)


@pytest.mark.parametrize(
    ("model", "rank", "targets", "said"),
    [
        ("gpt-2", 8, "qv", "model must be one of qwen2.5-7b; got 'gpt-2'"),
        ("qwen2.5-7b", 0, "qv", r"rank must be a whole number in \[1, 1024\], got 0"),
        ("qwen2.5-7b", 8, "vq", "targets must be one of qv, qkvo, all; got 'vq'"),
    ],
)
def test_unknown_shapes_are_refused(model: str, rank: int, targets: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shapes.adapter_tensors(model, rank, targets)


def write(out: pathlib.Path, *recipes: Recipe, overwrite: bool = False) -> list[pathlib.Path]:
    return synthesize.run(synthesize.prepare(out, recipes, overwrite=overwrite))


def test_a_folder_is_an_adapter_as_peft_saves_it(tmp_path: pathlib.Path) -> None:
    reference = pytest.importorskip("safetensors")
    (folder,) = write(tmp_path / "new" / "place", SMALL)
    one = io.read_peft_adapter(folder)
    assert (one.name, one.rank, one.targets) == ("qwen2.5-7b-qv-r1", 1, ("q_proj", "v_proj"))
    assert one.base_model == "Qwen/Qwen2.5-7B-Instruct"
    assert one.size_bytes == SMALL.size_bytes
    with reference.safe_open(one.path, "np") as opened:
        found = {name: tuple(opened.get_slice(name).get_shape()) for name in sorted(opened.keys())}
        assert {opened.get_slice(name).get_dtype() for name in found} == {"BF16"}
    assert found == {t.name: t.shape for t in shapes.adapter_tensors(*SMALL)}
    assert [path.name for path in (tmp_path / "new" / "place").iterdir()] == [one.name]


def test_weights_are_finite_random_and_always_the_same(tmp_path: pathlib.Path) -> None:
    words = []
    for out in ("a", "b"):
        (folder,) = write(tmp_path / out, SMALL)
        one = io.read_peft_adapter(folder)
        words.append(np.fromfile(one.path, "<u2", offset=one.header.data_start))
    np.testing.assert_array_equal(*words)
    values = (words[0].astype(np.uint32) << 16).view(np.float32)
    assert np.isfinite(values).all()
    assert 2.0**-7 <= np.abs(values).min() <= np.abs(values).max() < 2.0
    # Eleven random bits: each value is about equally frequent.
    assert np.unique(words[0]).size == 2**11


def test_progress_ends_where_all_is_written(tmp_path: pathlib.Path) -> None:
    seen: list[tuple[str, int, int]] = []
    recipes = [SMALL, SMALL._replace(rank=2)]
    synthesize.run(
        synthesize.prepare(tmp_path, recipes), lambda *step: seen.append((step[0], *step[1:]))
    )
    total = sum(recipe.size_bytes for recipe in recipes)
    assert seen[-1] == (recipes[1].name, total, total)
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)


def test_what_is_there_is_kept_unless_it_may_be_replaced(tmp_path: pathlib.Path) -> None:
    (folder,) = write(tmp_path, SMALL)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(b"mine")
    with pytest.raises(ValueError, match="already exists; allowed are another --out, or --over"):
        write(tmp_path, SMALL)
    assert weights.read_bytes() == b"mine"
    write(tmp_path, SMALL, overwrite=True)
    assert weights.stat().st_size > SMALL.size_bytes
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds more than an adapter"):
        write(tmp_path, SMALL, overwrite=True)
    assert (folder / "thesis.tex").exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_places_that_cannot_be_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--out must be a folder, got the file"):
        write(tmp_path / "file", SMALL)
    with pytest.raises(ValueError, match=r"must not repeat, got qwen2\.5-7b-qv-r1"):
        write(tmp_path, SMALL, SMALL)
    usage = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="needs 2 MiB, its disk has 1 MiB free"):
        write(tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


FULL = """
import resource, signal, sys, pathlib
from polar_jax.paging_tools import synthesize
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
job = synthesize.prepare(pathlib.Path(sys.argv[1]), [synthesize.Recipe("qwen2.5-7b", 1, "qv")])
try:
    synthesize.run(job)
except OSError as error:
    print(error.errno)
"""


def test_a_write_that_fails_leaves_nothing(tmp_path: pathlib.Path) -> None:
    # A real failure in the middle of the weights: the system lets no file grow further.
    words = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG)]
    assert list(tmp_path.iterdir()) == []


def test_an_older_adapter_returns_where_its_successor_cannot_be_put(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = write(tmp_path, SMALL)
    (folder / "adapter_config.json").write_text("old")
    real, calls = os.rename, []

    def rename(source: pathlib.Path, target: pathlib.Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error", str(target))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path, SMALL, overwrite=True)
    assert (folder / "adapter_config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_killed_runs_have_left_behind_goes(tmp_path: pathlib.Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    for name in (f".partial-{dead}-x", f".partial-{os.getpid()}-y", f".partial-{dead}-z.old"):
        (tmp_path / name).mkdir()
    write(tmp_path, SMALL)
    names = {path.name for path in tmp_path.iterdir()}
    # That of a living process stays, and an adapter that was set aside is back.
    assert names == {SMALL.name, f".partial-{os.getpid()}-y", "z"}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[PeftAdapter]:
    out = tmp_path_factory.mktemp("adapters")
    write(out, SMALL, SMALL._replace(rank=4))
    return io.list_peft_adapters(out)


def test_every_tier_is_timed_as_often_as_asked_for(adapters: list) -> None:
    device = measure.devices(None)
    steps: list[tuple[int, int]] = []
    found = measure.run(adapters, device, 3, lambda _, done, total: steps.append((done, total)))
    assert list(found.measured) == [one.name for one in adapters]
    assert not found.accelerator
    assert "copy from host memory to host memory, not a transfer to a GPU" in found.notes[0]
    for one in adapters:
        tiers = found.measured[one.name].tiers
        # Where the test's folder cannot leave the cache there are no cold reads, and a note.
        assert set(tiers) >= {"disk-warm", "host-copy"}
        assert ("disk" in tiers) or "could not be dropped" in found.notes[-1]
        assert len(tiers["disk-warm"]) == len(tiers["host-copy"]) == 3
        assert all(ms > 0 for times in tiers.values() for ms in times)
        assert found.measured[one.name].size_bytes == one.size_bytes
    assert steps[-1] == (8, 8)


@pytest.mark.parametrize(
    # Whether each read of the two adapters was cold, round by round; the first is not kept.
    ("states", "kept", "said"),
    [
        ([True, True, True, True], [1, 1], None),
        ([None, None, None, None], [1, 1], "cannot be seen on this file system"),
        ([True, True, False, True, True, True], [1, 2], "1 of 4 reads were not cold"),
        ([False, False, False, True], [0, 0], "could not be dropped (1 of 2 reads were warm)"),
    ],
)
def test_only_cold_reads_count_as_cold(
    adapters: list,
    states: list[bool | None],
    kept: list[int],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter(states)
    monkeypatch.setattr(measure, "drop_from_cache", lambda _: next(answers))
    found = measure.run(adapters, measure.devices(None), len(states) // 2 - 1)
    assert [len(found.measured[one.name].tiers.get("disk", ())) for one in adapters] == kept
    assert len(found.notes) == 1 + (said is not None)
    assert (said or "") in found.notes[-1]


def test_dropping_is_seen_to_have_dropped(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2**20))
    state = measure.drop_from_cache(path)
    if state is None:
        # Then `measure` keeps no cold times: test_only_cold_reads_count_as_cold.
        pytest.skip("overlay and network file systems may not tell what is cached, as this one")
    path.read_bytes()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Just read, so it is in the cache: a look that always says "cold" fails here.
        assert measure._in_cache(descriptor, 2**20) is True
    finally:
        os.close(descriptor)


def test_a_transfer_on_a_cpu_is_a_copy_and_no_alias(
    adapters: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = adapters[0]
    size = one.header.data_start + one.header.data_bytes
    real, aliases = jax.device_put, []

    def put(tensors: list[np.ndarray], device: object) -> list[jax.Array]:
        done = real(tensors, device)
        pairs = zip(done, tensors, strict=True)
        aliases.extend(x.unsafe_buffer_pointer() == y.ctypes.data for x, y in pairs)
        return done

    monkeypatch.setattr(jax, "device_put", put)
    for shift in range(4):
        measure._time(one, measure.devices("cpu"), np.ones(size + 8, np.uint8)[shift:])
    assert len(aliases) == 4 * one.header.num_tensors
    assert not any(aliases)
    # An aligned buffer is taken over as it is: the check can fail.
    raw = np.ones(2**16 + 64, np.uint8)
    start = -raw.ctypes.data % 64
    put([raw[start : start + 2**16]], jax.devices("cpu")[0])
    assert aliases[-1]


@pytest.mark.parametrize("name", ["tpu", "gpu:0", "cpu:99", "cpu:-1", "cpu:x", ""])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"--device must be one of cpu:0, .*got "):
        measure.devices(name)


def test_an_accelerator_gives_the_memory_tier(
    adapters: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No GPU here: a device that says it is one, and a transfer that goes to the CPU.
    class Card:
        platform, device_kind = "gpu", "NVIDIA Test"

    real = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, _: real(x, jax.devices()[0]))
    found = measure.run(adapters, Card(), 1)
    assert found.accelerator
    assert found.device == "gpu NVIDIA Test"
    assert "memory" in found.measured[adapters[0].name].tiers
    assert not any("No accelerator" in note for note in found.notes)


def test_adapters_too_large_to_be_timed_are_refused(
    adapters: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "MAX_TENSORS", 100)
    with pytest.raises(ValueError, match=r"at most 100 tensors .* got 112"):
        measure.run(adapters, measure.devices(None), 1)


def measured(sizes: dict[str, int | None]) -> dict[str, Measured]:
    return {
        name: Measured(
            {
                "disk": array.array("d", [2.0 + (size or 9) / 1e6 + d for d in (-0.5, 0, 0.5)]),
                "memory": array.array("d", [(size or 9) / 1e7]),
            },
            size,
        )
        for name, size in sizes.items()
    }


def test_figures_are_medians_quantiles_and_a_line_per_tier() -> None:
    found = summary.rows(measured({"a": 1_000_000, "b": 4_000_000}))
    assert [(row.adapter, row.tier, row.number) for row in found] == [
        *(("a", "disk", 3), ("a", "memory", 1), ("b", "disk", 3), ("b", "memory", 1)),
    ]
    assert (found[0].median, found[0].mean) == pytest.approx((3.0, 3.0))
    assert (found[0].low, found[0].high) == pytest.approx((2.6, 3.4))
    fits = summary.fits(found)
    assert fits["disk"].model == pytest.approx((2.0, 1e6))
    assert fits["memory"].model.gb_per_s == pytest.approx(10.0)
    assert fits["disk"].worst == pytest.approx(0.0, abs=1e-9)
    assert summary.fits(summary.rows(measured({"a": 5, "b": 5}))) == {}
    assert summary.fits(summary.rows(measured({"a": None, "b": None}))) == {}


@pytest.mark.parametrize(
    "sizes",
    [
        {"a": 1_000_000, "b": 4_000_000},
        {"$x_1^{$": None, "b": None},
        {f"n{i}": None for i in range(60)},
        {"a": 5},
    ],
)
def test_any_table_can_be_drawn(sizes: dict[str, int | None]) -> None:
    found = summary.rows(measured(sizes))
    assert figure.paging_png(found, "a $file$.csv").startswith(PNG)
    zero = [row._replace(median=0.0, low=0.0, high=0.0) for row in found]
    assert figure.paging_png(zero, "zero").startswith(PNG)


def test_a_measured_file_is_read_as_a_paging_file(adapters: list, tmp_path: pathlib.Path) -> None:
    times = {
        one.name: Measured(
            {
                "disk": array.array("d", [2.0, 4.0]),
                "disk-warm": array.array("d", [1.0, 1.0]),
                "host-copy": array.array("d", [0.5, 0.25]),
            },
            one.size_bytes,
        )
        for one in adapters
    }
    path = tmp_path / "loads.csv"
    path.write_bytes(files.paging_csv(times, adapters, 'gpu "NVIDIA, H100"'))
    assert path.read_text().splitlines()[0] == "adapter,tier,ms,size_bytes,rank,device"
    table = io.read_paging_table(path)
    assert (table.tier, table.mean_ms.tolist()) == ("disk+host-copy", [3.375] * 2)
    assert io.read_measurements(path) == times


def test_files_are_whole_or_absent_and_never_over_another(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "loads.csv"
    files.check_out(out, (".csv",), overwrite=False)
    files.put(out, b"one", overwrite=False)
    with pytest.raises(ValueError, match="already exists; allowed are another file, or --over"):
        files.check_out(out, (".csv",), overwrite=False)
    with pytest.raises(FileExistsError):
        files.put(out, b"two", overwrite=False)
    assert out.read_bytes() == b"one"
    # Measurements cannot be had again: they go beside what has come to be there.
    beside = [files.put_beside(out, data, overwrite=False) for data in (b"a", b"b")]
    assert [path.name for path in beside] == ["loads-2.csv", "loads-3.csv"]
    assert [path.read_bytes() for path in beside] == [b"a", b"b"]
    for path in beside:
        path.unlink()
    files.put(out, b"two", overwrite=True)

    def full(path: pathlib.Path, _: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        files.put(out, b"three", overwrite=True)
    assert out.read_bytes() == b"two"
    assert [path.name for path in out.parent.iterdir()] == ["loads.csv"]
    with pytest.raises(ValueError, match=r"--out must end in \.png, got"):
        files.check_out(out, (".png",), overwrite=True)
    (tmp_path / "deep.csv").mkdir()
    with pytest.raises(ValueError, match="--out must be a file, got the folder"):
        files.check_out(tmp_path / "deep.csv", (".csv",), overwrite=True)
