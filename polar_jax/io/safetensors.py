"""What a safetensors file holds, from its header alone, and the file written piece by piece.

A file is 8 bytes (the header's length, unsigned, little-endian), the header (a JSON object of
`{name: {"dtype", "shape", "data_offsets"}}` and perhaps `"__metadata__"`, text by text), and
the tensors' bytes, which the offsets divide without gap or overlap.

The header is scanned with one regular expression per tensor and never becomes Python objects:
a hostile one of many empty lists would take twenty times its size. What is kept is 24 bytes
per tensor, whose entry takes 50 or more. So reading a file of `S` bytes allocates less than
`2 S` and a constant (`tests/test_hostile_input.py` measures it), and never reads a weight.

The writer is our own too, twenty lines: the package safetensors wants all tensors in memory
at once, and NumPy, which it would take them from, has no bfloat16.
"""

import array
import codecs
import errno
import json
import math
import os
import pathlib
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

# What the reference implementation allows.
MAX_HEADER = 100_000_000
MAX_NAME = 4_096  # bytes
DTYPE_BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "C64": 64},
    **{"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64},
}
_MOST = 2**53  # bytes; beyond what any file system holds
_CHUNK = 2**20
_SPACE = rb"[ \t\n\r]*+"
# Possessive quantifiers (`*+`) keep no states to go back to, which would take memory.
_STRING = rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
_NUMBER = rb"(?:0|[1-9][0-9]{0,15})"


def _between(separator: bytes) -> bytes:
    return _SPACE + separator + _SPACE


_COMMA, _COLON = _between(b","), _between(b":")
_LIST = rb"\[" + _SPACE + rb"(?:%b(?:%b%b){0,15})?" % (_NUMBER, _COMMA, _NUMBER) + _SPACE + rb"\]"
_FIELD = rb'"(?:(dtype)"%b"([A-Z0-9_]{1,16})"|(shape)"%b(%b)|(data_offsets)"%b(%b))' % (
    *(_COLON, _COLON, _LIST),
    *(_COLON, _LIST),
)
_PATTERN_STRING = re.compile(_STRING)
_PATTERN_FIELD = re.compile(_FIELD)
_PATTERN_SPACE = re.compile(_SPACE)
_PATTERN_COLON = re.compile(_COLON)
_PATTERN_OPEN = re.compile(rb"\{" + _SPACE)
_PATTERN_NEXT = re.compile(_SPACE + rb"([,}])" + _SPACE)
_METADATA = b'"__metadata__"'


class Header(NamedTuple):
    """What a file's header tells of its `M` tensors, in the order of their bytes."""

    data_start: int  # bytes before the first tensor
    data_bytes: int  # of all tensors together
    offsets: np.ndarray  # [M, 2] int64, begin and end of each, from `data_start`

    @property
    def num_tensors(self) -> int:
        """`M`."""
        return len(self.offsets)


class TensorSpec(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "BF16"  # a key of DTYPE_BITS

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def read_header(path: str | os.PathLike[str]) -> Header:
    """Reads and checks the header of a safetensors file, and nothing behind it.

    Args:
      path: the file.

    Returns:
      What the header tells; offsets are without gap, and end where the file does.

    Raises:
      ValueError: for a header that cannot be, in one line that names the file: a length
        beyond the file or above `MAX_HEADER`, text that is no such JSON, a name twice, a size
        that is not that of its shape, offsets that overlap, leave a gap or leave the file.
      OSError: for a file that is missing, no regular file, or cannot be read.
    """
    file = pathlib.Path(path)
    try:
        with open(file, "rb", opener=without_waiting, buffering=0) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "A safetensors file must be a regular file", str(file))
            text = _header_text(opened, status.st_size)
        start = 8 + len(text)
        _check_utf8(text)
        begins, ends, names = _scan(text)
        del text  # Before the arrays are sorted, which takes room too.
        _check_distinct(names)
        del names
        offsets = _in_order(begins, ends)
        data = int(offsets[-1, 1]) if len(offsets) else 0
        if start + data != status.st_size:
            raise ValueError(
                f"tensors must end with the file at byte {status.st_size}, got {start + data}."
            )
        return Header(start, data, offsets)
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from None


