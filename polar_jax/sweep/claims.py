"""One claim per shard: who works on what, among processes that share a folder.

A claim is a file. It is made whole under another name and linked into place, which one
process can do; no locks of the system are used, which shared disks often lack. The owner of
a claim is dead when its process has ended, where that can be seen: in the same place
(`files`). Elsewhere it counts as dead when the claim was not touched for `lease_seconds`
of the file system's own time; a thread touches the claims that this process holds.

Whoever replaces or removes a claim first makes a second claim in the same way, the right to
do so. Its name comes from the old claim's bytes, which no other claim will ever have: one
process at a time may change one claim, and it looks again before it does.

A process that was thought dead may come back. It asks `still_ours` before it stores a
result; two results of one shard would be the same bits anyway, and one replaces the other.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Self

from polar_jax.sweep import files

_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A claim as it was found."""

    data: bytes
    modified: float  # seconds of the file system's time


class Claim:
    """A claim that this process holds; `Claims.try_claim` makes it.

    Attributes:
      index: the shard.
    """

    def __init__(self, index: int, path: pathlib.Path, data: bytes, claims: "Claims") -> None:
        self.index = index
        self._path = path
        self._data = data
        self._claims = claims

    def still_ours(self) -> bool:
        """Whether no other process has taken the shard since; asked before a final write.

        Raises:
          OSError: if the folder cannot be read.
        """
        return _holds(self._path, self._data)

    def release(self) -> None:
        """Ends the claim; what another process holds by now stays."""
        # A claim that cannot be removed ends with this process.
        with contextlib.suppress(OSError):
            self._claims.drop(self, self._path, self._data)

    def touch(self) -> None:
        """Shows other machines that the owner lives."""
        # By descriptor where possible: a claim that is another's by now is not touched.
        with contextlib.suppress(OSError), open(self._path, "rb") as file:
            if file.read() == self._data:
                os.utime(file.fileno() if os.utime in os.supports_fd else self._path)

    def __enter__(self) -> Self:
        """The claim itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Releases it."""
        self.release()


