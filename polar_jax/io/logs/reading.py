"""Reads a serving log line by line: which system wrote it, its loads, what was skipped."""

import os
import stat
import sys
from collections.abc import Callable
from typing import BinaryIO

from polar_jax import paging
from polar_jax.io.logs import client_csv, lines, lorax, sglang, vllm
from polar_jax.io.logs.records import Parser, Recorder, ServingLog

_PARSERS: dict[str, tuple[Callable[[Recorder], Parser], str]] = {
    "vllm": (vllm.VllmParser, vllm.LOOKED_FOR),
    "sglang": (sglang.SglangParser, sglang.LOOKED_FOR),
    "lorax": (lorax.LoraxParser, lorax.LOOKED_FOR),
    "client-csv": (client_csv.ClientCsvParser, client_csv.LOOKED_FOR),
}
FORMATS = ("auto", *_PARSERS)
# A pipe tells no size: a stream that never ends is given up here.
MAX_STREAM = 2**33
_NOTES = {
    "gap": "{} counter lines are no single load: the count before them is not in the log.",
    "range": f"{{}} loads are left out: their time is not in [0, {paging.MAX_MS:g}] ms.",
    "unfinished": "{} loads start and never complete.",
}


def read_serving_log(path: str | os.PathLike[str], format: str = "auto") -> ServingLog:
    """Reads the single load times in the log of a serving system.

    A file is read up to the size that it has when it is opened, one line at a time; what is
    kept is bounded whatever it holds (at most `records.MAX_LOADS` loads).

    Args:
      path: a log, or `-` for standard input.
      format: one of `FORMATS`; `auto` takes the system that wrote the first line which any
        of them understands.

    Returns:
      The loads, in the order of the log.

    Raises:
      ValueError: if the format is unknown, no line can be used or no load be timed, in one
        line that says what was looked for.
      OSError: for a file that is missing, no file or pipe, or cannot be read.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {paging.show(format)}.")
    name = os.fspath(path)
    try:
        if name == "-":
            # Python has no standard input where it was started with a closed one.
            piped = getattr(sys.stdin, "buffer", None)
            if piped is None:
                raise ValueError("must be open, got none.")
            return _read(piped, MAX_STREAM, format)
        with open(name, "rb") as file:
            return _read(file, _size(file), format)
    except ValueError as error:
        shown = "standard input" if name == "-" else repr(name)
        raise ValueError(f"{shown}: {error}") from error


def _size(file: BinaryIO) -> int:
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    if stat.S_ISFIFO(found.st_mode):
        return MAX_STREAM
    raise ValueError("must be a file or a pipe, got a device.")


def _read(file: BinaryIO, limit: int, format: str) -> ServingLog:
    out = Recorder()
    parser = None if format == "auto" else _PARSERS[format][0](out)
    used = skipped = 0
    for line in lines.read_lines(file, limit):
        if line is None:
            skipped += 1
            continue
        if not used and not skipped and line.startswith("\x1f"):
            raise ValueError(
                "must be text, got compressed data; use gzip -dc FILE | ... read-log -"
            )
        if parser is None:
            format, parser = _recognise(line, out)
            understood = parser is not None
        else:
            understood = parser.feed(line)
        used, skipped = used + understood, skipped + (not understood)
    if parser is None or not used:
        raise ValueError(_nothing(format, used + skipped))
    parser.finish()
    notes = _notes(out)
    if not len(out):
        wanted = _PARSERS[format][1]
        raise ValueError(
            f"no load can be timed: {used} lines tell of loads ({format}; looked for {wanted}). "
            + " ".join(notes)
        )
    return ServingLog(format, out, used, skipped, out.resolution_ms, notes)


def _recognise(line: str, out: Recorder) -> tuple[str, Parser | None]:
    """The system that wrote a line, its parser having taken it."""
    for name, (make, _) in _PARSERS.items():
        parser = make(out)
        if parser.feed(line):
            return name, parser
    return "auto", None


def _nothing(format: str, count: int) -> str:
    wanted = [_PARSERS[format][1]] if format != "auto" else [text for _, text in _PARSERS.values()]
    return f"none of {count} lines can be used; looked for {'; or '.join(wanted)}."


def _notes(out: Recorder) -> tuple[str, ...]:
    notes = []
    for key, count in sorted(out.counts.items()):
        if count and key.startswith("untimed "):
            tier = key.removeprefix("untimed ")
            notes.append(
                f"{count} loads ({tier}) cannot be timed: the log does not tell a start or an end."
            )
        elif count:
            notes.append(_NOTES[key].format(count))
    if out.resolution_ms >= 1.0:
        notes.append(
            f"Times are differences of stamps in steps of {out.resolution_ms:g} ms: each is "
            "uncertain by as much either way."
        )
    nameless = sum(load.adapter is None for load in out)
    if nameless:
        notes.append(f"{nameless} loads name no adapter.")
    return tuple(notes)
