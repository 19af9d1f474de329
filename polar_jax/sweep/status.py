"""How far a sweep is, from its folder alone."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

from polar_jax.sweep import manifests, store
from polar_jax.sweep.claims import Claims


def read(out: pathlib.Path) -> dict[str, Any]:
    """What is known of a sweep.

    Args:
      out: its folder.

    Returns:
      `title`; counts `shards`, `done`, `missing`, `failed`, `damaged`, `foreign`; `decisions`
      in done shards, and `checkpointed` ones in others, of `total`; `seconds` of work in the
      done shards; `seconds_left` at the pace of all that is stored (None before there is any);
      `in_work` shards with an owner; `errors` by shard; `mixed`, sentences on what shards differ
      in (`manifests.said_of_mixed`); `lines` for people.

    Raises:
      StoreError: if it holds no sweep.
    """
    folder = store.open_existing(out)
    manifest = folder.manifest
    # Before the shards: one that is finished in between counts as done, not as gone.
    metas = {index: folder.read_meta(index) for index in folder.checkpointed()}
    states, facts = folder.look(manifest["num_shards"])
    counts = {
        state: sum(one == state for one in states.values())
        for state in ("done", "missing", "failed", "damaged", "foreign")
    }
    decisions = sum(one["decisions"] for one in facts.values())
    seconds = sum(one["seconds"] for one in facts.values())
    in_checkpoints = [meta for index, meta in metas.items() if meta and index not in facts]
    checkpointed = sum(meta["decisions"] for meta in in_checkpoints)
    total = manifest["decisions"]
    made = decisions + checkpointed
    spent = seconds + sum(meta["seconds"] for meta in in_checkpoints)
    working: list[int] = []
    if folder.claims_folder.is_dir():
        working = Claims(folder.claims_folder).taken()
    found: dict[str, Any] = {
        "title": manifest["title"] or manifest["name"],
        "shards": len(states),
        **counts,
        "decisions": decisions,
        "checkpointed": checkpointed,
        "total": total,
        "seconds": seconds,
        "seconds_left": spent * (total - made) / made if made else None,
        "in_work": working,
        "mixed": manifests.said_of_mixed(manifests.mixed(facts.values()), manifest),
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
    made = found["decisions"] + found["checkpointed"]
    share = 100.0 * made / max(found["total"], 1)
    line = f"decisions: {made:,} of {found['total']:,} stored ({share:.0f} %)"
    if found["checkpointed"]:
        line += f", {found['checkpointed']:,} of them in checkpoints"
    lines.append(line)
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
    lines += found["mixed"]
    lines += [
        folder.complaint(index)
        for index, state in states.items()
        if state in ("damaged", "foreign")
    ]
    return lines
