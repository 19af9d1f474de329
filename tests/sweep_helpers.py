"""A small sweep's manifest and rows, for tests of what is stored and read."""

import os
import pathlib
import time
from typing import Any

import numpy as np
import pyarrow

from polar_jax.sweep import store

MANIFEST: dict[str, Any] = {
    "schema": store.SCHEMA,
    "name": "small",
    "spec_hash": "a" * 64,
    "fixed": {"alpha": 0.5, "adapters": 4},
    "axes": [{"name": "cache_slots", "values": [1, 2], "zipped": None}],
    "num_lanes": 12,
    "versions": {"polar_jax": "0.1.0", "jaxlib": "0.10.2"},
    "machine": {"jax_platform": "cpu", "device_kind": "cpu", "cpu": "A"},
    "shard_seconds": 300.0,
    "buckets": [{"environment": "clustered", "padded_adapters": 4, "padded_dim": 4, "tile": 32}],
}
FACTS = {"seconds": 1.5, "decisions": 4000, "tile": 32}


def changed(**changes: Any) -> dict[str, Any]:
    """The manifest with other values; those of its objects replace single entries."""
    merged = dict(MANIFEST)
    for name, value in changes.items():
        merged[name] = {**MANIFEST[name], **value} if isinstance(value, dict) else value
    return merged


def rows(configuration: int, seeds: int = 3) -> pyarrow.Table:
    """Rows of one configuration, in falling order of seeds."""
    numbers = np.arange(seeds)[::-1]
    return pyarrow.table(
        {
            "configuration": np.full(seeds, configuration),
            "policy": ["lru" if configuration % 2 else "polar"] * seeds,
            "seed": numbers,
            "cache_slots": np.full(seeds, 1 + configuration // 2),
            "regret": configuration + numbers / 10,
            "page_ins": numbers,
            "curve_round": [[1, 2]] * seeds,
        }
    )


def filled(out: pathlib.Path) -> store.Store:
    """A sweep of four shards, all done."""
    opened = store.create_or_open(out, MANIFEST)
    for index in range(4):
        opened.write_shard(index, rows(index), FACTS)
    return opened


def everything(folder: pathlib.Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def cut(path: pathlib.Path) -> None:
    """Truncates a file, as a copy that was interrupted would be."""
    path.write_bytes(path.read_bytes()[:-20])


def make_old(path: pathlib.Path, seconds: float) -> None:
    """Sets a file's time back, as if nobody had touched it since."""
    moment = time.time() - seconds
    os.utime(path, (moment, moment))
