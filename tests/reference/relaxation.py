"""The concave relaxation of the savings and the projection onto its sets (section 4)."""

import numpy as np

from .data import Floats


def concave_savings(saving: Floats, weight: Floats, point: Floats) -> float:
    """`L(z)`: each context is served by its best adapters, as far as their shares go.

    Args:
      saving: `[M, N]`, at least 0.
      weight: `[M]`.
      point: `[N]` shares in [0, 1].

    Returns:
      Sum over contexts of weight times savings.
    """
    total = 0.0
    for x in range(len(weight)):
        left = 1.0
        for i in np.argsort(-saving[x], kind="stable"):
            share = min(left, point[i])
            total += weight[x] * share * saving[x, i]
            left -= share
    return total


def supergradient(saving: Floats, weight: Floats, point: Floats) -> Floats:
    """`[N]`: what adapters save beyond the last saving that each context draws on."""
    gradient = np.zeros(saving.shape[1])
    for x in range(len(weight)):
        mass, price = 0.0, 0.0
        for i in np.argsort(-saving[x], kind="stable"):
            mass += point[i]
            if mass >= 1.0:
                price = saving[x, i]
                break
        for i in range(saving.shape[1]):
            gradient[i] += weight[x] * max(0.0, saving[x, i] - price)
    return gradient


def multilinear_savings(saving: Floats, weight: Floats, point: Floats) -> float:
    """Mean savings of a set whose members are drawn independently with `point` `[N]`."""
    total = 0.0
    for x in range(len(weight)):
        nobody_better = 1.0
        for i in np.argsort(-saving[x], kind="stable"):
            total += weight[x] * nobody_better * point[i] * saving[x, i]
            nobody_better *= 1.0 - point[i]
    return total
