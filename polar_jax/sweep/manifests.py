"""What makes two sweeps the same: the manifest, and the few facts that every file carries."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from polar_jax import processors
from polar_jax.sweep import files
from polar_jax.sweep.files import StoreError

NAME = "manifest.json"
# Folder of what was submitted to clusters; it may be there before the manifest.
RECORDS = "cluster"
SCHEMA = 1
# What the shape of a program, and so the last bits of its results, depend on.
_BUCKET = ("environment", "num_adapters", "context_dim", "padded_adapters", "padded_dim", "tile")
# What a person recognises where the hashes of two specs differ.
_TELLING = ("seeds", "num_configurations", "axes", "filters")
_SHOWN = 3
_PROCESSOR = ("cpu", "instruction_set")
# What may be edited in a spec without changing a row.
_TOLD = ("title", "description", "spec_text", "scaling", "report")


def plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest as it reads back from its file: lists for tuples, numbers of Python."""
    return json.loads(json.dumps(dict(manifest), default=plain_number))


def plain_number(value: Any) -> Any:
    """Python's number for one of NumPy; for `json.dumps`.

    Raises:
      TypeError: for anything else.
    """
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be stored in JSON.")


def read(out: pathlib.Path) -> dict[str, Any]:
    """Reads a sweep's manifest.

    Args:
      out: the sweep's folder.

    Returns:
      The manifest.

    Raises:
      StoreError: if there is none that this version can read.
    """
    path = out / NAME
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{str(out)!r} holds no sweep: {NAME} is missing.") from None
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be read ({error.strerror or error}).") from error
    except ValueError:
        raise StoreError(
            f"{str(path)!r} is damaged; move the folder away, or use another --out."
        ) from None
    if not isinstance(found, dict) or "spec_hash" not in found:
        raise StoreError(f"{str(path)!r} is not that of a sweep; use another --out.")
    if found.get("schema") != SCHEMA:
        raise StoreError(
            f"{str(out)!r} was written with schema {found.get('schema')!r}, this version reads "
            f"{SCHEMA}; use the polar_jax {_version(found)} that wrote it, or another --out."
        )
    return found


