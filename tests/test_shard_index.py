"""The index of stored shards: it saves reading files, and nothing depends on it."""

import pathlib
import shutil
from typing import Any

import pytest
import sweep_helpers

from polar_jax.sweep import shard_files, store


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Shards whose footers are read while a test runs."""
    read, opened = shard_files.read_facts, []

    def counted(path: pathlib.Path) -> dict[str, Any]:
        opened.append(int(path.stem))
        return read(path)

    monkeypatch.setattr(shard_files, "read_facts", counted)
    return opened


def look(out: pathlib.Path) -> tuple[Any, Any]:
    """Another process's look at a sweep of four shards."""
    return store.open_existing(out).look(4)


@pytest.mark.parametrize("tidied", [False, True])
def test_a_look_opens_no_file_that_the_index_knows(tmp_path, opened_files, tidied):
    opened = sweep_helpers.filled(tmp_path)
    told = look(tmp_path)
    if tidied:
        opened.tidy()
    opened_files.clear()
    assert look(tmp_path) == told
    assert opened_files == []
    shutil.rmtree(tmp_path / "shards" / "index", ignore_errors=True)
    (tmp_path / "shards" / "index.jsonl").unlink(missing_ok=True)
    assert look(tmp_path) == told
    assert sorted(opened_files) == [0, 1, 2, 3]


def test_a_file_that_changed_is_read_whatever_the_index_says(tmp_path, opened_files):
    sweep_helpers.filled(tmp_path).tidy()
    sweep_helpers.cut(tmp_path / "shards" / "0" / "2.parquet")
    (tmp_path / "shards" / "0" / "3.parquet").unlink()
    opened_files.clear()
    states, facts = look(tmp_path)
    assert states == {0: "done", 1: "done", 2: "damaged", 3: "missing"}
    assert list(facts) == [0, 1]
    assert opened_files == [2]


def test_torn_and_strange_lines_cost_time_alone(tmp_path, opened_files):
    sweep_helpers.filled(tmp_path)
    told = look(tmp_path)
    (path,) = (tmp_path / "shards" / "index").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b'[1, 2]\n"x"\n\x00\xff\n' + b"".join(lines[:2]) + lines[2][:-9])
    opened_files.clear()
    assert look(tmp_path) == told
    assert sorted(opened_files) == [2, 3]


def test_what_is_appended_is_read_from_where_the_last_look_ended(tmp_path, opened_files):
    writer = store.create_or_open(tmp_path, sweep_helpers.MANIFEST)
    reader = store.open_existing(tmp_path)
    for index in range(3):
        writer.write_shard(index, sweep_helpers.rows(index), sweep_helpers.FACTS)
        opened_files.clear()
        assert list(reader.all_facts()) == list(range(index + 1))
        assert opened_files == []


def test_whoever_computes_reads_what_was_there_and_believes_what_others_store(
    tmp_path, monkeypatch
):
    whole = []
    read = shard_files.read_whole
    monkeypatch.setattr(
        shard_files, "read_whole", lambda path: whole.append(int(path.stem)) or read(path)
    )
    sweep_helpers.filled(tmp_path)
    whole.clear()
    mine = store.create_or_open(tmp_path, sweep_helpers.MANIFEST)
    assert mine.states(4, only=[1, 2]) == {1: "done", 2: "done"}
    assert sorted(whole) == [1, 2]
    other = store.create_or_open(tmp_path, sweep_helpers.MANIFEST)
    other.write_shard(4, sweep_helpers.rows(4), sweep_helpers.FACTS)
    whole.clear()
    assert mine.stored() == set(range(5))
    assert mine.states(5, only=[4]) == {4: "done"}
    assert set(mine.states(whole=False).values()) == {"done"}
    assert whole == []
