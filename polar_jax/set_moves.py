"""Best moves of a resident set in a large library: add, drop and swap, from short lists.

A context is served by the best resident of its list of `J` adapters. Taking a member out
changes only the contexts that it leads, so that the values of all moves are sums over
contexts by leader: one pass over `[m, P]` for `P` adapters that may come in.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from polar_jax import checks
from polar_jax.cache_value import CacheProblem, tie_tolerance
from polar_jax.linalg import HIGHEST

# Moves after which the adapters that may come in are chosen anew.
REFRESH = 32


class Rankings(NamedTuple):
    """The `J` best adapters of each of `m` contexts, best first, ties to the lowest index."""

    saving: Array  # [J, m]
    adapter: Array  # [J, m] int32


class Led(NamedTuple):
    """How a set serves every context, by the lists."""

    top: Array  # [m], saving by the best member, 0 where the list holds none
    second: Array  # [m], saving by the second best
    leader: Array  # [m] int32, the best member; N where there is none
    value: Array  # [], objective


def rankings(problem: CacheProblem, *, width: int) -> Rankings:
    """The adapters that save most on every context.

    Args:
      problem: the cache problem.
      width: `J`, static, in `[1, N]`.

    Returns:
      The lists; adapters that save nothing stand at their ends.

    Raises:
      ValueError: for a width outside its range.
    """
    checks.between("width", width, 1, problem.load_cost.shape[0], whole=True)
    saving, adapter = jax.lax.top_k(problem.saving, width)
    return Rankings(saving.T, adapter.T)


def list_gains(problem: CacheProblem, lists: Rankings, cover: Array) -> Array:
    """`[N]` savings that each adapter adds to contexts covered by `cover` `[m]`, by the lists."""
    beyond = jnp.maximum(lists.saving - cover[None, :], 0.0) * problem.weight[None, :]
    return jnp.zeros_like(problem.load_cost).at[lists.adapter].add(beyond)


def led(problem: CacheProblem, lists: Rankings, members: Array) -> Led:
    """Best and second best member of every context.

    Args:
      problem: the cache problem.
      lists: its rankings.
      members: `[N]` bool set.

    Returns:
      What the set saves and who saves it.
    """
    nobody = members.shape[0]

    def look(carry: tuple[Array, Array, Array, Array], rank: tuple[Array, Array]):
        top, second, leader, hits = carry
        saving, adapter = rank
        # Entries that save nothing lead nobody.
        hit = members[adapter] & (saving > 0.0)
        first, next_best = hit & (hits == 0), hit & (hits == 1)
        leader = jnp.where(first, adapter, leader)
        top, second = jnp.where(first, saving, top), jnp.where(next_best, saving, second)
        return (top, second, leader, hits + hit.astype(hits.dtype)), None

    nothing = jnp.zeros_like(problem.weight)
    count = jnp.zeros(nothing.shape, jnp.int32)
    start = nothing, nothing, jnp.full_like(count, nobody), count
    (top, second, leader, _), _ = jax.lax.scan(look, start, (lists.saving, lists.adapter))
    loads = jnp.sum(jnp.where(members, problem.load_cost, 0.0))
    return Led(top, second, leader, jnp.dot(top, problem.weight, precision=HIGHEST) - loads)


class _Moves(NamedTuple):
    """A set and the adapters that may join it. Slot `P - 1` of the pool is nobody: a drop."""

    members: Array  # [N] bool
    now: Led
    pool: Array  # [P] int32; N is nobody
    columns: Array  # [m, P], savings of the pool's adapters where the lists hold them
    taken: Array  # [] int32, moves so far
    going: Array  # [] bool


def _best_move(problem: CacheProblem, here: _Moves) -> tuple[Array, Array]:
    """The adapter to take out (N for none) and the pool's slot to bring in."""
    nobody, m = here.members.shape[0], problem.weight.shape[0]
    top, second, leader, _ = here.now
    contexts = jnp.arange(m, dtype=jnp.int32)
    cost = jnp.append(problem.load_cost, jnp.zeros((1,), problem.load_cost.dtype))
    member = jnp.append(here.members, False)
    # A leader's row is its first context; two more rows take out nobody, and an idle member.
    first = jnp.full((nobody + 1,), m, jnp.int32).at[leader].min(contexts)
    with_leader = jnp.maximum(here.columns, top[:, None])
    lost = problem.weight[:, None] * (jnp.maximum(here.columns, second[:, None]) - with_leader)
    change = jax.ops.segment_sum(lost, first[leader], m + 2)
    kept = jnp.einsum("m,mp->p", problem.weight, with_leader, precision=HIGHEST)
    idle = here.members & (first[:nobody] == m)
    dearest = jnp.argmax(jnp.where(idle, problem.load_cost, -1.0)).astype(jnp.int32)
    out = jnp.concatenate([leader, jnp.stack([jnp.int32(nobody), dearest])])
    room = jnp.sum(here.members, dtype=jnp.int32) < problem.cache_slots
    rows = (first[leader] == contexts) & (leader < nobody)
    rows = jnp.concatenate([rows, jnp.stack([room, jnp.any(idle)])])
    gained = kept - cost[here.pool]
    values = gained[None, :] + change + cost[out][:, None]
    allowed = rows[:, None] & ~member[here.pool][None, :]
    best = jnp.argmax(jnp.where(allowed, values, -jnp.inf)).astype(jnp.int32)
    row, slot = best // here.pool.shape[0], best % here.pool.shape[0]
    # Without any allowed move the first entry wins: nobody for nobody.
    none = ~jnp.any(allowed)
    last = here.pool.shape[0] - 1
    return jnp.where(none, nobody, out[row]), jnp.where(none, last, slot)


