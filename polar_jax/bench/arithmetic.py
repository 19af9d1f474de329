"""What a decision costs at least, computed: numbers read, operations, the floor in nanoseconds.

LinUCB with disjoint models: `N` adapters, `d` features, `p = d (d + 1) / 2` numbers of a
packed symmetric matrix. Scores need `x^T A x = <packed(A), w>` with `w = packed(x x^T)`,
which all adapters share: one multiplication and one addition per stored number.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

FLOAT = 4  # bytes of a float32
FORMULA = (
    "with p = d(d+1)/2: 2N(p+d) + 3p + 2d^2 + 6d operations (scores of all adapters, x x^T once, "
    "the update of one), 4N(p+d)/r + 4(p+d) bytes of float32 state (read once for r requests, "
    "one adapter written; r is 1 unless a kernel looks at more), "
    "4(d+3) bytes of stream (context, utility, noise, action)"
)
_T = TypeVar("_T")


class Work(NamedTuple):
    """What one decision needs at least."""

    operations: int  # float32 additions and multiplications
    state_bytes: float  # of the lane's statistics, read once, one adapter's written
    stream_bytes: int  # in and out: what no cache can hold


class Cache(NamedTuple):
    """A cache of a core, or on-chip memory of an accelerator."""

    name: str
    size_bytes: int  # a lane's state up to here stays there
    rate: float  # bytes read and written per second by a copy within it, infinite if unknown


class Limits(NamedTuple):
    """What a machine was measured to do, per second."""

    operations: float  # of float32, in a matrix product
    memory: float  # bytes read and written by a copy that is larger than every cache
    caches: tuple[Cache, ...]  # smallest first


class Sample(NamedTuple):
    """One timed sample."""

    decisions: int
    seconds: float


def packed_numbers(context_dim: int) -> int:
    """Numbers of a packed symmetric `[d, d]` matrix."""
    return context_dim * (context_dim + 1) // 2


def lane_state_bytes(num_adapters: int, context_dim: int) -> int:
    """Bytes of a lane's packed inverses and estimates in float32."""
    return FLOAT * num_adapters * (packed_numbers(context_dim) + context_dim)


def work(num_adapters: int, context_dim: int, requests_per_read: int = 1) -> Work:
    """What one decision of LinUCB needs at least; `FORMULA` in words.

    Args:
      num_adapters: `N`.
      context_dim: `d`.
      requests_per_read: for how many requests statistics are read once, `r`.
    """
    n, d, p = num_adapters, context_dim, packed_numbers(context_dim)
    scores = 2 * n * (p + d) + p
    update = 2 * d * d + 2 * p + 6 * d
    return Work(
        operations=scores + update,
        state_bytes=FLOAT * (n / requests_per_read + 1) * (p + d),
        stream_bytes=FLOAT * (d + 3),
    )


def floor_ns(needed: Work, limits: Limits, lane_bytes: int) -> tuple[float, str]:
    """Nanoseconds that a decision takes at least, and what sets them.

    Args:
      needed: of a decision.
      limits: of all cores that may work at once, or of one.
      lane_bytes: of a lane's state; it is read from the first cache that it fits in.

    Returns:
      `(ns, name)`, name being "arithmetic", "memory" or a cache's.
    """
    seconds = {"arithmetic": needed.operations / limits.operations}
    home = next((cache for cache in limits.caches if lane_bytes <= cache.size_bytes), None)
    from_memory = needed.stream_bytes
    if home is None:
        from_memory += needed.state_bytes
    else:
        seconds[home.name] = needed.state_bytes / home.rate
    seconds["memory"] = from_memory / limits.memory
    name = max(seconds, key=lambda one: seconds[one])
    return 1e9 * seconds[name], name


def rate(samples: Sequence[Sample]) -> float:
    """Decisions per second: the median over the samples."""
    return statistics.median(one.decisions / one.seconds for one in samples)


def spread(samples: Sequence[Sample]) -> float:
    """Largest over smallest rate of the samples, less 1."""
    rates = [one.decisions / one.seconds for one in samples]
    return max(rates) / min(rates) - 1.0


def paired_ratio(samples: Sequence[Sample], baseline: Sequence[Sample]) -> float:
    """Median ratio of two rates, repeat by repeat: what slows a machine down slows both.

    Args:
      samples: one per repeat.
      baseline: of the same repeats.

    Raises:
      ValueError: if there are not as many of both.
    """
    if len(samples) != len(baseline):
        raise ValueError(
            f"samples must be as many as the baseline's {len(baseline)}, got {len(samples)}."
        )
    pairs = zip(samples, baseline, strict=True)
    return statistics.median(
        (one.decisions / one.seconds) / (base.decisions / base.seconds) for one, base in pairs
    )


def interleaved(
    kinds: Sequence[_T], repeats: int, measure: Callable[[_T], Sample]
) -> list[list[Sample]]:
    """Samples of every kind, the repeats outermost: drift of the machine meets all alike.

    Args:
      kinds: what to measure.
      repeats: samples of each.
      measure: takes one sample.

    Returns:
      The samples of each kind, in order.
    """
    samples: list[list[Sample]] = [[] for _ in kinds]
    for _ in range(repeats):
        for found, kind in zip(samples, kinds, strict=True):
            found.append(measure(kind))
    return samples


def amount_for(seconds: float, one: float, *, least: int, most: int) -> int:
    """How much work makes a sample of about `seconds`, at `one` second per piece of work."""
    return max(least, min(most, int(seconds / max(one, 1e-12))))
