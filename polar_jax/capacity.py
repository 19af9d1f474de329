"""Adapters of different size: how many bytes they take, what fits together, what fits first.

Host-side and exact: sums of bytes are Python's whole numbers. The engine gets `types.Room`,
whole units of memory that int32 holds; see `docs/model.md`, "Adapters of different size".
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from polar_jax import checks
from polar_jax.types import Room

# Units of a capacity at most: the sum of two of them still fits in int32.
_MOST_UNITS = 2**29


class Memory(NamedTuple):
    """Sizes of `N` adapters and the fast memory that they share; build it with `memory`."""

    size_bytes: tuple[int, ...]  # N, each at least 1
    capacity_bytes: int  # at least 0

    @property
    def equal(self) -> bool:
        """Whether all sizes are equal: then the memory is nothing but a number of slots."""
        return len(set(self.size_bytes)) == 1


def memory(size_bytes: Sequence[int], capacity_bytes: int) -> Memory:
    """Checks sizes and a capacity.

    Args:
      size_bytes: of `N >= 1` adapters, whole numbers in `[1, 2^53]`.
      capacity_bytes: of fast memory, a whole number in `[0, 2^53]`.

    Returns:
      The memory.

    Raises:
      ValueError: for a number outside its range, or no adapter.
    """
    if not len(size_bytes):
        raise ValueError("size_bytes must hold the size of one or more adapters, got none.")
    sizes = [
        int(checks.between(f"size_bytes[{i}]", size, 1, checks.MAX_BYTES, whole=True))
        for i, size in enumerate(size_bytes)
    ]
    whole = checks.between("capacity_bytes", capacity_bytes, 0, checks.MAX_BYTES, whole=True)
    return Memory(tuple(sizes), int(whole))


@functools.lru_cache(maxsize=256)
def units(held: Memory) -> tuple[tuple[int, ...], int]:
    """Sizes and capacity in whole units, as everything that asks what fits counts them.

    A unit is the greatest common divisor of the sizes, so that nothing is rounded. Only where
    the capacity is more than 2^29 of them, sizes are rounded up and the capacity down to larger
    units: a set that fits in units fits in bytes.

    Args:
      held: sizes and capacity.

    Returns:
      `(N sizes, capacity)`; what is larger than the capacity has the size `capacity + 1`.
    """
    unit = math.gcd(*held.size_bytes)
    sizes = [size // unit for size in held.size_bytes]
    everything = held.capacity_bytes // unit >= sum(sizes)
    space = min(held.capacity_bytes // unit, sum(sizes))
    coarse = -(-space // _MOST_UNITS)
    if coarse > 1:
        sizes = [-(-size // coarse) for size in sizes]
        space = sum(sizes) if everything else space // coarse
    return tuple(min(size, space + 1) for size in sizes), space


def most_at_once(held: Memory) -> int:
    """How many adapters fit together at most: `K` of formulas that count slots."""
    sizes, space = units(held)
    count = 0
    for size in sorted(sizes):
        if size > space:
            break
        space, count = space - size, count + 1
    return count


def first_fitting(held: Memory) -> np.ndarray:
    """`[N]` bool: adapters in order, those that do not fit beside the ones before left out."""
    sizes, space = units(held)
    members = np.zeros(len(sizes), bool)
    for adapter, size in enumerate(sizes):
        if size <= space:
            members[adapter], space = True, space - size
    return members


def room(held: Memory, padded_adapters: int, dtype: Any) -> Room:
    """The memory as host arrays for the engine.

    Args:
      held: sizes and capacity.
      padded_adapters: adapters that programs are compiled for, at least `N`; those that only
        fill up the shape never fit.
      dtype: floating dtype of the run.
    """
    sizes, space = units(held)
    short = padded_adapters - len(sizes)
    relative = np.asarray(held.size_bytes, np.float64) / min(held.size_bytes)
    arrays: dict[str, Any] = {
        "size": np.pad(np.asarray(sizes, np.int32), (0, short), constant_values=space + 1),
        "capacity": np.asarray(space, np.int32),
        "relative": np.pad(relative, (0, short), constant_values=1.0).astype(dtype),
    }
    return Room(**arrays)


def fitting_sets(held: Memory, limit: int, *, maximal: bool) -> list[tuple[int, ...]] | None:
    """Every set that fits, or every one to which nothing can be added.

    Args:
      held: sizes and capacity.
      limit: most sets to list.
      maximal: only sets beside which no other adapter fits.

    Returns:
      Sets of adapters, each ascending; those with most members first, then in lexicographic
      order. None where there are more than `limit`.
    """
    found: list[tuple[int, ...]] = []
    for members in _maximal_sets(held) if maximal else _all_sets(held):
        if len(found) == limit:
            return None
        found.append(tuple(sorted(members)))
    return sorted(found, key=lambda members: (-len(members), members))


def _all_sets(held: Memory) -> Iterator[tuple[int, ...]]:
    sizes, space = units(held)
    waiting: list[tuple[tuple[int, ...], int]] = [((), space)]
    while waiting:
        members, left = waiting.pop()
        yield members
        after = members[-1] + 1 if members else 0
        waiting += [
            ((*members, i), left - sizes[i]) for i in range(after, len(sizes)) if sizes[i] <= left
        ]


def _maximal_sets(held: Memory) -> Iterator[tuple[int, ...]]:
    """Decides adapter by adapter, the largest first: every branch ends in one or more sets.

    What has been left out last is the smallest left out, and must not fit in the end. A branch
    where it would, even with all that are still to be decided, is not entered; in any other,
    adding whatever fits ends in a maximal set.
    """
    sizes, space = units(held)
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    ahead = [0]  # From the end: what the adapters from a place on take together.
    for i in reversed(order):
        ahead.append(ahead[-1] + sizes[i])
    ahead.reverse()
    waiting: list[tuple[int, tuple[int, ...], int]] = [(0, (), space)]
    while waiting:
        place, members, left = waiting.pop()
        if place == len(order):
            yield members
            continue
        size = sizes[order[place]]
        if left - ahead[place + 1] < size:
            waiting.append((place + 1, members, left))
        if size <= left:
            waiting.append((place + 1, (*members, order[place]), left - size))
