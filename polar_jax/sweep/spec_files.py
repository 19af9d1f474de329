"""Files that a spec's options name: where they lie, what they hold, and their hashes."""

import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from polar_jax import config as options
from polar_jax.config import RunConfig
from polar_jax.sweep import grid
from polar_jax.sweep.grid import Axis, SpecError

# Options that may name a file, which is relative to the spec.
FILE_OPTIONS = ("paging", "environment", "arrivals")


def resolved(values: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Values as `RunConfig` holds them."""
    found = dict(values)
    for option in FILE_OPTIONS:
        if names_file(option, found.get(option)):
            path = folder / found[option]
            found[option] = path if option == "paging" else str(path)
    if "policies" in found:
        found["policies"] = (found["policies"],)
    return found


def names_file(option: str, value: object) -> bool:
    """Whether the value of one of `FILE_OPTIONS` names a file, rather than what is shipped."""
    if not isinstance(value, str | pathlib.Path):
        return False
    if option == "environment":
        return options.is_replay(str(value)) and value != options.REAL
    return option == "paging" or value not in options.TRACES


def with_own_sizes(config: RunConfig) -> RunConfig:
    """A configuration with its numbers of adapters and features, a replay's where it has one."""
    options.check_environment(config)
    if not options.is_replay(config.environment):
        return options.with_sizes(config, None)
    from polar_jax import configured  # Loads the engine, which few specs need.

    try:
        return configured.with_own_sizes(config)
    except OSError as error:
        reason = error.strerror or error
        raise SpecError(
            f"environment {grid.shown(config.environment)} cannot be read: {reason}."
        ) from None


def hashes(fixed: Mapping[str, Any], axes: Iterable[Axis], folder: pathlib.Path) -> dict[str, str]:
    """sha256 of every file that an option names, by its name as written."""
    given = [(axis.option, value) for axis in axes for value in axis.values]
    given += [(option, fixed.get(option)) for option in FILE_OPTIONS]
    found = {}
    for option, name in given:
        if option not in FILE_OPTIONS or not names_file(option, name):
            continue
        try:
            found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SpecError(f"{option} {grid.shown(name)} cannot be read: {reason}.") from None
    return found
