"""Times how adapters are paged in on this machine: disk to host, host to device, with JAX.

Every repeat of every adapter is timed in turn, so that a slow minute falls on all of them:

* `disk`: the file is read into host memory after the page cache has let go of it. Whether it
  has is looked at before the read, and a read that was not cold is not kept.
* `disk-warm`: the same read at once again, from the page cache.
* `memory`: every tensor of the adapter is put on an accelerator, all in one call.
* `host-copy`: the same where there is no accelerator: a copy from host memory to host memory.

Files are read into one buffer that is already in memory, as large as the largest adapter.
"""

import array
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from polar_jax.io.peft import PeftAdapter
from polar_jax.io.tables import WARM, Measured

COLD = "disk"
TO_DEVICE, HOST_COPY = "memory", "host-copy"
# More would be no LoRA adapter, and each becomes an array on the device.
MAX_TENSORS, MAX_FILE = 100_000, 2**34
# Pages that are looked at to tell whether a file is in the page cache.
_PROBES = 32
_PROBE_BYTES = 512


class Timings(NamedTuple):
    """What was measured."""

    measured: dict[str, Measured]  # by adapter
    device: str  # what adapters were put on
    accelerator: bool  # whether that is one
    notes: tuple[str, ...]  # what could not be measured as wanted, one sentence each


def devices(name: str | None) -> Any:
    """The device to page to.

    Args:
      name: a platform such as `gpu`, `tpu` or `cpu`, or one of its devices such as `gpu:1`;
        None for JAX's first, an accelerator where there is one.

    Raises:
      ValueError: for one that this machine does not have.
    """
    if name is None:
        return jax.devices()[0]
    platform, _, number = name.partition(":")
    try:
        if platform and (not number or number.isdecimal()):
            return jax.devices(platform)[int(number or 0)]
        raise ValueError
    except (RuntimeError, ValueError, IndexError):
        found = dict.fromkeys([*jax.devices(), *jax.devices("cpu")])
        held = ", ".join(f"{one.platform}:{one.id}" for one in found)
        raise ValueError(f"--device must be one of {held}; got {name!r}.") from None


def run(
    adapters: Sequence[PeftAdapter],
    device: Any,
    repeats: int,
    progress: Callable[[str, int, int], object] | None = None,
) -> Timings:
    """Times every adapter.

    Args:
      adapters: with distinct names.
      device: what to page to, from `devices`.
      repeats: timings per adapter and tier, at least 1.
      progress: called with the adapter's name, timings done and timings to do.

    Returns:
      The timings. Tiers that could not be measured for every adapter are left out, and told.

    Raises:
      ValueError: for an adapter of too many tensors, or one that changes meanwhile.
      OSError: for a file that cannot be read.
    """
    accelerator = device.platform != "cpu"
    to_device = TO_DEVICE if accelerator else HOST_COPY
    tiers = (COLD, COLD + WARM, to_device)
    found = {adapter.name: {tier: array.array("d") for tier in tiers} for adapter in adapters}
    for adapter in adapters:
        if adapter.header.num_tensors > MAX_TENSORS or _file_bytes(adapter) > MAX_FILE:
            raise ValueError(
                f"{str(adapter.path)!r}: must have at most {MAX_TENSORS} tensors in {MAX_FILE} "
                f"bytes to be timed, got {adapter.header.num_tensors} in {_file_bytes(adapter)}."
            )
    buffer = np.ones(max(map(_file_bytes, adapters)) + 1, np.uint8)
    states: list[bool | None] = []
    total, done = (repeats + 1) * len(adapters), 0
    for repeat in range(repeats + 1):
        for adapter in adapters:
            # The first round is for what is set up once, such as the device's memory.
            cold, took = _time(adapter, device, buffer)
            done += 1
            if repeat:
                states.append(cold)
                for tier, ms in zip(tiers, took, strict=True):
                    if tier != COLD or cold is not False:
                        found[adapter.name][tier].append(ms)
            if progress is not None:
                progress(adapter.name, done, total)
    if not all(rows[COLD] for rows in found.values()):
        for rows in found.values():
            del rows[COLD]
    measured = {a.name: Measured(found[a.name], a.size_bytes) for a in adapters}
    notes = [*_cache_notes(states, COLD in next(iter(found.values())))]
    if not accelerator:
        notes.insert(
            0,
            f"No accelerator was used: {HOST_COPY} is a copy from host memory to host memory, not "
            "a transfer to a GPU.",
        )
    return Timings(measured, f"{device.platform} {device.device_kind}", accelerator, tuple(notes))


