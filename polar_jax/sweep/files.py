"""Files that are whole or absent, on local and shared disks, and who is writing them.

A temporary file's name tells its process, so that what a killed process left can be told
from what a living one is writing. A *place* is where process numbers mean the same: one
boot of one machine, and one namespace of processes (two containers are two places, even
where they share a host's name).
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import os
import pathlib
import platform
import re
import time
from collections.abc import Callable
from typing import BinaryIO

# A writer needs seconds; an hour allows for machines that slept.
FOREIGN_SECONDS = 3600.0
_TEMPORARY = re.compile(r"\.(?P<name>.+)~(?P<place>[0-9a-f]{12})~(?P<pid>\d+)~(?P<started>\d+)~\d+")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK)
_NO_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES)
_PROC = pathlib.Path("/proc")
_ATTEMPTS = 3
_counter = itertools.count()


class StoreError(ValueError):
    """A results folder that cannot be used as asked; one line for the person who asked."""


class NoSpaceError(StoreError, OSError):
    """A full disk, or a full quota: what was stored before is whole."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process, told apart from every other one that may see the same folder.

    Attributes:
      host: the machine's name.
      boot: the kernel's name for this boot; "" where it tells none.
      namespace: the namespace of process numbers; "" where the system tells none.
      pid: process number within that namespace.
      started: clock ticks from boot to the process's start; 0 where the system tells none.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: int

    @property
    def place(self) -> str:
        """12 hexadecimal digits; equal where process numbers mean the same."""
        text = "\n".join((self.host, self.boot, self.namespace))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def is_gone(self) -> bool | None:
        """Whether the process has ended; None where this process cannot know."""
        mine = this_process()
        if self.place != mine.place or not mine.started:
            return None
        return _has_ended(self.pid, self.started)


def this_process() -> Owner:
    """The running process as an owner of files."""
    # By number, because a fork is another process.
    return process_facts(os.getpid())


@functools.cache
def process_facts(pid: int) -> Owner:
    """What the system tells of this process, whose number is given; kept."""
    host = platform.node()
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
        number, _, _ = (_PROC / "self/stat").read_text("utf-8", "replace").partition(" ")
        _, started = _state_and_start("self")
    except OSError:
        return Owner(host, "", "", pid, 0)
    # A /proc of another namespace counts processes differently: it says nothing about ours.
    return Owner(host, boot, namespace, pid, started if number == str(pid) else 0)


def _state_and_start(process: int | str) -> tuple[str, int]:
    text = (_PROC / str(process) / "stat").read_text("utf-8", "replace")
    # The name before the last bracket may hold anything, blanks and brackets included.
    fields = text[text.rindex(")") + 1 :].split()
    return fields[0], int(fields[19])


