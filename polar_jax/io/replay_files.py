"""Replay files: measured contexts and utilities as `.npz` or Parquet; see `docs/replays.md`.

**npz.** Arrays `contexts [M, d]` and `utilities [M, N]`, floats of 4 or 8 bytes; optionally
`domains [M]` (whole numbers or texts), `domain_names` (texts of the numbers from 0), `adapters [N]`
(texts) and `order [L]` (whole numbers).
Others are left unread. Nothing is unpickled.

**Parquet.** A row per request, in the order they came: columns `context` and `utility`, lists
of floats of equal length, and optionally `domain`; the names of the adapters are a JSON list
under the key `adapters` of the file's metadata.

Readers check what a file claims before they allocate: never more than twice its size, and some
megabytes for labels and names. An archive that would grow more when it is decompressed is refused.
"""

import dataclasses
import json
import os
import pathlib
import re
import zipfile
import zlib
from typing import IO, Any

import numpy as np

from polar_jax import replays

SUFFIXES = (".npz", ".parquet")
_ARRAYS = ("contexts", "utilities", "domains", "domain_names", "adapters", "order")
_KINDS = {
    **{"contexts": "f", "utilities": "f", "domains": "iuU"},
    **{"domain_names": "U", "adapters": "U", "order": "iu"},
}
_MAX_TEXT_BYTES = 512
_TEXTS = f"texts of at most {_MAX_TEXT_BYTES // 4} characters"
_ALLOWED = {
    "f": "floats of 4 or 8 bytes",
    "iu": "whole numbers of 4 or 8 bytes",
    "U": _TEXTS,
    "iuU": f"whole numbers of 4 or 8 bytes or {_TEXTS}",
}
_PIECE = 2**14
# A header is some hundred bytes. Its keys come in this order, as every numpy writes them; to
# read any literal of Python's would let a hostile one raise what it likes.
_MAX_HEADER = 10_000
_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<>|=](?:[biufcUSO]\d{0,6}))', 'fortran_order': "
    rb"(?P<fortran>True|False), 'shape': \((?P<shape>(?:\d{1,18},? ?){0,4})\), \}\s*\Z"
)
_OWN_KEY = b"adapters"


def read_replay(
    path: str | os.PathLike[str], *, missing: float | str | None = None
) -> replays.Replay:
    """Reads measured requests; the module's docstring has the formats.

    Args:
      path: a `.npz` or `.parquet` file.
      missing: what a missing utility (NaN) means, as in `replays.make_replay`.

    Raises:
      ValueError: for anything in the file that cannot be used, in one line that names the
        file, what was received and what is allowed.
      OSError: for a file that is missing or cannot be read.
    """
    file = pathlib.Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{str(file)!r}: a replay's suffix must be one of {', '.join(SUFFIXES)}, got "
            f"{file.suffix!r}."
        )
    read = _read_npz if file.suffix.lower() == ".npz" else _read_parquet
    with file.open("rb") as opened:
        try:
            arrays = read(opened, os.fstat(opened.fileno()).st_size)
            names = arrays.pop("domain_names", None)
            replay = replays.make_replay(**arrays, missing=missing, copy=False)
            return replay if names is None else _named(replay, names)
        except ValueError as error:
            raise ValueError(f"{str(file)!r}: {error}") from None


def _read_npz(opened: IO[bytes], size: int) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(opened) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            for name in _ARRAYS[:2]:
                if name not in members:
                    raise ValueError(
                        f"must hold the arrays contexts and utilities, got "
                        f"{_listed(members) or 'none'}."
                    )
            wanted = {name: members[name] for name in _ARRAYS if name in members}
            _check_growth(sum(info.file_size for info in wanted.values()), size, "savez")
            arrays: dict[str, Any] = {
                name: _read_array(archive, info, name) for name, info in wanted.items()
            }
    # zipfile's word for a damaged method or version of a member is NotImplementedError.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"not a valid npz archive, cut short or damaged: {error}.") from None
    except (RuntimeError, OSError, KeyError, OverflowError, UnicodeDecodeError) as error:
        # zipfile reports encrypted and otherwise odd members as these.
        raise ValueError(f"not a valid npz archive: {' '.join(str(error).split())}.") from None
    if "adapters" in arrays:
        names = arrays["adapters"]
        if names.ndim != 1 or names.dtype.kind != "U":
            raise ValueError(
                f"adapters must be a list of texts, got {names.dtype} of shape {names.shape}."
            )
        arrays["adapters"] = [str(name) for name in names]
    return arrays


