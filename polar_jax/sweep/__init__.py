"""Sweeps: many configurations from one TOML file, resumed at will, with fits and a report.

The names below load on first use: polars, which tables are made of, takes its time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polar_jax.sweep.table import load, to_xarray

__all__ = ["load", "to_xarray"]


def __getattr__(name: str) -> Any:
    """Loads a public name from its module, once."""
    if name not in __all__:
        raise AttributeError(f"module 'polar_jax.sweep' has no attribute {name!r}")
    value = getattr(importlib.import_module("polar_jax.sweep.table"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
