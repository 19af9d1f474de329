"""A run between two calls, and who may want to keep it or to stop the run."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax import Array

from polar_jax import epochs, metrics
from polar_jax.programs import WaveInputs
from polar_jax.results import Wave

PER_LANE = ("oracle_set", "paging_cost", "paging_ms")  # of a finished wave, as its fields


class Snapshot(NamedTuple):
    """A run between two calls: enough to go on, bitwise, in another process.

    On another number of devices, finished lanes count and lanes in progress start again.
    """

    position: dict[str, int]  # lanes finished; of those in progress: first round, calls done
    arrays: dict[str, np.ndarray]


class Watch(Protocol):
    """Who may want to stop a run, or to keep what it has done so far."""

    def stopping(self) -> bool:
        """Whether to stop now; asked after every compiled call."""
        ...

    def due(self) -> bool:
        """Whether to take a snapshot; asked after every chunk."""
        ...

    def save(self, snapshot: Snapshot) -> None:
        """Takes a snapshot."""
        ...


class StoppedError(Exception):
    """A run stopped because its watch said so; the watch has its last snapshot."""


class WaveState:
    """One wave while it runs: a tile on every device."""

    def __init__(
        self, inputs: WaveInputs, num_policies: int, host: Callable[[Array], np.ndarray]
    ) -> None:
        self.inputs, self.host = inputs, host
        shape = (inputs.seed.size, epochs.NUM_INTERVALS, len(metrics.PARTS))
        self.totals = [np.zeros(shape) for _ in range(num_policies)]
        self.states: list[Any] = []
        # Sums of a chunk, and the curve interval of each of its rounds.
        self.waiting: list[tuple[Array, np.ndarray] | None] = [None] * num_policies
        self.rounds: list[Any] = []
        self.decisions: list[list[Any]] = [[] for _ in range(num_policies)]
        self.setup: Any = None
        self.chosen: Any = None
        self.current: Any = None  # the chunk's rounds
        self.room: Any = None  # rounds that nobody reads any more, whose memory the next ones take

    def add(self, policy: int) -> None:
        """Adds the sums that a policy's last chunk left on the devices."""
        waiting = self.waiting[policy]
        if waiting is None:
            return
        sums, interval = waiting
        self.waiting[policy] = None
        summed = self.host(jax.block_until_ready(sums))
        for number, rounds in enumerate(np.split(interval, summed.shape[1])):
            # Intervals only grow, and rounds beyond the horizon have none: the others' sums are 0.
            inside = rounds[rounds >= 0]
            if inside.size:
                touched = slice(inside[0], inside[-1] + 1)
                self.totals[policy][:, touched] += summed[:, number, touched]


def finished_waves(snapshot: Snapshot | None, *, width: int, num_policies: int) -> list[Wave]:
    """The waves that a snapshot holds as finished; none without one.

    Args:
      snapshot: of a run of any width.
      width: lanes of a wave now.
      num_policies: of the run.
    """
    if snapshot is None:
        return []
    waves = []
    for number in range(snapshot.position["lanes"] // width):
        lanes = slice(number * width, (number + 1) * width)
        found = {name: values[lanes] for name, values in snapshot.arrays.items() if "done" in name}
        waves.append(
            Wave(
                *(found[f"done/{name}"] for name in PER_LANE),
                sums=[found[f"done/sums/{i}"] for i in range(num_policies)],
                rounds=[],
                decisions=[[] for _ in range(num_policies)],
            )
        )
    return waves
