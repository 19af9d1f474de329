"""`relaxed`: the cache search for very large libraries, by a concave relaxation.

Sets become points `z` of `{z in [0, 1]^N, sum z <= K}` and savings the concave
`L(z) = sum_x w_x sum_j delta_xj min(1, sum of z over the j best adapters of x)`, the value
of the linear relaxation of facility location. Projected ascent (Nesterov momentum from
optax) on a smoothed `L`, a certified gap from Lagrange prices, dependent rounding, then
swaps among the most promising adapters. Where it pays: `docs/cache_search.md`.

`N` adapters, `m` contexts, `J` the adapters that are kept per context (`width`).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from polar_jax import checks
from polar_jax.cache_value import CacheProblem, marginal_gains, objective
from polar_jax.linalg import HIGHEST
from polar_jax.set_moves import Rankings, climb, fill, led, list_gains, rankings

# `1 - 1/e`: with savings discounted so, rounding keeps the guarantee though loads cost.
DISCOUNT = 0.6321205588285577
# Step in units of z per normalised gradient, and momentum.
STEP, MOMENTUM = 0.1, 0.9
# Ascent goes in phases; the smoothing halves from phase to phase.
PHASE, SOFTEST, HARDEST = 50, 0.5, 0.01
# Weight of the newest prices in their running mean, whose bound is tighter than any one's.
PRICE_RATE = 0.05
# Normalised gradients beyond this move z from one end to the other in a step.
CLIP = 1.0 / STEP
# Halvings of the interval that holds the projection's shift.
HALVINGS = 30


class Relaxation(NamedTuple):
    """A point of the relaxation and what it proves."""

    point: Array  # [N], z: in [0, 1], at most K in sum
    value: Array  # [], discounted savings of z by the lists, less its load costs
    bound: Array  # [], no point and no set of the whole problem has a larger value
    prices: Array  # [m], saving that each context can count on; the bound is made from them


def list_width(num_adapters: int, cache_slots: int) -> int:
    """Adapters per context that the relaxation should keep.

    An even spread of `K` over `N` puts a whole adapter into the `N / K` best of every context;
    eight times that leaves what is beyond the lists without influence in practice.

    Args:
      num_adapters: `N`.
      cache_slots: `K`, in `[0, N]`.

    Returns:
      `J`, in `[1, N]`.
    """
    return min(num_adapters, max(256, -(-8 * num_adapters // max(cache_slots, 1))))


def project(point: Array, cache_slots: Array, upper: Array) -> Array:
    """The nearest point with `0 <= z <= upper` and at most `cache_slots` in sum.

    Args:
      point: `[N]`.
      cache_slots: `[]`, at least 0, in the dtype of `point`.
      upper: `[N]`, at least 0.

    Returns:
      `[N]`: all coordinates lowered by one shift, found by bisection, and clipped.
    """

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        over = jnp.sum(jnp.clip(point - middle, 0.0, upper)) > cache_slots
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    within = jnp.sum(jnp.clip(point, 0.0, upper)) <= cache_slots
    nothing = jnp.zeros((), point.dtype)
    start = nothing, jnp.maximum(jnp.max(point), 0.0)
    # The upper end, from which the sum never exceeds the slots.
    high = jax.lax.fori_loop(0, HALVINGS, halve, start)[1]
    return jnp.clip(point - jnp.where(within, nothing, high), 0.0, upper)


def concave_savings(
    lists: Rankings, weight: Array, point: Array, softness: Array
) -> tuple[Array, Array, Array]:
    """`L(z)`, a supergradient, and the saving that every context can count on.

    `min(1, S)` bends over `[1 - softness, 1 + softness]`, from below; 0 is `L` itself.

    Args:
      lists: the best adapters of every context.
      weight: `[m]`.
      point: `[N]`, `z`.
      softness: `[]`, in [0, 1].

    Returns:
      `([] value, [N] supergradient, [m] prices)`; entry `i` of the supergradient is
      `sum_x w_x max(0, saving_xi - price_x)` where softness is 0.
    """
    below = jnp.concatenate([lists.saving[1:], jnp.zeros_like(lists.saving[:1])])
    steps = lists.saving - below
    width = jnp.maximum(2.0 * softness, jnp.finfo(point.dtype).tiny)

    def forward(carry: tuple[Array, Array], rank: tuple[Array, Array]):
        mass, total = carry
        adapter, step = rank
        mass = mass + point[adapter]
        bent = jnp.clip((mass - (1.0 - softness)) / width, 0.0, 1.0)
        bent = jnp.where(softness > 0.0, bent, (mass >= 1.0).astype(mass.dtype))
        capped = jnp.minimum(mass, 1.0 - softness) + 2.0 * softness * (bent - 0.5 * bent**2)
        return (mass, total + step * capped), 1.0 - bent

    nothing = jnp.zeros_like(weight)
    (_, total), slope = jax.lax.scan(forward, (nothing, nothing), (lists.adapter, steps))

    def backward(tail: Array, rank: tuple[Array, Array]) -> tuple[Array, Array]:
        step, slope_here = rank
        tail = tail + step * slope_here
        return tail, tail

    first, slopes = jax.lax.scan(backward, nothing, (steps, slope), reverse=True)
    gradient = jnp.zeros_like(point).at[lists.adapter].add(slopes * weight[None, :])
    return jnp.dot(total, weight, precision=HIGHEST), gradient, lists.saving[0] - first


def _best_of(net: Array, cache_slots: Array) -> Array:
    """Sum of the `cache_slots` largest positive entries."""
    largest = jnp.sort(jnp.maximum(net, 0.0), descending=True)
    return jnp.sum(jnp.where(jnp.arange(net.shape[0], dtype=jnp.int32) < cache_slots, largest, 0.0))


def price_bound(problem: CacheProblem, prices: Array) -> Array:
    """Upper bound on the objective of every set and of every point of the relaxation.

    Lagrange's: whoever serves a context pays its price, and what an adapter saves beyond
    prices is its own; the `K` best adapters take all there is.

    Args:
      problem: the cache problem.
      prices: `[m]`, at least 0; any are valid, good ones come from `relax`.

    Returns:
      `[]`, in units of the objective.
    """
    net = marginal_gains(problem, prices) - problem.load_cost
    fixed = jnp.dot(prices, problem.weight, precision=HIGHEST)
    return fixed + _best_of(net, problem.cache_slots)


def _list_bound(problem: CacheProblem, lists: Rankings, prices: Array) -> Array:
    """`price_bound` of the problem cut down to the lists: cheap, and enough to stop by."""
    gains = list_gains(problem, lists, prices)
    fixed = jnp.dot(prices, problem.weight, precision=HIGHEST)
    return fixed + _best_of(gains - problem.load_cost, problem.cache_slots)


class _Ascent(NamedTuple):
    """Where the ascent is, and the best that it has seen."""

    phase: Array  # [] int32
    point: Array  # [N]
    memory: optax.OptState
    prices: Array  # [m], running mean
    best: Relaxation  # its bound is that of the lists


def _slot_worth(problem: CacheProblem, lists: Rankings, point: Array, softness: Array) -> Array:
    """`[]` what a slot is worth, so that one step rule fits every problem.

    The median of the `K` largest positive entries of the gradient: adapters that save nothing
    do not lower it, and a few that save a lot do not raise it.
    """
    gradient = jnp.sort(concave_savings(lists, problem.weight, point, softness)[1], descending=True)
    count = jnp.minimum(jnp.sum(gradient > 0.0, dtype=jnp.int32), problem.cache_slots)
    smallest = 1e-9 * gradient[0] + jnp.finfo(point.dtype).tiny
    return jnp.maximum(gradient[jnp.maximum(count - 1, 0) // 2], smallest)


def _phase(
    problem: CacheProblem, lists: Rankings, optimiser: optax.GradientTransformation, now: _Ascent
) -> _Ascent:
    """`PHASE` steps at one softness, then the gap."""
    slots = problem.cache_slots.astype(problem.weight.dtype)
    upper = jnp.isfinite(problem.load_cost).astype(problem.weight.dtype)
    cost = jnp.where(upper > 0.0, problem.load_cost, 0.0)
    softness = jnp.maximum(SOFTEST * 0.5 ** now.phase.astype(slots.dtype), HARDEST)
    unit = _slot_worth(problem, lists, now.point, softness)

    def step(number: Array, carry: tuple[Array, optax.OptState, Array]):
        point, memory, prices = carry
        _, gradient, here = concave_savings(lists, problem.weight, point, softness)
        change, memory = optimiser.update((cost - gradient) / unit, memory)
        taken = (now.phase * PHASE + number.astype(jnp.int32) + 1).astype(slots.dtype)
        rate = jnp.maximum(PRICE_RATE, 1.0 / taken)
        return (
            project(point + jnp.asarray(change), slots, upper),
            memory,
            prices + rate * (here - prices),
        )

    start = now.point, now.memory, now.prices
    point, memory, prices = jax.lax.fori_loop(0, PHASE, step, start)
    value, _, _ = concave_savings(lists, problem.weight, point, jnp.zeros_like(slots))
    value = value - jnp.dot(point, cost, precision=HIGHEST)
    bound = _list_bound(problem, lists, prices)
    higher, tighter = value > now.best.value, bound < now.best.bound
    best = Relaxation(
        point=jnp.where(higher, point, now.best.point),
        value=jnp.where(higher, value, now.best.value),
        bound=jnp.where(tighter, bound, now.best.bound),
        prices=jnp.where(tighter, prices, now.best.prices),
    )
    return _Ascent(now.phase + 1, point, memory, prices, best)


def _relax(problem: CacheProblem, lists: Rankings, phases: int, gap: float) -> Relaxation:
    upper = jnp.isfinite(problem.load_cost).astype(problem.weight.dtype)
    slots = problem.cache_slots.astype(upper.dtype)
    optimiser = optax.chain(optax.clip(CLIP), optax.sgd(STEP, momentum=MOMENTUM, nesterov=True))
    point = upper * jnp.minimum(slots / jnp.maximum(jnp.sum(upper), 1.0), 1.0)
    prices = jnp.zeros_like(problem.weight)
    infinite = jnp.full((), jnp.inf, upper.dtype)
    first = Relaxation(jnp.zeros_like(point), jnp.zeros_like(slots), infinite, prices)
    start = _Ascent(jnp.zeros((), jnp.int32), point, optimiser.init(point), prices, first)

    def going(now: _Ascent) -> Array:
        wide = now.best.bound - now.best.value > gap * jnp.abs(now.best.value)
        return (now.phase < phases) & wide

    best = jax.lax.while_loop(
        going, functools.partial(_phase, problem, lists, optimiser), start
    ).best
    return best._replace(bound=price_bound(problem, best.prices))


def relax(
    problem: CacheProblem,
    *,
    width: int,
    discount: float = 1.0,
    phases: int = 8,
    gap: float = 1e-3,
) -> Relaxation:
    """Maximises `discount L(z) - sum_i load_i z_i` over `z in [0, 1]^N, sum z <= K`.

    With `discount` 1 the bound holds for every set: it certifies any search's result.

    Args:
      problem: the cache problem.
      width: `J`, adapters that are kept per context, static, in `[1, N]`; with `N` nothing is
        cut off. What a context would save by adapters beyond counts as nothing in the value,
        but not in the bound.
      discount: factor of the savings, in (0, 1].
      phases: most phases of 50 steps, static.
      gap: relative gap between bound and value (by the lists) at which the ascent ends.

    Returns:
      The best point seen and the best bound.

    Raises:
      ValueError: for a width or a discount outside its range.
    """
    checks.finite_at_least("discount", discount, 0.0, above=True)
    checks.between("discount", discount, 0.0, 1.0)
    scaled = problem.replace(weight=discount * problem.weight)
    return _relax(scaled, rankings(scaled, width=width), phases, gap)


def round_dependently(key: Array, point: Array, cache_slots: Array) -> Array:
    """A random set whose members have the probabilities `point`, and a fixed size.

    Srinivasan's dependent rounding (2001), a randomised pipage: two fractional coordinates
    trade until one is integral, which keeps every mean and the sum. Savings are convex along such
    trades, so the mean saving is at least that of independent draws, `(1 - 1/e) L(z)`.

    Args:
      key: consumed.
      point: `[N]` probabilities.
      cache_slots: `[]`, most members; their sum is at most this, up to rounding.

    Returns:
      `[N]` bool set of `floor(sum)` or `ceil(sum)` members.
    """
    fractional = (point > 0.0) & (point < 1.0)
    order = jnp.argsort(~fractional, stable=True).astype(jnp.int32)
    count = jnp.sum(fractional, dtype=jnp.int32)
    uniform = jax.random.uniform(key, (point.shape[0] + 1,), jnp.float32).astype(point.dtype)
    smallest = jnp.finfo(point.dtype).tiny

    def trade(k: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        members, holder, held = carry
        other = order[k]
        both = held + point[other]
        low = both <= 1.0
        # Either the pair's whole sum goes to one of them, or one of them is filled up.
        chance = jnp.where(
            low,
            held / jnp.maximum(both, smallest),
            (1.0 - point[other]) / jnp.maximum(2.0 - both, smallest),
        )
        first = uniform[k] < chance
        settled = jnp.where(first != low, holder, other)
        members = members.at[settled].set(~low)
        return members, jnp.where(first == low, holder, other), jnp.where(low, both, both - 1.0)

    start = point >= 1.0, order[0], jnp.where(count > 0, point[order[0]], 0.0)
    members, holder, held = jax.lax.fori_loop(jnp.int32(1), count, trade, start)
    # Rounding errors of the sum must not make a member too many.
    room = jnp.sum(members, dtype=jnp.int32) < cache_slots
    last = (uniform[-1] < held) & room & (count > 0)
    return members.at[holder].set(members[holder] | last)


def _tidy(problem: CacheProblem, members: Array) -> Array:
    """Loads that no context uses make room for present members."""
    num_adapters = members.shape[0]
    inside = jnp.where(members[None, :], problem.saving, 0.0)
    used = (jnp.max(inside, axis=1) > 0.0) & (problem.weight > 0.0)
    leader = jnp.where(used, jnp.argmax(inside, axis=1), num_adapters)
    leads = jnp.zeros((num_adapters + 1,), bool).at[leader].set(True)[:num_adapters]
    members = members & (leads | problem.resident)
    waiting = problem.resident & ~members
    free = problem.cache_slots - jnp.sum(members, dtype=jnp.int32)
    return members | (waiting & (jnp.cumsum(waiting, dtype=jnp.int32) <= free))


def relaxed(
    key: Array,
    problem: CacheProblem,
    *,
    width: int,
    pool: int = 512,
    samples: int = 8,
    swaps: int = 256,
    phases: int = 4,
    gap: float = 1e-3,
) -> Array:
    """The concave relaxation, rounded, then improved by swaps.

    With `width` `N`, `E[G] >= (1 - 1/e) savings(best) - loads(best) - eps`, `eps` the
    ascent's gap; never worse than the present set. Where loads cost something both the
    discounted problem, which has the guarantee, and the plain one are rounded.

    Args:
      key: consumed by the rounding.
      problem: the cache problem.
      width: `J`, adapters per context, static, in `[1, N]`; see `list_width`.
      pool: most adapters that swaps may bring in at a time, static, at least 1.
      samples: roundings, of which the best is taken, static, at least 1.
      swaps: most swaps, static.
      phases: most phases of 50 steps of the ascent, static.
      gap: relative gap at which the ascent ends.

    Returns:
      `[N]` bool set; the present set where nothing better was found.

    Raises:
      ValueError: for a width, a pool or a number of samples outside its range, and for adapters
        that differ in size.
    """
    if problem.room is not None:
        raise ValueError("relaxed must have slots, got adapters that differ in size; use greedy.")
    checks.at_least("pool", pool, 1)
    checks.at_least("samples", samples, 1)
    lists = rankings(problem, width=width)
    plain = _relax(problem, lists, phases, gap)

    def discounted() -> Array:
        scaled = problem.replace(weight=DISCOUNT * problem.weight)
        return _relax(scaled, lists, phases, gap).point

    dear = jnp.any(jnp.isfinite(problem.load_cost) & (problem.load_cost > 0.0))
    points = jnp.stack([plain.point, jax.lax.cond(dear, discounted, lambda: plain.point)])
    keys = jax.random.split(key, (2, samples))
    rounds = jax.vmap(jax.vmap(round_dependently, (0, None, None)), (0, 0, None))
    sets = rounds(keys, points, problem.cache_slots).reshape(2 * samples, -1)
    # Rounding has the guarantee; filling up the integral part greedily is mostly better.
    filled = fill(problem, lists, plain.point >= 1.0, plain.point > 0.0)
    sets = jnp.concatenate([filled[None, :], sets])
    values = jax.lax.map(lambda one: led(problem, lists, one).value, sets)
    best = sets[jnp.argmax(values)]
    found = _tidy(problem, climb(problem, lists, best, pool=pool, limit=swaps))
    better = objective(problem, found) > objective(problem, problem.resident)
    return jnp.where(better, found, problem.resident)
