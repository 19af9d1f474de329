"""Replays: requests whose contexts and utilities were measured, in the order of real requests.

A replay is `M` requests with a context `[d]` and the measured utility of every one of `N`
adapters `[N]`; nothing linear is assumed, and the reward is the measured utility, without
noise. Takes arrays; `polar_jax.io` reads files, `replay_streams` makes streams of requests.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from polar_jax import checks

# Utilities beyond this are mistakes, or drown float32 sums.
MAX_UTILITY = 1e6
# Popularity is drawn for each, per segment and seed.
MAX_DOMAINS = 10_000
_FOLDS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """Measured requests; build it with `make_replay`. Arrays are read-only.

    Attributes:
      contexts: `[M, d]` float32, the largest norm is 1.
      utilities: `[M, N]` float32, measured utility of each adapter on each request.
      domains: `[M]` int32 in `[0, G)`, every one of which occurs.
      domain_names: `G` names.
      adapters: `N` distinct names.
      order: `[L]` int32 requests in the order they came, in `[0, M)`.
      largest_norm: what contexts were divided by.
      missing: how many utilities were missing and filled.
      digest: sha256, in hexadecimal, of contexts, utilities, domains, order and names.
    """

    contexts: np.ndarray
    utilities: np.ndarray
    domains: np.ndarray
    domain_names: tuple[str, ...]
    adapters: tuple[str, ...]
    order: np.ndarray
    largest_norm: float
    missing: int
    digest: str

    @property
    def binary(self) -> bool:
        """Whether every utility is 0 or 1: outcomes, not expectations."""
        return bool(np.isin(self.utilities, (0.0, 1.0)).all())


def make_replay(
    contexts: ArrayLike,
    utilities: ArrayLike,
    *,
    domains: Sequence[Any] | np.ndarray | None = None,
    adapters: Sequence[str] | None = None,
    order: ArrayLike | None = None,
    missing: float | str | None = None,
    copy: bool = True,
) -> Replay:
    """Checks measured requests and packs them.

    Args:
      contexts: `[M, d]` finite numbers, not all 0; they are divided by the largest norm.
      utilities: `[M, N]` numbers in `[-1e6, 1e6]`; NaN where one is missing.
      domains: `[M]` labels, numbers or text; one domain where None.
      adapters: `N` distinct names; "adapter-00", ... where None.
      order: `[L]` whole numbers in `[0, M)`, the requests as they came; `0..M-1` where None.
      missing: what a missing utility means: a number to take in its place, or "adapter-mean",
        the mean of the adapter's measured ones. None allows no missing ones.
      copy: False lets contexts and utilities be overwritten, to save memory.

    Raises:
      ValueError: for arrays of other shapes, values out of range, or missing utilities
        whose meaning is not given.
    """
    context = _numbers("contexts", contexts, copy)
    utility = _numbers("utilities", utilities, copy)
    if context.shape[0] != utility.shape[0]:
        raise ValueError(
            f"contexts and utilities must have a row per request, got {context.shape[0]} and "
            f"{utility.shape[0]} rows."
        )
    filled = _fill(utility, missing)
    norm = _normalise(context)
    codes, names = _codes(domains, context.shape[0])
    held = _names(adapters, utility.shape[1])
    sequence = _order(order, context.shape[0])
    arrays = (
        *(context.astype(np.float32, copy=False), utility.astype(np.float32, copy=False)),
        *(codes, sequence),
    )
    digest = hashlib.sha256(repr((names, held, [one.shape for one in arrays])).encode())
    for array in arrays:
        array.setflags(write=False)
        digest.update(np.ascontiguousarray(array).data)
    return Replay(
        *arrays[:3], names, held, sequence, norm, missing=filled, digest=digest.hexdigest()
    )


def _numbers(what: str, values: ArrayLike, copy: bool) -> np.ndarray:
    """A writable `[rows >= 1, columns >= 1]` array of floats."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{what} must be numbers in a table of one or more rows and columns, got "
            f"{array.dtype} of shape {array.shape}."
        )
    wide = np.float32 if array.dtype in (np.float32, np.float16) else np.float64
    return np.array(array, wide, copy=True if copy or not array.flags.writeable else None)


# What follows works in place: a reader must not need much more memory than its file.


def _fill(utility: np.ndarray, missing: float | str | None) -> int:
    """Checks utilities, fills the missing ones, and tells how many those were."""
    for worst in (np.fmax.reduce(utility, axis=None), np.fmin.reduce(utility, axis=None)):
        if abs(worst) > MAX_UTILITY:
            where = np.unravel_index(int(np.argmax(utility == worst)), utility.shape)
            raise ValueError(
                f"utilities[{where[0]}, {where[1]}] must be in [{-MAX_UTILITY:g}, "
                f"{MAX_UTILITY:g}], got {worst:g}."
            )
    if missing not in (None, "adapter-mean") and (
        isinstance(missing, str) or not abs(missing) <= MAX_UTILITY
    ):
        raise ValueError(
            f'missing must be "adapter-mean" or a number in [{-MAX_UTILITY:g}, '
            f"{MAX_UTILITY:g}], got {missing!r}."
        )
    gaps = np.isnan(utility)
    count = int(np.count_nonzero(gaps))
    if not count:
        return 0
    if missing is None:
        row, column = np.unravel_index(int(np.argmax(gaps)), gaps.shape)
        raise ValueError(
            f"utilities hold {count} missing values, the first at [{row}, {column}]; say what "
            'they mean: a number to take in their place, or "adapter-mean".'
        )
    for adapter in range(utility.shape[1]):
        column, gap = utility[:, adapter], gaps[:, adapter]
        if missing != "adapter-mean":
            column[gap] = missing
        elif gap.all():
            raise ValueError(
                f"utilities of adapter {adapter} are all missing, so that it has no mean."
            )
        else:
            column[gap] = np.mean(column, where=~gap, dtype=np.float64)
    return count


