"""Numbers of bytes as people write them: `200e6`, `200MB`, `64MiB`. Loads nothing heavy."""

import decimal
import re

from polar_jax import checks

UNITS = {
    **{"": 1, "B": 1},
    **{"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40},
}
_NUMBER = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?(?:[eE]\+?[0-9]{1,2})?)\s?([A-Za-z]*)")


def parse(label: str, text: str, *, least: int) -> int:
    """A number of bytes.

    Args:
      label: what the number is called.
      text: digits, which may have a decimal point, an exponent, and one of B, KB, MB, GB, TB
        (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024), in any case.
      least: smallest allowed value.

    Returns:
      A whole number in `[least, 2^53]`.

    Raises:
      ValueError: for anything else.
    """
    found = _NUMBER.fullmatch(text.strip())
    factor = None if found is None else UNITS.get(found[2].upper())
    if found is not None and factor is not None:
        number = decimal.Decimal(found[1]) * factor
        if least <= number <= checks.MAX_BYTES and number == int(number):
            return int(number)
    raise ValueError(
        f"{label} must be a whole number of bytes in [{least}, 2^53], as 200e6, 200MB or 64MiB; "
        f"got {text[:40]!r}."
    )


def shown(number: int) -> str:
    """A number of bytes for people: `64 MiB` where that is exact, else with three digits."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit and number % unit == 0:
            return f"{number // unit:,} {name}"
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.4g} {name}"
    return f"{number} bytes"
