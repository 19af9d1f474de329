"""Times between arrivals of real requests: shipped traces, and CSV or JSON Lines files.

**CSV**: a header, then one request per line, separated by commas. One column has the times:
`timestamp`, ISO dates with times as in the Azure traces, or `arrival_ms`, numbers of milliseconds.
**JSON Lines**: one object per line with `timestamp`, milliseconds, as in the Mooncake traces.
Case does not matter in names; other columns are left unread. Lines may be in any order.

Reading takes at most twice the file and some 200 KiB, whatever the file holds.
"""

import csv
import datetime
import importlib.resources
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np

from polar_jax import paging

TRACES = ("azure-2023-conv", "azure-2023-code")
_FILE = "azure_2023_arrivals.npz"
# Longer lines are no requests; a file without line breaks must not be held whole.
_MAX_LINE = 2**16
_MAX_GAP = 1e12
_PIECE, _SMALL = 4_096, 2**16
_EPOCH = datetime.datetime(1970, 1, 1)


def azure_arrivals(name: str) -> np.ndarray:
    """Times between arrivals in the Azure LLM inference traces of 2023 (CC-BY-4.0).

    Cite Splitwise (ISCA 2024) where a figure made from them is shown.

    Args:
      name: one of `TRACES`: 19,366 requests of conversation or 8,819 of code, one hour each.

    Returns:
      `[A]` float32 milliseconds, one fewer than there are requests.

    Raises:
      ValueError: for another name.
    """
    if name not in TRACES:
        raise ValueError(f"a shipped trace must be one of {', '.join(TRACES)}, got {name!r}.")
    file = importlib.resources.files("polar_jax") / "data" / _FILE
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as held:
        return held[name.rpartition("-")[2]]


def read_arrivals(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads the times between arrivals; the module's docstring has the formats.

    Args:
      path: a `.csv` or `.jsonl` file of two or more requests.

    Returns:
      `[A]` float32 milliseconds between neighbours in time, at least 0.

    Raises:
      ValueError: for anything that cannot be used, in one line that names the file and line.
      OSError: for a file that is missing or cannot be read.
    """
    file = pathlib.Path(path)
    readers = {".csv": _csv_times, ".jsonl": _json_times}
    if file.suffix.lower() not in readers:
        raise ValueError(
            f"{str(file)!r}: arrivals must be {', '.join(TRACES)}, or a file ending in "
            f"{' or '.join(readers)}, got {file.suffix!r}."
        )
    parse = readers[file.suffix.lower()]
    with file.open("rb") as opened:
        try:
            size = os.fstat(opened.fileno()).st_size
            count = sum(1 for _ in _lines(opened))
            # A time takes 8 bytes, however short its line; small files may have any.
            if 8 * count > 2 * size + _SMALL:
                raise ValueError(
                    f"holds {count:,} lines in {size:,} bytes; at least 4 bytes a line, its end "
                    "included, are read."
                )
            opened.seek(0)
            # One more, so that the header of an empty file is asked for; a file may grow meanwhile.
            times = np.empty(count + 1, np.float64)
            found = 0
            for time in itertools.islice(parse(_lines(opened)), count + 1):
                times[found] = time
                found += 1
            if found < 2:
                raise ValueError(f"must hold two or more requests, got {found}.")
            return _gaps(times[:found])
        except ValueError as error:
            raise ValueError(f"{str(file)!r}: {error}") from None


def _gaps(times: np.ndarray) -> np.ndarray:
    """Differences of neighbours in time, written over the times, which are read ahead of them."""
    times.sort()
    gaps = times.view(np.float32)[: len(times) - 1]
    for first in range(0, len(gaps), _PIECE):
        piece = np.diff(times[first : first + _PIECE + 1])
        if piece.max() > _MAX_GAP:
            raise ValueError(
                f"requests must be at most {_MAX_GAP:g} ms apart, got {piece.max():g}."
            )
        gaps[first : first + _PIECE] = piece
    return gaps


def _lines(opened: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    number = 0
    while line := opened.readline(_MAX_LINE):
        number += 1
        if len(line) >= _MAX_LINE:
            raise ValueError(f"line {number}: must be shorter than {_MAX_LINE:,} bytes.")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise ValueError(f"line {number}: must be UTF-8 text.") from None
        if text:
            yield number, text


def _cells(number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True))
    except (csv.Error, StopIteration) as error:
        raise ValueError(f"line {number}: not valid CSV: {error}.") from None


def _csv_times(lines: Iterator[tuple[int, str]]) -> Iterator[float]:
    number, header = next(lines, (1, ""))
    names = [cell.strip().casefold() for cell in _cells(number, header)] if header else []
    known: dict[str, Callable[[int, str], float]] = {
        "timestamp": _date,
        "arrival_ms": _milliseconds,
    }
    found = [name for name in names if name in known]
    if len(found) != 1:
        raise ValueError(
            f"must have one column timestamp (dates with times) or arrival_ms (numbers), got "
            f"{paging.show(names)}."
        )
    place, convert = names.index(found[0]), known[found[0]]
    for number, line in lines:
        cells = _cells(number, line)
        if len(cells) != len(names):
            raise ValueError(
                f"line {number}: must have {len(names)} cells like the header, got {len(cells)}."
            )
        yield convert(number, cells[place].strip())


def _json_times(lines: Iterator[tuple[int, str]]) -> Iterator[float]:
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"line {number}: not valid JSON.") from None
        items = row.items() if isinstance(row, dict) else ()
        value = {key.casefold(): item for key, item in items}.get("timestamp")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f"line {number}: must be an object with a number timestamp (milliseconds), got "
                f"{paging.show(row)}."
            )
        yield _checked(number, value)


def _date(number: int, text: str) -> float:
    try:
        # More digits than microseconds, as in the Azure traces, are dropped with little loss.
        when = datetime.datetime.fromisoformat(text)
        zone = when.utcoffset() or datetime.timedelta(0)
        since = when.replace(tzinfo=None) - zone - _EPOCH
    except (ValueError, OverflowError):
        raise ValueError(
            f"line {number}: timestamp must be a date and time such as 2023-11-16 18:15:46.68, "
            f"got {paging.show(text)}."
        ) from None
    return since / datetime.timedelta(milliseconds=1)


def _milliseconds(number: int, text: str) -> float:
    try:
        if "_" in text:  # Python would read 1_5 as 15.
            raise ValueError
        return _checked(number, float(text))
    except ValueError:
        raise ValueError(
            f"line {number}: arrival_ms must be a number of ms in [-1e15, 1e15], got "
            f"{paging.show(text)}."
        ) from None


def _checked(number: int, value: float) -> float:
    if not -1e15 <= value <= 1e15:
        raise ValueError(
            f"line {number}: a time must be a number of ms in [-1e15, 1e15], got "
            f"{paging.show(value)}."
        )
    return float(value)
