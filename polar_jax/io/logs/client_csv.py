"""Timings that a client took of `POST /v1/load_lora_adapter`, as a CSV.

A header, then one line per request, separated by commas, semicolons or tabs. Columns: `adapter`,
and `ms` or `seconds` (what curl's `%{time_total}` gives), and where they are wanted `status` (the
HTTP status: anything but 200 was no load), `tier`, `size_bytes`. What a request took is the whole
load, disk to GPU, unless `tier` says otherwise. A line that cannot be used is skipped.
"""

import csv
import re

from polar_jax import paging
from polar_jax.io.logs.records import TIERS, Recorder, usable_name

LOOKED_FOR = "a header with columns adapter and ms (or seconds), then one line per request"
_ROLES = {
    "adapter": ("adapter", "adaptername", "loraname", "name", "lora"),
    "ms": ("ms", "loadms", "latencyms", "timems"),
    "seconds": ("seconds", "timetotal", "loadseconds"),
    "status": ("status", "httpcode", "statuscode"),
    "tier": ("tier",),
    "size": ("sizebytes", "bytes"),
}
_TIERS = {tier: tier for tier in TIERS} | {"disk": "disk-to-host", "memory": "host-to-device"}
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{0,25})?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE = re.compile(r"\d{1,16}", re.ASCII)


class ClientCsvParser:
    """Reads a client's lines; the module's docstring has the rules."""

    def __init__(self, out: Recorder) -> None:
        """Writes loads to `out`."""
        self._out = out
        self._delimiter = ","
        self._columns: dict[str, int] = {}
        self._width = 0

    def feed(self, line: str) -> bool:
        """Takes a line; whether it was understood."""
        if not self._columns:
            return self._read_header(line)
        cells = _cells(line, self._delimiter)
        if len(cells) != self._width:
            return False
        row = {role: cells[at].strip() for role, at in self._columns.items()}
        name, ms = usable_name(row["adapter"]), _milliseconds(row)
        tier = _TIERS.get(row.get("tier", "disk-to-device").casefold())
        size = row.get("size") or None
        if name is None or ms is None or tier is None or row.get("status", "200") != "200":
            return False
        if size is not None and not (_WHOLE.fullmatch(size) and 1 <= int(size) <= paging.MAX_BYTES):
            return False
        load = self._out.add(name, tier, ms, size_bytes=None if size is None else int(size))
        return load is not None

    def finish(self) -> None:
        """Nothing is left open: each line stands alone."""

    def _read_header(self, line: str) -> bool:
        line = line.lstrip("\ufeff")
        self._delimiter = max(",;\t", key=line.count)
        names = [re.sub(r"[\s_-]", "", cell.casefold()) for cell in _cells(line, self._delimiter)]
        found: dict[str, int] = {}
        for role, allowed in _ROLES.items():
            places = [at for at, name in enumerate(names) if name in allowed]
            if len(places) > 1:
                return False
            if places:
                found[role] = places[0]
        if "adapter" not in found or ("ms" in found) == ("seconds" in found):
            return False
        self._columns, self._width = found, len(names)
        return True


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _milliseconds(row: dict[str, str]) -> float | None:
    text = row["ms"] if "ms" in row else row["seconds"]
    if _NUMBER.fullmatch(text) is None:
        return None
    return float(text) * (1.0 if "ms" in row else 1000.0)
