"""The loop of the numba baseline; importing it needs numba."""

import importlib
from typing import Any

import numpy as np

# By name, as type checkers complain of a package that need not be there.
numba: Any = importlib.import_module("numba")


@numba.njit(parallel=True, fastmath=True)
def serve(
    inverse: np.ndarray,
    theta: np.ndarray,
    context: np.ndarray,
    utility: np.ndarray,
    noise: np.ndarray,
    alpha: np.float32,
    first: int,
    chosen: np.ndarray,
) -> None:
    """Serves rounds of all lanes in place, a lane at a time on each core.

    Args:
      inverse: `[L, N, d, d]` float32, updated.
      theta: `[L, N, d]` float32, updated.
      context: `[L, n, d]` float32.
      utility: `[L, n, N]` float32.
      noise: `[L, n]` float32.
      alpha: confidence factor.
      first: round of the stream to begin with.
      chosen: `[L, rounds]` int64, filled.
    """
    lanes, adapters, dim = theta.shape
    for lane in numba.prange(lanes):
        v = np.empty(dim, np.float32)
        for t in range(chosen.shape[1]):
            at = (first + t) % context.shape[1]
            x = context[lane, at]
            best, a = np.float32(-np.inf), 0
            for i in range(adapters):
                squared, mean = np.float32(0.0), np.float32(0.0)
                for j in range(dim):
                    product = np.float32(0.0)
                    for k in range(dim):
                        product += inverse[lane, i, j, k] * x[k]
                    squared += product * x[j]
                    mean += theta[lane, i, j] * x[j]
                score = mean + alpha * np.sqrt(squared)
                if score > best:
                    best, a = score, i
            growth, mean = np.float32(1.0), np.float32(0.0)
            for j in range(dim):
                product = np.float32(0.0)
                for k in range(dim):
                    product += inverse[lane, a, j, k] * x[k]
                v[j] = product
                growth += product * x[j]
                mean += theta[lane, a, j] * x[j]
            surprise = (utility[lane, at, a] + noise[lane, at] - mean) / growth
            for j in range(dim):
                scaled = v[j] / growth
                for k in range(dim):
                    inverse[lane, a, j, k] -= scaled * v[k]
                theta[lane, a, j] += surprise * v[j]
            chosen[lane, t] = a
