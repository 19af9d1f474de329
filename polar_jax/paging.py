"""Measured paging latencies as arrays: tables, costs and draws. Reads no files.

`N` is the number of adapters, `S` the largest number of measurements of one adapter.
Latencies are milliseconds; a table's rows are in the order of the adapters it names.
"""

import dataclasses
import math
import operator
import reprlib
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from polar_jax import checks

# Far above any load time (eleven days), far below where float32 overflows: a larger
# value is a unit mistake or a corrupt file.
MAX_MS = 1e9
MAX_BYTES = checks.MAX_BYTES

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


@dataclasses.dataclass(frozen=True, eq=False)
class PagingTable:
    """What it costs to page each of `N` adapters in; build it with `make_table`.

    Arrays are read-only. `samples_ms` and `sample_count` are both given or both None;
    row `i` of `samples_ms` holds `sample_count[i]` measurements, then zeros.
    """

    adapters: tuple[str, ...]  # N distinct names
    mean_ms: np.ndarray  # [N] float64, mean latency of one page-in, >= 0
    samples_ms: np.ndarray | None  # [N, S] float32, measured latencies, zero-padded
    sample_count: np.ndarray | None  # [N] int32, measurements of each adapter, >= 1
    size_bytes: np.ndarray | None  # [N] int64, size of each adapter, >= 1
    tier: str  # where adapters are paged in from, for reports


def show(value: object) -> str:
    """Returns `repr(value)`, shortened so that an error message stays one line."""
    return _SHORT.repr(value)


def check_ms(value: float, what: str) -> float:
    """Returns `value` if it is a latency that a table may hold.

    Args:
      value: milliseconds.
      what: how an error message names the value.

    Raises:
      ValueError: if `value` is NaN, infinite, negative or above `MAX_MS`.
    """
    if not 0.0 <= value <= MAX_MS:  # False for NaN too.
        raise ValueError(f"{what} must be a number of ms in [0, {MAX_MS:g}], got {value:g}.")
    return value


def check_name(name: object, what: str) -> str:
    """Returns `name` without surrounding space if it can name an adapter.

    Args:
      name: the candidate.
      what: how an error message names it.

    Raises:
      ValueError: if `name` is not text, is empty, or has unprintable characters.
    """
    # Control characters and lone surrogates would break tables, files and terminals later.
    if not isinstance(name, str) or not name.strip() or not name.strip().isprintable():
        raise ValueError(f"{what} must be printable, non-empty text, got {show(name)}.")
    return name.strip()


def make_table(
    adapters: Sequence[str],
    *,
    mean_ms: ArrayLike | None = None,
    samples_ms: Sequence[ArrayLike] | None = None,
    size_bytes: ArrayLike | None = None,
    tier: str = "unspecified",
) -> PagingTable:
    """Validates measurements and packs them into a `PagingTable`.

    Args:
      adapters: `N >= 1` distinct names; surrounding space is dropped.
      mean_ms: `[N]` mean latencies in `[0, MAX_MS]`. Leave out where `samples_ms` is given.
      samples_ms: `N` sequences, one per adapter, of at least one measured latency each;
        their means become `mean_ms`, so that draws average to the cost that is charged.
      size_bytes: `[N]` whole numbers in `[1, MAX_BYTES]`, or None where unknown.
      tier: where adapters are paged in from.

    Raises:
      ValueError: for a value out of range, a duplicate or unusable name, lengths that do
        not match, or anything but exactly one of `mean_ms` and `samples_ms`.
    """
    names = _checked_names(adapters)
    if (mean_ms is None) == (samples_ms is None):
        given = "neither" if mean_ms is None else "both"
        raise ValueError(f"give exactly one of mean_ms and samples_ms, got {given}.")
    padded = count = None
    if samples_ms is None:
        means = _checked_ms(mean_ms, "mean_ms", names)
        _check_length("mean_ms", means.shape, names)
    else:
        _check_length("samples_ms", (len(samples_ms),), names)
        rows = [
            _checked_ms(row, f"samples_ms of adapter {show(name)}")
            for name, row in zip(names, samples_ms, strict=True)
        ]
        means = np.array([row.mean() for row in rows])
        padded, count = _pad(rows)
    sizes = None if size_bytes is None else _checked_sizes(size_bytes, names)
    for array in (means, padded, count, sizes):
        if array is not None:
            array.setflags(write=False)
    return PagingTable(names, means, padded, count, sizes, str(tier))


def take(table: PagingTable, num_adapters: int) -> PagingTable:
    """Returns the table of the first `num_adapters` adapters.

    Args:
      table: a table of `N` adapters.
      num_adapters: how many to keep, in `[1, N]`.

    Raises:
      ValueError: if `num_adapters` is no whole number in `[1, N]`.
    """
    held = len(table.adapters)
    keep = whole_number(num_adapters, "num_adapters")
    if not 1 <= keep <= held:
        raise ValueError(
            f"num_adapters must be in [1, {held}] as the paging table holds {held} adapters, "
            f"got {keep}."
        )
    samples, count = table.samples_ms, table.sample_count
    if samples is not None and count is not None:
        count = count[:keep]
        samples = samples[:keep, : int(count.max())]
    return dataclasses.replace(
        table,
        adapters=table.adapters[:keep],
        mean_ms=table.mean_ms[:keep],
        samples_ms=samples,
        sample_count=count,
        size_bytes=None if table.size_bytes is None else table.size_bytes[:keep],
    )


