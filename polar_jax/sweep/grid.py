"""Options of a sweep: their names and types, and axes as lists or ranges of values."""

import dataclasses
import difflib
import json
import math
import pathlib
import sys
import types
import typing
from collections.abc import Iterable
from typing import Any

from polar_jax import bytesizes, checks
from polar_jax import config as options
from polar_jax.config import RunConfig

# Options that results call by another name; the column's name is accepted in a spec too.
COLUMNS = {
    "adapters": "num_adapters",
    "slots": "cache_slots",
    "policies": "policy",
    "seed": "base_seed",
}
# Options younger than the first stored sweeps: left out of the hash where they have their
# default, so that those sweeps can still be gone on with.
LATER = (
    *("order", "arrivals", "missing", "benchmark", "tier"),
    *("capacity_bytes", "size_bytes", "prior"),
)
ON_COMMAND_LINE = ("out", "overwrite", "devices", "portable", "quiet")
# Values of one axis; a grid is refused at this size anyway.
MAX_VALUES = 100_000
_OPTION_OF: dict[str, str] = {column: option for option, column in COLUMNS.items()}
_NAMES = {
    "beta": options.BETAS,
    "prior": options.PRIORS,
    "policies": options.POLICIES,
    "order": options.ORDERS,
    "benchmark": options.BENCHMARKS,
}
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "a string",
    bool: "true or false",
    pathlib.Path: "a file's path in a string",
    tuple: "a policy's name in a string",
}
_RANGE_KEYS = ("from", "to", "points", "step", "scale")
_SHOWN = 60


class SpecError(ValueError):
    """A spec that cannot be used: one line with the key, what was received, what is allowed."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """An option that takes several values.

    Attributes:
      name: its column in the results, such as `cache_slots`.
      option: the field of `RunConfig`, such as `slots`.
      values: its values, in order, as written: for `paging` strings, not paths.
      zipped: which `[[zip]]` block it belongs to, counted from 0; None where it is crossed.
    """

    name: str
    option: str
    values: tuple[Any, ...]
    zipped: int | None = None


def _kinds() -> dict[str, type]:
    """The type of every option that a spec may set, None left out of unions."""
    found = {}
    for option, hint in typing.get_type_hints(RunConfig).items():
        union = isinstance(hint, types.UnionType)
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        kind = kinds[0] if union else hint
        if option not in ON_COMMAND_LINE:
            found[option] = typing.get_origin(kind) or kind
    return found


KINDS: dict[str, type] = _kinds()


def hashed(config: RunConfig) -> dict[str, Any]:
    """The options of a configuration that its spec's hash covers."""
    found = {option: getattr(config, option) for option in KINDS}
    return {
        option: value
        for option, value in found.items()
        if option not in LATER or value != getattr(RunConfig, option)
    }


def slots_unless_bytes(places: dict[str, str]) -> dict[str, Any]:
    """The default of `slots`, where neither it nor `capacity_bytes` is set.

    Args:
      places: where the spec sets each option that it sets.

    Raises:
      SpecError: if it sets both.
    """
    both = [places[option] for option in ("slots", "capacity_bytes") if option in places]
    if len(both) == 2:
        raise SpecError(f"{both[0]} and {both[1]} exclude each other; keep one.")
    return {} if both else {"slots": options.DEFAULT_SLOTS}


def column(option: str) -> str:
    """The column of the results that holds an option."""
    return COLUMNS.get(option, option)


def option_of(key: str) -> str:
    """The option that a key or a column's name stands for; the key itself where unknown."""
    return _OPTION_OF.get(key, key)


def shown(value: object) -> str:
    """A value as TOML would show it, on one line, shortened where it is long."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except ValueError:  # Python prints no whole number beyond 4,300 digits.
        text = "a number of thousands of digits"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint at the allowed word most like `word`, with a space before; "" if none is."""
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def unknown_key(where: str, key: str, allowed: Iterable[str]) -> SpecError:
    """The error for a key that `where` does not have."""
    names = list(allowed)
    hint = nearest(key, names)
    return SpecError(f"{where} has no key {shown(key)}{hint}; allowed: {', '.join(names)}.")


def known_option(where: str, key: str) -> str:
    """The option that a key of a table stands for.

    Args:
      where: the table, as `[fixed]`.
      key: an option, or the column that holds it.

    Returns:
      The field of `RunConfig`.

    Raises:
      SpecError: for a key that is no option, or one that belongs on the command line.
    """
    option = option_of(key)
    if option in ON_COMMAND_LINE:
        flag = "--" + option.replace("_", "-")
        raise SpecError(
            f"{where} must not hold {key}: it is about the machine and belongs on the command "
            f"line, as {flag}."
        )
    if option not in KINDS:
        hint = nearest(key, [*KINDS, *_OPTION_OF])
        raise SpecError(
            f"{where} has no key {shown(key)}{hint}; allowed: the options of polar-jax run, "
            f"{', '.join(KINDS)}."
        )
    return option


