"""vLLM: cumulative counters of load times, and time stamps around `Loaded new LoRA adapter`.

**Counters** (`Total loads from disk: 2. Total loading time from disk: 0.03 seconds.`, of the
fork that arXiv:2508.08343 measured with): the difference of two lines whose counts differ by one
is one load. `disk` is disk to CPU memory, `memory` is CPU memory to GPU. Each process counts for
itself; a count that falls back to 1 is a new server. The `Loaded` line after a load from disk
names that load and the load from memory that came with it.

**Stamps** (any vLLM): servers write `Loaded` at the end of a load and nothing at its start.
Adapters of `--lora-modules` are loaded one after another, so there the `Loaded` line before is
the start. A request in between (an access line), a removal or the end of start-up breaks such a
row: the first load behind it has no start. With DEBUG, `Activating LoRA` (or `Adding lora`, where
there is none) divides a load: the file has been read by then, the copy to the GPU follows.
"""

import re

from polar_jax.io.logs import lines
from polar_jax.io.logs.records import Recorder, usable_name

LOOKED_FOR = (
    "\"Loaded new LoRA adapter: name '...', path '...'\" or \"Total loads from disk: N. Total "
    'loading time from disk: X seconds."'
)
_COUNTER = re.compile(
    r"(\d{1,9})\. Total loading time from (disk|memory): "
    r"(\d{1,12}(?:\.\d{0,25})?(?:e[+-]?\d{1,3})?) seconds",
    re.ASCII,
)
_PROCESS = re.compile(r"\((\w{1,40}(?: rank=\d{1,6})? pid=\d{1,10})\)", re.ASCII)
_ADDED = re.compile(r"(?:-?\d{1,20}), int id: (-?\d{1,20})", re.ASCII)
_ACTIVATED = re.compile(r"(-?\d{1,20}), slot index: \d{1,9}", re.ASCII)
_TIER = {"disk": "disk-to-host", "memory": "host-to-device"}
# Counters of so many processes are told apart; lines of more are skipped.
_MAX_PROCESSES = 256
_BREAKS = (" HTTP/1.", " HTTP/2", "Application startup complete", "Removed LoRA adapter")


class VllmParser:
    """Reads vLLM's lines; the module's docstring has the rules."""

    def __init__(self, out: Recorder) -> None:
        """Writes loads to `out`."""
        self._out = out
        self._totals: dict[tuple[str, str], tuple[int, float]] = {}
        # Loads by counters that a `Loaded` line may still name, by process.
        self._unnamed: dict[str, list[int]] = {}
        self._start: lines.Stamp | None = None  # the `Loaded` line before, in an unbroken row
        self._id: str | None = None  # the adapter whose load is under way, by its number
        self._divide: lines.Stamp | None = None  # between its two parts
        self._several = False  # whether loads of several adapters overlap

    def feed(self, line: str) -> bool:
        """Takes a line; whether it was understood."""
        if any(mark in line for mark in _BREAKS):
            self._start = None
            return False
        for source in _TIER:
            rest = lines.after(line, f"Total loads from {source}: ")
            if rest is not None:
                match = _COUNTER.match(rest)
                return match is not None and match[2] == source and self._count(line, match)
        if rest := lines.after(line, "Loaded new LoRA adapter: name '"):
            # Names may hold a quote; the last ", path" ends them.
            name = usable_name(rest.rpartition("', path '")[0])
            if name is not None:
                self._loaded(name, lines.stamp(line))
            return name is not None
        return self._debug(line)

    def finish(self) -> None:
        """Nothing is left open: a load without its end was never one."""

    def _count(self, line: str, match: re.Match[str]) -> bool:
        found = _PROCESS.search(line, 0, 200)
        process, source = found[1] if found else "", match[2]
        count, total = int(match[1]), float(match[3])
        key = (process, source)
        if key not in self._totals and len(self._totals) == 2 * _MAX_PROCESSES:
            return False
        before, base = self._totals.get(key, (0, 0.0))
        self._totals[key] = (count, total)
        if count == 1:
            base = 0.0
        elif count != before + 1 or total < base:
            self._out.counts["gap"] += 1
            return True
        load = self._out.add(None, _TIER[source], (total - base) * 1000.0)
        if load is not None:
            if source == "disk":
                self._unnamed[process] = [load]
            elif len(self._unnamed.get(process, ())) == 1:
                self._unnamed[process].append(load)
        return True

    def _loaded(self, name: str, end: lines.Stamp | None) -> None:
        if self._unnamed:
            for loads in self._unnamed.values():
                for load in loads:
                    self._out.name(load, name)
            self._unnamed.clear()
        else:
            self._by_stamps(name, end)
        self._start, self._id, self._divide, self._several = end, None, None, False

    def _by_stamps(self, name: str, end: lines.Stamp | None) -> None:
        divided = self._divide is not None and not self._several
        parts = [("disk-to-device", self._start, end)]
        if divided:
            parts = [
                ("disk-to-host", self._start, self._divide),
                ("host-to-device", self._divide, end),
            ]
        for tier, start, stop in parts:
            ms = lines.elapsed_ms(start, stop)
            if ms is None or start is None or stop is None:
                self._out.counts[f"untimed {tier}"] += 1
                continue
            resolution = max(start.resolution_ms, stop.resolution_ms)
            self._out.add(name, tier, ms, resolution_ms=resolution)

    def _debug(self, line: str) -> bool:
        if rest := lines.after(line, "Adding lora. Model id: "):
            match = _ADDED.match(rest)
            if match is None:
                return False
            # The workers of a tensor-parallel server each write the same number.
            self._several |= self._id not in (None, match[1])
            self._id, self._divide = match[1], lines.stamp(line)
            return True
        rest = lines.after(line, "Activating LoRA. int id: ")
        match = _ACTIVATED.match(rest) if rest else None
        if match is None:
            return False
        if match[1] == self._id:
            self._divide = lines.stamp(line)
        else:
            # A request brought back an adapter that had left the GPU: no line ends this.
            self._out.counts["untimed host-to-device"] += 1
        return True
