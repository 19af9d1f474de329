"""Checkpoints, failures, and what killed processes leave behind."""

import errno
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sweep_helpers import FACTS, MANIFEST, changed, cut, everything, filled, make_old, rows

from polar_jax.sweep import claims, files, store

STATE = {
    "a/b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "file": np.asarray(3, np.int64),
    "flags": np.asarray([True, False]),
    "words": np.asarray(["lru", "polar"]),
    "none": np.zeros((0, 4), np.uint32),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


@pytest.fixture
def opened(tmp_path: pathlib.Path) -> store.Store:
    return store.create_or_open(tmp_path / "out", MANIFEST)


def state_file(opened: store.Store, index: int) -> pathlib.Path:
    return opened.out / "checkpoints" / str(index) / "state.npz"


def ended_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def temporary(path: pathlib.Path, **changes: object) -> pathlib.Path:
    """What a process that was killed while writing a file leaves; ours but for the changes."""
    me = files.this_process()
    given = {"place": me.place, "pid": me.pid, "started": me.started, **changes}
    name = f".{path.name}~{given['place']}~{given['pid']}~{given['started']}~0"
    path.parent.mkdir(parents=True, exist_ok=True)
    left = path.with_name(name)
    left.write_text("half")
    assert files.is_temporary(name)
    return left


def test_a_checkpoint_reads_back_as_it_was_written(opened: store.Store) -> None:
    assert opened.read_checkpoint(3) is None
    opened.write_checkpoint(3, STATE, {"round": 256, "names": ["a", "b"]})
    found = opened.read_checkpoint(3)
    assert found is not None
    arrays, meta = found
    assert meta == {"round": 256, "names": ["a", "b"]}
    assert list(arrays) == list(STATE)
    for name, array in STATE.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    # An ordinary file of NumPy's, for whoever wants to look into it.
    with np.load(state_file(opened, 3)) as plain:
        np.testing.assert_array_equal(plain["a/b"], STATE["a/b"])


@pytest.mark.parametrize("array", [np.asarray([None]), np.zeros(2, "V2")])
def test_arrays_that_numpy_cannot_store_alone_are_refused(
    opened: store.Store, array: np.ndarray
) -> None:
    opened.write_checkpoint(3, {"x": np.ones(1)}, {})
    with pytest.raises(ValueError, match="checkpoint array 'x' must be of NumPy's own number"):
        opened.write_checkpoint(3, {"x": array}, {})
    assert opened.read_checkpoint(3) is not None


def test_a_torn_checkpoint_is_left_out_wherever_it_is_torn(opened: store.Store) -> None:
    opened.write_checkpoint(3, STATE, {"round": 256})
    path = state_file(opened, 3)
    whole = path.read_bytes()
    for size in (0, 1, 65, 66, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.warns(RuntimeWarning, match="is damaged and left out"):
            assert opened.read_checkpoint(3) is None
    for place in range(0, len(whole), 97):
        changed_bytes = bytearray(whole)
        changed_bytes[place] ^= 4
        path.write_bytes(changed_bytes)
        with pytest.warns(RuntimeWarning, match="is damaged and left out"):
            assert opened.read_checkpoint(3) is None


def test_the_older_checkpoint_stays_until_the_new_one_is_whole(
    opened: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write_checkpoint(3, {"a": np.zeros(3)}, {"round": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(store.NoSpaceError, match="results so far are kept"):
            opened.write_checkpoint(3, {"a": np.ones(3)}, {"round": 2})
    found = opened.read_checkpoint(3)
    assert found is not None
    assert found[1] == {"round": 1}
    assert len(list(state_file(opened, 3).parent.iterdir())) == 1


def test_a_checkpoint_or_part_of_another_sweep_is_left_out(
    opened: store.Store, tmp_path: pathlib.Path
) -> None:
    other = store.create_or_open(tmp_path / "other", changed(spec_hash="b" * 64))
    other.write_checkpoint(3, {"a": np.zeros(3)}, {})
    other.write_part(3, 0, rows(0), (0, 1))
    os.rename(tmp_path / "other" / "checkpoints", opened.out / "checkpoints")
    with pytest.warns(RuntimeWarning, match="belongs to another sweep"):
        assert opened.read_checkpoint(3) is None
    with pytest.warns(RuntimeWarning, match="belongs to another sweep"):
        assert opened.read_parts(3, 1) is None


def test_parts_are_read_where_they_hold_the_first_batches_and_nothing_else(
    opened: store.Store,
) -> None:
    assert opened.read_parts(5, 0) == []
    held = [(0, 1), (1, 3), (3, 4), (4, 6)]
    for number in (0, 1, 3):
        opened.write_part(5, number, rows(number), held[number])
    assert opened.read_parts(5, 3) == [rows(0), rows(1)]
    assert opened.read_parts(5, 6) is None  # part 2 is missing
    assert opened.read_parts(5, 2) is None  # no part ends there
    opened.write_part(5, 2, rows(2), held[2])
    assert opened.read_parts(5, 6) == [rows(number) for number in range(4)]
    # As an older process leaves it that goes on with what it has in memory.
    opened.write_part(5, 2, rows(2), (2, 4))
    assert opened.read_parts(5, 6) is None
    opened.write_part(5, 2, rows(2), held[2])
    cut(opened.out / "checkpoints" / "5" / "part-1.parquet")
    with pytest.warns(RuntimeWarning, match="part-1.parquet' is damaged"):
        assert opened.read_parts(5, 6) is None
    opened.drop_checkpoint(5)
    opened.drop_checkpoint(5)
    assert opened.read_parts(5, 1) is None


def test_failures_are_kept_until_they_are_cleared(opened: store.Store) -> None:
    opened.record_failure(12, "it failed", "Traceback ...\n  line\n")
    opened.record_failure(3, "first", "trace")
    opened.record_failure(3, "second", "trace")
    found = opened.read_failures()
    assert list(found) == [3, 12]
    assert found[3]["error"] == "second"
    assert found[12]["traceback"] == "Traceback ...\n  line\n"
    assert opened.state(12) == "failed"
    opened.clear_failure(12)
    opened.clear_failure(12)
    assert opened.state(12) == "missing"
    (opened.out / "failures" / "3.json").write_text("{")
    assert opened.read_failures()[3]["error"] == "unknown"


def test_what_dead_processes_left_goes_and_what_living_ones_write_stays(
    opened: store.Store,
) -> None:
    shard, checkpoint = opened.shard_path(3), state_file(opened, 4)
    dead = [
        temporary(shard, pid=ended_process()),
        temporary(checkpoint, pid=ended_process()),
        temporary(opened.out / "claims" / "4", started=1),
        temporary(opened.out / "manifest.json", pid=ended_process()),
        temporary(opened.out / "figures" / "regret.png", pid=ended_process()),
        temporary(shard.with_name("9.parquet"), place="0" * 12),
    ]
    make_old(dead[-1], 3700)
    living = [
        temporary(shard),
        temporary(checkpoint, pid=os.getppid(), started=files._state_and_start(os.getppid())[1]),
        temporary(shard.with_name("5.parquet"), place="0" * 12),
    ]
    opened.sweep_leftovers()
    assert [path for path in dead if path.exists()] == []
    assert [path for path in living if not path.exists()] == []


def test_when_all_is_done_only_the_manifest_and_the_shards_remain(tmp_path: pathlib.Path) -> None:
    opened = filled(tmp_path)
    opened.tidy()
    clean = everything(tmp_path)
    assert clean == sorted(
        ["manifest.json", "shards", "shards/0", "shards/index.jsonl"]
        + [f"shards/0/{index}.parquet" for index in range(4)]
    )
    for index in range(4):
        opened.write_checkpoint(index, STATE, {})
        opened.write_part(index, 0, rows(0), (0, 1))
        opened.record_failure(index, "it failed", "trace")
        claim = claims.Claims(opened.claims_folder).try_claim(index)
        assert claim is not None
        right = claims.right_to(opened.claims_folder / str(index), b"")
        right.write_text("")
        temporary(opened.shard_path(index), place="0" * 12)
        temporary(opened.claims_folder / str(index), place="0" * 12)
    temporary(opened.out / "clock", place="0" * 12)
    opened.tidy()
    assert everything(tmp_path) == clean


def test_tidying_early_keeps_what_unfinished_shards_need(tmp_path: pathlib.Path) -> None:
    opened = filled(tmp_path)
    opened.write_checkpoint(8, STATE, {})
    opened.record_failure(8, "it failed", "trace")
    strange = temporary(opened.shard_path(8), place="0" * 12)
    with claims.Claims(opened.claims_folder).try_claim(8) or pytest.fail("free") as claim:
        opened.tidy()
        assert claim.still_ours()
    assert opened.read_checkpoint(8) is not None
    assert list(opened.read_failures()) == [8]
    assert strange.exists()


def test_a_writer_whose_temporary_file_was_swept_away_accepts_the_finished_one(
    opened: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write_shard(0, rows(0), FACTS)
    replace = os.replace

    def late(source: pathlib.Path, target: pathlib.Path) -> None:
        source.unlink()
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    opened.write_shard(0, rows(0), FACTS)
    with pytest.raises(FileNotFoundError):
        opened.write_shard(1, rows(1), FACTS)