def _column(problem: CacheProblem, lists: Rankings, adapter: Array) -> Array:
    """`[m]` savings of one adapter where the lists hold it; zeros for N."""
    nobody = problem.load_cost.shape[0]
    saving = problem.saving[:, jnp.minimum(adapter, nobody - 1)]
    listed = (saving >= lists.saving[-1]) & (adapter < nobody)
    return jnp.where(listed, saving, 0.0)


def fill(problem: CacheProblem, lists: Rankings, start: Array, among: Array) -> Array:
    """Adds the adapter with the largest net gain, by the lists, until none gains or fits.

    Args:
      problem: the cache problem.
      lists: its rankings.
      start: `[N]` bool set of at most `K`.
      among: `[N]` bool, adapters that may be added.

    Returns:
      `[N]` bool set; ties to the lowest index.
    """
    adapters = jnp.arange(start.shape[0], dtype=jnp.int32)

    def step(carry: tuple[Array, Array, Array, Array]):
        members, cover, count, _ = carry
        net = list_gains(problem, lists, cover) - problem.load_cost
        net = jnp.where(among & ~members, net, -jnp.inf)
        best = jnp.argmax(net).astype(jnp.int32)
        gains = net[best] > 0.0
        added = jnp.maximum(cover, _column(problem, lists, best))
        cover = jnp.where(gains, added, cover)
        return members | ((adapters == best) & gains), cover, count + 1, gains

    count = jnp.sum(start, dtype=jnp.int32)
    begin = start, led(problem, lists, start).top, count, jnp.ones((), bool)
    return jax.lax.while_loop(
        lambda carry: carry[3] & (carry[2] < problem.cache_slots), step, begin
    )[0]


class _Climb(NamedTuple):
    members: Array  # [N] bool
    taken: Array  # [] int32, moves so far
    going: Array  # [] bool


def climb(problem: CacheProblem, lists: Rankings, start: Array, *, pool: int, limit: int) -> Array:
    """Best moves until none grows the objective by more than `1e-6 |G|`.

    Args:
      problem: the cache problem.
      lists: its rankings.
      start: `[N]` bool set.
      pool: how many adapters outside are tried, static, at least 1: those that would add most
        now, chosen anew after every `REFRESH` moves. Who leaves takes the place of who came.
      limit: most moves.

    Returns:
      `[N]` bool set, by the lists at least as good as the start.
    """

    def stretch(here: _Climb) -> _Climb:
        moved = _stretch(
            problem, lists, here.members, pool, jnp.minimum(REFRESH, limit - here.taken)
        )
        changed = jnp.any(moved.members != here.members)
        return _Climb(moved.members, here.taken + moved.taken, changed)

    begin = _Climb(start, jnp.zeros((), jnp.int32), jnp.ones((), bool))
    return jax.lax.while_loop(
        lambda here: here.going & (here.taken < limit), stretch, begin
    ).members


def _stretch(
    problem: CacheProblem, lists: Rankings, start: Array, pool: int, limit: Array
) -> _Moves:
    """Moves within one pool."""
    nobody = start.shape[0]
    now = led(problem, lists, start)
    promise = list_gains(problem, lists, now.top) - problem.load_cost
    chosen = jax.lax.top_k(jnp.where(start, -jnp.inf, promise), min(pool, nobody))[1]
    slots = jnp.append(chosen, jnp.full((1,), nobody, chosen.dtype))
    columns = jax.vmap(lambda one: _column(problem, lists, one), out_axes=1)(slots)
    count = jnp.zeros((), jnp.int32)
    begin = _Moves(start, now, slots, columns, count, jnp.ones((), bool))
    adapters = jnp.arange(nobody, dtype=jnp.int32)

    def move(here: _Moves) -> _Moves:
        out, slot = _best_move(problem, here)
        incoming = here.pool[slot]
        members = (here.members & (adapters != out)) | (adapters == incoming)
        then = led(problem, lists, members)
        # Judged by the objective alone: move values are summed in another order.
        better = then.value > here.now.value + tie_tolerance(problem, here.now.value)
        # The last slot stays nobody; an adapter that was dropped waits for the next pool.
        swapped = better & (slot < here.pool.shape[0] - 1)
        column = jnp.where(swapped, _column(problem, lists, out), here.columns[:, slot])
        return _Moves(
            jnp.where(better, members, here.members),
            jax.tree.map(lambda new, old: jnp.where(better, new, old), then, here.now),
            here.pool.at[slot].set(jnp.where(swapped, out, incoming)),
            here.columns.at[:, slot].set(column),
            here.taken + 1,
            better,
        )

    return jax.lax.while_loop(lambda here: here.going & (here.taken < limit), move, begin)
