"""Lines of a log, one at a time and never longer than a bound, and the time stamps in them."""

import datetime
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# Longer than any line that these readers use; a longer one is skipped in pieces, so that a
# file without line ends costs no memory.
MAX_LINE = 16_384
# Stamps and what stands before a message are looked for at the start of a line alone.
_HEAD = 200
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,16}m")
_STAMP = re.compile(
    r"(?<!\d)(?:(?P<year>\d{4})-)?(?P<month>\d\d)-(?P<day>\d\d)[ T]"
    r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?(?!\d)",
    re.ASCII,
)
# Stamps without a year are read in a leap year, whose 366 days one passes at its end.
_NO_YEAR, _YEAR_US = 2000, 366 * 86_400_000_000
_EPOCH = datetime.datetime(1970, 1, 1)
_MICROSECOND = datetime.timedelta(microseconds=1)


class Stamp(NamedTuple):
    """A time stamp as a line has it."""

    us: int  # microseconds on the log's own clock
    resolution_ms: float  # the last digit's worth: 1000 where it ends with the seconds
    has_year: bool


def read_lines(file: BinaryIO, limit: int) -> Iterator[str | None]:
    """Yields each line as text without its end and colours, None for one that is too long.

    Args:
      file: an open file; bytes that are no UTF-8 become replacement characters.
      limit: bytes to read at most, however long the file grows meanwhile.
    """
    while limit > 0:
        data = file.readline(min(MAX_LINE + 1, limit))
        if not data:
            return
        limit -= len(data)
        if len(data) <= MAX_LINE:
            text = data.decode("utf-8", "replace").rstrip("\r\n")
            yield _COLOUR.sub("", text) if "\x1b" in text else text
            continue
        while data and not data.endswith(b"\n") and limit > 0:
            data = file.readline(min(MAX_LINE, limit))
            limit -= len(data)
        yield None


def stamp(line: str) -> Stamp | None:
    """The first time stamp near the start of a line, None where there is none.

    `MM-DD HH:MM:SS` and `YYYY-MM-DD HH:MM:SS`, with `T` in place of the space and fractions of
    a second where they are given. A time zone is not read: one log has one.
    """
    match = _STAMP.search(line, 0, _HEAD)
    if match is None:
        return None
    fraction = match["fraction"] or ""
    month, day, hour, minute, second = (int(text) for text in match.groups()[1:6])
    try:
        moment = datetime.datetime(int(match["year"] or _NO_YEAR), month, day, hour, minute, second)
    except ValueError:  # such as month 13
        return None
    us = (moment - _EPOCH) // _MICROSECOND + int(fraction[:6].ljust(6, "0"))
    return Stamp(us, 1000.0 / 10 ** len(fraction), match["year"] is not None)


def elapsed_ms(start: Stamp | None, end: Stamp | None) -> float | None:
    """Milliseconds between two stamps of a log.

    None where one is missing, their kinds differ, or the clock went back (lines of several
    processes may change places).
    """
    if start is None or end is None or start.has_year != end.has_year:
        return None
    us = end.us - start.us
    # From December to January without a year: back by most of one.
    if not end.has_year and us < -_YEAR_US // 2:
        us += _YEAR_US
    return us / 1000 if us >= 0 else None


def after(line: str, marker: str) -> str | None:
    """What follows `marker` where it starts the message of a line, else None.

    A message follows the bracket of a log's prefix or is the whole line. Elsewhere in a line,
    and behind a quote, the marker is somebody's text: servers also log the prompts of their users.
    """
    start = line.find(marker, 0, _HEAD + len(marker))
    if start < 0 or (start and not line.startswith("] ", start - 2)):
        return None
    if "'" in line[:start] or '"' in line[:start]:
        return None
    return line[start + len(marker) :]
