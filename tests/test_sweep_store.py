"""A sweep's folder: whole files only, nothing overwritten, nothing lost, nothing left behind."""

import concurrent.futures
import errno
import json
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import polars as pl
import pyarrow
import pyarrow.parquet
import pytest
from sweep_helpers import FACTS, MANIFEST, changed, cut, everything, filled, rows

from polar_jax.sweep import files, shard_files, store, table

ROOT = pathlib.Path(__file__).parents[1]
# Writes shards and checkpoints over and over, until it is killed.
WRITER = """
import itertools, json, pathlib, sys
import numpy, pyarrow
from polar_jax.sweep import store
out, manifest = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
opened = store.create_or_open(out, manifest)
opened.write_shard(0, pyarrow.table({"seed": [0], "turn": [-1]}), {"tile": 32, "turn": -1})
print("ready", flush=True)
for turn in itertools.count():
    rows = pyarrow.table({"seed": numpy.arange(50_000), "turn": numpy.full(50_000, turn)})
    opened.write_shard(turn % 3, rows, {"tile": 32, "turn": turn})
    opened.write_checkpoint(7, {"state": numpy.full(50_000, turn)}, {"turn": turn})
"""
# Ends itself as `kill -9` would, at the n-th call of a function of the system.
DOOMED = """
import os, pathlib, signal, sys
import pyarrow
from polar_jax.sweep import store
opened = store.open_existing(pathlib.Path(sys.argv[1]))
name, count = sys.argv[2].split()
left, real = int(count), getattr(os, name)
def call(*arguments):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(os, name, call)
opened.write_shard(0, pyarrow.table({"x": ["new"]}), {"tile": 32})
"""


# The folder and its manifest.


def test_the_folder_is_made_with_its_manifest_and_opened_again(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "deep" / "out"
    made = store.create_or_open(out, MANIFEST)
    again = store.create_or_open(out, MANIFEST)
    assert made.manifest == again.manifest == store.open_existing(out).manifest == MANIFEST
    assert everything(out) == ["manifest.json"]


def test_of_many_that_create_a_folder_at_once_all_get_the_same_manifest(
    tmp_path: pathlib.Path,
) -> None:
    given = [changed(name=f"number {i}") for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda one: store.create_or_open(tmp_path / "out", one), given))
    assert len({one.manifest["name"] for one in made}) == 1
    assert everything(tmp_path / "out") == ["manifest.json"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            changed(spec_hash="b" * 64, fixed={"alpha": 1.0}),
            r"spec_hash is a{12}, the spec given has b{12}; alpha is 0\.5 there, 1\.0 here\. Use",
        ),
        (changed(shard_seconds=60.0), r"shard_seconds is 300\.0 there, 60\.0 here\. Use another"),
        (
            changed(machine={"jax_platform": "gpu", "device_kind": "H100"}),
            r'jax_platform is "cpu" there, "gpu" here; device_kind is "cpu" there, "H100" here',
        ),
        (
            changed(machine={**MANIFEST["machine"], "kernel": "native"}),
            r'the kernel \(POLAR_JAX_KERNEL\) is "xla" there, "native" here',
        ),
        (
            changed(buckets=[{**MANIFEST["buckets"][0], "tile": 64}]),
            "tile of bucket 0 is 32 there, 64 here",
        ),
        (
            changed(buckets=[{**MANIFEST["buckets"][0], "padded_dim": 8}]),
            "padded_dim of bucket 0 is 4 there, 8 here",
        ),
        (changed(buckets=[]), "the number of buckets is 1 there, 0 here"),
        (changed(plan_hash="b" * 64), r"hold other rows than this plan's \(planned by polar_jax"),
    ],
)
def test_another_sweep_is_refused_and_the_message_says_in_what_it_differs(
    tmp_path: pathlib.Path, other: dict[str, Any], message: str
) -> None:
    filled(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(store.StoreError, match=message) as caught:
        store.create_or_open(tmp_path, other)
    assert "another --out" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


def test_what_changes_no_row_is_taken_over_into_the_manifest(tmp_path: pathlib.Path) -> None:
    filled(tmp_path)
    told = {"title": "New", "report": {"x": "alpha", "chosen_on": 4}, "spec_text": "# new"}
    before = everything(tmp_path)
    opened = store.create_or_open(tmp_path, changed(fixed={}) | told)
    assert opened.manifest == store.open_existing(tmp_path).manifest == MANIFEST | told
    assert everything(tmp_path) == before
    stamp = (tmp_path / "manifest.json").stat().st_mtime_ns
    store.create_or_open(tmp_path, MANIFEST | told)
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == stamp


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: pathlib.Path) -> None:
    out = tmp_path / os.fsdecode(b"r\xe9sultats")
    with pytest.raises(store.StoreError, match="--out must be a name in UTF-8, got"):
        store.create_or_open(out, MANIFEST)
    assert everything(tmp_path) == []