def typed(label: str, option: str, value: Any) -> Any:
    """A value as its option's type.

    Args:
      label: what the value is called.
      option: the field of `RunConfig`.
      value: what TOML holds.

    Returns:
      int, float, str or bool; a path stays a string.

    Raises:
      SpecError: for another type. Whole floats such as 1e3 are whole numbers; true and
        false are no numbers.
      ValueError: for a name that is not known.
    """
    if option == "capacity_bytes" and isinstance(value, str):
        return bytesizes.parse(label, value, least=0)
    kind = KINDS[option]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # The comparison refuses nan, infinities and whole numbers that no float can hold.
    finite = number and abs(value) <= sys.float_info.max
    if kind is int and finite and value == int(value):
        return int(value)
    if kind is float and finite:
        return float(value)
    if kind is bool and isinstance(value, bool):
        return value
    if kind in (str, pathlib.Path, tuple) and isinstance(value, str):
        if option in _NAMES:
            checks.one_of(label, value, _NAMES[option])
        if option == "environment" and not options.is_replay(value):
            checks.one_of(label, value, (*options.ENVIRONMENTS, options.REAL))
        return value
    raise SpecError(f"{label} must be {_WORDS[kind]}; got {shown(value)}.")


def expand(label: str, option: str, given: object) -> tuple[Any, ...]:
    """The values of an axis.

    Args:
      label: what the axis is called.
      option: the field of `RunConfig`.
      given: a list, or a range `{from, to, points | step, scale}`.

    Returns:
      One or more values of the option's type.

    Raises:
      SpecError: for anything else, an empty list, or a range that cannot be.
      ValueError: for a name that is not known.
    """
    if isinstance(given, dict):
        return _range(label, option, given)
    if not isinstance(given, list):
        raise SpecError(
            f"{label} must be a list or a range such as {{from = 1, to = 8, points = 4}}; got "
            f"{shown(given)}; a single value belongs in [fixed]."
        )
    if not 1 <= len(given) <= MAX_VALUES:
        raise SpecError(f"{label} must hold 1 to {MAX_VALUES:,} values; got {len(given):,}.")
    return tuple(typed(f"{label}[{i}]", option, value) for i, value in enumerate(given))


def _range(label: str, option: str, given: dict[str, Any]) -> tuple[Any, ...]:
    whole = KINDS[option] is int
    if KINDS[option] not in (int, float):
        raise SpecError(f"{label} must be a list, as it holds no numbers; got {shown(given)}.")
    for key in given:
        if key not in _RANGE_KEYS:
            raise unknown_key(f"the range of {label}", key, _RANGE_KEYS)
    if not {"from", "to"} <= set(given) or ("points" in given) == ("step" in given):
        raise SpecError(
            f"{label} must have from, to and one of points and step; got {', '.join(given)}."
        )
    low = typed(f"{label}.from", option, given["from"])
    high = typed(f"{label}.to", option, given["to"])
    if low > high:
        raise SpecError(f"{label}.from must be at most to = {high:g}; got {low:g}.")
    scale = given.get("scale", "linear")
    if scale not in ("linear", "log"):
        raise SpecError(f'{label}.scale must be "linear" or "log"; got {shown(scale)}.')
    if scale == "log" and (low <= 0 or "step" in given):
        wrong = f"from = {low:g}" if low <= 0 else "step"
        raise SpecError(f'{label} with scale = "log" needs from above 0, and points; got {wrong}.')
    if "points" in given:
        numbers = _by_points(label, low, high, given["points"], log=scale == "log")
    else:
        numbers = _by_step(label, low, high, given["step"])
    if whole:
        # Rounded, neighbours may meet; the order is kept.
        return tuple(dict.fromkeys(round(number) for number in numbers))
    return tuple(float(number) for number in numbers)


def _by_points(label: str, low: float, high: float, points: object, *, log: bool) -> list[float]:
    count = typed(f"{label}.points", "seeds", points)
    if not 1 <= count <= MAX_VALUES or (count == 1 and low != high):
        least = 1 if low == high else 2
        raise SpecError(f"{label}.points must be in [{least}, {MAX_VALUES:,}]; got {count}.")
    inner = (i / (count - 1) for i in range(1, count - 1))
    if log:
        # Logarithms are taken one by one: the ratio of two floats may overflow.
        ends = math.log(low), math.log(high)
        between = [math.exp(ends[0] * (1 - share) + ends[1] * share) for share in inner]
    else:
        between = [low * (1 - share) + high * share for share in inner]
    last = [high] if count > 1 else []
    return [low, *(_clean(number, low, high) for number in between), *last]


def _by_step(label: str, low: float, high: float, step: object) -> list[float]:
    size = typed(f"{label}.step", "alpha", step)
    # A hair more, so that 0 to 0.3 by 0.1 ends at 0.3.
    most = (high - low) / size + 1e-9 if size > 0 else math.inf
    if not most < MAX_VALUES:
        raise SpecError(
            f"{label}.step must be above 0 and give at most {MAX_VALUES:,} values; got {size:g}."
        )
    return [low, *(_clean(low + i * size, low, high) for i in range(1, math.floor(most) + 1))]


def _clean(number: float, low: float, high: float) -> float:
    """Without the last digits, which are rounding: 0.3, not 0.30000000000000004."""
    return min(max(float(f"{number:.12g}"), low), high)
