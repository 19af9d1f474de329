"""Folders of LoRA adapters as PEFT saves them, read without reading a weight.

An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`; a library
is a folder of adapters. Sizes come from the safetensors header (`polar_jax.io.safetensors`),
rank and targets from the config, milliseconds from a `TransferModel`.

`paging.py` takes arrays and reads no files, so that the engine runs without any; hence a
function here and not a `PagingTable.from_peft` there.
"""

import json
import os
import pathlib
import re
from typing import Any, NamedTuple

from polar_jax import paging
from polar_jax.io import safetensors
from polar_jax.io.transfer import TransferModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# Real ones have 1 to 10 kB, 50 where every layer's modules are named; parsed, JSON takes up to
# 25 times its text, which this keeps below 3 MiB.
MAX_CONFIG = 2**16
MAX_RANK = 2**16
_MAX_TARGETS = 10_000


class PeftAdapter(NamedTuple):
    """One adapter's folder."""

    name: str  # the folder's
    path: pathlib.Path  # of the weights
    rank: int  # r, >= 1
    targets: tuple[str, ...]  # modules it changes, sorted; one pattern where PEFT was given one
    base_model: str  # "" where the config does not say
    header: safetensors.Header

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensors: what is moved when the adapter is paged in."""
        return self.header.data_bytes


def read_peft_adapter(folder: str | os.PathLike[str]) -> PeftAdapter:
    """Reads one adapter's config and the header of its weights.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
      What they say.

    Raises:
      ValueError: for a config or a header that cannot be used, or an adapter without
        weights; one line that names the file.
      OSError: for a file that is missing or cannot be read.
    """
    path = pathlib.Path(folder)
    rank, targets, base_model = _read_config(path / CONFIG_FILE)
    header = safetensors.read_header(path / WEIGHTS_FILE)
    if not header.data_bytes:
        raise ValueError(f"{str(path / WEIGHTS_FILE)!r}: must hold weights, got none.")
    name = paging.check_name(path.absolute().name, "the adapter's folder")
    return PeftAdapter(name, path / WEIGHTS_FILE, rank, targets, base_model, header)


def list_peft_adapters(folder: str | os.PathLike[str]) -> list[PeftAdapter]:
    """Reads every adapter of a folder, in the order of their names, `r8` before `r16`.

    Args:
      folder: holds a folder per adapter, or is one. Files, hidden folders and folders with
        neither of an adapter's two files are passed over.

    Returns:
      One or more adapters.

    Raises:
      ValueError: if an adapter cannot be used, or there is none.
      OSError: for what cannot be read.
    """
    root = pathlib.Path(folder)
    if _looks_like_one(root):
        return [read_peft_adapter(root)]
    inside = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
    inside.sort(key=lambda entry: _natural(entry.name))
    found = [read_peft_adapter(entry) for entry in inside if _looks_like_one(entry)]
    if not found:
        raise ValueError(
            f"{str(root)!r} must hold folders with {CONFIG_FILE} and {WEIGHTS_FILE}, got none."
        )
    return found


def read_peft_folder(
    folder: str | os.PathLike[str], transfer: TransferModel, *, tier: str = "modelled"
) -> paging.PagingTable:
    """A paging table of real adapters whose times are modelled from their sizes.

    Args:
      folder: as for `list_peft_adapters`.
      transfer: milliseconds from bytes: `transfer_model(...)` of given figures, or
        `fit_transfer(...)` of measured pairs.
      tier: what the table calls the way that the model describes.

    Returns:
      A table of means with sizes, in the order of the adapters' names.

    Raises:
      ValueError: if an adapter cannot be used, or there is none.
      OSError: for what cannot be read.
    """
    adapters = list_peft_adapters(folder)
    sizes = [adapter.size_bytes for adapter in adapters]
    return paging.make_table(
        [adapter.name for adapter in adapters],
        mean_ms=transfer.milliseconds(sizes),
        size_bytes=sizes,
        tier=tier,
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """An order in which `r8` stands before `r16`."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _looks_like_one(folder: pathlib.Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))


def _read_config(file: pathlib.Path) -> tuple[int, tuple[str, ...], str]:
    """`(rank, targets, base model)` of a config."""
    try:
        with open(file, "rb", buffering=0, opener=safetensors.without_waiting) as opened:
            # Room is made for what is asked for, so for no more than there is.
            size = os.fstat(opened.fileno()).st_size
            data = b"" if size > MAX_CONFIG else opened.read(size) or b""
        if size > MAX_CONFIG:
            raise ValueError(f"must hold at most {MAX_CONFIG} bytes, got {size}.")
        config = _parse(data)
        return _rank(config), _targets(config), _base_model(config)
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from None


def _parse(data: bytes) -> dict[str, Any]:
    try:
        config = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8 text; byte {error.start} is not.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at byte {error.pos}.") from None
    except RecursionError:
        raise ValueError("not an adapter's config: JSON nested too deeply.") from None
    if not isinstance(config, dict):
        raise ValueError(f"must be a JSON object, got {paging.show(config)}.")
    kind = config.get("peft_type")
    if kind is not None and kind != "LORA":
        raise ValueError(f'peft_type must be "LORA", got {paging.show(kind)}.')
    return config


def _rank(config: dict[str, Any]) -> int:
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= MAX_RANK:
        raise ValueError(f"r must be a whole number in [1, {MAX_RANK}], got {paging.show(rank)}.")
    return rank


def _targets(config: dict[str, Any]) -> tuple[str, ...]:
    """PEFT writes a list of modules, or one pattern such as `all-linear`."""
    given = config.get("target_modules")
    modules = [given] if isinstance(given, str) else given
    if not isinstance(modules, list) or not 1 <= len(modules) <= _MAX_TARGETS:
        raise ValueError(
            f"target_modules must be text or a list of 1 to {_MAX_TARGETS} texts, got "
            f"{paging.show(given)}."
        )
    return tuple(sorted(paging.check_name(name, "target_modules") for name in modules))


def _base_model(config: dict[str, Any]) -> str:
    name = config.get("base_model_name_or_path")
    return name.strip() if isinstance(name, str) and name.strip().isprintable() else ""
