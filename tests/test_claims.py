"""Claims: one owner per shard, whoever else tries, and no shard lost with a dead owner."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from sweep_helpers import make_old

from polar_jax.sweep import claims, files

ROOT = pathlib.Path(__file__).parents[1]
HEAD = "import pathlib, sys, time\nfrom polar_jax.sweep import claims, files\n"
# Claims shard 7, says so, and waits.
HOLDER = (
    HEAD
    + "held = claims.Claims(pathlib.Path(sys.argv[1])).try_claim(7)\n"
    + "print('held' if held else 'refused', flush=True)\n"
    + "time.sleep(60)\n"
)
# Claims what it can of 200 shards, in an order of its own, and keeps all.
GRABBER = (
    HEAD
    + "import random\n"
    + "mine, order = claims.Claims(pathlib.Path(sys.argv[1])), list(range(200))\n"
    + "random.Random(int(sys.argv[2])).shuffle(order)\n"
    + "print('ready', flush=True)\n"
    + "sys.stdin.readline()\n"
    + "print(*[i for i in order if mine.try_claim(i)], flush=True)\n"
    + "sys.stdin.readline()\n"
)


@contextlib.contextmanager
def program(text: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", text, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def foreign_claim(folder: pathlib.Path, age: float, **changes: object) -> pathlib.Path:
    """A claim of shard 7 by an owner on another machine, last touched `age` seconds ago."""
    owner = {"host": "elsewhere", "boot": "b", "namespace": "n", "pid": os.getpid(), "started": 1}
    path = folder / "7"
    path.write_text(json.dumps({**owner, "token": "t", **changes}))
    make_old(path, age)
    return path


def test_a_shard_has_one_owner_until_it_is_released(tmp_path: pathlib.Path) -> None:
    with claims.Claims(tmp_path / "c") as mine, claims.Claims(tmp_path / "c") as others:
        claim = mine.try_claim(7)
        assert claim is not None
        assert claim.still_ours()
        assert mine.try_claim(7) is None
        assert others.try_claim(7) is None
        assert others.taken() == [7]
        claim.release()
        assert not claim.still_ours()
        with others.try_claim(7) or pytest.fail("a released shard is free"):
            assert mine.taken() == [7]
    assert list((tmp_path / "c").iterdir()) == []


def test_processes_at_once_share_all_shards_and_none_twice(tmp_path: pathlib.Path) -> None:
    with program(GRABBER, tmp_path, 1) as first, program(GRABBER, tmp_path, 2) as second:
        both = (first, second)
        assert [line(process) for process in both] == ["ready", "ready"]
        for process in both:
            say(process)
        got = [[int(word) for word in line(process).split()] for process in both]
    assert sorted(got[0] + got[1]) == list(range(200))
    assert min(len(got[0]), len(got[1])) > 0


def test_the_shard_of_a_killed_owner_is_free_at_once(tmp_path: pathlib.Path) -> None:
    mine = claims.Claims(tmp_path)
    with program(HOLDER, tmp_path) as owner:
        assert line(owner) == "held"
        assert mine.try_claim(7) is None
        owner.kill()
        # Not waited for: the process is a zombie, which still has its number.
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
        claim = mine.try_claim(7)
    assert claim is not None
    mine.close()
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_owner_keeps_its_shard_however_long(tmp_path: pathlib.Path) -> None:
    mine = claims.Claims(tmp_path, lease_seconds=0.3, heartbeat_seconds=0.05)
    with program(HOLDER, tmp_path) as owner:
        assert line(owner) == "held"
        os.kill(owner.pid, signal.SIGSTOP)
        os.utime(tmp_path / "7", (0, 0))
        assert mine.try_claim(7) is None


def test_a_later_process_of_the_same_number_is_not_the_owner(tmp_path: pathlib.Path) -> None:
    me = files.this_process()
    foreign_claim(tmp_path, 0, host=me.host, boot=me.boot, namespace=me.namespace, started=1)
    with claims.Claims(tmp_path) as mine:
        assert mine.try_claim(7) is not None


@pytest.mark.parametrize("place", ["host", "boot", "namespace"])
def test_an_owner_elsewhere_is_dead_when_its_lease_ends(tmp_path: pathlib.Path, place: str) -> None:
    # Same numbers as ours, but for where they count.
    me = files.this_process()
    same = {"host": me.host, "boot": me.boot, "namespace": me.namespace} | {place: "another"}
    foreign_claim(tmp_path, 60, **same)
    with claims.Claims(tmp_path) as mine:
        assert mine.try_claim(7) is None
        assert mine.taken() == [7]
        foreign_claim(tmp_path, 121, **same)
        assert mine.taken() == []
        assert mine.try_claim(7) is not None


@pytest.mark.parametrize("text", ["", '{"host": "elsewh', "[]", '{"host": 1}'])
def test_a_torn_claim_stands_until_its_lease_ends(tmp_path: pathlib.Path, text: str) -> None:
    mine = claims.Claims(tmp_path)
    (tmp_path / "7").write_text(text)
    assert mine.try_claim(7) is None
    make_old(tmp_path / "7", 121)
    assert mine.try_claim(7) is not None
    mine.close()


def test_the_age_of_a_claim_does_not_depend_on_this_machines_clock(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_claim(tmp_path, 60)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert claims.Claims(tmp_path).try_claim(7) is None


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path: pathlib.Path) -> None:
    for _ in range(20):
        foreign_claim(tmp_path, 1000)
        everyone = [claims.Claims(tmp_path) for _ in range(8)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda one: one.try_claim(7), everyone))
        winners = [claim for claim in found if claim is not None]
        assert [claim.still_ours() for claim in winners] == [True]
        for one in everyone:
            one.close()
        assert list(tmp_path.iterdir()) == []


def test_a_process_that_saw_the_dead_owner_too_late_leaves_the_new_claim(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_claim(tmp_path, 1000)
    quicker, slower = claims.Claims(tmp_path), claims.Claims(tmp_path)
    taken: list[claims.Claim | None] = []
    take_over = slower._take_over

    def late(path: pathlib.Path, dead: bytes, data: bytes) -> bool:
        taken.append(quicker.try_claim(7))
        return take_over(path, dead, data)

    monkeypatch.setattr(slower, "_take_over", late)
    assert slower.try_claim(7) is None
    assert taken[0] is not None
    assert taken[0].still_ours()
    assert [entry.name for entry in tmp_path.iterdir()] == ["7"]
    quicker.close()


def test_the_right_to_one_dead_claim_is_none_to_the_next(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_claim(tmp_path, 1000)
    mine = claims.Claims(tmp_path)
    take_over = mine._take_over

    def late(path: pathlib.Path, dead: bytes, data: bytes) -> bool:
        foreign_claim(tmp_path, 1000, token="another that died")
        return take_over(path, dead, data)

    with monkeypatch.context() as patched:
        patched.setattr(mine, "_take_over", late)
        assert mine.try_claim(7) is None
    assert "another that died" in (tmp_path / "7").read_text()
    assert mine.try_claim(7) is not None
    mine.close()


def test_a_takeover_that_was_killed_halfway_is_taken_over_in_turn(tmp_path: pathlib.Path) -> None:
    claim = foreign_claim(tmp_path, 1000)
    right = claims.right_to(claim, claim.read_bytes())
    right.write_text(claim.read_text().replace('"t"', '"u"'))
    mine = claims.Claims(tmp_path)
    assert mine.try_claim(7) is None
    make_old(right, 1000)
    assert mine.try_claim(7) is not None
    mine.close()
    assert list(tmp_path.iterdir()) == []


def test_an_owner_that_lost_its_shard_knows_and_leaves_the_new_claim(
    tmp_path: pathlib.Path,
) -> None:
    mine = claims.Claims(tmp_path)
    claim = mine.try_claim(7)
    assert claim is not None
    path = foreign_claim(tmp_path, 50)
    before = path.stat().st_mtime_ns
    claim.touch()
    assert not claim.still_ours()
    claim.release()
    assert path.stat().st_mtime_ns == before
    path.unlink()
    assert not claim.still_ours()


def test_held_claims_are_touched_and_released_ones_are_not(tmp_path: pathlib.Path) -> None:
    with claims.Claims(tmp_path, lease_seconds=0.3, heartbeat_seconds=0.05) as mine:
        assert mine.try_claim(7) is not None
        os.utime(tmp_path / "7", (0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / "7").stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - (tmp_path / "7").stat().st_mtime < 5


def test_a_disk_without_links_still_gives_one_owner(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with claims.Claims(tmp_path) as mine:
        claim = mine.try_claim(7)
        assert claim is not None
        assert claim.still_ours()
        assert mine.try_claim(7) is None


def test_without_proc_only_leases_count(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PROC", tmp_path / "nothing")
    files.process_facts.cache_clear()
    try:
        assert files.this_process().is_gone() is None
        with claims.Claims(tmp_path / "c") as mine:
            assert mine.try_claim(7) is not None
            make_old(tmp_path / "c" / "7", 100)
            assert mine.try_claim(7) is None
            make_old(tmp_path / "c" / "7", 121)
            assert claims.Claims(tmp_path / "c").try_claim(7) is not None
    finally:
        files.process_facts.cache_clear()


def test_a_folder_that_vanishes_in_between_is_made_again(tmp_path: pathlib.Path) -> None:
    with claims.Claims(tmp_path / "deep" / "c") as mine:
        for _ in range(2):
            with mine.try_claim(7) or pytest.fail("nobody holds it"):
                pass
            (tmp_path / "deep" / "c").rmdir()


def test_times_that_do_not_fit_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"at most a third of lease_seconds=20, got 10"):
        claims.Claims(tmp_path, lease_seconds=20, heartbeat_seconds=10)


def test_who_may_not_write_sees_all_the_same_what_is_taken(tmp_path, monkeypatch):
    foreign_claim(tmp_path, 5)

    def refused(_: pathlib.Path) -> float:
        raise PermissionError

    monkeypatch.setattr(files, "clock", refused)
    assert claims.Claims(tmp_path).taken() == [7]
    make_old(tmp_path / "7", 500)
    assert claims.Claims(tmp_path).taken() == []
    with pytest.raises(PermissionError):
        claims.Claims(tmp_path).try_claim(7)
