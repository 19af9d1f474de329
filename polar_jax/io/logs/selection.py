"""From the loads of a log to a paging table: which tiers count, which adapters have them."""

import csv
import io
from typing import NamedTuple

from polar_jax import paging
from polar_jax.io.logs.records import TIERS, ServingLog

TIER_CHOICES = ("sum", *TIERS)
UNNAMED = "unnamed"


class Selection(NamedTuple):
    """The loads that a table is made of."""

    tiers: tuple[str, ...]  # that a page-in passes through, in the order of TIERS
    times: dict[str, dict[str, list[float]]]  # adapter to tier to milliseconds
    size_bytes: dict[str, int] | None  # by adapter; None unless known for every one
    notes: tuple[str, ...]


def select(log: ServingLog, tier: str = "sum") -> Selection:
    """Picks the loads for a paging table.

    Args:
      log: what was read.
      tier: one of `TIERS`, or `sum`: every tier that the log tells apart. Where it has whole
        loads (disk-to-device) beside both of their parts, the parts are taken; beside one
        part alone the whole loads are.

    Returns:
      Adapters that have every one of these tiers. Where no load names its adapter they are
      one adapter, `unnamed`; loads without a name beside named ones are left out.

    Raises:
      ValueError: if the tier is unknown or not in the log, no adapter has all tiers, or every
        time is 0 because the log's stamps are too coarse.
    """
    if tier not in TIER_CHOICES:
        raise ValueError(f"tier must be one of {', '.join(TIER_CHOICES)}, got {paging.show(tier)}.")
    present = {load.tier for load in log.loads}
    tiers = _tiers(present) if tier == "sum" else (tier,)
    if tier != "sum" and tier not in present:
        held = ", ".join(name for name in TIERS if name in present)
        raise ValueError(f"tier {tier} must be one that the log tells apart ({held}) or sum.")
    named = any(load.adapter is not None for load in log.loads)
    times: dict[str, dict[str, list[float]]] = {}
    sizes: dict[str, list[int]] = {}
    for load in log.loads:
        if load.tier not in tiers or (named and load.adapter is None):
            continue
        adapter = load.adapter or UNNAMED
        times.setdefault(adapter, {}).setdefault(load.tier, []).append(load.ms)
        if load.size_bytes is not None:
            sizes.setdefault(adapter, []).append(load.size_bytes)
    whole = {name: rows for name, rows in times.items() if len(rows) == len(tiers)}
    if not whole:
        raise ValueError(f"no adapter has a timed load of every tier ({', '.join(tiers)}).")
    largest = max(ms for rows in whole.values() for loads in rows.values() for ms in loads)
    if not largest and log.resolution_ms:
        raise ValueError(
            f"every load took less than the {log.resolution_ms:g} ms that the log's time stamps "
            "resolve, so it cannot tell load times; stamps with fractions of a second or timings "
            "of a client can (docs/serving_logs.md)."
        )
    means = {name: round(sum(sizes[name]) / len(sizes[name])) for name in whole if name in sizes}
    complete = len(means) == len(whole)
    return Selection(
        tiers, whole, means if complete else None, _told(log, tier, tiers, times, whole)
    )


def _tiers(present: set[str]) -> tuple[str, ...]:
    parts = {"disk-to-host", "host-to-device"}
    if "disk-to-device" in present:
        present = present - (parts if not parts <= present else {"disk-to-device"})
    return tuple(name for name in TIERS if name in present)


def _told(
    log: ServingLog,
    tier: str,
    tiers: tuple[str, ...],
    times: dict[str, dict[str, list[float]]],
    whole: dict[str, dict[str, list[float]]],
) -> tuple[str, ...]:
    """What a selection leaves out."""
    notes = [f"tier {tier}: {' + '.join(tiers)}."]
    other = sum(load.tier not in tiers for load in log.loads)
    if other:
        notes.append(f"{other} loads of other tiers are left out.")
    partial = [name for name in times if name not in whole]
    if partial:
        shown = paging.show(partial[0])
        more = f" and {len(partial) - 1} more" if len(partial) > 1 else ""
        notes.append(f"Adapter {shown}{more} is left out: not every tier was timed.")
    nameless = sum(load.adapter is None and load.tier in tiers for load in log.loads)
    if nameless and UNNAMED not in whole:
        notes.append(f"{nameless} loads without a name are left out.")
    return tuple(notes)


def to_paging_table(log: ServingLog, tier: str = "sum") -> paging.PagingTable:
    """Makes the paging table of a log.

    Args:
      log: what was read.
      tier: as for `select`.

    Returns:
      One tier: its loads are the samples of each adapter. Several: the sum of the tiers'
      means and no samples, as nothing says which loads belong together; `tier` of the table
      says which were taken. Reading the file of `to_paging_csv` gives the same table.

    Raises:
      ValueError: as `select` does.
    """
    chosen = select(log, tier)
    adapters = list(chosen.times)
    sizes = None if chosen.size_bytes is None else [chosen.size_bytes[name] for name in adapters]
    if len(chosen.tiers) == 1:
        samples = [chosen.times[name][chosen.tiers[0]] for name in adapters]
        if any(len(loads) > 1 for loads in samples):
            return paging.make_table(
                adapters, samples_ms=samples, size_bytes=sizes, tier=chosen.tiers[0]
            )
    means = [
        sum(sum(chosen.times[name][tier]) / len(chosen.times[name][tier]) for tier in chosen.tiers)
        for name in adapters
    ]
    return paging.make_table(adapters, mean_ms=means, size_bytes=sizes, tier="+".join(chosen.tiers))


def to_paging_csv(chosen: Selection) -> str:
    """The selected loads as a paging CSV: adapter, tier, ms, and size_bytes where known.

    Args:
      chosen: what `select` returns.

    Returns:
      Text that `read_paging_table` reads, docs/file_formats.md.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    sizes = chosen.size_bytes
    writer.writerow(["adapter", "tier", "ms", *(["size_bytes"] if sizes else [])])
    for name, rows in chosen.times.items():
        for tier in chosen.tiers:
            for ms in rows[tier]:
                writer.writerow([name, tier, repr(ms), *([sizes[name]] if sizes else [])])
    return out.getvalue()