def check_same(out: pathlib.Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Sees that a folder's results and this process's belong together.

    Versions and models of CPU may differ: the shards record theirs.

    Args:
      out: the sweep's folder.
      stored: the folder's manifest.
      given: this process's.

    Raises:
      StoreError: if they do not; it says in what.
    """
    differences = []
    if stored.get("spec_hash") != given.get("spec_hash"):
        differences = _spec_differences(stored, given)
    if not differences:
        differences = _other_differences(stored, given)
    if differences:
        more = len(differences) - _SHOWN
        shown = "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise StoreError(f"--out {str(out)!r} holds another sweep: {shown}. Use another --out.")


def refreshed(
    out: pathlib.Path, stored: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Brings a folder's manifest up to date with an edit that changes no row.

    Args:
      out: the sweep's folder.
      stored: the folder's manifest, of the same sweep as `given` (`check_same`).
      given: this process's.

    Returns:
      The manifest that the folder holds now.
    """
    told = {name: given[name] for name in _TOLD if name in given}
    if all(stored.get(name) == value for name, value in told.items()):
        return dict(stored)
    merged = {**stored, **told}
    files.write_whole(out / NAME, lambda file: file.write(text_of(merged)))
    return merged


def text_of(manifest: Mapping[str, Any]) -> bytes:
    """What the manifest's file holds."""
    return (json.dumps(dict(manifest), indent=2) + "\n").encode()


def _spec_differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    hashes = [str(manifest.get("spec_hash"))[:12] for manifest in (stored, given)]
    differences = [f"its spec_hash is {hashes[0]}, the spec given has {hashes[1]}"]
    before, after = stored.get("fixed") or {}, given.get("fixed") or {}
    for name in sorted({*before, *after}):
        differences += _difference(name, before.get(name), after.get(name))
    for name in _TELLING:
        differences += _difference(name, stored.get(name), given.get(name))
    return differences


def _other_differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    differences = []
    for name in ("schema", "shard_seconds"):
        differences += _difference(name, stored.get(name), given.get(name))
    machines = [manifest.get("machine") or {} for manifest in (stored, given)]
    for name in ("jax_platform", "device_kind"):
        differences += _difference(name, machines[0].get(name), machines[1].get(name))
    # Sums in another order: a sweep's rows are of one kernel, which POLAR_JAX_KERNEL chooses.
    before, after = (machine.get("kernel", "xla") for machine in machines)
    differences += _difference("the kernel (POLAR_JAX_KERNEL)", before, after)
    differences += _difference("the code (--portable)", _code(stored), _code(given))
    buckets = [manifest.get("buckets") or [] for manifest in (stored, given)]
    differences += _difference("the number of buckets", len(buckets[0]), len(buckets[1]))
    for number, (before, after) in enumerate(zip(*buckets, strict=False)):
        for name in _BUCKET:
            label = f"{name} of bucket {number}"
            differences += _difference(label, before.get(name), after.get(name))
    if stored.get("plan_hash") != given.get("plan_hash"):
        versions = [_version(manifest) for manifest in (stored, given)]
        differences.append(
            "its shards hold other rows than this plan's (planned by polar_jax "
            f"{versions[0]} there, {versions[1]} here)"
        )
    return differences


def _difference(name: str, before: Any, after: Any) -> list[str]:
    if before == after:
        return []
    return [f"{name} is {_short(before)} there, {_short(after)} here"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What every file of a sweep carries, and must agree in."""
    return {
        "spec_hash": manifest["spec_hash"],
        "plan_hash": manifest.get("plan_hash"),
        "schema": manifest["schema"],
        "shard_seconds": manifest.get("shard_seconds"),
        "device_kind": (manifest.get("machine") or {}).get("device_kind"),
        "code": _code(manifest),
    }


def carried(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a file carries, with what those of earlier versions leave out."""
    return {"code": processors.NATIVE, **facts}


def session(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What may differ among the processes that compute one sweep."""
    machine = manifest.get("machine") or {}
    return {
        "jaxlib": (manifest.get("versions") or {}).get("jaxlib"),
        "cpu": machine.get("cpu"),
        "instruction_set": machine.get("instruction_set"),
        "compiler": machine.get("compiler"),
        "device_kind": machine.get("device_kind"),
    }


def mixed(shards: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What differs among the sessions that computed some shards: its name to the values found.

    Args:
      shards: facts of shards' files; what earlier versions did not record is no difference.
    """
    found: dict[str, set[str]] = {name: set() for name in session({})}
    for facts in shards:
        for one in facts.get("sessions") or [facts]:
            for name, values in found.items():
                if one.get(name) is not None:
                    values.add(str(one[name]))
    return {name: sorted(values) for name, values in found.items() if len(values) > 1}


def said_of_mixed(mixed: Mapping[str, list[str]], manifest: Mapping[str, Any]) -> list[str]:
    """Sentences on shards that were not all computed alike.

    Args:
      mixed: from `Store.mixed`.
      manifest: the sweep's.

    Returns:
      One for each thing that matters to the bits; none where all are alike.
    """
    rest = {name: values for name, values in mixed.items() if name not in _PROCESSOR}
    said = [f"Shards differ in {name}: {', '.join(values)}." for name, values in rest.items()]
    models = "; ".join(mixed.get("cpu", ()))
    sets = "; ".join(mixed.get("instruction_set", ()))
    if _code(manifest) != processors.NATIVE:
        if models or sets:
            said.append(
                f"Shards were computed on unlike processors ({models or sets}) with the same "
                "portable code."
            )
    elif sets:
        said.append(
            f"Shards were computed by processors with unlike instructions ({sets}) and without "
            "--portable: rows are not bitwise what one of them alone would have computed."
        )
    elif models:
        said.append(
            f"Shards were computed on several models of processor ({models}) without --portable: "
            "rows may differ in their last bits from what one alone would have computed."
        )
    return said


def _code(manifest: Mapping[str, Any]) -> str:
    """Whose instructions a sweep's code uses; earlier versions knew one kind."""
    return str((manifest.get("machine") or {}).get("code", processors.NATIVE))


def tiles(manifest: Mapping[str, Any]) -> list[int]:
    """The tiles of a sweep's programs, in order."""
    found = {bucket.get("tile") for bucket in manifest.get("buckets") or []}
    return sorted(tile for tile in found if tile is not None)


def _version(manifest: Mapping[str, Any]) -> str:
    return str((manifest.get("versions") or {}).get("polar_jax", "version"))