def paging_cost(table: PagingTable, price_per_ms: float) -> np.ndarray:
    """Prices the mean latencies: `[N]` float64, units of utility per page-in.

    Args:
      table: a table of `N` adapters.
      price_per_ms: utility lost per millisecond, finite and `>= 0`.

    Raises:
      ValueError: if the price is NaN, infinite or negative, or so large that a cost is
        not finite.
    """
    price = float(price_per_ms)
    if not (math.isfinite(price) and price >= 0.0):
        raise ValueError(f"price_per_ms must be finite and >= 0, got {price:g}.")
    worst = float(table.mean_ms.max())
    if not math.isfinite(price * worst):
        raise ValueError(
            f"price_per_ms must keep costs finite at {worst:g} ms per page-in, got {price:g}."
        )
    return price * table.mean_ms


def draw_arrays(table: PagingTable) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `draw_ms` needs: `([N, S] float32 samples, [N] int32 counts)`.

    An adapter without samples has its mean as the only one, so that one compiled program
    serves both kinds of table.
    """
    if table.samples_ms is not None and table.sample_count is not None:
        return table.samples_ms, table.sample_count
    return table.mean_ms.astype(np.float32)[:, None], np.ones(len(table.adapters), np.int32)


def draw_ms(samples_ms: Array, sample_count: Array, adapter: Array, uniform: Array) -> Array:
    """Draws the latency of one page-in from the adapter's own measurements.

    Pure and unbatched; every measurement of the adapter is equally likely.

    Args:
      samples_ms: `[N, S]` measured latencies, padded after `sample_count[i]` of them.
      sample_count: `[N]` int32 in `[1, S]`.
      adapter: `[]` int32 in `[0, N)`.
      uniform: `[]` float32 in `[0, 1)`, consumed here.

    Returns:
      `[]` milliseconds, dtype of `samples_ms`.
    """
    chex.assert_rank([samples_ms, sample_count, adapter, uniform], [2, 1, 0, 0])
    count = jnp.asarray(sample_count)[adapter]
    index = jnp.floor(uniform * count.astype(uniform.dtype)).astype(jnp.int32)
    # A float32 below 1 stays below `count`; one that was rounded from a wider type may be 1.
    index = jnp.minimum(index, count - 1)
    return jnp.asarray(samples_ms)[adapter, index]


def whole_number(value: Any, what: str) -> int:
    """Returns `value` as an int if it is a whole number (booleans are not).

    Args:
      value: the candidate, a Python or NumPy integer.
      what: how an error message names it.

    Raises:
      ValueError: if it is anything else.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{what} must be a whole number, got {show(value)}.") from None


def _checked_names(adapters: Sequence[str]) -> tuple[str, ...]:
    if isinstance(adapters, str) or not len(adapters):
        raise ValueError(f"adapters must be one or more names, got {show(adapters)}.")
    names: dict[str, int] = {}
    for row, adapter in enumerate(adapters):
        name = check_name(adapter, f"adapters[{row}]")
        if name in names:
            raise ValueError(
                f"adapters must be distinct, got {show(name)} at {names[name]} and {row}."
            )
        names[name] = row
    return tuple(names)


def _checked_ms(values: ArrayLike | None, what: str, names: tuple[str, ...] = ()) -> np.ndarray:
    """Copies latencies to a `[m >= 1]` float64 array; `names` label entries in messages."""
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{what} must be numbers of ms, got {show(values)}.") from None
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"{what} must be a list of one or more numbers, got {show(values)}, "
            f"shape {array.shape}."
        )
    wrong = np.flatnonzero(~((array >= 0.0) & (array <= MAX_MS)))
    if wrong.size:
        first = int(wrong[0])
        label = f" (adapter {show(names[first])})" if first < len(names) else ""
        check_ms(float(array[first]), f"{what}[{first}]{label}")
    return array


def _checked_sizes(size_bytes: ArrayLike, names: tuple[str, ...]) -> np.ndarray:
    sizes = np.array(size_bytes)
    _check_length("size_bytes", sizes.shape, names)
    if sizes.dtype.kind not in "iu":
        raise ValueError(f"size_bytes must be whole numbers, got {show(size_bytes)}.")
    wrong = np.flatnonzero((sizes < 1) | (sizes > MAX_BYTES))
    if wrong.size:
        first = int(wrong[0])
        raise ValueError(
            f"size_bytes[{first}] (adapter {show(names[first])}) must be in [1, {MAX_BYTES}], "
            f"got {sizes[first]}."
        )
    return sizes.astype(np.int64)


def _check_length(what: str, shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    if shape != (len(names),):
        raise ValueError(
            f"{what} must have one entry for each of {len(names)} adapters, got shape {shape}."
        )


def _pad(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Packs ragged rows into `([N, S] float32, [N] int32 lengths)`."""
    count = np.array([row.size for row in rows], np.int32)
    padded = np.zeros((len(rows), int(count.max())), np.float32)
    for target, row in zip(padded, rows, strict=True):
        target[: row.size] = row
    return padded, count


def draw_synthetic_cost(key: Array, mean: Array, *, num_adapters: int) -> Array:
    """Synthetic paging costs `mean * U(0.5, 1.5)`, one draw per adapter.

    Args:
      key: of this use alone; adapter `i` draws from `fold_in(key, i)`, so that more
        adapters change no earlier cost.
      mean: `[]` mean cost, units of utility, at least 0.
      num_adapters: `N`.

    Returns:
      `[N]` float32 costs, units of utility.
    """
    adapters = jnp.arange(num_adapters)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, adapters)
    uniform = jax.vmap(lambda one: jax.random.uniform(one, (), jnp.float32))(keys)
    return mean.astype(jnp.float32) * (0.5 + uniform)