def test_another_cpu_or_jaxlib_may_go_on_and_is_marked(tmp_path: pathlib.Path) -> None:
    opened = filled(tmp_path)
    assert opened.mixed() == {}
    other = changed(machine={"cpu": "B"}, versions={"jaxlib": "0.10.3"})
    store.create_or_open(tmp_path, other).write_shard(4, rows(4), FACTS)
    assert opened.mixed() == {"jaxlib": ["0.10.2", "0.10.3"], "cpu": ["A", "B"]}
    assert opened.read_facts(4)["cpu"] == "B"
    assert opened.state(4) == "done"


def test_a_shard_that_went_on_from_another_machines_state_names_both(
    tmp_path: pathlib.Path,
) -> None:
    first = store.create_or_open(tmp_path, MANIFEST)
    first.write_checkpoint(0, {"a": np.zeros(2)}, {})
    second = store.create_or_open(tmp_path, changed(machine={"cpu": "B"}))
    assert second.read_checkpoint(0) is not None
    second.write_checkpoint(0, {"a": np.ones(2)}, {})
    third = store.create_or_open(tmp_path, changed(machine={"cpu": "C"}))
    assert third.read_checkpoint(0) is not None
    third.write_shard(0, rows(0), FACTS)
    assert [session["cpu"] for session in third.read_facts(0)["sessions"]] == ["A", "B", "C"]
    assert third.mixed() == {"cpu": ["A", "B", "C"]}


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(store.StoreError, match=r"already holds files \(such as 'thesis.tex'\)"):
        store.create_or_open(tmp_path, MANIFEST)
    assert everything(tmp_path) == ["thesis.tex"]


