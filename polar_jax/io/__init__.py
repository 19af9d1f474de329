"""Readers of files and of the data shipped with the package; each loads what it needs."""

from polar_jax.io.arrivals import azure_arrivals, read_arrivals
from polar_jax.io.package_data import REAL_ORIGIN, qwen_paging_table, real_adapters
from polar_jax.io.replay_files import read_replay, write_replay
from polar_jax.io.tables import read_paging_table

__all__ = [
    "REAL_ORIGIN",
    "azure_arrivals",
    "qwen_paging_table",
    "read_arrivals",
    "read_paging_table",
    "read_replay",
    "real_adapters",
    "write_replay",
]