def without_waiting(path: str, flags: int) -> int:
    """Opens a file; a pipe in its place must not make us wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _header_text(file: BinaryIO, size: int) -> bytes:
    """The header's bytes; reads no more than the file is seen to hold."""
    if size < 8:
        raise ValueError(f"must begin with the header's length in 8 bytes, got a file of {size}.")
    (length,) = struct.unpack("<Q", _exactly(file, 8))
    if length > MAX_HEADER or 8 + length > size:
        raise ValueError(
            f"the header's length must be at most {min(MAX_HEADER, size - 8)} bytes in a file of "
            f"{size}, got {length}."
        )
    return _exactly(file, length)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count) or b""
    while len(data) < count:
        # A read may be short; at the end of the file it is empty.
        more = file.read(count - len(data))
        if not more:
            raise ValueError(f"was cut short while it was read: {count - len(data)} bytes missing.")
        data += more
    return data


def _check_utf8(text: bytes) -> None:
    """Raises where a header is no UTF-8; decodes it piece by piece."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(text)
    for at in range(0, len(text), _CHUNK // 16):
        try:
            decoder.decode(view[at : at + _CHUNK // 16], final=at + _CHUNK // 16 >= len(text))
        except UnicodeDecodeError:
            raise ValueError(f"the header must be UTF-8 text, which it is not near {at}.") from None


def _scan(text: bytes) -> tuple[array.array, array.array, array.array]:
    """Begins, ends and the names' hashes of all tensors, in the order of the header."""
    begins, ends, names = array.array("q"), array.array("q"), array.array("q")
    found = _PATTERN_OPEN.match(text)
    if found is None:
        raise ValueError(f"the header must be a JSON object, got {_near(text, 0)}.")
    at, metadata = found.end(), False
    more = text[at : at + 1] != b"}"
    at += not more
    while more:
        name = _expect(_PATTERN_STRING, text, at, "a name in quotes")
        if name.end() - name.start() > MAX_NAME:
            raise ValueError(f"the header must have names of at most {MAX_NAME} bytes, got more.")
        value = _expect(_PATTERN_COLON, text, name.end(), "a colon").end()
        if name[0] == _METADATA:
            if metadata:
                raise ValueError("the header must have __metadata__ once, got it twice.")
            metadata, at = True, _skip_metadata(text, value)
        else:
            begin, end, at = _tensor(text, value, name[0])
            begins.append(begin)
            ends.append(end)
            names.append(hash(_spelled(name[0])))
        step = _expect(_PATTERN_NEXT, text, at, "a comma or a closing brace")
        at, more = step.end(), step[1] == b","
    # The reference pads headers with spaces.
    if _expect(_PATTERN_SPACE, text, at, "spaces").end() != len(text):
        raise ValueError(f"the header must end with its object, got {_near(text, at)}.")
    return begins, ends, names


def _spelled(name: bytes) -> bytes | str:
    """A name as it is meant: escapes are other ways of writing the same."""
    return json.loads(name) if b"\\" in name else name[1:-1].decode()


def _tensor(text: bytes, at: int, name: bytes) -> tuple[int, int, int]:
    """`(begin, end, where its entry ends)` of the tensor whose entry begins at `at`."""
    fields: dict[str, bytes] = {}
    at = _expect(_PATTERN_OPEN, text, at, "an object").end()
    for last in (False, False, True):
        found = _expect(_PATTERN_FIELD, text, at, "dtype, shape or data_offsets")
        field = found[1] or found[3] or found[5]
        if field.decode() in fields:
            raise ValueError(f"tensor {_named(name)} must have each field once.")
        fields[field.decode()] = found[2] or found[4] or found[6]
        step = _expect(_PATTERN_NEXT, text, found.end(), "a comma or a closing brace")
        if (step[1] == b"}") != last:
            raise ValueError(
                f"tensor {_named(name)} must have dtype, shape and data_offsets, no more and no "
                "less."
            )
        at = step.start(1) + 1 if last else step.end()
    shape, limits = _whole(fields["shape"]), _whole(fields["data_offsets"])
    bits = DTYPE_BITS.get(fields["dtype"].decode())
    if bits is None:
        raise ValueError(
            f"tensor {_named(name)} must have a dtype of {', '.join(DTYPE_BITS)}; got "
            f"{fields['dtype'].decode()}."
        )
    if len(limits) != 2 or not 0 <= limits[0] <= limits[1] <= _MOST:
        raise ValueError(
            f"tensor {_named(name)} must have data_offsets [begin, end] with 0 <= begin <= end; "
            f"got {limits}."
        )
    if math.prod(shape) * bits != 8 * (limits[1] - limits[0]):
        raise ValueError(
            f"tensor {_named(name)} must take the bytes of its shape {shape} at {bits} bits; got "
            f"data_offsets {limits}."
        )
    return limits[0], limits[1], at


