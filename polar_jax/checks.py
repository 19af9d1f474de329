"""Checks of users' arguments on the host: what was received, and what is allowed."""

import difflib
import math
from collections.abc import Iterable, Sequence

# Below this, float32 statistics overflow: their inverses start at 1 / ridge.
MIN_RIDGE = 1e-6
# Contexts that a replan may be made on: memory, and what it would take.
MAX_WINDOW = 65_536
# Bytes up to here are exact in float64, which files and options go through.
MAX_BYTES = 2**53
# Synthetic costs are divided by the price to give milliseconds.
MIN_PRICE = 1e-9


def one_of(label: str, value: str, allowed: Iterable[str]) -> str:
    """Returns `value`, or raises `ValueError` with the allowed ones and the nearest.

    Args:
      label: what the value is called.
      value: the value received.
      allowed: the values accepted.

    Returns:
      `value`.

    Raises:
      ValueError: if it is not allowed.
    """
    names = list(allowed)
    if value not in names:
        close = difflib.get_close_matches(value, names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"{label} must be one of {', '.join(names)}; got {value!r}{hint}.")
    return value


def at_least(label: str, value: int, least: int) -> int:
    """Returns the integer `value`, or raises `ValueError` if it is below `least`."""
    return int(between(label, value, least, 2**31 - 1, whole=True))


def between(label: str, value: float, least: float, most: float, *, whole: bool = False) -> float:
    """Returns `value` in `[least, most]`, or raises `ValueError` with both.

    Args:
      label: what the value is called.
      value: the value received.
      least: smallest allowed value.
      most: largest allowed value.
      whole: whether only whole numbers are allowed.

    Returns:
      `value`.

    Raises:
      ValueError: if it is outside, not a number, or not whole where it has to be.
    """
    number = float(value)
    kind = "a whole number" if whole else "a number"
    if not least <= number <= most or (whole and number != int(number)):
        raise ValueError(f"{label} must be {kind} in [{least:g}, {most:g}], got {value}.")
    return value


def finite_at_least(label: str, value: float, least: float, *, above: bool = False) -> float:
    """Returns the finite `value`, or raises `ValueError` if it is below `least`.

    With `above`, `least` itself is refused too.
    """
    relation = "above" if above else "at least"
    if not math.isfinite(value) or value < least or (above and value == least):
        raise ValueError(f"{label} must be a finite number {relation} {least:g}, got {value}.")
    return value


def distinct(label: str, values: Sequence[str]) -> None:
    """Raises `ValueError` if a value occurs twice."""
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{label} must not repeat, got {', '.join(twice)} more than once.")
