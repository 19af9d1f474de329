"""Readers of files and of the data shipped with the package; each loads what it needs."""

from polar_jax.io.package_data import qwen_paging_table
from polar_jax.io.tables import read_paging_table

__all__ = ["qwen_paging_table", "read_paging_table"]
