"""Columns of a Parquet file as rows of Python values, without trusting what it unpacks to."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

# Arrow reports damage of different kinds as different exceptions, OSError among them.
_DAMAGE = (
    *(pyarrow.ArrowException, OSError, MemoryError, OverflowError),
    *(KeyError, IndexError, UnicodeDecodeError),
)
_BATCH = 1_024
# A name that a dictionary holds once may stand in every row.
_MAX_TEXT = 2**16


def rows(
    data: bytes,
    choose: Callable[[Sequence[str]], Sequence[int]],
    *,
    max_rows: int,
    max_bytes: int,
) -> Iterator[tuple[Any, ...]]:
    """Checks a file's metadata, and yields the rows of some of its columns.

    Args:
      data: the file.
      choose: given the names of all columns, the indices of those to read; it may raise.
      max_rows: most rows allowed.
      max_bytes: most bytes that the columns may unpack to by the file's own metadata. Text is
        read as its dictionary, so that a name in many rows is unpacked once.

    Returns:
      The rows, read in batches as they are asked for; damage found there is a `ValueError` too.

    Raises:
      ValueError: for what is no Parquet file, is damaged or too large.
    """
    try:
        file = pyarrow.parquet.ParquetFile(
            pyarrow.BufferReader(data), page_checksum_verification=True
        )
        names = list(file.schema_arrow.names)
        wanted = [names[index] for index in choose(names)]
        texts = [name for name in wanted if _is_text(file.schema_arrow.field(name).type, name)]
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        count = file.metadata.num_rows
        if texts:
            file = pyarrow.parquet.ParquetFile(
                pyarrow.BufferReader(data), page_checksum_verification=True, read_dictionary=texts
            )
    except _DAMAGE as error:
        raise _damaged(error) from None
    if count > max_rows or unpacked > max_bytes:
        raise ValueError(
            f"must unpack to at most {max_rows} rows and {max_bytes} bytes, got {count} rows and "
            f"{unpacked} bytes."
        )
    return _rows(file, wanted, max_rows)


def _rows(
    file: pyarrow.parquet.ParquetFile, wanted: Sequence[str], max_rows: int
) -> Iterator[tuple[Any, ...]]:
    count = 0
    try:
        for batch in file.iter_batches(_BATCH, columns=list(wanted), use_threads=False):
            for name in wanted:
                _check_values(batch.column(name), name, max_rows)
            yield from zip(*(batch.column(name).to_pylist() for name in wanted), strict=True)
            count += len(batch)
            if count > max_rows:
                raise ValueError(f"must hold at most {max_rows} rows, got more.")
    except _DAMAGE as error:
        raise _damaged(error) from None


def _is_text(kind: pyarrow.DataType, name: str) -> bool:
    """Whether a column holds text or bytes; raises where it holds neither that nor numbers."""
    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind):
        return True
    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    plain = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null)
    if not any(is_kind(inner) for is_kind in plain):
        raise ValueError(
            f"column {name[:60]!r} must hold text, numbers or lists of numbers, got {kind!s:.60}."
        )
    return False


def _check_values(column: Any, name: str, most: int) -> None:
    """Raises before a batch becomes Python values that take far more room."""
    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        lengths = pyarrow.compute.call_function("binary_length", [column.dictionary])
        longest = pyarrow.compute.call_function("max", [lengths]).as_py() or 0
        if longest > _MAX_TEXT:
            raise ValueError(
                f"column {name!r} must hold texts of at most {_MAX_TEXT} bytes, got {longest}."
            )
    elif (
        not pyarrow.types.is_primitive(kind)
        and hasattr(column, "flatten")
        and len(column.flatten()) > most
    ):
        raise ValueError(f"column {name!r} must hold at most {most} numbers, got more.")


def _damaged(error: BaseException) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"not valid Parquet, cut short or damaged: {reason}")
