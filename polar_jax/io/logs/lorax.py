"""LoRAX: the lines of its router's loader, `adapter {} downloaded`, `loaded` and `offloaded`.

Each is written at an end; one task does all of this in order, so that a step starts no earlier
than the line before. A **load** (disk to GPU) is timed from the line before where it was waited
for then: the adapter had been downloaded and not loaded since, or the line before offloaded
another to make room. A **download** (remote) is timed from the line before where that is a
download too, as when several adapters are asked for at once. Where neither holds, time without
work would be counted as a load; such lines are left out and their number is told.
"""

import re

from polar_jax.io.logs import lines
from polar_jax.io.logs.records import MAX_ADAPTERS, Recorder, usable_name

LOOKED_FOR = (
    '"INFO lorax_router::loader: router/src/loader.rs:N: adapter ... downloaded", "... loaded" and '
    '"... offloaded"'
)
# What a message of the loader begins with. Requests are logged too, in spans with what their
# users sent, so that nothing quoted or in braces may stand before it; in JSON, where quotes
# within texts are escaped, the message is a field.
_LOADER = (
    r"(?:[^\"'{}]*\blorax_router::loader: (?:\S+:\d+: )?"
    r'|\{(?=.*"target":\s*"lorax_router::loader").*"message":\s*")'
)
_STEP = re.compile(_LOADER + r'adapter (\S{1,1000}) (downloaded|loaded|offloaded)(?=\s*$|")')
_FAILED = re.compile(_LOADER + r"FAILED (?:downloading|loading|offloading) adapter \S")


class LoraxParser:
    """Reads the loader's lines; the module's docstring has the rules."""

    def __init__(self, out: Recorder) -> None:
        """Writes loads to `out`."""
        self._out = out
        self._before: lines.Stamp | None = None  # the loader's line before
        self._step = ""  # what it told of
        # Downloaded and not loaded since, oldest first (a dict keeps the order).
        self._waiting: dict[str, None] = {}

    def feed(self, line: str) -> bool:
        """Takes a line; whether it was understood."""
        if "lorax_router" not in line:
            return False
        moment, match = lines.stamp(line), _STEP.match(line)
        if match is None:
            if _FAILED.match(line) is None:
                return False
            self._before, self._step = moment, "failed"
            return True
        name, step = usable_name(match[1]), match[2]
        if name is None:
            return False
        if step == "downloaded":
            self._time(name, "remote", moment, waited=self._step == "downloaded")
            self._waiting[name] = None
            if len(self._waiting) > MAX_ADAPTERS:
                del self._waiting[next(iter(self._waiting))]
        elif step == "loaded":
            waited = name in self._waiting or self._step == "offloaded"
            self._time(name, "disk-to-device", moment, waited=waited)
            self._waiting.pop(name, None)
        self._before, self._step = moment, step
        return True

    def finish(self) -> None:
        """Nothing is left open: steps are told of at their end."""

    def _time(self, name: str, tier: str, moment: lines.Stamp | None, *, waited: bool) -> None:
        start = self._before
        ms = lines.elapsed_ms(start, moment) if waited else None
        if ms is None or start is None or moment is None:
            self._out.counts[f"untimed {tier}"] += 1
            return
        resolution = max(start.resolution_ms, moment.resolution_ms)
        self._out.add(name, tier, ms, resolution_ms=resolution)
