"""Readers of files and of the data shipped with the package; each loads what it needs."""

from polar_jax.io.arrivals import azure_arrivals, read_arrivals
from polar_jax.io.package_data import REAL_ORIGIN, qwen_paging_table, real_adapters
from polar_jax.io.peft import list_peft_adapters, read_peft_adapter, read_peft_folder
from polar_jax.io.replay_files import read_replay, write_replay
from polar_jax.io.tables import read_measurements, read_paging_table
from polar_jax.io.transfer import TransferModel, fit_transfer, transfer_model

__all__ = [
    "REAL_ORIGIN",
    "TransferModel",
    "azure_arrivals",
    "fit_transfer",
    "list_peft_adapters",
    "qwen_paging_table",
    "read_arrivals",
    "read_measurements",
    "read_paging_table",
    "read_peft_adapter",
    "read_peft_folder",
    "read_replay",
    "real_adapters",
    "transfer_model",
    "write_replay",
]