def _named(replay: replays.Replay, names: np.ndarray) -> replays.Replay:
    """A replay whose domains, numbers from 0, have names."""
    known = {str(number): str(name) for number, name in enumerate(names.reshape(-1))}
    if names.ndim != 1 or names.dtype.kind != "U" or not set(replay.domain_names) <= set(known):
        raise ValueError(
            "domain_names must be texts, one for each of the numbers in domains, got "
            f"{names.dtype} of shape {names.shape}."
        )
    return dataclasses.replace(
        replay, domain_names=tuple(known[name] for name in replay.domain_names)
    )


def _listed(names: Any) -> str:
    shown = [repr(name[:40]) for name in names]
    return ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")


def _check_growth(held: int, size: int, writer: str) -> None:
    """Refuses what decompresses to much more than the file: it may be a bomb."""
    if held > 1.25 * size:
        how = "numpy.savez" if writer == "savez" else "polar_jax.io.write_replay"
        raise ValueError(
            f"holds {held:,} bytes of arrays in a file of {size:,}, and at most 1.25 times its "
            f"size is read; write it uncompressed, with {how}."
        )


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    """One `.npy` member, whose header is checked against its length before room is made."""
    with archive.open(info) as member:
        shape, fortran, dtype = _header(member, name)
        largest = _MAX_TEXT_BYTES if dtype.kind == "U" else 8
        if dtype.kind not in _KINDS[name] or not 4 <= dtype.itemsize <= largest:
            raise ValueError(f"{name} must be {_ALLOWED[_KINDS[name]]}, got {dtype}.")
        count = 1
        for length in shape:
            count *= length  # Python's whole numbers do not overflow.
        if len(shape) > 2 or count * dtype.itemsize > info.file_size or min(shape, default=0) < 0:
            raise ValueError(
                f"{name} claims shape {shape} of {dtype}, which {info.file_size:,} bytes do not "
                "hold."
            )
        data = bytearray(count * dtype.itemsize)
        view, filled = memoryview(data), 0
        while filled < len(data):
            piece = member.read(min(_PIECE, len(data) - filled))
            if not piece:
                raise ValueError(f"{name} ends after {filled:,} of {len(data):,} bytes.")
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        if member.read(1):
            raise ValueError(f"{name} holds more bytes than its shape {shape} says.")
    array = np.frombuffer(data, dtype)
    if not dtype.isnative:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder())
    if dtype.kind == "U" and array.size:
        points = array.view(np.uint32)
        if points.max() > 0x10FFFF or ((points >= 0xD800) & (points < 0xE000)).any():
            raise ValueError(f"{name} must be texts of Unicode characters, got other numbers.")
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type that a `.npy` member claims."""
    start = member.read(10)
    if start[:6] != b"\x93NUMPY" or start[6:8] not in (b"\1\0", b"\2\0"):
        raise ValueError(f"{name} must be a .npy of version 1 or 2, got {start[:8]!r}.")
    more = member.read(2) if start[6] == 2 else b""
    length = int.from_bytes(start[8:] + more, "little")
    if length > _MAX_HEADER:
        raise ValueError(f"{name} has a header of more than {_MAX_HEADER:,} bytes.")
    text = member.read(length)
    found = _HEADER.match(text)
    if found is None:
        raise ValueError(f"{name} has a header that cannot be read: {text[:60]!r}.")
    shape = tuple(int(size) for size in found["shape"].split(b",") if size.strip())
    try:
        dtype = np.dtype(found["descr"].decode())
    except TypeError:
        raise ValueError(f"{name} has a header of an unknown type, {found['descr']!r}.") from None
    return shape, found["fortran"] == b"True", dtype


def _read_parquet(opened: IO[bytes], size: int) -> dict[str, Any]:
    import pyarrow  # Slow to load, and only this format needs it.
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(opened, page_checksum_verification=True)
        schema = file.schema_arrow
        # Metadata of single columns is not asked for: where it is damaged, Arrow aborts.
        groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
        _check_growth(sum(group.total_byte_size for group in groups), size, "parquet")
        found: dict[str, Any] = {
            "contexts": _matrix(file, schema, "context", size),
            "utilities": _matrix(file, schema, "utility", size),
        }
        if "domain" in schema.names:
            found |= _domains(file)
        names = (schema.metadata or {}).get(_OWN_KEY)
        if names is not None:
            found["adapters"] = _adapter_names(names)
    except (pyarrow.ArrowException, OSError, MemoryError, KeyError, UnicodeDecodeError) as error:
        # Arrow reports damage of different kinds as different exceptions, OSError among them.
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"not valid Parquet, cut short or damaged: {reason}.") from None
    return found


def _domains(file: Any) -> dict[str, Any]:
    """Domains as numbers, and their labels, in order; each text is held once."""
    column = file.read(columns=["domain"]).column("domain").combine_chunks().dictionary_encode()
    if column.null_count:
        raise ValueError("column domain must hold a whole number or a text in every row.")
    labels = column.dictionary.to_pylist()
    sound = (isinstance(one, int | str) and not isinstance(one, bool) for one in labels)
    if not all(sound) or max((len(str(one)) for one in labels), default=0) > _MAX_TEXT_BYTES // 4:
        raise ValueError(f"column domain must hold whole numbers, or {_TEXTS}.")
    order = sorted(range(len(labels)), key=lambda place: labels[place])
    rank = np.empty(len(labels), np.int32)
    rank[order] = np.arange(len(labels), dtype=np.int32)
    names = np.asarray([str(labels[place]) for place in order])
    return {"domains": rank[column.indices.to_numpy()], "domain_names": names}


def _matrix(file: Any, schema: Any, name: str, size: int) -> np.ndarray:
    """A column of lists as `[rows, width]` float32, a batch of rows at a time."""
    import pyarrow

    if name not in schema.names:
        raise ValueError(
            f"must have columns context and utility, got {_listed(schema.names) or 'none'}."
        )
    kind = schema.field(name).type
    if not pyarrow.types.is_list(kind) or not pyarrow.types.is_floating(kind.value_type):
        raise ValueError(f"column {name} must hold lists of floats, got {kind}.")
    rows, done = file.metadata.num_rows, 0
    matrix = np.empty((0, 0), np.float32)
    for batch in file.iter_batches(batch_size=1_024, columns=[name]):
        batch.validate(full=True)
        column = batch.column(0)
        count, values = len(column), column.flatten()
        if not done and count:
            width = len(column[0]) if column[0].is_valid else 0
            _check_growth(4 * rows * width, size, "parquet")
            matrix = np.empty((rows, width), np.float32)
        lengths = column.value_lengths().unique().to_pylist()
        if lengths != [matrix.shape[1]] or values.null_count or done + count > rows:
            raise ValueError(
                f"column {name} must hold a list of as many numbers in every row as in the first, "
                f"{matrix.shape[1]}."
            )
        matrix[done : done + count] = values.to_numpy(zero_copy_only=False).reshape(count, -1)
        done += count
    if done != rows or not rows:
        raise ValueError(f"column {name} must hold one or more rows, {rows:,} of them, got {done}.")
    return matrix


def _adapter_names(text: bytes) -> list[str]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the metadata's adapters must be a JSON list of names.")
    return names


def write_replay(path: str | os.PathLike[str], replay: replays.Replay) -> None:
    """Writes a replay as this module reads it; contexts as they are, divided by their norm.

    Args:
      path: a `.npz` or `.parquet` file; one that exists is replaced once the new one is whole.
        A Parquet file has no order: its rows are written in the replay's.
      replay: the requests.

    Raises:
      ValueError: for another suffix.
      OSError: for a file that cannot be written.
    """
    file = pathlib.Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"a replay's suffix must be one of {', '.join(SUFFIXES)}, got {file.suffix!r}."
        )
    write = _write_npz if file.suffix.lower() == ".npz" else _write_parquet
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as opened:
            write(opened, replay)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _write_npz(opened: IO[bytes], replay: replays.Replay) -> None:
    np.savez(
        opened,
        contexts=replay.contexts,
        utilities=replay.utilities,
        domains=np.asarray(replay.domain_names)[replay.domains],
        adapters=np.asarray(replay.adapters),
        order=replay.order,
    )


def _write_parquet(opened: IO[bytes], replay: replays.Replay) -> None:
    import pyarrow
    import pyarrow.parquet

    def lists(values: np.ndarray) -> Any:
        flat = pyarrow.array(values[replay.order].reshape(-1))
        ends = np.arange(len(replay.order) + 1, dtype=np.int32) * np.int32(values.shape[1])
        return pyarrow.ListArray.from_arrays(ends, flat)

    table = pyarrow.table(
        {
            "context": lists(replay.contexts),
            "utility": lists(replay.utilities),
            "domain": np.asarray(replay.domain_names)[replay.domains[replay.order]],
        },
        metadata={_OWN_KEY: json.dumps(list(replay.adapters)).encode()},
    )
    pyarrow.parquet.write_table(
        table, opened, compression="none", use_dictionary=False, write_page_checksum=True
    )
