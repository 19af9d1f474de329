"""Paging latencies that are shipped with the package: measured ones by tier, and a stress tier."""

import csv
import functools
import importlib.resources

import numpy as np

from polar_jax import checks, paging, replays
from polar_jax.io.replay_files import read_replay

RANKS = (8, 16, 32)
REAL_ORIGIN = "15 LoRA adapters of a MiniLM encoder, measured on CLINC150 (docs/real_adapters.md)"
TIERS = ("disk+memory", "memory", "disk", "cold", "remote")
# Storage-to-GPU load times of a production image-generation service (Alibaba GenTD26), the
# three quantiles that are known of them: (share of loads, ms).
REMOTE_QUANTILES = ((0.05, 1_100.0), (0.50, 4_400.0), (0.99, 8_200.0))
# Evenly spaced levels: P5, P50 and P99 of the samples are the published ones within 0.5 ms.
REMOTE_SAMPLES = 200
_FILE = "qwen2_5_7b_paging.csv"
_REAL_FILE = "clinc150_adapters.npz"
# Prime to the number of CPU-to-GPU loads of every rank (300, 200, 100), so that stepping
# by it visits each of them once, and far from 1, so that loads that were measured side by
# side in one run are not paired.
_STRIDE = 37
# Starting from 0 would pair the slow first disk load with the slow first CPU-to-GPU load
# (correlation 0.2); from here the correlation is at most 0.04, as for independent loads.
_OFFSET = 13
# Disk loads of one run; the first of them found nothing in the page cache.
_RUN_LOADS = 50


def qwen_paging_table(num_adapters: int, tier: str = "disk+memory") -> paging.PagingTable:
    """Load times of Qwen2.5-7B-Instruct LoRA adapters in vLLM 0.8.5 (arXiv:2508.08343).

    Adapter `i` is given rank 8, 16 or 32 in turn. Adapters of one rank share one set of
    samples. Sizes are unknown, as the target modules are. What a page-in is depends on the
    tier:

    * `disk+memory`: one disk-to-CPU load plus one CPU-to-GPU load, which were measured apart.
      Sample `j` of a rank is disk load `j mod D` plus CPU-to-GPU load `(13 + 37 j) mod M`, in
      file order, `j` in `[0, M)`; as `M` is a multiple of `D`, each load is used equally often
      and the mean of the samples is the sum of the two means: 13.25, 19.14 and 25.85 ms for
      rank 8, 16 and 32.
    * `memory`: one CPU-to-GPU load: adapters wait in the server's memory. 3.30, 3.67, 3.38 ms.
    * `disk`: one disk-to-CPU load alone, nearly all from a warm page cache. 9.95, 15.48,
      22.47 ms.
    * `cold`: the first disk load of a run plus one CPU-to-GPU load. The file holds six runs of
      50 disk loads each, so the first are disk loads 0, 50, ... of a rank: 53.4, 22.5 and
      20.8 ms at rank 8, 70.2 and 38.5 at 16, 125.1 at 32; six measurements in all. They are
      paired with CPU-to-GPU loads as above. Means 35.5, 58.0 and 128.5 ms.
    * `remote`: a stress tier that no adapter of this model was measured in, the same for
      every rank: `remote_samples`.

    Args:
      num_adapters: how many adapters to make, at least 1.
      tier: one of `TIERS`.

    Returns:
      A table of `num_adapters` adapters with samples; its `tier` is `tier`, and for `cold`
      `cold disk+memory`.

    Raises:
      ValueError: if `num_adapters` is no whole number `>= 1`, or `tier` is unknown.
    """
    wanted = paging.whole_number(num_adapters, "num_adapters")
    if wanted < 1:
        raise ValueError(f"num_adapters must be at least 1, got {num_adapters}.")
    checks.one_of("tier", tier, TIERS)
    return _qwen_table(wanted, tier)


# The cells of a sweep ask for the same few tables; their arrays cannot be written to.
@functools.lru_cache(maxsize=64)
def _qwen_table(num_adapters: int, tier: str) -> paging.PagingTable:
    """The table of checked arguments."""
    loads = _read_loads()
    samples = {rank: _samples(loads[rank, "disk"], loads[rank, "memory"], tier) for rank in RANKS}
    ranks = [RANKS[i % len(RANKS)] for i in range(num_adapters)]
    return paging.make_table(
        [f"qwen2.5-7b-r{rank}-{i:02d}" for i, rank in enumerate(ranks)],
        samples_ms=[samples[rank] for rank in ranks],
        tier="cold disk+memory" if tier == "cold" else tier,
    )


def remote_samples() -> np.ndarray:
    """Load times from remote storage, rebuilt from three published quantiles. Not measured.

    The quantile function is piecewise linear through `REMOTE_QUANTILES`; below P5 and above
    P99 its outer pieces go on straight, to 733 ms at 0 and 8,278 ms at 1. So half of the loads
    are uniform in [733, 4400] ms and half in [4400, 8278]; the mean, 4,453 ms, is a property of
    this reconstruction. Sample `j` is the quantile at level `(j + 0.5) / REMOTE_SAMPLES`.

    Returns:
      `[REMOTE_SAMPLES]` milliseconds, ascending; always the same.
    """
    levels, ms = np.array(REMOTE_QUANTILES).T
    slopes = np.diff(ms) / np.diff(levels)
    knots = np.array([0.0, *levels, 1.0])
    ends = ms[0] - slopes[0] * levels[0], ms[-1] + slopes[-1] * (1.0 - levels[-1])
    wanted = (np.arange(REMOTE_SAMPLES) + 0.5) / REMOTE_SAMPLES
    return np.interp(wanted, knots, [ends[0], *ms, ends[1]])


def _samples(disk: np.ndarray, memory: np.ndarray, tier: str) -> np.ndarray:
    """Page-ins of one rank: `[D]` disk and `[M]` CPU-to-GPU loads in file order."""
    if tier == "remote":
        return remote_samples()
    if tier in ("disk", "memory"):
        return disk if tier == "disk" else memory
    return _page_ins(disk[::_RUN_LOADS] if tier == "cold" else disk, memory)


def _read_loads() -> dict[tuple[int, str], np.ndarray]:
    """Reads ms per (rank, tier), in file order."""
    loads: dict[tuple[int, str], list[float]] = {}
    file = importlib.resources.files("polar_jax") / "data" / _FILE
    for row in csv.DictReader(file.read_text("utf-8").splitlines()):
        key = int(row["adapter_rank"]), row["tier"]
        loads.setdefault(key, []).append(float(row["ms"]))
    return {key: np.array(values) for key, values in loads.items()}


def _page_ins(disk: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """Pairs `[D]` disk loads with `[M]` CPU-to-GPU loads into `[M]` page-ins; D divides M."""
    steps = np.arange(memory.size)
    return disk[steps % disk.size] + memory[(_OFFSET + _STRIDE * steps) % memory.size]


def real_adapters(*, missing: float | str | None = None) -> replays.Replay:
    """Fifteen real LoRA adapters on the 4,500 test prompts of CLINC150; `docs/real_adapters.md`.

    Contexts are the prompts' domain probabilities, utilities each adapter's probability of
    the right answer, domains the ten of CLINC150. Made from CLINC150 (CC-BY-3.0).

    Args:
      missing: unread, as none is missing.
    """
    file = importlib.resources.files("polar_jax") / "data" / _REAL_FILE
    with importlib.resources.as_file(file) as path:
        return read_replay(path, missing=missing)
