"""The folder of a sweep: its manifest, a Parquet file per shard, checkpoints, failures.

    OUT/manifest.json                          what was asked, and with what it is computed
    OUT/shards/<index//1000>/<index>.parquet   a row per lane; a shard is done when it is there
    OUT/shards/index.jsonl                     what they hold (`shard_index`); none is needed
    OUT/checkpoints/<index>/                   state of a shard in work, and its finished parts
    OUT/failures/<index>.json                  the last error of a shard that failed
    OUT/claims/<index>                         who works on it (`claims`)

Every file is whole or absent, and says which sweep it belongs to. When all shards are done,
`Store.tidy` leaves the first two.
"""

import contextlib
import datetime
import json
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from polar_jax.sweep import files, leftovers, manifests, shard_files, shards_in_work
from polar_jax.sweep.files import NoSpaceError, StoreError

if TYPE_CHECKING:
    import pyarrow

__all__ = ["SCHEMA", "NoSpaceError", "Store", "StoreError", "create_or_open", "open_existing"]

SCHEMA = manifests.SCHEMA
State = Literal["done", "missing", "failed", "damaged", "foreign"]
Facts = dict[str, Any]


def create_or_open(out: pathlib.Path, manifest: Mapping[str, Any]) -> "Store":
    """Takes a folder for a sweep, or goes on with the same sweep in it.

    Of several processes that create the same folder at once, one writes the manifest and
    the others compare theirs with it.

    Args:
      out: the folder; made where it is missing.
      manifest: what the sweep is, ready for JSON.

    Returns:
      The store.

    Raises:
      StoreError: if the folder holds another sweep or other files, is a file, or cannot be
        written to; nothing in it is changed then.
    """
    given = manifests.plain(manifest)
    files.check_encodes(out)
    if out.exists() and not out.is_dir():
        raise StoreError(f"--out must be a folder, got the file {str(out)!r}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"--out {str(out)!r} cannot be made ({reason}).") from error
    files.check_writable(out)
    path = out / manifests.NAME
    if not path.exists():
        there = [name for name in os.listdir(out) if name != manifests.RECORDS]
        others = [name for name in there if not files.is_temporary(name)]
        # Looked for once more: another process may have begun this sweep in between.
        if others and not path.exists():
            raise StoreError(
                f"--out {str(out)!r} already holds files (such as {min(others)!r}) but no sweep; "
                "allowed are a new or empty folder, or that of the same sweep."
            )
        files.create_whole(path, manifests.text_of(given))
    stored = manifests.read(out)
    manifests.check_same(out, stored, given)
    return Store(out, manifests.refreshed(out, stored, given), given, shard_files.read_whole)


def open_existing(out: pathlib.Path, *, whole: bool = False) -> "Store":
    """Opens a sweep's folder to read it.

    Args:
      out: the folder.
      whole: whether to judge shards by all their pages, not by their footers alone.

    Returns:
      The store.

    Raises:
      StoreError: if it holds no sweep that this version can read.
    """
    stored = manifests.read(out)
    read = shard_files.read_whole if whole else shard_files.read_facts
    return Store(out, stored, stored, read)


class Store(shards_in_work.ShardsInWork):
    """A sweep's folder; several processes, and threads of each, may use it at once.

    Attributes:
      out: the folder.
      manifest: the one that the folder holds.
    """

    def __init__(
        self,
        out: pathlib.Path,
        manifest: dict[str, Any],
        given: Mapping[str, Any],
        read: Callable[[pathlib.Path], Facts],
    ) -> None:
        """Use `create_or_open` or `open_existing`.

        Args:
          out: the folder.
          manifest: the one that it holds.
          given: this process's own.
          read: how much of a shard's file is read to judge it; see `shard_files.Footers`.
        """
        super().__init__(out, manifest, given)
        self.out = out
        self.manifest = manifest
        self.claims_folder = out / "claims"
        self._shards = out / "shards"
        self._failures = out / "failures"
        self._read = read
        self._footers = shard_files.Footers(self._shards, read)

    def shard_path(self, index: int) -> pathlib.Path:
        """Where a shard's rows are stored, once they are."""
        return shard_files.path_of(self._shards, index)

    def write_shard(self, index: int, columns: "pyarrow.Table", facts: Mapping[str, Any]) -> None:
        """Stores a shard's rows: from then on it is done.

        Args:
          index: the shard, at least 0.
          columns: a row per lane.
          facts: `seconds`, `decisions`, `tile` and whatever else belongs in its metadata.

        Raises:
          NoSpaceError: if the disk is full.
          StoreError: if the shard's file is there and belongs to another sweep.
          OSError: if it cannot be written; nothing new remains.
        """
        path = self.shard_path(index)
        if self.state(index) == "foreign":
            raise StoreError(self.complaint(index))
        own = {
            **self._identity,
            "shard": index,
            **self._session,
            "created": _now(),
            "sessions": self._known_sessions(index),
        }
        self._footers.index.add(
            index, path, shard_files.write_table(path, columns, {**own, **facts})
        )

    def read_facts(self, index: int) -> Facts:
        """A shard's metadata, with `rows`, its number of rows; cheap.

        Raises:
          StoreError: if there is no such shard, or its file is damaged.
        """
        path = self.shard_path(index)
        try:
            return shard_files.read_facts(path)
        except FileNotFoundError:
            raise StoreError(f"shard {index} is not done: {str(path)!r} is missing.") from None
        except shard_files.DamagedError:
            raise StoreError(self.complaint(index)) from None

    def state(self, index: int) -> State:
        """What is known of one shard.

        Returns:
          `"done"`; `"missing"`; `"failed"`: missing, and its last attempt ended in an
          error; `"damaged"`: its file cannot be read, and will be computed again;
          `"foreign"`: its file belongs to another spec, schema, tile or kind of device.
        """
        try:
            return self._judge(index, self._read(self.shard_path(index)))
        except shard_files.DamagedError:
            return "damaged"
        except FileNotFoundError:
            return "failed" if self._failure_path(index).exists() else "missing"

    def states(
        self,
        num_shards: int | None = None,
        *,
        only: Collection[int] | None = None,
        whole: bool = True,
    ) -> dict[int, State]:
        """What is known of every shard; a repeated call reads only what is new.

        Args:
          num_shards: how many there are; None leaves the missing ones out.
          only: shards to look at, whose files alone are touched; all where None.
          whole: whether to read all pages of what was there before, where this store does.

        Returns:
          Shard to state, as `state` has it, in order.
        """
        return self._states_of(self._footers.read(only, whole=whole), num_shards, only)

    def look(self, num_shards: int) -> tuple[dict[int, State], dict[int, Facts]]:
        """`states` and `all_facts` of one moment, at the cost of one."""
        found = self._footers.read()
        return self._states_of(found, num_shards, None), self._done(found)

    def _done(self, found: Mapping[int, Facts | None]) -> dict[int, Facts]:
        return {
            index: facts
            for index, facts in found.items()
            if facts is not None and self._judge(index, facts) == "done"
        }

    def _states_of(
        self,
        found: Mapping[int, Facts | None],
        num_shards: int | None,
        only: Collection[int] | None,
    ) -> dict[int, State]:
        known: dict[int, State] = dict.fromkeys(
            shard_files.numbers(self._failures, ".json"), "failed"
        )
        known |= {index: self._judge(index, facts) for index, facts in found.items()}
        if only is None and num_shards is not None:
            only = range(num_shards)
        if only is not None:
            known = {index: known.get(index, "missing") for index in only}
        return dict(sorted(known.items()))

    def stored(self) -> set[int]:
        """Shards whose files are there, good or not; as cheap as it can be."""
        return self._footers.names()

    def all_facts(self) -> dict[int, Facts]:
        """Metadata of all done shards, with `rows`; as cheap as `states`."""
        return self._done(self._footers.read())

    def mixed(self) -> dict[str, list[str]]:
        """In what the done shards differ although they belong to one sweep.

        Returns:
          `"jaxlib"`, `"cpu"` or another part of `manifests.session` to the values found, where
          there are several: such rows need not be bitwise what one machine alone would have
          computed; `manifests.said_of_mixed` says so.
        """
        return manifests.mixed(self.all_facts().values())

    def complaint(self, index: int) -> str:
        """One line on a damaged or foreign shard: its file, what is wrong, what to do."""
        path = self.shard_path(index)
        again = f"`polar-jax sweep run SPEC --out {self.out}`"
        try:
            facts = shard_files.read_whole(path)
        except shard_files.DamagedError as error:
            return f"{str(path)!r} is damaged ({error}); {again} computes it again."
        return (
            f"{str(path)!r} belongs to another sweep ({self._difference(index, facts)}); move it "
            f"away, then {again} computes this one's."
        )

    # Failures.

    def record_failure(self, index: int, error: str, traceback: str) -> None:
        """Keeps why a shard failed; the next run tries it again.

        Args:
          index: the shard.
          error: one line.
          traceback: many.
        """
        record = {"shard": index, "error": error, "traceback": traceback, "time": _now()}
        text = json.dumps({**record, **self._session}, indent=2) + "\n"
        files.write_whole(self._failure_path(index), lambda file: file.write(text.encode()))

    def clear_failure(self, index: int) -> None:
        """Forgets a failure, as when the shard is done."""
        self._failure_path(index).unlink(missing_ok=True)

    def read_failures(self) -> dict[int, dict[str, Any]]:
        """Shard to `shard`, `error`, `traceback`, `time` and more, in order."""
        records = {}
        for index in sorted(shard_files.numbers(self._failures, ".json")):
            with contextlib.suppress(FileNotFoundError):
                text = self._failure_path(index).read_bytes()
                try:
                    records[index] = json.loads(text)
                except ValueError:
                    records[index] = {"shard": index, "error": "unknown", "traceback": ""}
        return records

    # Leftovers.

    def sweep_leftovers(self) -> None:
        """Removes what killed processes left: temporary files, and all that done shards had.

        Temporary files of living processes stay, and those of other machines for an hour.
        """
        claims = shard_files.names(self.claims_folder)
        begun = shard_files.numbers(self._checkpoints) | shard_files.numbers(
            self._failures, ".json"
        )
        begun |= shard_files.named(name.partition("~")[0] for name in claims)
        # The others are not looked at: there may be thousands.
        states = self.states(only=begun)
        done = {index for index, state in states.items() if state == "done"}
        for index in done & shard_files.numbers(self._checkpoints):
            self.drop_checkpoint(index)
        for index in done & shard_files.numbers(self._failures, ".json"):
            self.clear_failure(index)
        for name in claims:
            # Whoever still holds it has nothing left to do, and learns so by `still_ours`.
            if shard_files.number(name.partition("~")[0]) in done:
                _discard(self.claims_folder / name)
        for path in leftovers.temporaries(self.out):
            if files.is_leftover(path):
                _discard(path)

    def tidy(self) -> None:
        """Leaves the manifest and the shards, once all shards are done.

        Called earlier it takes away what `sweep_leftovers` does, temporary files of other
        machines that no unfinished shard needs, and folders that are empty.
        """
        self.sweep_leftovers()
        states = self.states(whole=False)
        for path in leftovers.temporaries(self.out):
            index = shard_files.number(files.final_name(path.name).partition(".")[0])
            if files.is_foreign(path) and (index is None or states.get(index) == "done"):
                _discard(path)
        for folder in (self.claims_folder, self._checkpoints, self._failures):
            with contextlib.suppress(OSError):
                folder.rmdir()
        if not self.claims_folder.exists():
            self._footers.close()

    def _judge(self, index: int, facts: Facts | None) -> State:
        if facts is None:
            return "damaged"
        return "foreign" if self._difference(index, facts) else "done"

    def _failure_path(self, index: int) -> pathlib.Path:
        return self._failures / f"{index}.json"


def _discard(path: pathlib.Path) -> None:
    # What another person's run left may be theirs alone to remove.
    with contextlib.suppress(OSError):
        path.unlink()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