def _normalise(context: np.ndarray) -> float:
    """Divides contexts by their largest norm, and tells it."""
    extremes = float(context.max()), float(context.min())
    if not np.isfinite(extremes).all():
        row, column = np.unravel_index(int(np.argmin(np.isfinite(context))), context.shape)
        raise ValueError(f"contexts[{row}, {column}] must be finite, got {context[row, column]:g}.")
    largest = max(abs(value) for value in extremes)
    if largest == 0.0:
        raise ValueError("contexts must not all be 0, got only zeros.")
    if not 1e-15 < largest < 1e15:  # Squares of such numbers leave float32.
        context /= context.dtype.type(largest)
    else:
        largest = 1.0
    norm = float(np.sqrt(np.einsum("md,md->m", context, context).max()))
    # What was divided before stays as it is, bit by bit.
    if abs(norm - 1.0) > 1e-6:
        context /= context.dtype.type(norm)
    return norm * largest


_ROWS = 4_096  # Labels that are looked at together: sorting needs several copies.


def _codes(domains: Any, num_requests: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Domains as numbers from 0, in the order of their labels, and the labels."""
    if domains is None:
        return np.zeros(num_requests, np.int32), ("all",)
    labels = np.asarray(domains)
    if labels.shape != (num_requests,) or labels.dtype.kind not in "iubU":
        raise ValueError(
            f"domains must be {num_requests} whole numbers or texts, one per request, got "
            f"{labels.dtype} of shape {labels.shape}."
        )
    pieces = [labels[i : i + _ROWS] for i in range(0, num_requests, _ROWS)]
    names = np.unique(pieces[0])
    for piece in pieces[1:]:
        names = np.unique(np.concatenate([names, np.unique(piece)]))
    if len(names) > MAX_DOMAINS:
        raise ValueError(f"domains must be at most {MAX_DOMAINS:,}, got {len(names):,}.")
    for name in names:
        if not str(name).isprintable():
            raise ValueError(f"domains must be printable labels, got {str(name)[:60]!r}.")
    codes = np.empty(num_requests, np.int32)
    for i, piece in enumerate(pieces):
        codes[i * _ROWS : i * _ROWS + piece.size] = np.searchsorted(names, piece)
    return codes, tuple(str(name) for name in names)


def _names(adapters: Sequence[str] | None, num_adapters: int) -> tuple[str, ...]:
    if adapters is None:
        return tuple(f"adapter-{i:02d}" for i in range(num_adapters))
    names = tuple(str(name) for name in adapters)
    if len(names) != num_adapters:
        raise ValueError(
            f"adapters must be {num_adapters} names, one per column of utilities, got {len(names)}."
        )
    for name in names:
        if not name.strip() or not name.isprintable():
            raise ValueError(f"adapters must be printable, non-empty names, got {name[:60]!r}.")
    checks.distinct("adapters", names)
    return names


def _order(order: ArrayLike | None, num_requests: int) -> np.ndarray:
    if order is None:
        return np.arange(num_requests, dtype=np.int32)
    sequence = np.asarray(order)
    if sequence.ndim != 1 or not sequence.size or sequence.dtype.kind not in "iu":
        raise ValueError(
            f"order must be a list of one or more whole numbers, got {sequence.dtype} of shape "
            f"{sequence.shape}."
        )
    if sequence.min() < 0 or sequence.max() >= num_requests:
        first = int(np.argmax((sequence < 0) | (sequence >= num_requests)))
        raise ValueError(
            f"order[{first}] must be a request in [0, {num_requests}), got {sequence[first]}."
        )
    return sequence.astype(np.int32)


def cross_fitted(contexts: np.ndarray, utilities: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """What the best linear policy in hindsight expects of every adapter, cross-fitted.

    Every fifth of the requests is predicted by a ridge regression on the other four, so that
    no prediction uses the outcome that it is judged by (specification, section 2).

    Args:
      contexts: `[M, d]`.
      utilities: `[M, N]`.
      ridge: regularisation, above 0.

    Returns:
      `[M, N]` float32 predictions.
    """
    x, u = np.asarray(contexts, np.float64), np.asarray(utilities, np.float64)
    gram, moment = x.T @ x + ridge * np.eye(x.shape[1]), x.T @ u
    # Which fifth a request is in must not follow a pattern of the file.
    fold = np.random.default_rng(0).permutation(len(x)) % _FOLDS
    predicted = np.empty(u.shape)
    for number in range(_FOLDS):
        held = fold == number
        left = gram - x[held].T @ x[held], moment - x[held].T @ u[held]
        predicted[held] = x[held] @ np.linalg.solve(*left)
    return predicted.astype(np.float32)
