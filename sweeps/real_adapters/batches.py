"""Prompts in batches of few lengths: short ones do not pay for long ones, and little compiles."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sweeps.real_adapters.base_model import MAX_TOKENS

# A batch is padded to the least of these that holds it; each is one compiled program. Half of
# CLINC150's prompts have at most 11 tokens.
LENGTHS = (8, 12, 16, 24, MAX_TOKENS)


class Batch(NamedTuple):
    """`B` rows of which the first are prompts and the others only fill up."""

    ids: np.ndarray  # [B, S] int32
    mask: np.ndarray  # [B, S] bool; a row that fills up has one token, as a mean needs one
    row: np.ndarray  # [n], n <= B: which prompts the first rows are


def for_training(
    tokens: Sequence[Sequence[int]], pool: np.ndarray, *, size: int, steps: int, seed: int
) -> Iterator[Batch]:
    """`steps` batches from `pool`, in passes over it, each pass and its batches shuffled.

    Args:
      tokens: of all prompts.
      pool: `[P]` numbers of the prompts to learn from.
      size: `B`.
      steps: how many batches.
      seed: of the order, a function of which this is.

    Yields:
      Batches of prompts of similar length; one that a length leaves incomplete is filled up.
    """
    random = np.random.default_rng(seed)
    made = 0
    while made < steps:
        shuffled = random.permutation(pool)
        lengths = np.array([_padded(tokens[row]) for row in shuffled])
        batches = [
            rows[start : start + size]
            for length in LENGTHS
            for rows in (shuffled[lengths == length],)
            for start in range(0, rows.size, size)
        ]
        for number in random.permutation(len(batches))[: steps - made]:
            yield _batch(tokens, batches[number], size)
            made += 1


def in_turn(tokens: Sequence[Sequence[int]], size: int) -> Iterator[Batch]:
    """Every prompt once, by length."""
    order = np.argsort([len(one) for one in tokens], kind="stable")
    for start in range(0, order.size, size):
        yield _batch(tokens, order[start : start + size], size)


def _padded(tokens: Sequence[int]) -> int:
    return next(length for length in LENGTHS if length >= len(tokens))


def _batch(tokens: Sequence[Sequence[int]], rows: np.ndarray, size: int) -> Batch:
    length = max(_padded(tokens[row]) for row in rows)
    ids = np.zeros((size, length), np.int32)
    mask = np.zeros((size, length), bool)
    mask[:, 0] = True
    for place, row in enumerate(rows):
        ids[place, : len(tokens[row])] = tokens[row]
        mask[place, : len(tokens[row])] = True
    return Batch(ids, mask, rows)
