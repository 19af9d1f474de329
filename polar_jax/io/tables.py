"""Paging tables from CSV, JSON and Parquet files, with a forgiving rule for columns.

**Columns.** One column names the adapter, one gives milliseconds; `bytes` and `tier` are
optional; others are ignored. Accepted names are in `COLUMNS`; case, spaces, underscores
and hyphens do not matter (`Load MS` is `load_ms`). Two columns for one role are an error.

**Rows.** One or many per adapter, in any order; adapters keep the order in which they
first appear. Many rows are samples: their mean is the adapter's time, and page-ins draw
from them. Where no adapter has more than one measurement the table has means only.

**Tiers.** Where adapters have rows of one tier each (or there is no such column), they are
as above. Where an adapter has rows of several tiers, a page-in passes through all of them:
its time is the sum over tiers of the tier's mean, and no samples are kept, as nothing says
which loads belong together. Every adapter must then have every tier (0 ms will do). A tier
`X-warm` beside a tier `X` is the same way from a warm cache: it stands in the place of `X`, so
the sum leaves it out. One tier may be asked for, with its samples, or a sum as `A+B`.

**Formats.** CSV: UTF-8, a header line, separated by commas, semicolons or tabs, decimal
points. JSON: a list of objects; or an object of columns, which are lists; or an object
`{adapter: ms or [ms, ...]}`. Parquet: numbers and text in plain columns. In JSON and
Parquet one row may hold a list of milliseconds.

**Limits.** A file has at most `MAX_FILE` bytes, `MAX_ROWS` measurements, `MAX_TIERS` tiers and
`MAX_ADAPTERS` adapters; adapters times the most measurements of one are at most `MAX_CELLS`, as
a table holds a rectangle. Parquet is refused by its own metadata where it would unpack to more than
`MAX_UNPACKED` bytes. With them reading takes at most twice the file and `MAX_BESIDE` bytes,
whatever is in it: names, measurements and JSON's values take several times their text as Python
and NumPy hold them, so it is their number that is kept small.
"""

import array
import codecs
import csv
import decimal
import errno
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from polar_jax import paging

COLUMNS = {
    "adapter": ("adapter", "adapter_name", "name", "lora"),
    "ms": ("ms", "load_ms", "latency_ms", "time_ms"),
    "bytes": ("bytes", "size_bytes"),
    "tier": ("tier",),
}


# Suffix of a tier that is another one from a warm cache.
WARM = "-warm"
MAX_FILE, MAX_ROWS, MAX_ADAPTERS, MAX_CELLS = 2**26, 5 * 10**5, 10**4, 2 * 10**6
MAX_JSON, MAX_UNPACKED, MAX_BESIDE = 2**19, 2**24, 2**25
MAX_TIERS = 8
_CHUNK = 2**16
_Result = TypeVar("_Result")


class Measured(NamedTuple):
    """What a file holds of one adapter."""

    # Milliseconds by tier, in the order of the file; a list would take four times the room.
    tiers: dict[str, array.array]
    size_bytes: int | None  # None where the file does not say


class _Raw(NamedTuple):
    """A file's cells before the column rule."""

    columns: Sequence[str]
    rows: Iterator[tuple[str, Sequence[Any]]]  # (how messages name the row, its cells)
    text_numbers: bool = False  # True where every cell is text, as in CSV


def read_paging_table(path: str | os.PathLike[str], tier: str | None = None) -> paging.PagingTable:
    """Reads measured paging latencies; the module's docstring has the rules.

    Args:
      path: a `.csv`, `.json` or `.parquet` file.
      tier: a tier of the file, or several as `A+B`, which add up; None for all of them.

    Returns:
      The table of all adapters in the file; its `tier` says what was read or added up.

    Raises:
      ValueError: for anything in the file that cannot be used, or a tier it does not have, in
        one line that names the file, the row, the value received and what is allowed.
      OSError: for a file that is missing or cannot be read.
    """
    return _read(path, lambda adapters: _to_table(_of_tier(adapters, tier)))


def read_measurements(path: str | os.PathLike[str]) -> dict[str, Measured]:
    """Reads a paging file as it stands: every measurement by adapter and tier.

    Args:
      path: a `.csv`, `.json` or `.parquet` file.

    Returns:
      By adapter, in order of first appearance.

    Raises:
      ValueError: for anything in the file that cannot be used, as `read_paging_table`.
      OSError: for a file that is missing or cannot be read.
    """

    return _read(path, lambda adapters: adapters)


