"""Parquet files with facts in their metadata: written whole, their footers read cheaply."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from polar_jax.sweep import files, manifests, shard_index

if TYPE_CHECKING:
    import pyarrow

METADATA = b"polar_jax"  # key of a file's facts in its Parquet metadata
_PER_FOLDER = 1000
_THREADS = 8
Facts = dict[str, Any]
_Stamp = tuple[int, int, int]  # inode, bytes, nanoseconds of its time


class DamagedError(ValueError):
    """A Parquet file that is not as it was written."""


def path_of(folder: pathlib.Path, index: int) -> pathlib.Path:
    """Where a shard's file lies within the folder of all of them."""
    return folder / str(index // _PER_FOLDER) / f"{index}.parquet"


def write_table(path: pathlib.Path, columns: "pyarrow.Table", facts: Mapping[str, Any]) -> Facts:
    """Writes a table, with facts in its metadata and a checksum per page.

    Args:
      path: the file.
      columns: the table.
      facts: plain values, ready for JSON.

    Returns:
      What `read_facts` reads from it.

    Raises:
      NoSpaceError: if the disk is full.
      OSError: if it cannot be written; nothing new remains.
    """
    import pyarrow
    import pyarrow.parquet

    text = json.dumps(dict(facts), default=manifests.plain_number).encode()
    tagged = columns.replace_schema_metadata({**(columns.schema.metadata or {}), METADATA: text})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(tagged, sink, write_page_checksum=True)
    data = memoryview(sink.getvalue())
    files.write_whole(path, lambda file: file.write(data))
    return {**json.loads(text), "rows": columns.num_rows}


def read_table(path: pathlib.Path, columns: list[str] | None = None) -> "pyarrow.Table":
    """Reads a table without its facts, and checks its pages.

    Args:
      path: the file.
      columns: those to read; all where None.

    Raises:
      DamagedError: if it is not as it was written.
      OSError: if it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    # A single file, so that folder names are not taken for columns.
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=columns).replace_schema_metadata(None)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damage(error) from error


def read_whole(path: pathlib.Path) -> Facts:
    """Reads a file's facts as `read_facts` does, and checks all its pages.

    Raises:
      DamagedError: if it is not as it was written.
      OSError: if it is missing or cannot be read.
    """
    facts = read_facts(path)
    read_table(path)
    return facts


def column_names(path: pathlib.Path) -> list[str]:
    """A file's columns, from its footer alone.

    Args:
      path: the file.

    Raises:
      DamagedError: if it is no whole Parquet file.
      OSError: if it is missing or cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(path).names
    except (pyarrow.ArrowException, OSError) as error:
        raise _damage(error) from error


def read_facts(path: pathlib.Path) -> Facts:
    """Reads a file's facts and `rows`, its number of rows, from its footer alone.

    Args:
      path: the file.

    Returns:
      The facts; `rows` alone for a file that somebody else wrote.

    Raises:
      DamagedError: if it is no whole Parquet file.
      OSError: if it is missing or cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        footer = pyarrow.parquet.read_metadata(path)
        facts = json.loads((footer.metadata or {}).get(METADATA, b"{}"))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damage(error) from error
    if not isinstance(facts, dict):
        raise DamagedError("its metadata is no object.")
    return {**facts, "rows": footer.num_rows}


def _damage(error: Exception) -> Exception:
    """The error itself where the system gave it, otherwise one on what the file holds."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return DamagedError(" ".join(str(error).split()))


class Footers:
    """The facts of all shards in a folder; what did not change is read once."""

    def __init__(self, folder: pathlib.Path, read: Callable[[pathlib.Path], Facts]) -> None:
        """Reads nothing yet.

        Args:
          folder: where the folders of shards are.
          read: `read_facts`, or `read_whole` for whoever computes what is damaged again: what is
            there at its first look is read so, what others store since is taken at their word.
        """
        self._folder = folder
        self._read = read
        self._known: dict[int, tuple[_Stamp, Facts | None]] = {}
        self._old: set[int] | None = None
        self._lock = threading.Lock()
        self.index = shard_index.Index(folder)

    def read(
        self, only: Collection[int] | None = None, *, whole: bool = True
    ) -> dict[int, Facts | None]:
        """Shard to facts, None for a damaged file; files that are there now, in order.

        Args:
          only: shards to look at; all where None.
          whole: whether to read files that were there at the first look as `read` says.
        """
        import pyarrow.parquet  # Before the threads, which would wait for one another.

        del pyarrow
        stamps = dict(sorted(self._stamps() if only is None else self._stamps_of(only)))
        with self._lock:
            known = {i: self._known[i] for i in stamps if i in self._known}
            if self._old is None:
                self._old = set() if self._read is read_facts else self.names()
            old = self._old if whole else ()
        new = [i for i, stamp in stamps.items() if i not in known or known[i][0] != stamp]
        if new:
            self.index.refresh()
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            facts = pool.map(lambda i: self._facts(i, stamps[i], whole=i in old), new)
            for index, one in zip(new, facts, strict=True):
                known[index] = (stamps[index], one)
        with self._lock:
            self._known = known if only is None else {**self._known, **known}
        return {index: known[index][1] for index in stamps}

    def names(self) -> set[int]:
        """Shards whose files are there, from the folders' lists of names alone."""
        found = set()
        for folder in folders(self._folder):
            inside = numbers(folder, ".parquet")
            found |= {index for index in inside if path_of(self._folder, index).parent == folder}
        return found

    def close(self) -> None:
        """Makes one file of the index; to be called once all shards are stored."""
        known = {index: ((s[1], s[2]), one) for index, (s, one) in self._known.items() if one}
        self.index.close(known)

    def _facts(self, index: int, stamp: _Stamp, *, whole: bool) -> Facts | None:
        told = None if whole else self.index.facts(index, stamp[1:])
        if told is not None:
            return told
        read = self._read if whole else read_facts
        try:
            return read(path_of(self._folder, index))
        except (DamagedError, FileNotFoundError):
            # A file is only ever replaced: one that vanished was moved away by hand.
            return None

    def _stamps(self) -> Iterator[tuple[int, _Stamp]]:
        for folder in folders(self._folder):
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in entries:
                    index = number(entry.name, ".parquet")
                    if index is None or path_of(self._folder, index).parent != folder:
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        yield index, _stamp(entry.stat())

    def _stamps_of(self, indices: Collection[int]) -> Iterator[tuple[int, _Stamp]]:
        for index in indices:
            with contextlib.suppress(FileNotFoundError):
                yield index, _stamp(path_of(self._folder, index).stat())


def _stamp(stat: os.stat_result) -> _Stamp:
    return stat.st_ino, *shard_index.look(stat)


def number(name: str, suffix: str = "") -> int | None:
    """The shard that a file or folder is named after; None for other names."""
    digits = name.removesuffix(suffix) if name.endswith(suffix) else ""
    plain = digits.isascii() and digits.isdigit() and (digits == "0" or digits[0] != "0")
    return int(digits) if plain else None


def names(folder: pathlib.Path) -> list[str]:
    """Names in a folder; none where it is missing."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def named(found: Iterable[str], suffix: str = "") -> set[int]:
    """The shards that some names are of; other names are left out."""
    numbers_ = (number(name, suffix) for name in found)
    return {one for one in numbers_ if one is not None}


def numbers(folder: pathlib.Path, suffix: str = "") -> set[int]:
    """Shards that files or folders of a folder are named after."""
    return named(names(folder), suffix)


def folders(parent: pathlib.Path) -> list[pathlib.Path]:
    """Folders in a folder whose names are numbers."""
    return [parent / name for name in names(parent) if number(name) is not None]
