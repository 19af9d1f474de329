"""Adapter folders of the exact shapes of real ones, with random weights, written whole or not."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from polar_jax import checks
from polar_jax.io import safetensors
from polar_jax.io.peft import CONFIG_FILE, WEIGHTS_FILE
from polar_jax.paging_tools import shapes

_CHUNK = 2**22
_PARTIAL, _OLD = ".partial-", ".old"
# Space that the folders and the file system's own records take beside the files.
_SPARE = 2**20


class Recipe(NamedTuple):
    """One adapter to write."""

    model: str  # a key of shapes.MODELS
    rank: int
    targets: str  # a key of shapes.TARGETS

    @property
    def name(self) -> str:
        """Its folder, such as `qwen2.5-7b-qv-r8`."""
        return f"{self.model}-{self.targets}-r{self.rank}"

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors."""
        return shapes.size_bytes(self.model, self.rank, self.targets)


@dataclasses.dataclass
class Job:
    """Adapters to write into a folder; `clean_up` may be called from a signal's handler.

    Attributes:
      out: the folder.
      recipes: the adapters.
      overwrite: whether those that are there are replaced.
      work: the one in work, if any: where it is written, and where it belongs.
    """

    out: pathlib.Path
    recipes: Sequence[Recipe]
    overwrite: bool
    work: tuple[pathlib.Path, pathlib.Path] | None = None

    def clean_up(self) -> None:
        """Removes what is written of an adapter that is not whole; an older one stays."""
        if self.work is None:
            return
        partial, final = self.work
        shutil.rmtree(partial, ignore_errors=True)
        _settle(_aside(partial), final)


def prepare(out: pathlib.Path, recipes: Sequence[Recipe], *, overwrite: bool = False) -> Job:
    """Checks that adapters can be written, before a byte is.

    Args:
      out: the folder to write them into; made where it is missing.
      recipes: the adapters, distinct.
      overwrite: whether adapters of the same names may be replaced.

    Returns:
      The job; hand it to `run`.

    Raises:
      ValueError: for a repeated adapter, a folder that is there already (with `overwrite`,
        one that is no adapter's), or too little space.
      OSError: if the folder cannot be made or written to.
    """
    checks.distinct("adapters", [recipe.name for recipe in recipes])
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, got the file {str(out)!r}.")
    for recipe in recipes:
        _check_place(out / recipe.name, overwrite=overwrite)
    parent = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    # An adapter that is replaced goes only when its successor is whole.
    needed = sum(recipe.size_bytes + _SPARE for recipe in recipes)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise ValueError(
            f"--out {str(out)!r} needs {needed / 2**20:,.0f} MiB, its disk has "
            f"{free / 2**20:,.0f} MiB free; choose fewer ranks or another disk."
        )
    out.mkdir(parents=True, exist_ok=True)
    _drop_dead_partials(out)
    return Job(out, recipes, overwrite)


def run(job: Job, progress: Callable[[str, int, int], object] | None = None) -> list[pathlib.Path]:
    """Writes a job's adapters one after another; each is whole or absent.

    Args:
      job: what `prepare` gave.
      progress: called with the adapter's name, bytes written in all and bytes to write.

    Returns:
      Their folders.

    Raises:
      OSError: if one cannot be written; those before it stay, nothing of it does.
    """
    total = sum(recipe.size_bytes for recipe in job.recipes)
    done = 0
    written = []
    for recipe in job.recipes:
        partial, final = job.out / f"{_PARTIAL}{os.getpid()}-{recipe.name}", job.out / recipe.name
        job.work = partial, final
        try:
            partial.mkdir()
            for count in _write(partial, recipe):
                if progress is not None:
                    progress(recipe.name, done + min(count, recipe.size_bytes), total)
            if job.overwrite and final.exists():
                os.rename(final, _aside(partial))
            # Refused by the system where another process has put an adapter there.
            os.rename(partial, final)
        finally:
            job.clean_up()
            job.work = None
        done += recipe.size_bytes
        written.append(final)
    return written


def _write(folder: pathlib.Path, recipe: Recipe) -> Iterator[int]:
    """Writes both files; yields bytes of weights written so far."""
    tensors = shapes.adapter_tensors(recipe.model, recipe.rank, recipe.targets)
    with open(folder / WEIGHTS_FILE, "xb", buffering=0) as file:
        yield from safetensors.write(_Whole(file), tensors, _weights(recipe))
        # Measuring drops the file from the page cache, which only what is on disk can leave.
        os.fsync(file.fileno())
    config = {
        "base_model_name_or_path": shapes.MODELS[recipe.model].name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 2 * recipe.rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": recipe.rank,
        "target_modules": list(shapes.TARGETS[recipe.targets]),
        "task_type": "CAUSAL_LM",
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


class _Whole:
    """Writes every byte of a piece or raises; an unbuffered file may write fewer."""

    def __init__(self, file: "safetensors.Writable") -> None:
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        """Writes a piece; returns its length."""
        view = memoryview(data)
        while len(view):
            view = view[self._file.write(view) or 0 :]
        return len(data)


def _weights(recipe: Recipe) -> Iterator[bytes]:
    """Random bfloat16 bytes of an adapter, always the same for one recipe.

    Sign, mantissa and three bits of the exponent are random: finite values up to 2 in
    magnitude, with about as many random bits as real weights have, as disks may compress.
    """
    draws = np.random.default_rng([recipe.rank, *recipe.name.encode()])
    left = recipe.size_bytes
    while left:
        count = min(left, _CHUNK)
        words = draws.integers(0, 2**16, count // 2, np.uint16)
        # Little-endian, as the format wants it.
        yield ((words & 0x83FF) | 0x3C00).astype("<u2").tobytes()
        left -= count


def _check_place(folder: pathlib.Path, *, overwrite: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise ValueError(
            f"{str(folder)!r} already exists; allowed are another --out, or --overwrite."
        )
    is_adapter = folder.is_dir() and not folder.is_symlink()
    if not is_adapter or {entry.name for entry in folder.iterdir()} - {CONFIG_FILE, WEIGHTS_FILE}:
        raise ValueError(
            f"{str(folder)!r} holds more than an adapter; --overwrite replaces folders with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE} alone."
        )


def _aside(partial: pathlib.Path) -> pathlib.Path:
    """Where an older adapter waits until its successor stands in its place."""
    return partial.with_name(partial.name + _OLD)


def _settle(aside: pathlib.Path, final: pathlib.Path) -> None:
    """Ends a replacement: the older adapter goes if there is a newer one, or returns."""
    if not aside.exists():
        return
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(aside, final)


def _drop_dead_partials(out: pathlib.Path) -> None:
    """Removes what runs that were killed have left behind; returns what they had set aside."""
    for leftover in out.glob(f"{_PARTIAL}*"):
        number, _, name = leftover.name.removeprefix(_PARTIAL).partition("-")
        if not number.isdecimal() or _alive(int(number)):
            continue
        if name.endswith(_OLD):
            _settle(leftover, out / name.removesuffix(_OLD))
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
