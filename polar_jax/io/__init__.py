"""Readers of files and of the data shipped with the package; each loads what it needs."""

from polar_jax.io.package_data import qwen_paging_table
from polar_jax.io.peft import list_peft_adapters, read_peft_adapter, read_peft_folder
from polar_jax.io.tables import read_measurements, read_paging_table
from polar_jax.io.transfer import TransferModel, fit_transfer, transfer_model

__all__ = [
    "TransferModel",
    "fit_transfer",
    "list_peft_adapters",
    "qwen_paging_table",
    "read_measurements",
    "read_paging_table",
    "read_peft_adapter",
    "read_peft_folder",
    "transfer_model",
]
