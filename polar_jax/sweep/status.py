"""How far a sweep is, from its folder alone."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from polar_jax.sweep import store
from polar_jax.sweep.claims import Claims


def read(out: pathlib.Path) -> dict[str, Any]:
    """What is known of a sweep.

    Args:
      out: its folder.

    Returns:
      `title`; counts `shards`, `done`, `missing`, `failed`, `damaged`, `foreign`; `decisions`
      stored of `total`; `seconds` of work in them; `seconds_left` at that pace (None before
      the first shard); `in_work` shards with an owner; `errors` by shard; `lines` for people.

    Raises:
      StoreError: if it holds no sweep.
    """
    folder = store.open_existing(out)
    manifest = folder.manifest
    states = folder.states(manifest["num_shards"])
    facts = folder.all_facts()
    counts = {
        state: sum(one == state for one in states.values())
        for state in ("done", "missing", "failed", "damaged", "foreign")
    }
    decisions = sum(one["decisions"] for one in facts.values())
    seconds = sum(one["seconds"] for one in facts.values())
    total = manifest["decisions"]
    working: list[int] = []
    if folder.claims_folder.is_dir():
        working = Claims(folder.claims_folder).taken()
    found: dict[str, Any] = {
        "title": manifest["title"] or manifest["name"],
        "shards": len(states),
        **counts,
        "decisions": decisions,
        "total": total,
        "seconds": seconds,
        "seconds_left": seconds * (total - decisions) / decisions if decisions else None,
        "in_work": working,
        "errors": {index: one["error"] for index, one in folder.read_failures().items()},
    }
    return {**found, "lines": _lines(out, found, states, folder)}


def _lines(
    out: pathlib.Path, found: dict[str, Any], states: Mapping[int, str], folder: store.Store
) -> list[str]:
    from polar_jax.sweep.console import duration

    lines = [
        f"shards: {found['done']} of {found['shards']} done, {found['missing']} missing, "
        f"{found['failed']} failed, {len(found['in_work'])} in work"
    ]
    share = 100.0 * found["decisions"] / max(found["total"], 1)
    lines.append(f"decisions: {found['decisions']:,} of {found['total']:,} stored ({share:.0f} %)")
    if found["seconds_left"]:
        workers = max(len(found["in_work"]), 1)
        left = duration(found["seconds_left"] / workers)
        lines.append(f"time left: about {left} with {workers} process{'es' * (workers > 1)}")
    for index in found["in_work"]:
        path = out / "checkpoints" / str(index) / "state.npz"
        if path.exists():
            ago = duration(max(0.0, time.time() - path.stat().st_mtime))
            lines.append(f"shard {index}: last checkpoint {ago} ago")
    lines += [f"shard {index} failed: {error}" for index, error in found["errors"].items()]
    lines += [
        folder.complaint(index)
        for index, state in states.items()
        if state in ("damaged", "foreign")
    ]
    return lines
