"""Rows as a sweep would write them, made up: known laws, lognormal between seeds."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from polar_jax.sweep import words

Rows = tuple[pl.DataFrame, dict[str, Any]]
LEARNT = ("polar_plus", "polar_experts", "lru")

FIXED = {
    "num_adapters": 15,
    "cache_slots": 4,
    "context_dim": 8,
    "horizon": 20_000,
    "price_per_ms": 0.0154,
    "environment": "clustered",
}
_SIZES = ("num_adapters", "cache_slots", "context_dim", "horizon")


def make_rows(
    axes: Mapping[str, Sequence[Any]],
    policies: Sequence[str] = ("polar_plus", "polar_experts", "lru", "oracle"),
    seeds: int = 16,
    *,
    zipped: Sequence[str] = (),
    noise: float = 0.2,
) -> pl.DataFrame:
    """A row per lane of a sweep over `axes`, those in `zipped` side by side.

    Policies differ by constants drawn from their place in the list; streams of one seed
    are equally hard for all.
    """
    together = [name for name in axes if name in zipped]
    crossed = [name for name in axes if name not in zipped]
    steps = list(zip(*(axes[name] for name in together), strict=True)) if together else [()]
    rows = []
    number = 0
    for values in itertools.product(*(axes[name] for name in crossed)):
        for step in steps:
            chosen = FIXED | dict(zip(crossed, values, strict=True))
            chosen |= dict(zip(together, step, strict=True))
            for place, policy in enumerate(policies):
                rows += [
                    {"configuration": number, "policy": policy, "seed": seed}
                    | _figures(chosen, policy, place, seed, noise)
                    | {name: chosen[name] for name in (*_SIZES, *axes)}
                    for seed in range(seeds)
                ]
                number += 1
    return pl.DataFrame(rows)


def _figures(
    at: Mapping[str, Any], policy: str, place: int, seed: int, noise: float
) -> dict[str, Any]:
    slots, adapters, horizon = at["cache_slots"], at["num_adapters"], at["horizon"]
    stream = sum(map(ord, str(at["environment"]))) % 7
    shared = np.random.default_rng([seed, stream]).normal()
    own = np.random.default_rng([seed, place, slots, horizon]).normal()
    luck = math.exp(noise * shared + 0.3 * noise * own)
    learns = policy != "oracle"
    routing = 0.6 * learns * (1 + 0.15 * place) * math.sqrt(adapters * at["context_dim"] * horizon)
    price = at["price_per_ms"] / 0.0154
    misses = math.exp(-4.0 * slots / adapters)
    # Who learns fast caches badly: which matters more depends on price, slots and horizon.
    caching = 0.03 * price * horizon * misses * (2.5 - place + 0.2 * stream) * learns
    benchmark = 0.6 * price * horizon * misses
    routing, caching = routing * luck, caching * luck
    regret = routing + caching
    return {
        "regret": regret,
        "regret_routing": routing,
        "regret_forced": 0.1 * routing,
        "regret_caching": caching,
        "regret_switching": 0.0,
        "loss_to_full": max(benchmark * luck + regret, 1.0),
        "net_utility": 0.8 - regret / horizon,
        "hit_rate": 1.0 - misses * (0.5 + 0.01 * place),
        "paging_ms_per_request": 40.0 * misses * (1.0 + 0.05 * place) * luck,
        "switching_ms_per_request": 0.1,
        "waiting_ms_per_request": 0.0,
        "page_ins": int(horizon * misses / 2),
        "loads": int(horizon * misses),
        "oracle_exact": adapters <= 15,
        "curve_round": [1, horizon],
        "curve_regret": [0.0, regret],
        "curve_loss_to_full": [0.0, regret],
        "run_horizon": horizon,
        "padded_adapters": 16,
        "padded_dim": 8,
        "mean_paging_cost": price * 0.6,
    }


def make_manifest(
    axes: Mapping[str, Sequence[Any]],
    table: pl.DataFrame,
    *,
    zipped: Sequence[str] = (),
    **changes: Any,
) -> dict[str, Any]:
    """The manifest of a sweep over `axes` that has the rows of `table`."""
    policies = table["policy"].unique(maintain_order=True).to_list()
    entries = [
        {"name": name, "values": list(values), "zipped": 0 if name in zipped else None}
        for name, values in axes.items()
    ]
    plain = {
        "schema": 1,
        "name": "made_up",
        "title": "How does the loss grow?",
        "description": "Made up rows. We expect square roots.",
        "spec_hash": "ab" * 32,
        "spec_text": "[fixed]\nadapters = 15\n",
        "created": "2026-01-01T00:00:00",
        "fixed": {name: value for name, value in FIXED.items() if name not in axes},
        "axes": [*entries, {"name": "policy", "values": policies, "zipped": None}],
        "filters": [],
        "num_configurations": table["configuration"].n_unique(),
        "num_lanes": table.height,
        "seeds": table["seed"].n_unique(),
        "decisions": int(table["horizon"].sum()),
        "versions": {"python": "3.11", "polar_jax": "0.1.0", "jax": "0.10.2"},
        "git": {"commit": "0123456789abcdef", "modified": True},
        "machine": {"platform": "Linux", "jax_platform": "cpu", "device_kind": "cpu"}
        | {"cpu": "a processor", "usable_cores": 2},
        "num_devices": 2,
        "shard_seconds": 300,
        "buckets": [
            {"environment": "clustered", "num_adapters": [15], "context_dim": [8]}
            | {"padded_adapters": 16, "padded_dim": 8, "padding": "saves two programs"}
            | {"tile": 32, "configurations": 8, "programs": ["lanes", "stream", "oracle"]}
        ],
        "scaling": None,
        "report": {"x": None, "chosen_on": None},
    }
    return plain | changes


FACTS: dict[str, Any] = {
    "seconds": 123.0,
    "decisions": 4_000_000,
    "shards_done": 4,
    "shards_total": 4,
    "mixed": [],
    "failures": [],
}


def sweep(
    axes: dict[str, list[Any]], policies: tuple[str, ...] = (*LEARNT, "oracle"), **options: Any
) -> Rows:
    """Rows and the manifest of a sweep over `axes`; `scaling` and `report` go to the latter."""
    changes = {key: options.pop(key) for key in ("scaling", "report") if key in options}
    table = make_rows(axes, policies, **options)
    zipped = options.get("zipped", ())
    return table, make_manifest(axes, table, zipped=zipped, **changes)


def facts(**changes: Any) -> words.Facts:
    """Facts of a whole sweep, with changes."""
    plain = FACTS | changes
    return words.Facts(
        seconds=plain["seconds"],
        decisions=plain["decisions"],
        shards_done=plain["shards_done"],
        shards_total=plain["shards_total"],
        mixed=plain["mixed"],
        failures=plain["failures"],
    )
