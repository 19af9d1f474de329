"""Where the concave relaxation beats greedy and local search, in value or in time.

Usage, from the repository's root::

    python sweeps/cache_search_crossover.py           # the table of docs/cache_search.md
    python sweeps/cache_search_crossover.py --small   # a quick look at small sizes

Prints a Markdown table: per instance the objective as a multiple of `greedy`'s, and median
seconds of processor time (of all threads: what else runs on the machine distorts it least),
measured in turns, compilation left out. "-" is too long to measure. Lazy greedy (Minoux 1978,
NumPy and a heap) is there because it is the other way to make greedy fast; it finds
greedy's set up to ties.
"""

import argparse
import functools
import heapq
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from polar_jax import cache_search, cache_value, relaxed_search
from polar_jax.cache_value import CacheProblem

ROUNDS, COST = 1_000.0, 0.3
# local_search looks at all pairs of adapters at every swap; greedy at all of [m, N] per slot.
LOCAL_SEARCH_ADAPTERS, GREEDY_WORK = 1_024, 4e10


class Case(NamedTuple):
    """An instance: its kind, its sizes, and what a load costs, in utility of a request."""

    kind: str
    num_adapters: int
    cache_slots: int
    num_contexts: int
    switch_cost: float = 0.0


SMALL = (
    Case("random", 64, 8, 64),
    Case("clustered", 96, 8, 64, 0.5),
    Case("poor", 64, 6, 42),
)
CASES = (
    Case("random", 256, 16, 512),
    Case("sphere", 256, 16, 512),
    Case("clustered", 256, 16, 512),
    Case("clustered", 256, 16, 512, 2.0),
    Case("poor", 512, 22, 506),
    Case("clustered", 1_024, 64, 512),
    Case("random", 4_096, 256, 1_024),
    Case("sphere", 4_096, 16, 1_024),
    Case("sphere", 4_096, 256, 1_024),
    Case("clustered", 4_096, 256, 1_024),
    Case("clustered", 4_096, 256, 1_024, 0.2),
    Case("sphere", 16_384, 256, 512),
    Case("clustered", 16_384, 256, 1_024),
    Case("clustered", 16_384, 2_048, 1_024),
    Case("clustered", 65_536, 256, 512),
    Case("sphere", 65_536, 2_048, 1_024),
    Case("clustered", 65_536, 8_192, 1_024),
)


