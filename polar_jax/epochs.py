"""Schedules of the slow timescale as host arrays: epoch ends, quotas, refreshes.

Rounds count from 0. A schedule is known before the run and shared by all lanes of a
call; it is data of the compiled program, never part of it.
"""

import dataclasses
import functools
import math

import numpy as np

from polar_jax.types import ChunkClock

# Statistics are refreshed at least this often, so that float32 drift stays bounded.
REFRESH_ROUNDS = 4096


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Where the slow timescale acts.

    Attributes:
      boundaries: `[B]` int64 last rounds before statistics are refreshed, increasing.
      replans: `[B]` bool, whether the controller replans there.
      amortised_rounds: `[B]` float64, rounds over which loads of that replan count.
      epoch_ends: `[M]` int64 last rounds of the epochs, for the exploration quotas.
    """

    boundaries: np.ndarray
    replans: np.ndarray
    amortised_rounds: np.ndarray
    epoch_ends: np.ndarray


def fixed_epoch_ends(horizon: int, epoch_length: int) -> np.ndarray:
    """Last rounds of epochs of `epoch_length` rounds that end before round `horizon`."""
    return np.arange(epoch_length - 1, horizon, epoch_length, dtype=np.int64)


def doubling_epoch_ends(horizon: int, first_epoch: int) -> np.ndarray:
    """Last rounds of epochs of `first_epoch * 2^m` rounds that end before `horizon`."""
    ends = []
    end, length = first_epoch - 1, first_epoch
    while end < horizon:
        ends.append(end)
        length *= 2
        end += length
    return np.asarray(ends, np.int64)


def epoch_lengths(ends: np.ndarray, *, doubling: bool) -> np.ndarray:
    """Length of the epoch that follows each of `ends`, not cut at the horizon."""
    first = int(ends[0]) + 1 if ends.size else 0
    if doubling:
        return first * 2.0 ** np.arange(1, ends.size + 1)
    return np.full(ends.shape, float(first))


def schedule(
    horizon: int,
    ends: np.ndarray,
    *,
    doubling: bool,
    replan: bool,
    amortised_epochs: float = 4.0,
) -> Schedule:
    """Joins epoch ends with the refreshes between them.

    Args:
      horizon: `T`.
      ends: `[M]` last rounds of the epochs.
      doubling: whether the epochs double.
      replan: whether the controller replans at epoch ends.
      amortised_epochs: loads are amortised over this many of the next epoch's rounds,
        at most the rounds that are left.

    Returns:
      The schedule. Nothing happens after the run's last round.
    """
    refreshes = np.arange(REFRESH_ROUNDS - 1, horizon, REFRESH_ROUNDS, dtype=np.int64)
    boundaries = np.union1d(ends, refreshes)
    boundaries = boundaries[boundaries < horizon - 1].astype(np.int64)
    inner = ends[ends < horizon - 1]
    at_epoch = np.isin(boundaries, inner)
    amortised = np.zeros(boundaries.shape)
    following = epoch_lengths(ends, doubling=doubling)[: inner.size]
    amortised[at_epoch] = np.minimum(horizon - 1.0 - inner, amortised_epochs * following)
    return Schedule(boundaries, at_epoch & replan, amortised, ends)


def exploration_quotas(
    num_epochs: int, *, scale: float, cache_slots: int, first_epoch: int, num_adapters: int
) -> np.ndarray:
    """Pulls below which an adapter is explored, per epoch of a doubling schedule.

    `n_m = ceil(scale * sqrt(K * L0 * 2^m) / N)`, POLAR+'s forced exploration.

    Args:
      num_epochs: how many epochs to give.
      scale: `kappa`, at least 0; 0 explores nothing.
      cache_slots: `K`.
      first_epoch: `L0`, rounds of epoch 0.
      num_adapters: `N`.

    Returns:
      `[num_epochs]` int32.
    """
    lengths = [first_epoch * 2**m for m in range(num_epochs)]
    quotas = [math.ceil(scale * math.sqrt(cache_slots * n) / num_adapters) for n in lengths]
    return np.asarray(quotas, np.int32)


NUM_INTERVALS = 67


MAX_HORIZONS = 48


@functools.lru_cache(maxsize=64)  # asked for at every chunk
def curve_rounds(horizon: int, shorter: tuple[int, ...] = ()) -> np.ndarray:
    """Rounds (counted from 1) at which curves are recorded: 64 log-spaced, T/16, T/4, T.

    Args:
      horizon: `T`.
      shorter: up to 48 more rounds to record, each in place of a log-spaced one.

    Returns:
      `[P]` int64, increasing, `P <= NUM_INTERVALS`, not to be written to; the last is `horizon`.

    Raises:
      ValueError: for too many, or rounds outside `[1, T]`.
    """
    if len(shorter) > MAX_HORIZONS or any(not 1 <= one <= horizon for one in shorter):
        raise ValueError(
            f"shorter horizons must be at most {MAX_HORIZONS} in [1, {horizon}], got {shorter}."
        )
    spaced = np.rint(np.geomspace(1, horizon, 64 - len(shorter))).astype(np.int64)
    quarters = [max(1, horizon // 16), max(1, horizon // 4), horizon, *shorter]
    marks = np.unique(np.clip(np.concatenate([spaced, quarters]), 1, horizon))
    marks.setflags(write=False)
    return marks


def chunk_clock(
    plan: Schedule, marks: np.ndarray, *, first_round: int, num_rounds: int, horizon: int
) -> ChunkClock:
    """The part of a schedule that lies in one chunk, as arrays of fixed shape.

    Args:
      plan: the schedule of the run.
      marks: `[P]` curve rounds, counted from 1.
      first_round: rounds served before the chunk.
      num_rounds: `n`, rounds of the chunk.
      horizon: `T`; rounds from there on are not served.

    Returns:
      The chunk's clock.
    """
    served = min(num_rounds, horizon - first_round)
    inside = (plan.boundaries >= first_round) & (plan.boundaries < first_round + served)
    boundaries = plan.boundaries[inside]
    stops = boundaries - first_round + 1
    actions = 1 + plan.replans[inside].astype(np.int32)
    amortised = plan.amortised_rounds[inside]
    if stops.size == 0 or stops[-1] != served:
        stops, actions = np.append(stops, served), np.append(actions, 0)
        amortised = np.append(amortised, 1.0)
    starts = first_round + np.concatenate([[0], stops[:-1]])
    rounds = np.arange(first_round, first_round + num_rounds)
    interval = np.where(rounds < horizon, np.searchsorted(marks, rounds + 1), -1)

    def padded(values: np.ndarray, dtype: type) -> np.ndarray:
        room = np.zeros(num_rounds + 1, dtype)
        room[: values.size] = values
        return room

    return ChunkClock(
        first_round=np.int32(first_round),
        num_segments=np.int32(stops.size),
        stop=padded(stops, np.int32),
        action=padded(actions, np.int32),
        epoch=padded(np.searchsorted(plan.epoch_ends, starts), np.int32),
        amortised_rounds=padded(amortised, np.float32),
        interval=interval.astype(np.int32),
    )