def test_a_folder_of_a_plain_run_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "manifest.json").write_text('{"options": {}}')
    with pytest.raises(store.StoreError, match="not that of a sweep"):
        store.create_or_open(tmp_path, MANIFEST)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 1, "spec', "is damaged"),
        ('{"spec_hash": "a", "schema": 2}', "was written with schema 2, this version reads 1"),
        ("[]", "not that of a sweep"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_one_clear_line(
    tmp_path: pathlib.Path, text: str, message: str
) -> None:
    (tmp_path / "manifest.json").write_text(text)
    for use in (store.open_existing, lambda out: store.create_or_open(out, MANIFEST)):
        with pytest.raises(store.StoreError, match=message):
            use(tmp_path)


def test_a_folder_without_a_sweep_cannot_be_opened(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(store.StoreError, match=r"holds no sweep: manifest.json is missing"):
            store.open_existing(out)


def test_out_must_be_a_folder_that_can_be_made(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(store.StoreError, match=r"must be a folder, got the file"):
        store.create_or_open(tmp_path / "file", MANIFEST)
    with pytest.raises(store.StoreError, match=r"cannot be made \(Not a directory\)"):
        store.create_or_open(tmp_path / "file" / "below", MANIFEST)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = filled(tmp_path)
    before = everything(tmp_path)

    # Refused by hand, because root may write to folders of any mode.
    def denied(path: pathlib.Path, *_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(files, "open", denied, raising=False)
    with pytest.raises(store.StoreError, match=r"cannot be written to \(Read-only file system\)"):
        store.create_or_open(tmp_path, MANIFEST)
    with pytest.raises(OSError, match="Read-only file system"):
        opened.write_shard(4, rows(4), FACTS)
    # What is there can still be read.
    assert table.load(tmp_path).height == 12
    assert everything(tmp_path) == before


# Shards.


def test_a_shard_says_what_it_is(tmp_path: pathlib.Path) -> None:
    opened = store.create_or_open(tmp_path, MANIFEST)
    opened.write_shard(2345, rows(1), {**FACTS, "decisions": np.int64(4000)})
    path = tmp_path / "shards" / "2" / "2345.parquet"
    assert opened.shard_path(2345) == path
    assert path.is_file()
    facts = opened.read_facts(2345)
    expected = {"spec_hash": "a" * 64, "schema": 1, "shard": 2345, "rows": 3, **FACTS}
    assert {name: facts[name] for name in expected} == expected
    assert facts["device_kind"] == "cpu"
    with pytest.raises(store.StoreError, match="shard 1 is not done"):
        opened.read_facts(1)


def test_states_tell_what_is_there_and_follow_what_changes(tmp_path: pathlib.Path) -> None:
    opened = filled(tmp_path)
    opened.record_failure(5, "it failed", "trace")
    cut(opened.shard_path(1))
    expected = {0: "done", 1: "damaged", 2: "done", 3: "done", 4: "missing", 5: "failed"}
    assert opened.states(6) == expected
    assert {index: opened.state(index) for index in range(6)} == expected
    assert 4 not in opened.states()
    opened.write_shard(1, rows(1), FACTS)
    opened.write_shard(5, rows(5), FACTS)
    opened.shard_path(0).unlink()
    assert opened.states(6) == {**dict.fromkeys(range(1, 6), "done"), 0: "missing", 4: "missing"}


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b"")])
def test_a_truncated_shard_is_refused_by_name_and_can_be_written_again(
    tmp_path: pathlib.Path, damage: Any
) -> None:
    opened = filled(tmp_path)
    damage(opened.shard_path(1))
    assert opened.state(1) == "damaged"
    with pytest.raises(
        store.StoreError,
        match=r"0/1\.parquet' is damaged .*`polar-jax sweep run SPEC --out .*` computes it again",
    ):
        table.load(tmp_path)
    assert table.coverage(tmp_path).damaged == (1,)
    opened.write_shard(1, rows(1), FACTS)
    assert table.load(tmp_path).height == 12


def test_a_changed_bit_in_the_rows_does_not_go_unnoticed(tmp_path: pathlib.Path) -> None:
    opened = filled(tmp_path)
    path = opened.shard_path(1)
    regret = pyarrow.parquet.read_metadata(path).row_group(0).column(4)
    data = bytearray(path.read_bytes())
    data[regret.dictionary_page_offset + regret.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(store.StoreError, match=r"1\.parquet' is damaged .*computes it again"):
        table.load(tmp_path)
    assert table.coverage(tmp_path).damaged == (1,)
    # Its footer is whole; whoever computes what is missing looks at the pages too.
    assert store.open_existing(tmp_path).state(1) == "done"
    assert store.create_or_open(tmp_path, MANIFEST).states()[1] == "damaged"


@pytest.mark.parametrize(
    ("other", "facts", "message"),
    [
        (changed(spec_hash="b" * 64), FACTS, "spec_hash is 'bbb"),
        (changed(shard_seconds=1.0), FACTS, r"shard_seconds is 1\.0, not 300\.0"),
        (changed(machine={"device_kind": "H100"}), FACTS, "device_kind is 'H100', not 'cpu'"),
        (MANIFEST, {**FACTS, "tile": 8}, r"tile is 8, not one of \[32\]"),
        (MANIFEST, {**FACTS, "schema": 0}, "schema is 0, not 1"),
        (MANIFEST, {**FACTS, "shard": 3}, "shard is 3, not 1"),
    ],
)
def test_a_shard_of_another_sweep_is_refused_and_never_overwritten(
    tmp_path: pathlib.Path, other: dict[str, Any], facts: dict[str, Any], message: str
) -> None:
    opened = filled(tmp_path / "out")
    strange = store.create_or_open(tmp_path / "other", other)
    strange.write_shard(1, rows(9), facts)
    data = strange.shard_path(1).read_bytes()
    opened.shard_path(1).write_bytes(data)
    assert opened.states()[1] == opened.state(1) == "foreign"
    for use in (
        lambda: table.load(tmp_path / "out"),
        lambda: opened.write_shard(1, rows(1), FACTS),
    ):
        with pytest.raises(store.StoreError, match=message):
            use()
    assert opened.shard_path(1).read_bytes() == data
    assert table.coverage(tmp_path / "out").foreign == (1,)


def test_a_parquet_file_of_somebody_else_is_foreign(tmp_path: pathlib.Path) -> None:
    opened = filled(tmp_path)
    pl.DataFrame({"a": [1]}).write_parquet(opened.shard_path(4))
    assert opened.state(4) == "foreign"


def test_thousands_of_shards_are_opened_once_each_whoever_looks_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = filled(tmp_path)
    data = opened.shard_path(0).read_bytes()
    for index in range(2000):
        path = opened.shard_path(index)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    # Seconds are what `tests/store_load.py` measures; they depend on the machine, this does not.
    read, paths = pyarrow.parquet.read_metadata, list[pathlib.Path]()
    monkeypatch.setattr(
        pyarrow.parquet, "read_metadata", lambda path: paths.append(path) or read(path)
    )
    states = opened.states()
    # Copies of shard 0 under other numbers are no results.
    assert [index for index, state in states.items() if state == "done"] == [0]
    assert len(set(paths)) == len(paths) == 2000
    paths.clear()
    assert opened.states() == states
    assert paths == []


# What goes wrong while writing.


def test_killed_at_any_moment_a_writer_leaves_whole_files_only(tmp_path: pathlib.Path) -> None:
    moments = random.Random(3)
    opened = store.create_or_open(tmp_path, MANIFEST)
    last = -1
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path), json.dumps(MANIFEST)]
        writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.05 + moments.random() * 0.2)
        writer.kill()
        writer.communicate()
        assert set(opened.states().values()) <= {"done"}
        checkpoint = opened.read_checkpoint(7)
        if checkpoint is not None:
            arrays, meta = checkpoint
            last = meta["turn"]
            np.testing.assert_array_equal(arrays["state"], np.full(50_000, last))
    assert last >= 0
    for index, facts in opened.all_facts().items():
        turns = shard_files.read_table(opened.shard_path(index))["turn"].to_numpy()
        assert set(turns) == {facts["turn"]}
    opened.drop_checkpoint(7)
    opened.tidy()
    assert set(everything(tmp_path)) <= {
        "manifest.json",
        "shards",
        "shards/0",
        "shards/index.jsonl",
        *(f"shards/0/{index}.parquet" for index in range(3)),
    }


