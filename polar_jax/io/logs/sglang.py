"""SGLang: `LoRA adapter loading starts` and `completes`, each with a time stamp and free memory.

What lies between is disk to host: SGLang reads an adapter into CPU memory there and copies it
into its GPU pool when a request needs it. Free GPU memory that shrinks meanwhile is given as the
adapter's size, to 0.01 GiB; where it does not shrink the size is not known. Ranks of a
tensor-parallel server write their own lines and are timed on their own.
"""

import re

from polar_jax.io.logs import lines
from polar_jax.io.logs.records import Recorder, usable_name

LOOKED_FOR = (
    '"LoRA adapter loading starts: LoRARef(...). avail mem=X GB" and "LoRA adapter loading '
    'completes: ..."'
)
_MEMORY = re.compile(r"\. avail mem=(\d{1,6}\.\d{1,6}) GB")
_NAME = re.compile(r"lora_name=(.+?)(?:, (?:lora_path|pinned|reloadable)=|\)?$)")
_RANK = re.compile(r"\[[\d\-: T.,]{14,40}((?: [A-Z]{2,4}\d{1,5}){0,6})\] ", re.ASCII)
# Loads under way at once; of more the oldest are given up.
_MAX_OPEN = 1_000
_GIB = 2**30


class SglangParser:
    """Reads SGLang's lines; the module's docstring has the rules."""

    def __init__(self, out: Recorder) -> None:
        """Writes loads to `out`."""
        self._out = out
        self._open: dict[tuple[str, str], tuple[lines.Stamp | None, float]] = {}

    def feed(self, line: str) -> bool:
        """Takes a line; whether it was understood."""
        rest = lines.after(line, "LoRA adapter loading ")
        if rest is None:
            return False
        word, _, text = rest.partition(": ")
        memory = _MEMORY.search(text)
        if word not in ("starts", "completes") or memory is None:
            return False
        found = _NAME.search(text[: memory.start()])
        name = usable_name(found[1]) if found else None
        if name is None:
            return False
        rank = _RANK.search(line, 0, 200)
        key = (rank[1] if rank else "", name)
        moment, free = lines.stamp(line), float(memory[1])
        if word == "starts":
            self._start(key, moment, free)
        else:
            self._complete(key, moment, free)
        return True

    def finish(self) -> None:
        """Counts the loads that never completed."""
        self._out.counts["unfinished"] += len(self._open)

    def _start(self, key: tuple[str, str], moment: lines.Stamp | None, free: float) -> None:
        if self._open.pop(key, None) or len(self._open) == _MAX_OPEN:
            self._out.counts["unfinished"] += 1
        if len(self._open) == _MAX_OPEN:
            del self._open[next(iter(self._open))]
        self._open[key] = (moment, free)

    def _complete(self, key: tuple[str, str], moment: lines.Stamp | None, free: float) -> None:
        start, before = self._open.pop(key, (None, 0.0))
        ms = lines.elapsed_ms(start, moment)
        if ms is None or start is None or moment is None:
            self._out.counts["untimed disk-to-host"] += 1
            return
        self._out.add(
            key[1],
            "disk-to-host",
            ms,
            size_bytes=round((before - free) * _GIB) if before > free else None,
            resolution_ms=max(start.resolution_ms, moment.resolution_ms),
        )
