"""An index of stored shards, so that a look at a large sweep need not open its files.

    OUT/shards/index/<process>.jsonl   a line per shard that a process stored, appended
    OUT/shards/index.jsonl             all of them, once the sweep is done

Every process appends to a file of its own, as shared disks do not append for several at once.
A line holds the facts of a shard's file and what the file looked like; it counts while the file
looks the same, so that a lost, torn or old index costs time and nothing else.
"""

import contextlib
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Mapping
from typing import Any

from polar_jax.sweep import files

FOLDER, WHOLE = "index", "index.jsonl"
Look = tuple[int, int]  # bytes, nanoseconds of its time
_Entry = tuple[Look, dict[str, Any]]


def look(stat: os.stat_result) -> Look:
    """What tells a file from the one that it was."""
    return stat.st_size, stat.st_mtime_ns


class Index:
    """The index of one folder of shards; several processes and threads may use it at once."""

    def __init__(self, shards: pathlib.Path) -> None:
        """Reads nothing yet.

        Args:
          shards: the folder of all shards.
        """
        self._shards = shards
        me = files.this_process()
        self._own = shards / FOLDER / f"{me.place}-{me.pid}-{me.started}.jsonl"
        self._entries: dict[int, _Entry] = {}
        self._read: dict[pathlib.Path, int] = {}  # bytes of each file that are known
        self._lock = threading.Lock()

    def add(self, index: int, path: pathlib.Path, facts: Mapping[str, Any]) -> None:
        """Appends a shard that this process has stored; nothing happens where it cannot.

        Args:
          index: the shard.
          path: its file.
          facts: what its metadata says, and `rows`.
        """
        with contextlib.suppress(OSError), self._lock:
            line = json.dumps([index, *look(path.stat()), dict(facts)]).encode() + b"\n"
            self._own.parent.mkdir(exist_ok=True)
            with open(self._own, "ab", buffering=0) as file:
                file.write(line)

    def refresh(self) -> None:
        """Reads what was added since the last time."""
        with self._lock:
            found = {self._shards / WHOLE}
            with contextlib.suppress(OSError):
                found |= set((self._shards / FOLDER).iterdir())
            for path in sorted(found):
                with contextlib.suppress(OSError):
                    self._take(path)

    def facts(self, index: int, seen: Look) -> dict[str, Any] | None:
        """What is known of a shard whose file looks like `seen`; None where that is nothing."""
        entry = self._entries.get(index)
        return dict(entry[1]) if entry is not None and entry[0] == seen else None

    def close(self, known: Mapping[int, tuple[Look, Mapping[str, Any]]]) -> None:
        """Makes one file of the index, once nobody adds to it.

        Args:
          known: shard to how its file looks, and its facts.
        """
        if not (self._shards / FOLDER).is_dir():
            return
        lines = [json.dumps([i, *seen, dict(facts)]) for i, (seen, facts) in sorted(known.items())]
        data = "".join(f"{line}\n" for line in lines).encode()
        files.write_whole(self._shards / WHOLE, lambda file: file.write(data))
        shutil.rmtree(self._shards / FOLDER, ignore_errors=True)

    def _take(self, path: pathlib.Path) -> None:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            begin = self._read.get(path, 0)
            if size == begin:
                return
            # A shorter file is another one.
            file.seek(begin if begin < size else 0)
            # The last line may be in the making.
            text, _, rest = file.read().rpartition(b"\n")
            self._read[path] = file.tell() - len(rest)
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                index, number_of_bytes, time, facts = json.loads(line)
                if isinstance(facts, dict):
                    self._entries[int(index)] = ((number_of_bytes, time), facts)