def summed_tiers(tiers: Iterable[str]) -> list[str]:
    """Those of a file's tiers that a page-in passes through: `X-warm` gives way to `X`."""
    found = list(dict.fromkeys(tiers))
    return [t for t in found if not (t.endswith(WARM) and t.removesuffix(WARM) in found)]


def _read(path: str | os.PathLike[str], use: Callable[[dict[str, Measured]], _Result]) -> _Result:
    """Reads a file's rows and makes something of them; errors name the file."""
    file = pathlib.Path(path)
    parse = _checked_parser(file)
    with open(file, "rb", buffering=0) as opened:
        # Room is made for what is asked for, so for no more than there is.
        size = os.fstat(opened.fileno()).st_size
        data = b"" if size > MAX_FILE else opened.read(size) or b""
    try:
        if size > MAX_FILE:
            raise ValueError(f"must hold at most {MAX_FILE} bytes, got {size}.")
        if not data or data.isspace():  # A stripped copy would be another file in memory.
            raise ValueError("the file is empty; a paging table has one or more adapters.")
        return use(_collect(parse(data)))
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from error


def _checked_parser(file: pathlib.Path) -> Callable[[bytes], _Raw]:
    """Picks the parser by suffix, once the file is seen to be there."""
    file.stat()
    if file.is_dir():
        message = "A paging table must be a file, got a directory"
        raise IsADirectoryError(errno.EISDIR, message, str(file))
    parsers = {".csv": _parse_csv, ".json": _parse_json, ".parquet": _parse_parquet}
    suffix = file.suffix.lower()
    if suffix not in parsers:
        allowed = ", ".join(parsers)
        raise ValueError(f"{str(file)!r}: suffix must be one of {allowed}, got {suffix!r}.")
    return parsers[suffix]


def _check_text(data: bytes) -> None:
    """Raises where a file is no UTF-8 text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(data), _CHUNK):
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(data[at : at + _CHUNK], final=at + _CHUNK >= len(data))
        except UnicodeDecodeError as error:
            wrong = at - held + error.start
            raise ValueError(
                f"must be UTF-8 text, got byte 0x{data[wrong]:02x} at offset {wrong}."
            ) from None
    if 0 in data:
        raise ValueError("must be UTF-8 text, got a NUL character (binary data or UTF-16?).")


def _parse_csv(data: bytes) -> _Raw:
    _check_text(data)
    start = data[:_CHUNK].decode("utf-8-sig", errors="ignore").lstrip()
    header = next(iter(start.splitlines()), "")
    delimiter = max(",;\t", key=header.count)
    # Decoded piece by piece: the whole text as Python holds it may take four times the file.
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    # Strict, as otherwise a quote that is never closed swallows the rest of the file.
    rows = _csv_rows(csv.reader(text, delimiter=delimiter, strict=True))
    _, columns = next(rows, ("", ()))
    return _Raw(columns, _of_width(rows, len(columns)), text_numbers=True)


def _csv_rows(reader: Any) -> Iterator[tuple[str, Sequence[str]]]:
    """Yields the rows that are not blank, labelled with their line."""
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: not valid CSV: {error}.") from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield f"line {reader.line_num}", cells


def _of_width(
    rows: Iterator[tuple[str, Sequence[str]]], width: int
) -> Iterator[tuple[str, Sequence[str]]]:
    for label, cells in rows:
        if len(cells) != width:
            raise ValueError(
                f"{label}: must have {width} cells like the header, got {len(cells)}: "
                f"{paging.show(list(cells))}."
            )
        yield label, cells


def _parse_json(data: bytes) -> _Raw:
    _check_text(data)
    if len(data) > MAX_JSON:
        # Parsed, JSON takes up to 25 times its text.
        raise ValueError(f"JSON must hold at most {MAX_JSON} bytes, got {len(data)}; use CSV.")
    try:
        content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_distinct_keys)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {error.lineno}: not valid JSON, cut short or malformed: {error.msg} at "
            f"column {error.colno}."
        ) from None
    except RecursionError:
        raise ValueError("not a paging table: JSON nested too deeply.") from None
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        # A dict keeps the first appearance of each key in order; a set would not.
        columns = list(dict.fromkeys(key for row in content for key in row))
        return _Raw(columns, _numbered([row.get(key) for key in columns] for row in content))
    if not isinstance(content, dict):
        raise ValueError(
            "must be a list of objects, an object of columns or an object "
            f"{{adapter: ms}}, got {paging.show(content)}."
        )
    known = [role for key in content if (role := _role(key))]
    if "adapter" in known and "ms" in known:
        return _columns_of_object(content)
    rows = ((f"key {paging.show(key)}", (key, ms)) for key, ms in content.items())
    return _Raw(("adapter", "ms"), rows)


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object; the json module would silently keep the last of equal keys."""
    keys: set[str] = set()
    for key, _ in pairs:
        if key.strip() in keys:
            raise ValueError(f"keys of an object must be distinct, got {paging.show(key)} twice.")
        keys.add(key.strip())
    return dict(pairs)


