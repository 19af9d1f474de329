"""Output folders: never shared, never overwritten, files whole or absent."""

import concurrent.futures
import pathlib

import pytest

from polar_jax import store


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _fail(path: pathlib.Path) -> None:
    path.write_text("half of it")
    raise RuntimeError("plotting failed")


def test_runs_are_numbered_from_one_and_numbers_are_not_used_again() -> None:
    first, second = store.claim(None), store.claim(None)
    assert [first.path.name, second.path.name] == ["run-001", "run-002"]
    pathlib.Path("results/run-1041").mkdir()
    assert store.claim(None).path.name == "run-1042"


def test_runs_at_once_never_get_the_same_folder() -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: store.claim(None), range(32)))
    assert len({folder.path for folder in folders}) == 32


def test_a_second_run_cannot_take_a_folder_that_is_in_use() -> None:
    out = pathlib.Path("mine")
    store.claim(out)
    with pytest.raises(ValueError, match="already holds files"):
        store.claim(out)


def test_a_folder_with_files_needs_overwrite() -> None:
    out = pathlib.Path("mine")
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"already holds files.*--overwrite"):
        store.claim(out)
    folder = store.claim(out, overwrite=True)
    store.write(folder, "a.txt", lambda path: path.write_text("new"))
    store.release(folder)
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "thesis.tex"]


def test_a_file_is_no_folder() -> None:
    pathlib.Path("mine").write_text("")
    with pytest.raises(ValueError, match="must be a folder, got the file 'mine'"):
        store.claim(pathlib.Path("mine"), overwrite=True)


def test_an_unused_claim_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    for out in (None, pathlib.Path("deep/er/out")):
        store.release(store.claim(out))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays() -> None:
    pathlib.Path("mine").mkdir()
    store.release(store.claim(pathlib.Path("mine")))
    assert list(pathlib.Path("mine").iterdir()) == []


def test_a_write_that_fails_leaves_the_older_file() -> None:
    folder = store.claim(None)
    store.write(folder, "a.txt", lambda path: path.write_text("whole"))
    with pytest.raises(RuntimeError, match="plotting failed"):
        store.write(folder, "a.txt", _fail)
    store.release(folder)
    assert [path.name for path in folder.path.iterdir()] == ["a.txt"]
    assert (folder.path / "a.txt").read_text() == "whole"


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Refused by hand, because root may write to folders of any mode.
    def denied(path: pathlib.Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(store, "open", denied, raising=False)
    with pytest.raises(PermissionError):
        store.claim(pathlib.Path("locked/below"))
    assert not pathlib.Path("locked").exists()


def test_a_folder_below_a_file_is_refused() -> None:
    pathlib.Path("file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        store.claim(pathlib.Path("file/below"))


def test_two_runs_never_share_a_folder_even_with_overwrite(tmp_path: pathlib.Path) -> None:
    held = store.claim(tmp_path / "out", overwrite=True)
    with pytest.raises(ValueError, match="another run"):
        store.claim(tmp_path / "out", overwrite=True)
    store.release(held)
    store.release(store.claim(tmp_path / "out", overwrite=True))


def test_the_claim_of_a_killed_run_is_taken_over_with_overwrite(tmp_path: pathlib.Path) -> None:
    # No process has this number: it is above every limit that Linux allows.
    (tmp_path / store.MARKER).write_text(f"{2**22 + 1}\n")
    folder = store.claim(tmp_path, overwrite=True)
    store.release(folder)
    assert not (tmp_path / store.MARKER).exists()