def unit_vectors(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """`[rows, dim]` random points of the unit sphere."""
    return normalised(rng.standard_normal((rows, dim), np.float32))


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(rng: np.random.Generator, case: Case) -> np.ndarray:
    """`[m, N]` utilities like those of the engine's clustered streams, 16 adapters a cluster."""
    groups = max(6, case.num_adapters // 16)
    centres = unit_vectors(rng, groups, 16)
    scatter = rng.standard_normal((case.num_adapters, 16), np.float32)
    theta = normalised(centres[np.arange(case.num_adapters) % groups] + 0.15 * scatter)
    popularity = np.arange(1.0, groups + 1.0) ** -0.8
    drawn = rng.choice(groups, case.num_contexts, p=popularity / popularity.sum())
    noise = rng.standard_normal((case.num_contexts, 16), np.float32)
    return normalised(centres[drawn] + 0.25 * noise) @ theta.T


def poor(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Weighted coverage on which greedy gets `1 - (1 - 1/K)^K` of the optimum.

    Contexts are cells `(i, j)`, `i < K`, `j <= K`. Adapter `K + i` covers row `i`, and those `K`
    cover everything; adapter `j < K` covers a column that weighs exactly as much as any row's
    uncovered rest when its turn comes, and ties go to the lower index.
    """
    slots = case.cache_slots
    rest = (1.0 - 1.0 / slots) ** np.arange(slots + 1)
    column = np.append(rest[:-1] / slots, rest[-1])
    utility = np.zeros((slots, slots + 1, case.num_adapters), np.float32)
    for j in range(slots):
        # A little more than the rows' rest, so that rounding does not break the tie.
        utility[:, j, j] = 1.0
        utility[j, :, slots + j] = 1.0 - 1e-4
    weight = np.repeat(column[None, :] / slots, slots, axis=0)
    return utility.reshape(-1, case.num_adapters), weight.reshape(-1)


def problem_of(case: Case, seed: int) -> CacheProblem:
    """The cache problem of a case; the set now is the first `K` adapters."""
    rng = np.random.default_rng(seed)
    weight = np.ones(case.num_contexts)
    if case.kind == "random":
        utility = rng.random((case.num_contexts, case.num_adapters), np.float32)
    elif case.kind == "sphere":
        theta = unit_vectors(rng, case.num_adapters, 8)
        utility = unit_vectors(rng, case.num_contexts, 8) @ theta.T
    elif case.kind == "clustered":
        utility = clustered(rng, case)
    else:
        utility, weight = poor(case)
    # At 1 the weighted coverage is saved exactly: what nobody covers is worth 0 either way.
    cost = 1.0 if case.kind == "poor" else COST
    start = np.arange(case.num_adapters) < (0 if case.kind == "poor" else case.cache_slots)
    return jax.jit(cache_value.cache_problem)(
        utility,
        jnp.full(case.num_adapters, cost, jnp.float32),
        jnp.full(case.num_adapters, case.switch_cost, jnp.float32),
        start,
        jnp.int32(case.cache_slots),
        weight=jnp.asarray(weight, jnp.float32),
        rounds=jnp.float32(ROUNDS),
    )


def lazy_greedy(problem: CacheProblem) -> np.ndarray:
    """Greedy that looks again only at adapters whose old gain may still be the largest."""
    saving = np.ascontiguousarray(np.asarray(problem.saving).T)
    weight, load = np.asarray(problem.weight), np.asarray(problem.load_cost)
    resident = np.asarray(problem.resident)
    heap = [(-gain, i) for i, gain in enumerate((saving @ weight - load).tolist())]
    heapq.heapify(heap)
    members, cover = np.zeros(len(load), bool), np.zeros_like(weight)
    while heap and members.sum() < int(problem.cache_slots):
        i = heapq.heappop(heap)[1]
        gain = float(np.maximum(saving[i] - cover, 0.0) @ weight - load[i])
        if heap and (-gain, i) > heap[0]:
            heapq.heappush(heap, (-gain, i))
        elif gain > 0.0 or resident[i]:
            members[i] = True
            np.maximum(cover, saving[i], out=cover)
    return members


def searches(case: Case) -> dict[str, Callable[[CacheProblem], object]]:
    """The searches that a case is given to."""
    width = relaxed_search.list_width(case.num_adapters, case.cache_slots)
    key = jax.random.key(0)
    found: dict[str, Callable[[CacheProblem], object]] = {"lazy greedy": lazy_greedy}
    if case.num_adapters * case.num_contexts * case.cache_slots <= GREEDY_WORK:
        found["greedy"] = jax.jit(cache_search.greedy)
    if case.num_adapters <= LOCAL_SEARCH_ADAPTERS:
        found["local search"] = jax.jit(cache_search.local_search)
    found["relaxed"] = jax.jit(functools.partial(relaxed_search.relaxed, key, width=width))
    return found


def measured(case: Case, repeats: int) -> dict[str, tuple[float, float]]:
    """Objective and median processor seconds of every search, and the certified bound."""
    problem = problem_of(case, seed=0)
    rules = searches(case)
    values, seconds = {}, {name: [] for name in rules}
    objective = jax.jit(cache_value.objective)
    for name, rule in rules.items():
        members = jax.block_until_ready(rule(problem))
        values[name] = float(objective(problem, jnp.asarray(members)))
    for _ in range(repeats):
        for name, rule in rules.items():
            begun = time.process_time()
            jax.block_until_ready(rule(problem))
            seconds[name].append(time.process_time() - begun)
    width = relaxed_search.list_width(case.num_adapters, case.cache_slots)
    relaxation = jax.jit(functools.partial(relaxed_search.relax, width=width))(problem)
    found = {name: (values[name], float(np.median(seconds[name]))) for name in rules}
    return found | {"bound": (float(relaxation.bound), float("nan"))}


def row(case: Case, found: dict[str, tuple[float, float]]) -> str:
    """One line of the table: multiples of greedy's objective, then seconds."""
    names = ("greedy", "lazy greedy", "local search", "relaxed")
    greedy = found.get("greedy", found["lazy greedy"])[0]
    shown = [f"{found[n][0] / greedy:.4f}" if n in found else "-" for n in (*names[2:], "bound")]
    times = [f"{found[n][1]:.3g}" if n in found else "-" for n in names]
    sizes = [f"{n:,}" for n in case[1:4]]
    return "| " + " | ".join([case.kind, *sizes, f"{case.switch_cost:g}", *shown, *times]) + " |"


def main() -> int:
    """Prints the table; 1 where `relaxed` is more than 1 % below greedy anywhere."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="three small instances")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each search")
    parser.add_argument("--kinds", nargs="*", help="only instances of these kinds")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}.")
    heads = ("kind", "N", "K", "m", "s", "local search", "relaxed", "bound")
    heads += ("greedy, s", "lazy greedy, s", "local search, s", "relaxed, s")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    worst = 1.0
    for case in SMALL if options.small else CASES:
        if options.kinds and case.kind not in options.kinds:
            continue
        found = measured(case, options.repeats)
        worst = min(worst, found["relaxed"][0] / found["lazy greedy"][0])
        print(row(case, found), flush=True)
    return int(worst < 0.99)


if __name__ == "__main__":
    sys.exit(main())
