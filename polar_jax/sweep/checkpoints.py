"""One file with the arrays of a shard in work, and a checksum over all of it.

The file is an ordinary `.npz` (`numpy.load` reads it) with one more member, `meta.json`.
Its comment, the last 64 bytes, is the SHA-256 of the file as it was without a comment:
a file that was torn or changed anywhere is told from a whole one.
"""

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

_META = "meta.json"
_DIGITS = 64
_PIECE = 1 << 20


class DamagedError(ValueError):
    """A checkpoint that is not as it was written."""


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Writes arrays and plain values; nothing is held in memory twice.

    Args:
      file: an empty file, open for reading and writing.
      arrays: any shapes; numbers, truth values or text.
      meta: plain values, ready for JSON.

    Raises:
      ValueError: for arrays of a type whose bits NumPy cannot store by itself.
    """
    for name, array in arrays.items():
        if array.dtype.hasobject or array.dtype.kind == "V":
            raise ValueError(
                f"checkpoint array {name!r} must be of NumPy's own number types, got {array.dtype}."
            )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_META, json.dumps(dict(meta)))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    file.flush()
    digest = _digest(file, file.seek(0, 2))
    # The archive ends with the length of its comment, so far none.
    file.seek(-2, 2)
    file.write(_DIGITS.to_bytes(2, "little") + digest)


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `write` wrote.

    Args:
      path: the file.

    Returns:
      `(arrays, meta)`.

    Raises:
      DamagedError: if the file is not as it was written.
      OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        if size < _DIGITS + 2:
            raise DamagedError("the file is too short.")
        file.seek(-_DIGITS, 2)
        if file.read() != _digest(file, size - _DIGITS):
            raise DamagedError("its checksum does not fit.")
        with zipfile.ZipFile(file) as archive:
            meta = json.loads(archive.read(_META))
            arrays = {}
            for name in archive.namelist():
                if name != _META:
                    with archive.open(name) as member:
                        array = np.lib.format.read_array(member, allow_pickle=False)
                    arrays[name.removesuffix(".npy")] = array
    return arrays, meta


def read_meta(path: pathlib.Path) -> dict[str, Any]:
    """Reads a checkpoint's plain values alone, without looking at its checksum.

    Args:
      path: the file.

    Returns:
      What was given as `meta`.

    Raises:
      zipfile.BadZipFile, KeyError, ValueError: if they cannot be made out.
      OSError: if it cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        return dict(json.loads(archive.read(_META)))


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of a file's first bytes, the last two of which count as zeros."""
    digest = hashlib.sha256()
    file.seek(0)
    left = size - 2
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            raise DamagedError("the file became shorter.")
        digest.update(piece)
        left -= len(piece)
    digest.update(b"\0\0")
    return digest.hexdigest().encode()
