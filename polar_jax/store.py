"""Output folders that two runs never share, and files that are whole or absent."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable

RESULTS = pathlib.Path("results")
# Marks a folder as taken; it goes when the run ends, however it ends.
MARKER = ".incomplete"
_RUN = re.compile(r"run-(\d+)")


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder that this run may write to.

    Attributes:
      path: the folder.
      created: folders that did not exist before, innermost first.
    """

    path: pathlib.Path
    created: tuple[pathlib.Path, ...]


def claim(out: pathlib.Path | None, *, overwrite: bool = False) -> Folder:
    """Takes an output folder, and sees that it can be written to.

    Args:
      out: the folder; the next free `results/run-001`, `run-002`, ... where None.
      overwrite: whether `out` may hold files.

    Returns:
      The folder; hand it to `release` at the end.

    Raises:
      ValueError: if `out` holds files, or is no folder.
      OSError: if it cannot be written to.
    """
    if out is None:
        return _claim_next(RESULTS)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {str(out)!r}.")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(
            f"--out {str(out)!r} already holds files; allowed are a new or empty folder, or "
            "--overwrite."
        )
    if overwrite:
        _drop_dead_claim(out)
    return _mark(Folder(out, _make(out)))


def _claim_next(parent: pathlib.Path) -> Folder:
    created = _make(parent)
    taken = [_RUN.fullmatch(entry.name) for entry in parent.iterdir()]
    number = max((int(match[1]) for match in taken if match), default=0)
    while True:
        number += 1
        path = parent / f"run-{number:03d}"
        try:
            # Creating a folder is atomic: of two runs only one gets this number.
            path.mkdir()
        except FileExistsError:
            continue
        return _mark(Folder(path, (path, *created)))


def _make(path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Creates a folder and its parents; returns those that were missing, innermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return tuple(missing)


def _drop_dead_claim(path: pathlib.Path) -> None:
    """Removes the marker of a run that was killed: its process is gone."""
    marker = path / MARKER
    try:
        os.kill(int(marker.read_text("utf-8")), 0)
    except (FileNotFoundError, PermissionError):
        # No claim, or a living process of another user.
        return
    except (ProcessLookupError, ValueError, OverflowError):
        marker.unlink(missing_ok=True)


def _mark(folder: Folder) -> Folder:
    """Writes the marker, which also shows that files can be written."""
    try:
        with open(folder.path / MARKER, "x", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
    except FileExistsError:
        raise ValueError(
            f"{str(folder.path)!r} is being written by another run; allowed are another folder, "
            "or waiting for it to end."
        ) from None
    except OSError:
        release(folder)
        raise
    return folder


def write(folder: Folder, name: str, writer: Callable[[pathlib.Path], object]) -> pathlib.Path:
    """Writes one file under a temporary name and moves it into place.

    Args:
      folder: a claimed folder.
      name: the file's name.
      writer: writes the file to the path it is given.

    Returns:
      The file's path.
    """
    final = folder.path / name
    # The suffix stays last, because writers choose their format by it.
    temporary = folder.path / f".{os.getpid()}-{name}"
    try:
        writer(temporary)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
    return final


def remove(folder: Folder, name: str) -> None:
    """Removes a file of an earlier run, if there is one."""
    (folder.path / name).unlink(missing_ok=True)


def release(folder: Folder) -> None:
    """Ends the claim; folders it created are removed again where nothing was written."""
    try:
        for leftover in (MARKER, *_temporary_names(folder)):
            remove(folder, leftover)
        for path in folder.created:
            path.rmdir()
    except OSError:
        # Not empty, or no longer ours: what is there stays.
        return


def _temporary_names(folder: Folder) -> list[str]:
    return [path.name for path in folder.path.glob(f".{os.getpid()}-*")]