def _has_ended(pid: int, started: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        # Another user's process: it lives, but may still be a later one of this number.
        pass
    try:
        state, its_start = _state_and_start(pid)
    except (OSError, ValueError):
        # Hidden from us, or gone within the last moment: the next look will tell.
        return False
    return state in "ZX" or its_start != started


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """A new name beside a path, which tells what process uses it."""
    me = this_process()
    return path.with_name(f".{path.name}~{me.place}~{me.pid}~{me.started}~{next(_counter)}")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `temporary_name` makes."""
    return _TEMPORARY.fullmatch(name) is not None


def final_name(name: str) -> str:
    """The name that a temporary file was to get; other names as they are."""
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else name


def is_foreign(path: pathlib.Path) -> bool:
    """Whether a file is a temporary one of a process that cannot be seen from here."""
    match = _TEMPORARY.fullmatch(path.name)
    me = this_process()
    return match is not None and not (match["place"] == me.place and me.started)


def is_leftover(path: pathlib.Path) -> bool:
    """Whether a file is a temporary one that nobody will finish.

    Args:
      path: any file.

    Returns:
      True for a temporary file whose process has ended or, where it ran elsewhere, that
      was not touched for an hour.
    """
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    if not is_foreign(path):
        return _has_ended(int(match["pid"]), int(match["started"]))
    try:
        return clock(path.parent) - path.stat().st_mtime > FOREIGN_SECONDS
    except OSError:
        return False


def clock(folder: pathlib.Path) -> float:
    """The file system's own time in seconds, which every machine that shares it agrees on."""
    probe = temporary_name(folder / "clock")
    try:
        with open(probe, "xb") as file:
            os.utime(file.fileno() if os.utime in os.supports_fd else probe)
            return os.fstat(file.fileno()).st_mtime
    finally:
        _discard(probe)


def check_encodes(folder: pathlib.Path) -> None:
    """Sees that a folder's name is text, as what writes and reads tables needs it to be.

    Args:
      folder: any path.

    Raises:
      StoreError: if it is not.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise StoreError(f"--out must be a name in UTF-8, got {str(folder)!r}.") from None


def check_writable(folder: pathlib.Path) -> None:
    """Sees that files can be made in a folder.

    Args:
      folder: an existing folder.

    Raises:
      StoreError: if they cannot.
    """
    try:
        clock(folder)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(
            f"{str(folder)!r} cannot be written to ({reason}); allowed is a folder of yours on a "
            "disk with room."
        ) from error


def write_whole(path: pathlib.Path, writer: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that, whatever happens, it is whole, the older one, or absent.

    Args:
      path: the file; its folders are made.
      writer: writes to the open file it is given, which can be read and sought too.

    Raises:
      NoSpaceError: if the disk is full.
      OSError: for anything else; nothing new remains either way.
    """
    temporary = temporary_name(path)
    try:
        with _opened(temporary) as file:
            writer(file)
            _to_disk(file)
        try:
            os.replace(temporary, path)
        except FileNotFoundError:
            # Swept away by a process that saw the finished file of another writer.
            if not path.exists():
                raise
        sync_folder(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        _discard(temporary)


def create_whole(path: pathlib.Path, data: bytes, *, durable: bool = True) -> bool:
    """Writes a file that must not exist yet; of several processes one succeeds.

    Args:
      path: the file; its folders are made.
      data: what it will hold.
      durable: whether it must outlive a loss of power.

    Returns:
      Whether this call made the file.

    Raises:
      NoSpaceError: if the disk is full.
      OSError: for anything but the file being there.
    """
    for attempt in range(_ATTEMPTS):
        temporary = temporary_name(path)
        try:
            with _opened(temporary) as file:
                file.write(data)
                if durable:
                    _to_disk(file)
            made = link_new(temporary, path, data)
            if made and durable:
                sync_folder(path.parent)
            return made
        except FileNotFoundError:
            # Swept away by another machine, which cannot see that we live.
            if attempt == _ATTEMPTS - 1:
                raise
        except OSError as error:
            raise _explained(error, path) from error
        finally:
            _discard(temporary)
    return False


def link_new(source: pathlib.Path, path: pathlib.Path, data: bytes) -> bool:
    """Gives a file a second name that must not exist yet.

    Args:
      source: the file.
      path: the new name.
      data: what the file holds, for disks without links.

    Returns:
      Whether this call made the name.
    """
    try:
        os.link(source, path)
    except FileExistsError:
        # Over NFS the answer to a link that was made may be lost, and the repeat refused.
        return source.stat().st_nlink == 2 and source.samefile(path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with open(path, "xb") as file:
                file.write(data)
        except FileExistsError:
            return False
    return True


def sync_folder(folder: pathlib.Path) -> None:
    """Writes a folder's list of names to disk, where the system can."""
    descriptor = -1
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _opened(temporary: pathlib.Path) -> BinaryIO:
    for _ in range(_ATTEMPTS - 1):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        # Another process that tidies up may remove the empty folder in between.
        with contextlib.suppress(FileNotFoundError):
            return open(temporary, "x+b")
        time.sleep(0.01)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    return open(temporary, "x+b")


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _discard(temporary: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink()


def _explained(error: OSError, path: pathlib.Path) -> OSError:
    """The error itself, or one that says what a full disk means for the results."""
    if error.errno not in _FULL or isinstance(error, NoSpaceError):
        return error
    full = NoSpaceError(
        f"no space left on {str(path.parent)!r}: results so far are kept, run the same command "
        "again."
    )
    full.errno = error.errno
    return full
