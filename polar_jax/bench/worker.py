"""One core's matrix products and copies, on request: `python -m polar_jax.bench.worker`.

Reads `KIND SECONDS` per line, writes the rate. Its matrix products use one thread, as the
process that starts it sets what BLAS libraries read once.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

SIDE = 1_024  # of the matrices
MEMORY_BYTES = 2**25  # of each of two buffers: with its copy, past a core's share of caches
LINE, WORD, PAGE = 64, 8, 4_096  # bytes of a cache line, of the words that are copied, of a page
# Words of a row and rows of the copies that stay in the first, second and third caches; the last
# are no longer than a core's share of the third has room for on machines of many cores.
FIRST, SECOND, THIRD = (1_024, 64), (12_288, 16), (131_072, 4)


def _product(seconds: float) -> float:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    out = np.empty_like(a)
    return 2.0 * SIDE**3 * _per_second(lambda: np.matmul(a, b, out=out), seconds)


def _copy(seconds: float) -> float:
    source, target = (np.ones(MEMORY_BYTES // WORD) for _ in range(2))
    return 2.0 * MEMORY_BYTES * _per_second(lambda: np.copyto(target, source), seconds)


def _cached_copy(row: int, rows: int, seconds: float) -> float:
    """Copies rows that overlap, each a cache line further: a long call within a small buffer."""
    source, target = (
        np.lib.stride_tricks.as_strided(one, (rows, row), (LINE, WORD))
        for one in _half_a_page_apart(row + rows * LINE // WORD)
    )
    return 2.0 * WORD * row * rows * _per_second(lambda: np.copyto(target, source), seconds)


def _half_a_page_apart(words: int) -> tuple[np.ndarray, np.ndarray]:
    """Two buffers at places of a page that are far from each other.

    A processor takes a load whose place in its page is that of a store before it for one that
    waits for the store: by chance, copies were up to 30 times slower.
    """
    pages = -(-words * WORD // PAGE)
    held = np.ones((2 * pages + 2) * PAGE // WORD)
    source = -held.ctypes.data % PAGE // WORD
    target = source + (2 * pages + 1) * PAGE // 2 // WORD
    return held[source : source + words], held[target : target + words]


def _per_second(call: Callable[[], object], seconds: float) -> float:
    call()
    calls, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        call()
        calls += 1
    return calls / taken


MEASURES: dict[str, Callable[[float], float]] = {
    "operations": _product,
    "memory": _copy,
    "first_cache": lambda seconds: _cached_copy(*FIRST, seconds),
    "second_cache": lambda seconds: _cached_copy(*SECOND, seconds),
    "third_cache": lambda seconds: _cached_copy(*THIRD, seconds),
}


def main() -> None:
    """Answers requests until the input ends."""
    for line in sys.stdin:
        kind, seconds = line.split()
        print(MEASURES[kind](float(seconds)), flush=True)


if __name__ == "__main__":
    main()