def _whole(numbers: bytes) -> list[int]:
    inner = numbers[1:-1]
    return [int(part) for part in inner.split(b",")] if inner.strip() else []


def _skip_metadata(text: bytes, at: int) -> int:
    """Where the metadata end: an object of texts, none of which is kept."""
    at = _expect(_PATTERN_OPEN, text, at, "an object of texts").end()
    if text[at : at + 1] == b"}":
        return at + 1
    while True:
        at = _expect(_PATTERN_STRING, text, at, "a name in quotes").end()
        at = _expect(_PATTERN_COLON, text, at, "a colon").end()
        at = _expect(_PATTERN_STRING, text, at, "a text in quotes").end()
        step = _expect(_PATTERN_NEXT, text, at, "a comma or a closing brace")
        if step[1] == b"}":
            return step.start(1) + 1
        at = step.end()


def _expect(pattern: re.Pattern[bytes], text: bytes, at: int, what: str) -> re.Match[bytes]:
    found = pattern.match(text, at)
    if found is None:
        raise ValueError(f"the header must have {what} at byte {at}, got {_near(text, at)}.")
    return found


def _near(text: bytes, at: int) -> str:
    return repr(text[at : at + 24])


def _named(name: bytes) -> str:
    return repr(name[1:61].rstrip(b'"').decode(errors="replace"))


def _check_distinct(names: array.array) -> None:
    """Raises where two names are equal; of 1e6 names two share a 64-bit hash once in 4e7 files."""
    hashes = np.frombuffer(names, np.int64).copy()
    hashes.sort()
    if len(hashes) > 1 and bool((hashes[1:] == hashes[:-1]).any()):
        raise ValueError("the header must name each tensor once, got one name twice.")


def _in_order(begins: array.array, ends: array.array) -> np.ndarray:
    """`[M, 2]` offsets, sorted; raises where they do not follow on one another from 0."""
    offsets = np.empty((len(begins), 2), np.int64)
    offsets[:, 0], offsets[:, 1] = begins, ends
    if not (np.diff(offsets[:, 0]) >= 0).all() or not (np.diff(offsets[:, 1]) >= 0).all():
        # By begin and end, so that an empty tensor stands before the one that begins there.
        offsets = offsets[np.lexsort((offsets[:, 1], offsets[:, 0]))]
    if not len(offsets):
        return offsets
    wrong = np.flatnonzero(offsets[:, 0] != np.concatenate([[0], offsets[:-1, 1]]))
    if wrong.size:
        first = int(wrong[0])
        at = int(offsets[first - 1, 1]) if first else 0
        raise ValueError(
            f"tensors must follow on one another without gap or overlap; one ends at {at}, the "
            f"next begins at {int(offsets[first, 0])}."
        )
    offsets.setflags(write=False)
    return offsets


def header_bytes(tensors: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """The 8 bytes of length and the header of a file of these tensors, in this order.

    Args:
      tensors: distinct names.
      metadata: texts by name, such as `{"format": "pt"}`.

    Returns:
      The bytes before the first tensor; as in the reference, padded to a multiple of 8.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for tensor in tensors:
        end = at + tensor.num_bytes
        shape = list(tensor.shape)
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class Writable(Protocol):
    """Somewhere to write bytes to."""

    def write(self, data: bytes | memoryview, /) -> int | None:
        """Writes a piece; returns how many bytes of it."""
        ...


def write(
    file: Writable,
    tensors: Sequence[TensorSpec],
    chunks: Iterable[bytes | memoryview],
    metadata: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Writes a file piece by piece; holds one piece at a time.

    Args:
      file: open for writing.
      tensors: what the file holds, distinct names.
      chunks: the tensors' bytes, one after the other, cut anywhere.
      metadata: texts by name.

    Yields:
      Bytes written so far, after each piece.

    Raises:
      ValueError: if the pieces are not as long as the tensors together.
      OSError: if the file cannot be written.
    """
    head = header_bytes(tensors, metadata or {"format": "pt"})
    file.write(head)
    written = len(head)
    left = sum(tensor.num_bytes for tensor in tensors)
    yield written
    for chunk in chunks:
        file.write(chunk)
        written, left = written + len(chunk), left - len(chunk)
        yield written
    if left:
        word = "less" if left > 0 else "more"
        raise ValueError(f"pieces must be as long as the tensors, got {abs(left)} bytes {word}.")
