"""Measured paging latencies that are shipped with the package."""

import csv
import importlib.resources

import numpy as np

from polar_jax import paging, replays
from polar_jax.io.replay_files import read_replay

RANKS = (8, 16, 32)
REAL_ORIGIN = "15 LoRA adapters of a MiniLM encoder, measured on CLINC150 (docs/real_adapters.md)"
_FILE = "qwen2_5_7b_paging.csv"
_REAL_FILE = "clinc150_adapters.npz"
# Prime to the number of CPU-to-GPU loads of every rank (300, 200, 100), so that stepping
# by it visits each of them once, and far from 1, so that loads that were measured side by
# side in one run are not paired.
_STRIDE = 37
# Starting from 0 would pair the slow first disk load with the slow first CPU-to-GPU load
# (correlation 0.2); from here the correlation is at most 0.04, as for independent loads.
_OFFSET = 13


def qwen_paging_table(num_adapters: int) -> paging.PagingTable:
    """Load times of Qwen2.5-7B-Instruct LoRA adapters in vLLM 0.8.5 (arXiv:2508.08343).

    Adapter `i` is given rank 8, 16 or 32 in turn. A page-in is one disk-to-CPU load plus
    one CPU-to-GPU load, which were measured apart. Sample `j` of a rank is disk load
    `j mod D` plus CPU-to-GPU load `(13 + 37 j) mod M`, in file order, `j` in `[0, M)`; as `M`
    is a multiple of `D`, each load is used equally often and the mean of the samples is
    the sum of the two means: 13.25, 19.14 and 25.85 ms for rank 8, 16 and 32. Adapters of
    one rank share one set of samples. Sizes are unknown, as the target modules are.

    Args:
      num_adapters: how many adapters to make, at least 1.

    Returns:
      A table of `num_adapters` adapters with samples, tier `disk+memory`.

    Raises:
      ValueError: if `num_adapters` is no whole number `>= 1`.
    """
    if paging.whole_number(num_adapters, "num_adapters") < 1:
        raise ValueError(f"num_adapters must be at least 1, got {num_adapters}.")
    loads = _read_loads()
    samples = {rank: _page_ins(loads[rank, "disk"], loads[rank, "memory"]) for rank in RANKS}
    ranks = [RANKS[i % len(RANKS)] for i in range(num_adapters)]
    return paging.make_table(
        [f"qwen2.5-7b-r{rank}-{i:02d}" for i, rank in enumerate(ranks)],
        samples_ms=[samples[rank] for rank in ranks],
        tier="disk+memory",
    )


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