def _cache_notes(states: Sequence[bool | None], kept: bool) -> list[str]:
    """What to tell about cold reads; a state is None where nothing tells whether one was."""
    warm, unknown = states.count(False), states.count(None)
    if not kept:
        return [
            f"The page cache could not be dropped ({warm} of {len(states)} reads were warm), so "
            f"there are no cold reads: {COLD}{WARM} alone stands for the way from disk."
        ]
    if unknown:
        return [
            f"Whether the page cache was dropped cannot be seen on this file system; {COLD} rows "
            "may be warm."
        ]
    if warm:
        return [f"{warm} of {len(states)} reads were not cold and are left out of {COLD}."]
    return []


def _file_bytes(adapter: PeftAdapter) -> int:
    return adapter.header.data_start + adapter.header.data_bytes


def _time(
    adapter: PeftAdapter, device: Any, buffer: np.ndarray
) -> tuple[bool | None, tuple[float, float, float]]:
    """Whether the first read was cold, and ms of it, of the second and of the transfer."""
    size = _file_bytes(adapter)
    # One byte off: JAX takes over an aligned buffer on CPU without a copy, where a page-in to
    # an accelerator makes one. Tensors of two bytes or more then stay off any alignment.
    odd = (buffer.ctypes.data + adapter.header.data_start + 1) % 2
    target = buffer[odd : odd + size]
    cold = drop_from_cache(adapter.path)
    first = _read(adapter.path, target)
    second = _read(adapter.path, target)
    start = adapter.header.data_start
    tensors = [target[start + begin : start + end] for begin, end in adapter.header.offsets]
    began = time.perf_counter()
    on_device = jax.block_until_ready(jax.device_put(tensors, device))
    took = time.perf_counter() - began
    for tensor in on_device:
        tensor.delete()
    return cold, (1e3 * first, 1e3 * second, 1e3 * took)


def _read(path: pathlib.Path, target: np.ndarray) -> float:
    """Reads a whole file into `target`; returns the seconds, opening it included."""
    view = target.data
    began = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while len(view):
            count = file.readinto(view)
            if not count:
                raise ValueError(f"{str(path)!r}: was cut short while it was measured.")
            view = view[count:]
    return time.perf_counter() - began


def drop_from_cache(path: pathlib.Path) -> bool | None:
    """Asks the system to forget a file's contents, and looks whether it has.

    The drive's own cache, and that of a virtual machine's host, are out of reach.

    Args:
      path: the file.

    Returns:
      True where nothing of it is in the page cache, False where some is, None where the
      system does not tell.
    """
    advise = getattr(os, "posix_fadvise", None)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if advise is None:
            return False
        os.fsync(descriptor)  # Only what is on disk can be dropped.
        advise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        cached = _in_cache(descriptor, os.fstat(descriptor).st_size)
        return None if cached is None else not cached
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _in_cache(descriptor: int, size: int) -> bool | None:
    """Whether any of some pages of a file is in the page cache; None where nothing tells."""
    read, without_waiting = getattr(os, "preadv", None), getattr(os, "RWF_NOWAIT", None)
    if read is None or without_waiting is None:
        return None
    for probe in range(_PROBES):
        at = (size - _PROBE_BYTES) * probe // (_PROBES - 1)
        try:
            # A read that must not wait succeeds only where the page is there already.
            if read(descriptor, [bytearray(_PROBE_BYTES)], max(at, 0), without_waiting):
                return True
        except BlockingIOError:
            continue
        except OSError:
            return None
    return False
