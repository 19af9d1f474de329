"""The sizes of a problem: adapters, features, requests, and what of fast memory there is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from polar_jax import capacity


class Problem(NamedTuple):
    """The sizes that a policy is made for; `sized_problem` makes one from sizes in bytes."""

    num_adapters: int
    cache_slots: int  # K; with a memory, how many adapters fit at once at most
    context_dim: int
    horizon: int
    memory: capacity.Memory | None = None  # sizes and capacity in place of the slots

    @property
    def differing(self) -> capacity.Memory | None:
        """The memory where adapters differ in size, else None: equal sizes are slots."""
        return None if self.memory is None or self.memory.equal else self.memory

    def first_set(self) -> np.ndarray:
        """`[N]` bool `C_1`: the first `K` adapters; with sizes, in order, each that fits."""
        held = self.differing
        if held is not None:
            return capacity.first_fitting(held)
        return np.arange(self.num_adapters) < self.cache_slots


def sized_problem(
    size_bytes: Sequence[int], capacity_bytes: int, *, context_dim: int, horizon: int
) -> Problem:
    """The problem of adapters that share a memory of so many bytes.

    Args:
      size_bytes: of each of `N >= 1` adapters, whole numbers in `[1, 2^53]`.
      capacity_bytes: of fast memory, a whole number in `[0, 2^53]`.
      context_dim: `d`, at least 1.
      horizon: `T`, in `[1, 2^31 - 1]`.

    Returns:
      The problem. With equal sizes it is that of `floor(capacity / size)` slots, bit for bit.

    Raises:
      ValueError: for a size or a capacity outside its range.
    """
    held = capacity.memory(size_bytes, capacity_bytes)
    slots = capacity.most_at_once(held)
    return Problem(len(held.size_bytes), slots, context_dim, horizon, held)


def check_memory(
    problem: Problem,
    policy: str,
    search: str,
    *,
    counting_slots: Sequence[str],
    others: Sequence[str],
) -> None:
    """Sees that a problem's memory is its own, and that a policy can use it.

    Args:
      problem: the problem.
      policy: name of the policy.
      search: what it replans with; "" for nothing.
      counting_slots: policies that count slots.
      others: policies that do not.

    Raises:
      ValueError: if not.
    """
    held = problem.memory
    if held is None:
        return
    expected = len(held.size_bytes), capacity.most_at_once(held)
    if (problem.num_adapters, problem.cache_slots) != expected:
        raise ValueError(
            f"num_adapters and cache_slots must be {expected[0]} and {expected[1]}, as the memory "
            f"has it (sized_problem), got {problem.num_adapters} and {problem.cache_slots}."
        )
    if problem.differing is not None and policy in counting_slots:
        raise ValueError(
            f"policy {policy!r} must have adapters of equal size, as its rule counts slots; with "
            f"sizes that differ use any of {', '.join(others)}."
        )
    if problem.differing is not None and search == "distorted_greedy":
        raise ValueError(
            f"policy {policy!r} must not search with distorted_greedy where adapters differ in "
            "size, as its bound counts slots; use greedy, local_search, exact or top_k."
        )