def _columns_of_object(content: dict[str, Any]) -> _Raw:
    columns = {key: cells for key, cells in content.items() if _role(key)}
    for key, cells in columns.items():
        if not isinstance(cells, list):
            raise ValueError(f"column {paging.show(key)} must be a list, got {paging.show(cells)}.")
    lengths = {key: len(cells) for key, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be equally long, got lengths {paging.show(lengths)}.")
    return _Raw(list(columns), _numbered(zip(*columns.values(), strict=True)))


def _parse_parquet(data: bytes) -> _Raw:
    from polar_jax.io import parquet  # Slow to load, and only this format needs it.

    roles: dict[str, int] = {}

    def wanted(names: Sequence[str]) -> list[int]:
        roles.update(_find_columns(names))
        return list(roles.values())

    rows = parquet.rows(data, wanted, max_rows=MAX_ROWS, max_bytes=MAX_UNPACKED)
    return _Raw(list(roles), _numbered(rows))


def _numbered(rows: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    return ((f"row {number}", cells) for number, cells in enumerate(rows, start=1))


def _role(column: str) -> str | None:
    """Returns what a column holds by the documented names, None for an unknown name."""
    bare = _bare(column)
    for role, names in COLUMNS.items():
        if bare in map(_bare, names):
            return role
    return None


def _bare(column: str) -> str:
    return "".join(column.casefold().split()).replace("_", "").replace("-", "")


def _find_columns(columns: Sequence[str]) -> dict[str, int]:
    """Returns the index of the column for each role that the file has."""
    found: dict[str, int] = {}
    for index, column in enumerate(columns):
        role = _role(column)
        if role is None:
            continue
        if role in found:
            raise ValueError(
                f"must have one column for {role}, got {paging.show(columns[found[role]])} and "
                f"{paging.show(column)}; names read as {role} are {', '.join(COLUMNS[role])}."
            )
        found[role] = index
    for role in ("adapter", "ms"):
        if role not in found:
            raise ValueError(
                f"must have a column for {role}, named one of {', '.join(COLUMNS[role])}; found "
                f"columns {paging.show(list(columns))}."
            )
    return found


def _collect(raw: _Raw) -> dict[str, Measured]:
    """Gathers rows by adapter, in order of first appearance."""
    if not raw.columns:
        raise ValueError("holds no adapters; a paging table has one or more.")
    roles = _find_columns(raw.columns)
    adapters: dict[str, Measured] = {}
    tiers: set[str] = set()
    count = 0
    for label, cells in raw.rows:
        name = _text(cells[roles["adapter"]], f"{label}: adapter")
        tier = "unspecified"
        if "tier" in roles:
            tier = _text(cells[roles["tier"]], f"{label}: tier").casefold()
        tiers.add(tier)
        if len(tiers) > MAX_TIERS:
            raise ValueError(f"{label}: must name at most {MAX_TIERS} tiers, got more.")
        adapter = adapters.setdefault(name, Measured({}, None))
        times = _milliseconds(cells[roles["ms"]], f"{label}: ms", raw.text_numbers)
        adapter.tiers.setdefault(tier, array.array("d")).extend(times)
        count += len(times)
        if count > MAX_ROWS or len(adapters) > MAX_ADAPTERS:
            raise ValueError(
                f"{label}: must hold at most {MAX_ROWS} measurements of {MAX_ADAPTERS} adapters, "
                "got more."
            )
        if "bytes" in roles:
            cell = cells[roles["bytes"]]
            size = _size(cell, f"{label}: bytes of adapter {paging.show(name)}", raw.text_numbers)
            if adapter.size_bytes not in (None, size):
                raise ValueError(
                    f"{label}: adapter {paging.show(name)} must have one size, got "
                    f"{sorted([adapter.size_bytes, size])} bytes."
                )
            adapters[name] = adapter._replace(size_bytes=size)
    if not adapters:
        raise ValueError("holds no adapters, at most column names; one or more rows are needed.")
    return adapters


def _of_tier(adapters: dict[str, Measured], tier: str | None) -> dict[str, Measured]:
    """The rows of the tiers asked for, where None asks for all that add up."""
    held = list(dict.fromkeys(name for rows in adapters.values() for name in rows.tiers))
    summed = summed_tiers(held)
    if tier is None:
        # Adapters may live in different tiers, each in one, warm or not.
        if all(len(rows.tiers) == 1 for rows in adapters.values()):
            return adapters
        wanted = summed
    else:
        asked = tier.casefold().strip()
        wanted = [asked] if asked in held else [part.strip() for part in asked.split("+")]
        if len(set(wanted)) < len(wanted) or not set(wanted) <= set(held):
            raise ValueError(
                f"tier must be one of {', '.join(held)}, or several joined by +; got {tier!r}."
            )
    for name, rows in adapters.items():
        # A missing tier would pass for a free one and make the adapter look cheap.
        if missing := [one for one in wanted if one not in rows.tiers]:
            raise ValueError(
                f"adapter {paging.show(name)} must have rows of every tier "
                f"({', '.join(wanted)}), got none of {', '.join(missing)}; ms may be 0."
            )
    return {
        name: rows._replace(tiers={one: rows.tiers[one] for one in wanted})
        for name, rows in adapters.items()
    }


def _to_table(adapters: dict[str, Measured]) -> paging.PagingTable:
    names = list(adapters)
    tiers = list(dict.fromkeys(tier for rows in adapters.values() for tier in rows.tiers))
    sizes = [rows.size_bytes for rows in adapters.values() if rows.size_bytes is not None]
    mean_ms = samples_ms = None
    if all(len(rows.tiers) == 1 for rows in adapters.values()):
        samples_ms = [next(iter(rows.tiers.values())) for rows in adapters.values()]
        if all(len(times) == 1 for times in samples_ms):
            mean_ms, samples_ms = [times[0] for times in samples_ms], None
        tier = ",".join(tiers)
        longest = max(map(len, samples_ms or ((),)))
        if len(names) * longest > MAX_CELLS:
            raise ValueError(
                f"adapters times measurements of one must be at most {MAX_CELLS}, got "
                f"{len(names)} times {longest}; give fewer measurements, or means."
            )
    else:
        mean_ms = [
            sum(sum(times) / len(times) for times in rows.tiers.values())
            for rows in adapters.values()
        ]
        tier = "+".join(tiers)
    return paging.make_table(
        names, mean_ms=mean_ms, samples_ms=samples_ms, size_bytes=sizes or None, tier=tier
    )


def _text(value: object, what: str) -> str:
    """Accepts text, and whole numbers, which some tools make of names like `7`."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return paging.check_name(value, what)


def _milliseconds(value: object, what: str, text_numbers: bool) -> list[float]:
    """Reads one latency, or a list of one or more."""
    if not isinstance(value, list):
        return [paging.check_ms(_number(value, what, text_numbers), what)]
    if not value:
        raise ValueError(f"{what} must be a number or a list of one or more, got [].")
    return [paging.check_ms(_number(item, what, text_numbers), what) for item in value]


def _size(value: object, what: str, text_numbers: bool) -> int:
    size = _number(value, what, text_numbers)
    if not 1 <= size <= paging.MAX_BYTES or size != int(size):
        raise ValueError(
            f"{what} must be a whole number in [1, {paging.MAX_BYTES}] in every row, got {size:g}."
        )
    return int(size)


def _number(value: object, what: str, text_numbers: bool) -> float:
    """Converts a cell; text counts as a number only where a file has nothing but text."""
    number = None
    if isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        number = value
    # Python would read 1_5 as 15.
    elif text_numbers and isinstance(value, str) and "_" not in value:
        number = value.strip()
    try:
        if number is not None:
            return float(number)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{what} must be a number with a decimal point, got {paging.show(value)}.")
