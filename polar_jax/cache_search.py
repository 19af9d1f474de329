"""Searches for a resident set: `top_k`, `greedy`, `distorted_greedy`, `local_search`, `exact`.

Every search maps a `CacheProblem` to a `[N]` bool set of at most `cache_slots`
adapters, inside `jit`. `cache_slots` is data; the subsets that an enumeration tries are
data too (`SubsetTable`), made on the host. Guarantees and tie rules: `docs/model.md`,
"Cache optimisation". A problem with a `room`, whose adapters differ in size, goes to
`sized_search`.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polar_jax import capacity, sized_search
from polar_jax.cache_value import (
    CacheProblem,
    marginal_gains,
    objective,
    swap_values,
    tie_tolerance,
)
from polar_jax.linalg import HIGHEST

# Subsets and contexts that the enumeration looks at together: what stays in cache.
SUBSET_BLOCK, SUBSET_CONTEXTS = 64, 512
# Up to so many adapters a table has room for subsets of any size.
WIDE_TABLE = 32


def top_k(problem: CacheProblem) -> Array:
    """The `K` adapters with the largest gains alone; ignores overlap.

    Args:
      problem: the cache problem.

    Returns:
      `[N]` bool set with exactly `K` members; ties to the lowest index.
    """
    if problem.room is not None:
        return sized_search.top_k(problem)
    num_adapters = problem.load_cost.shape[0]
    gains = marginal_gains(problem, jnp.zeros_like(problem.weight)) - problem.load_cost
    order = jnp.argsort(-gains, stable=True)
    rank = jnp.zeros((num_adapters,), jnp.int32)
    rank = rank.at[order].set(jnp.arange(num_adapters, dtype=jnp.int32))
    return rank < problem.cache_slots


def _greedy_members(problem: CacheProblem) -> Array:
    num_adapters = problem.load_cost.shape[0]

    def step(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        members, cover = carry
        gains = marginal_gains(problem, cover) - problem.load_cost
        allowed = ~members & (problem.resident | (gains > 0.0))
        best = jnp.argmax(jnp.where(allowed, gains, -jnp.inf))
        chosen = (jnp.arange(num_adapters) == best) & jnp.any(allowed)
        added = jnp.max(jnp.where(chosen[None, :], problem.saving, 0.0), axis=1)
        return members | chosen, jnp.maximum(cover, added)

    nothing = jnp.zeros_like(problem.resident), jnp.zeros_like(problem.weight)
    return jax.lax.fori_loop(0, problem.cache_slots, step, nothing)[0]


def greedy(problem: CacheProblem) -> Array:
    """Largest marginal gain less load cost, one adapter at a time.

    Nemhauser, Wolsey and Fisher (1978): at least `1 - 1/e` of the best savings where
    loads are free. Adapters outside the present set with no positive gain are skipped,
    free slots keep present members, and the present set is returned where it is
    better than the outcome.

    Args:
      problem: the cache problem.

    Returns:
      `[N]` bool set; ties to the lowest index.
    """
    if problem.room is not None:
        return sized_search.greedy(problem)
    members = _greedy_members(problem)
    worse = objective(problem, members) < objective(problem, problem.resident)
    return jnp.where(worse, problem.resident, members)


def distorted_greedy(problem: CacheProblem) -> Array:
    """Distorted greedy (Harshaw et al. 2019) for savings less load costs.

    `K` steps, step `k` adds the argmax of `(1 - 1/K)^(K-k) gain_i - load_i` if that is
    positive: `G(C) >= (1 - 1/e) savings(best) - loads(best)`.

    Args:
      problem: the cache problem.

    Returns:
      `[N]` bool set; ties to the lowest index.

    Raises:
      ValueError: for a problem with a room: its bound is for a number of adapters.
    """
    if problem.room is not None:
        raise ValueError("distorted_greedy must have slots, got adapters that differ in size.")
    num_adapters = problem.load_cost.shape[0]
    slots = jnp.maximum(problem.cache_slots, 1).astype(problem.weight.dtype)

    def step(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        members, cover = carry
        left = problem.cache_slots - k - 1
        # 0^0 is 1: the last step of K = 1 is not distorted.
        discount = jnp.power(1.0 - 1.0 / slots, left.astype(slots.dtype))
        discount = jnp.where(left == 0, jnp.ones_like(discount), discount)
        gains = discount * marginal_gains(problem, cover) - problem.load_cost
        gains = jnp.where(members, -jnp.inf, gains)
        chosen = (jnp.arange(num_adapters) == jnp.argmax(gains)) & (jnp.max(gains) > 0.0)
        added = jnp.max(jnp.where(chosen[None, :], problem.saving, 0.0), axis=1)
        return members | chosen, jnp.maximum(cover, added)

    nothing = jnp.zeros_like(problem.resident), jnp.zeros_like(problem.weight)
    return jax.lax.fori_loop(0, problem.cache_slots, step, nothing)[0]


def _improve(problem: CacheProblem, start: Array) -> Array:
    """Best swaps from `start` until none improves the objective."""
    num_adapters = start.shape[0]
    adapters = jnp.arange(num_adapters)

    def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        members, _ = carry
        values = swap_values(problem, members).reshape(-1)
        best = jnp.argmax(values)
        out, incoming = best // num_adapters, best % num_adapters
        swapped = (members & (adapters != out)) | (adapters == incoming)
        # Judged by the objective alone: the swap values are summed in another order, and
        # two sets that each look better than the other would be swapped for ever.
        now, then = objective(problem, members), objective(problem, swapped)
        better = jnp.isfinite(jnp.max(values)) & (then > now + tie_tolerance(problem, now))
        return jnp.where(better, swapped, members), better

    going = jnp.ones((), bool)
    return jax.lax.while_loop(lambda carry: carry[1], step, (start, going))[0]


def local_search(problem: CacheProblem) -> Array:
    """Best swaps until none improves, from the greedy set and from the present one.

    A swap must grow `G` by more than `1e-6 |G|`.

    Args:
      problem: the cache problem.

    Returns:
      `[N]` bool set, at least as good as both starts; the greedy start wins ties.
    """
    if problem.room is not None:
        return sized_search.local_search(problem)
    starts = jnp.stack([_greedy_members(problem), problem.resident])
    ends = jax.lax.map(functools.partial(_improve, problem), starts)
    stays = objective(problem, ends[1]) > objective(problem, ends[0])
    return jnp.where(stays, ends[1], ends[0])


class SubsetTable(NamedTuple):
    """Subsets to try, as data of a compiled search: `B` blocks of `SUBSET_BLOCK` columns.

    Shapes depend on a limit and on `N`, not on `K`, so that sets of any size share a
    program. Rows beyond a subset's members hold `N`, which stands for no adapter.
    """

    members: Any  # [B, W, SUBSET_BLOCK] int32, adapters of each subset along W
    num_blocks: Any  # [] int32, blocks that hold subsets
    num_members: Any  # [] int32, members of the largest subset
    num_subsets: Any  # [] int32
    complete: Any  # [] bool, False where there were too many subsets to list


def num_subsets(num_adapters: int, cache_slots: int) -> int:
    """Number of sets with exactly `cache_slots` of `num_adapters` adapters."""
    return math.comb(num_adapters, cache_slots)


def _subsets(num_adapters: int, cache_slots: int, *, smaller: bool) -> list[tuple[int, ...]]:
    """Subsets, largest first, then in lexicographic order."""
    sizes = range(cache_slots, -1, -1) if smaller else (cache_slots,)
    return [
        subset for size in sizes for subset in itertools.combinations(range(num_adapters), size)
    ]


@functools.lru_cache(maxsize=64)
def subset_table(
    num_adapters: int,
    cache_slots: int,
    *,
    limit: int | None = None,
    padded_adapters: int | None = None,
    smaller: bool = False,
) -> SubsetTable:
    """The subsets of `cache_slots` adapters, as host arrays.

    Args:
      num_adapters: `N`.
      cache_slots: `K`, in `[0, N]`.
      limit: most subsets to list; above it the table is not `complete`. None: no limit.
      padded_adapters: adapters that the program was compiled for, at least `N`.
      smaller: also the subsets with fewer than `K` members.

    Returns:
      The table.
    """
    none = num_adapters if padded_adapters is None else padded_adapters
    complete = limit is None or num_subsets(num_adapters, cache_slots) <= limit
    subsets = _subsets(num_adapters, cache_slots, smaller=smaller) if complete else []
    width = max(1, none if none <= WIDE_TABLE or (complete and cache_slots > 4) else 4)
    return _packed(subsets, limit or len(subsets), none, width, cache_slots)._replace(
        complete=np.bool_(complete)
    )


def _packed(
    subsets: list[tuple[int, ...]], limit: int, none: int, width: int, most: int
) -> SubsetTable:
    """Subsets of at most `most` adapters as a complete table; `none` stands for no adapter."""
    room = -(-limit // SUBSET_BLOCK)
    members = np.full((room * SUBSET_BLOCK, width), none, np.int32)
    for row, subset in enumerate(subsets):
        members[row, : len(subset)] = subset
    return SubsetTable(
        members=np.ascontiguousarray(members.reshape(room, SUBSET_BLOCK, width).swapaxes(1, 2)),
        num_blocks=np.int32(-(-len(subsets) // SUBSET_BLOCK)),
        num_members=np.int32(most),
        num_subsets=np.int32(len(subsets)),
        complete=np.bool_(True),
    )


@functools.lru_cache(maxsize=64)
def fitting_table(
    held: capacity.Memory, *, limit: int, padded_adapters: int | None = None, maximal: bool
) -> SubsetTable:
    """The sets of adapters that fit in a memory, as host arrays.

    Args:
      held: sizes of `N` adapters, and the capacity.
      limit: most sets to list; above it, or where a set of more than 32 of more than 32
        adapters fits, the table is not `complete`.
      padded_adapters: adapters that the program was compiled for, at least `N`.
      maximal: only sets beside which nothing else fits: enough where loads are free. Where
        they are not, a smaller set may be better than all that hold it.

    Returns:
      The table, whose shape does not depend on the capacity.
    """
    none = len(held.size_bytes) if padded_adapters is None else padded_adapters
    width = min(none, WIDE_TABLE)
    subsets = capacity.fitting_sets(held, limit, maximal=maximal)
    if subsets is None or len(subsets[0]) > width:
        return _packed([], limit, none, width, 0)._replace(complete=np.bool_(False))
    return _packed(subsets, limit, none, width, len(subsets[0]))


def _subset_values(problem: CacheProblem, table: SubsetTable) -> tuple[Array, Array]:
    """`[B, SUBSET_BLOCK]` objective and loads of every subset, over the problem's contexts."""
    num_contexts, num_adapters = problem.saving.shape
    short = -num_contexts % SUBSET_CONTEXTS
    # Contiguous in contexts, so that each gather copies rows; the last row is no adapter.
    saving = jnp.pad(problem.saving, ((0, short), (0, 1)))
    rows = saving.reshape(-1, SUBSET_CONTEXTS, num_adapters + 1).swapaxes(1, 2)
    weight = jnp.pad(problem.weight, (0, short)).reshape(-1, SUBSET_CONTEXTS)
    load_cost = jnp.pad(problem.load_cost, (0, 1))
    absent = jnp.pad((~problem.resident).astype(jnp.int32), (0, 1))
    members = jnp.asarray(table.members)

    def block(b: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        values, loads = carry
        subset = members[b]

        def chunk(c: Array, total: Array) -> Array:
            here = rows[c]

            def join(k: Array, best: Array) -> Array:
                return jnp.maximum(best, here[subset[k]])

            best = jax.lax.fori_loop(1, table.num_members, join, here[subset[0]])
            return total + jnp.dot(best, weight[c], precision=HIGHEST)

        gained = jax.lax.fori_loop(0, weight.shape[0], chunk, jnp.zeros_like(values[0]))
        paid = jnp.sum(load_cost[subset], axis=0)
        return values.at[b].set(gained - paid), loads.at[b].set(
            jnp.sum(absent[subset], axis=0, dtype=jnp.int32)
        )

    shape = members.shape[0], SUBSET_BLOCK
    start = jnp.zeros(shape, problem.saving.dtype), jnp.zeros(shape, jnp.int32)
    return jax.lax.fori_loop(0, table.num_blocks, block, start)


def exact_of(problem: CacheProblem, table: SubsetTable) -> Array:
    """The best set among those of a table; see `exact`."""
    num_adapters = problem.load_cost.shape[0]
    values, loads = (one.reshape(-1) for one in _subset_values(problem, table))
    listed = jnp.arange(values.shape[0], dtype=jnp.int32) < table.num_subsets
    values = jnp.where(listed, values, -jnp.inf)
    best = jnp.max(values)
    tied = listed & (values >= best - tie_tolerance(problem, best))
    fewest = jnp.min(jnp.where(tied, loads, num_adapters + 1))
    winner = jnp.argmax(tied & (loads == fewest)).astype(jnp.int32)
    members = jnp.asarray(table.members)[winner // SUBSET_BLOCK, :, winner % SUBSET_BLOCK]
    adapters = jnp.arange(num_adapters, dtype=jnp.int32)
    return jnp.any(members[:, None] == adapters[None, :], axis=0)


def exact_or_local(problem: CacheProblem, table: SubsetTable) -> Array:
    """`exact` where the table holds every subset, else `local_search`.

    Args:
      problem: the cache problem.
      table: the subsets; shared by all lanes of a call, so that the choice stays a branch.

    Returns:
      `[N]` bool set.
    """
    if jnp.shape(table.members)[0] == 0:
        return local_search(problem)
    return jax.lax.cond(
        table.complete, lambda one: exact_of(one, table), lambda one: local_search(one), problem
    )


def exact(problem: CacheProblem, *, cache_slots: int, smaller: bool = False) -> Array:
    """The best set among all subsets.

    Among sets within `1e-6 |G|` of the best: the fewest loads, then the most members,
    then the lexicographically first.

    Args:
      problem: the cache problem; its own `cache_slots` is not read.
      cache_slots: `K`, static.
      smaller: also try sets of fewer than `K` members. They can only win where loads
        cost something and the present set is not full.

    Returns:
      `[N]` bool set.

    Raises:
      ValueError: for a problem with a room; `exact_of` takes a `fitting_table`.
    """
    if problem.room is not None:
        raise ValueError("exact must have slots, got sizes; use exact_of with a fitting_table.")
    num_adapters = problem.load_cost.shape[0]
    return exact_of(problem, subset_table(num_adapters, cache_slots, smaller=smaller))
