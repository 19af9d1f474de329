"""What a serving log yields: single loads, kept in few bytes each, and counts of its lines."""

import array
import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, overload

from polar_jax import paging

TIERS = ("disk-to-host", "host-to-device", "disk-to-device", "remote")
# A log may be hostile: what is kept of it is bounded, as are the names.
MAX_LOADS = 100_000
MAX_ADAPTERS = 4_096
MAX_NAME = 255


class Load(NamedTuple):
    """One load of one adapter."""

    adapter: str | None  # None where the log does not say which
    tier: str  # one of TIERS
    ms: float  # in [0, paging.MAX_MS]
    size_bytes: int | None  # >= 1


@dataclasses.dataclass(frozen=True)
class ServingLog:
    """The loads that a log tells of.

    Attributes:
      format: vllm, sglang, lorax or client-csv.
      loads: in the order of the log.
      lines_used: lines that were understood, whether or not a load could be timed by them.
      lines_skipped: all others.
      resolution_ms: what the last digit of the time stamps is worth that loads were timed
        with, 0 where loads come with their duration.
      notes: what a reader of the times should know, one sentence each.
    """

    format: str
    loads: Sequence[Load]
    lines_used: int
    lines_skipped: int
    resolution_ms: float
    notes: tuple[str, ...]


class Parser(Protocol):
    """Reads one system's lines in order."""

    def feed(self, line: str) -> bool:
        """Takes a line; whether it was understood."""
        ...

    def finish(self) -> None:
        """Takes note of what was left open at the end."""
        ...


class Recorder(Sequence[Load]):
    """Loads as columns: 19 bytes each, so that a log of short lines fits in its own size."""

    def __init__(self) -> None:
        """Starts empty."""
        self._names: list[str | None] = [None]
        self._numbers: dict[str, int] = {}
        self._adapter = array.array("H")
        self._tier = array.array("B")
        self._ms = array.array("d")
        self._size = array.array("q")
        self.resolution_ms = 0.0
        self.counts: collections.Counter[str] = collections.Counter()

    def add(
        self,
        adapter: str | None,
        tier: str,
        ms: float,
        *,
        size_bytes: int | None = None,
        resolution_ms: float = 0.0,
    ) -> int | None:
        """Keeps a load.

        Args:
          adapter: its name as `usable_name` returns it, or None.
          tier: one of `TIERS`.
          ms: its duration; what no paging table may hold is left out.
          size_bytes: the adapter's size where known.
          resolution_ms: of the stamps behind `ms`.

        Returns:
          The load's number, None where it was left out.

        Raises:
          ValueError: if the log holds more loads or adapters than are kept.
        """
        if not (math.isfinite(ms) and 0.0 <= ms <= paging.MAX_MS):
            self.counts["range"] += 1
            return None
        if len(self._ms) == MAX_LOADS:
            raise ValueError(f"must hold at most {MAX_LOADS} loads, got more; split the file.")
        self._adapter.append(self._number(adapter))
        self._tier.append(TIERS.index(tier))
        self._ms.append(ms)
        self._size.append(size_bytes or 0)
        self.resolution_ms = max(self.resolution_ms, resolution_ms)
        return len(self._ms) - 1

    def name(self, load: int, adapter: str) -> None:
        """Names the adapter of a load that was kept without one."""
        self._adapter[load] = self._number(adapter)

    def _number(self, adapter: str | None) -> int:
        if adapter is None:
            return 0
        number = self._numbers.get(adapter)
        if number is None:
            if len(self._numbers) == MAX_ADAPTERS:
                raise ValueError(f"must name at most {MAX_ADAPTERS} adapters, got more.")
            number = self._numbers[adapter] = len(self._names)
            self._names.append(adapter)
        return number

    def __len__(self) -> int:
        return len(self._ms)

    @overload
    def __getitem__(self, index: int) -> Load: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Load]: ...
    def __getitem__(self, index: int | slice) -> Load | Sequence[Load]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return Load(
            self._names[self._adapter[index]],
            TIERS[self._tier[index]],
            self._ms[index],
            self._size[index] or None,
        )

    def __iter__(self) -> Iterator[Load]:
        return (self[at] for at in range(len(self)))


def usable_name(text: str) -> str | None:
    """The name of an adapter without surrounding space, None where none can be called so."""
    if len(text) > MAX_NAME:
        return None
    try:
        return paging.check_name(text, "adapter")
    except ValueError:
        return None