class Claims:
    """The claims of one folder, which any number of processes may use at once."""

    def __init__(
        self, folder: pathlib.Path, *, lease_seconds: float = 120, heartbeat_seconds: float = 10
    ) -> None:
        """Makes no file yet.

        Args:
          folder: where claims are kept; made with the first of them.
          lease_seconds: how long a claim of an owner that cannot be seen stands untouched.
          heartbeat_seconds: time between touches, at most a third of the lease.

        Raises:
          ValueError: for times that do not fit together.
        """
        if not 0 < 3 * heartbeat_seconds <= lease_seconds:
            raise ValueError(
                "heartbeat_seconds must be above 0 and at most a third of lease_seconds="
                f"{lease_seconds}, got {heartbeat_seconds}."
            )
        self.folder = folder
        self.lease_seconds = lease_seconds
        self.heartbeat_seconds = heartbeat_seconds
        self._held: dict[int, Claim] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._heart: threading.Thread | None = None
        self._clock: tuple[float, float] | None = None  # (monotonic, file system) seconds

    def try_claim(self, index: int) -> Claim | None:
        """Claims a shard, if nobody alive has.

        Args:
          index: the shard, at least 0.

        Returns:
          The claim; None where another owner holds it, or was quicker.

        Raises:
          OSError: if the folder cannot be written to.
        """
        path = self.folder / str(index)
        owner = dataclasses.asdict(files.this_process())
        data = json.dumps({**owner, "token": uuid.uuid4().hex}).encode()
        if not self._acquire(path, data):
            return None
        claim = Claim(index, path, data, self)
        self._hold(claim)
        return claim

    def taken(self) -> list[int]:
        """Shards that living owners hold, this process included, in order."""
        try:
            names = [name for name in os.listdir(self.folder) if name.isdigit()]
        except FileNotFoundError:
            return []
        held = []
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if not self._is_dead(_look(self.folder / name), self._about_now):
                    held.append(int(name))
        return sorted(held)

    def drop(self, claim: Claim, path: pathlib.Path, data: bytes) -> None:
        """Removes a claim's file if it is still that claim's; `Claim.release` calls it."""
        with self._lock:
            if self._held.get(claim.index) is claim:
                del self._held[claim.index]
        if _holds(path, data):
            with self._right_to_change(path, data, data) as ours:
                if ours:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Releases all claims and ends the thread; the object is of no more use."""
        self._closing.set()
        if self._heart is not None:
            self._heart.join()
        for claim in list(self._held.values()):
            claim.release()

    def __enter__(self) -> Self:
        """The claims themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        """Closes them."""
        self.close()

    def _hold(self, claim: Claim) -> None:
        with self._lock:
            self._held[claim.index] = claim
            if self._heart is None:
                self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)
                self._heart.start()

    def _beat(self) -> None:
        while not self._closing.wait(self.heartbeat_seconds):
            with self._lock:
                held = list(self._held.values())
            for claim in held:
                claim.touch()

    def _acquire(self, path: pathlib.Path, data: bytes) -> bool:
        """Makes a claim's file, or takes that of a dead owner over."""
        for _ in range(_ATTEMPTS):
            if files.create_whole(path, data, durable=False):
                return True
            try:
                seen = _look(path)
            except FileNotFoundError:
                # Released since: free for anybody.
                continue
            return self._is_dead(seen) and self._take_over(path, seen.data, data)
        return False

    def _take_over(self, path: pathlib.Path, dead: bytes, data: bytes) -> bool:
        with self._right_to_change(path, dead, data) as ours:
            # The owner may have come back while we got the right.
            if not ours or not self._looks_dead(path):
                return False
            files.write_whole(path, lambda file: file.write(data))
            return _holds(path, data)

    @contextlib.contextmanager
    def _right_to_change(self, path: pathlib.Path, old: bytes, data: bytes) -> Iterator[bool]:
        """Whether this process alone may now change a claim that holds `old`."""
        right = right_to(path, old)
        if not self._acquire(right, data):
            yield False
            return
        try:
            yield _holds(path, old)
        finally:
            if _holds(right, data):
                right.unlink(missing_ok=True)

    def _looks_dead(self, path: pathlib.Path) -> bool:
        try:
            return self._is_dead(_look(path))
        except FileNotFoundError:
            return False

    def _is_dead(self, seen: _Seen, now: Callable[[], float] | None = None) -> bool:
        owner = _owner(seen.data)
        gone = None if owner is None else owner.is_gone()
        if gone is not None:
            return gone
        return (now or self._now)() - seen.modified > self.lease_seconds

    def _now(self) -> float:
        """The file system's time; asked for once per heartbeat, not once per claim."""
        now = time.monotonic()
        if self._clock is None or now - self._clock[0] > self.heartbeat_seconds:
            self._clock = (now, files.clock(self.folder))
        # A machine's sleep between the two is missing here: claims look younger, not older.
        return self._clock[1] + now - self._clock[0]

    def _about_now(self) -> float:
        """For who only looks: this machine's time where no file can be made to ask for another."""
        try:
            return self._now()
        except OSError:
            return time.time()


def right_to(path: pathlib.Path, data: bytes) -> pathlib.Path:
    """The claim that gives the right to change another claim.

    Args:
      path: the other claim; it may itself be such a right.
      data: what it holds.

    Returns:
      A file beside it, `<index>~<16 digits>`.
    """
    digits = hashlib.sha256(data).hexdigest()[:16]
    return path.with_name(f"{path.name.partition('~')[0]}~{digits}")


def _look(path: pathlib.Path) -> _Seen:
    # Through an open file: over NFS, opening is what fetches fresh times.
    with open(path, "rb") as file:
        return _Seen(file.read(), os.fstat(file.fileno()).st_mtime)


def _holds(path: pathlib.Path, data: bytes) -> bool:
    try:
        return _look(path).data == data
    except FileNotFoundError:
        return False


def _owner(data: bytes) -> files.Owner | None:
    """Who a claim says it belongs to; None for one that is empty or torn."""
    try:
        found = json.loads(data)
        return files.Owner(
            host=str(found["host"]),
            boot=str(found["boot"]),
            namespace=str(found["namespace"]),
            pid=int(found["pid"]),
            started=int(found["started"]),
        )
    except (ValueError, TypeError, KeyError):
        return None
