"""Checkpoints of a sweep's shards: one file for the state, one per finished part of the rows.

Every file says which sweep and shard it belongs to, and who had a part in it.
"""

import pathlib
import shutil
import threading
import warnings
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polar_jax.sweep import checkpoints, files, manifests, shard_files

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

Facts = dict[str, Any]


class ShardsInWork:
    """The part of a sweep's folder that shards in work have; `store.Store` is the whole."""

    def __init__(
        self, out: pathlib.Path, manifest: Mapping[str, Any], given: Mapping[str, Any]
    ) -> None:
        """For `store.Store` alone.

        Args:
          out: the folder.
          manifest: the one that it holds.
          given: this process's own.
        """
        self._checkpoints = out / "checkpoints"
        self._identity = manifests.identity(manifest)
        self._tiles = manifests.tiles(manifest)
        self._session = manifests.session(given)
        # Sessions whose state went into a shard that is in work here.
        self._sessions: dict[int, list[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def write_checkpoint(
        self, index: int, arrays: Mapping[str, "np.ndarray"], meta: Mapping[str, Any]
    ) -> None:
        """Stores the state of a shard in work; the older one stays until this one is whole.

        Args:
          index: the shard.
          arrays: any shapes, of NumPy's own number types.
          meta: plain values, ready for JSON.

        Raises:
          NoSpaceError: if the disk is full; the older checkpoint stays.
          OSError: if it cannot be written; likewise.
        """
        tagged = {"own": self._tag(index), "meta": dict(meta)}
        files.write_whole(
            self._state_path(index), lambda file: checkpoints.write(file, arrays, tagged)
        )

    def read_checkpoint(self, index: int) -> "tuple[dict[str, np.ndarray], dict[str, Any]] | None":
        """The state of a shard in work.

        Returns:
          `(arrays, meta)` as last written; None where there is none, or where it is damaged
          or of another sweep, which a `RuntimeWarning` then says.
        """
        path = self._state_path(index)
        try:
            arrays, tagged = checkpoints.read(path)
            own, meta = tagged["own"], tagged["meta"]
        except FileNotFoundError:
            return None
        except (checkpoints.DamagedError, zipfile.BadZipFile, KeyError) as error:
            _warn(f"{str(path)!r} is damaged and left out ({error}); its shard starts again.")
            return None
        return (arrays, meta) if self._accepts(path, index, own) else None

    def checkpointed(self) -> list[int]:
        """Shards that have a checkpoint, in order; those that are not done are in work."""
        return sorted(shard_files.numbers(self._checkpoints))

    def read_meta(self, index: int) -> dict[str, Any] | None:
        """The plain values of a shard's checkpoint alone, unchecked; None without them.

        For whoever wants to know how far a shard is; `read_checkpoint` is what to go on from.
        """
        try:
            return checkpoints.read_meta(self._state_path(index))["meta"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def write_part(
        self, index: int, number: int, columns: "pyarrow.Table", batches: tuple[int, int]
    ) -> None:
        """Stores rows that a shard in work has finished.

        Args:
          index: the shard.
          number: which part, from 0 without gaps.
          columns: its rows.
          batches: those that it holds, the first and one past the last.
        """
        facts = {"own": self._tag(index), "batches": batches}
        shard_files.write_table(self._part_path(index, number), columns, facts)

    def read_parts(self, index: int, batches: int) -> "list[pyarrow.Table] | None":
        """Rows of the first batches of a shard in work, part by part.

        Args:
          index: the shard.
          batches: how many its parts must hold, without gaps and without repeats.

        Returns:
          The parts; None where they hold something else, as when one is damaged or of another
          sweep, which a warning then says.
        """
        parts: list[pyarrow.Table] = []
        held = 0
        while held < batches:
            path = self._part_path(index, len(parts))
            try:
                facts = shard_files.read_facts(path)
                table = shard_files.read_table(path)
            except FileNotFoundError:
                return None
            except shard_files.DamagedError as error:
                _warn(f"{str(path)!r} is damaged ({error}); its rows are computed again.")
                return None
            if not self._accepts(path, index, facts.get("own", {})):
                return None
            first, after = facts.get("batches", (-1, 0))
            if first != held:
                return None
            parts.append(table)
            held = after
        return parts if held == batches else None

    def drop_checkpoint(self, index: int) -> None:
        """Removes the checkpoint and parts of a shard, once it is stored."""
        shutil.rmtree(self._checkpoints / str(index), ignore_errors=True)
        with self._lock:
            self._sessions.pop(index, None)

    def _difference(self, index: int, facts: Facts) -> str:
        """In what a file's facts differ from this sweep's; "" where they do not."""
        expected, facts = {**self._identity, "shard": index}, manifests.carried(facts)
        for name, value in expected.items():
            if facts.get(name) != value:
                return f"{name} is {facts.get(name)!r}, not {value!r}"
        if "tile" in facts and self._tiles and facts["tile"] not in self._tiles:
            return f"tile is {facts['tile']!r}, not one of {self._tiles}"
        return ""

    def _tag(self, index: int) -> Facts:
        """Whose work a checkpoint or a part is."""
        return {
            **self._identity,
            "shard": index,
            "sessions": self._known_sessions(index),
        }

    def _accepts(self, path: pathlib.Path, index: int, own: Facts) -> bool:
        """Whether to go on from a checkpoint or part; remembers who made it."""
        difference = self._difference(index, own)
        if difference:
            _warn(f"{str(path)!r} belongs to another sweep ({difference}) and is left out.")
            return False
        with self._lock:
            known = self._sessions.setdefault(index, [])
            known += [session for session in own.get("sessions", []) if session not in known]
        return True

    def _known_sessions(self, index: int) -> list[dict[str, Any]]:
        with self._lock:
            earlier = list(self._sessions.get(index, []))
        return earlier if self._session in earlier else [*earlier, self._session]

    def _state_path(self, index: int) -> pathlib.Path:
        return self._checkpoints / str(index) / "state.npz"

    def _part_path(self, index: int, number: int) -> pathlib.Path:
        return self._checkpoints / str(index) / f"part-{number}.parquet"


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)