@pytest.mark.parametrize(
    ("moment", "stored"), [("fsync 1", "old"), ("replace 1", "old"), ("fsync 2", "new")]
)
def test_killed_at_the_worst_moments_the_older_or_the_newer_shard_is_whole(
    tmp_path: pathlib.Path, moment: str, stored: str
) -> None:
    opened = store.create_or_open(tmp_path, MANIFEST)
    opened.write_shard(0, pyarrow.table({"x": ["old"]}), FACTS)
    clean = everything(tmp_path)
    done = subprocess.run([sys.executable, "-c", DOOMED, str(tmp_path), moment], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert shard_files.read_table(opened.shard_path(0))["x"].to_pylist() == [stored]
    assert opened.state(0) == "done"
    # The first two moments leave a temporary file, which is told to be a dead process's.
    assert (everything(tmp_path) == clean) == (stored == "new")
    opened.sweep_leftovers()
    assert everything(tmp_path) == clean


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_loses_nothing_and_says_what_to_do(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    opened = filled(tmp_path)
    opened.write_checkpoint(5, {"a": np.zeros(3)}, {"round": 1})
    before = everything(tmp_path)

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        expected = OSError if code == errno.EIO else store.NoSpaceError
        words = (
            "output error"
            if code == errno.EIO
            else "no space left on .*: results so far are kept, run"
        )
        with pytest.raises(expected, match=words):
            opened.write_shard(0, rows(7), FACTS)
        with pytest.raises(expected, match=words):
            opened.write_shard(4, rows(4), FACTS)
        with pytest.raises(expected, match=words):
            opened.write_checkpoint(5, {"a": np.ones(3)}, {"round": 2})
        with pytest.raises(expected, match=words):
            opened.record_failure(4, "it failed", "trace")
    left = [name for name in everything(tmp_path) if name != "failures"]
    assert left == before
    assert table.load(tmp_path)["regret"].sum() == pytest.approx(sum(3 * i + 0.3 for i in range(4)))
    checkpoint = opened.read_checkpoint(5)
    assert checkpoint is not None
    assert checkpoint[1] == {"round": 1}


def test_a_write_that_the_system_stops_halfway_leaves_no_file(tmp_path: pathlib.Path) -> None:
    opened = store.create_or_open(tmp_path, MANIFEST)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = pyarrow.table({"x": np.random.default_rng(0).random(100_000)})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            opened.write_shard(0, noise, FACTS)
        with pytest.raises(OSError, match="File too large"):
            opened.write_checkpoint(0, {"x": np.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    opened.tidy()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "manifest.json"]
    opened.write_shard(0, noise, FACTS)
    assert opened.state(0) == "done"
