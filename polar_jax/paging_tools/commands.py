"""The options of `polar-jax paging`. Does not load JAX."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from polar_jax import checks

MAX_REPEATS = 10_000
_Positional = tyro.conf.Positional


def _arg(metavar: str, default: str) -> object:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclasses.dataclass(frozen=True)
class Synthesize:
    """Write adapter folders of the exact shapes of real ones, to measure this machine with.

    Each is a folder as PEFT saves it, adapter_config.json and adapter_model.safetensors in
    bfloat16, with random weights; it serves for measuring and for nothing else. A folder is
    written whole or not at all, and holds a piece of 4 MiB in memory at a time.

    Attributes:
      model: base model whose layers the adapters fit: qwen2.5-7b.
      ranks: LoRA ranks, each in [1, 1024], separated by commas or spaces.
      targets: modules that are adapted, one or more of qv, qkvo and all (every linear layer),
        separated by commas or spaces.
      out: folder for the adapters, one folder each.
      overwrite: replace adapters of the same names.
      quiet: print nothing but errors.
    """

    model: str = "qwen2.5-7b"
    ranks: tuple[str, ...] = ("8,16,32,64",)
    targets: tuple[str, ...] = ("all",)
    out: Annotated[pathlib.Path, _arg("DIR", "adapters")] = pathlib.Path("adapters")
    overwrite: bool = False
    quiet: bool = False

    def rank_numbers(self) -> list[int]:
        """The ranks as numbers.

        Raises:
          ValueError: for what is no whole number in range, or no rank at all.
        """
        from polar_jax.paging_tools import shapes

        words = _split(self.ranks)
        for word in words:
            if not word.isdecimal() or not 1 <= int(word[:9]) <= shapes.MAX_RANK:
                raise ValueError(
                    f"--ranks must be whole numbers in [1, {shapes.MAX_RANK}], separated by "
                    f"commas; got {word!r}."
                )
        return [int(word) for word in words] or _none("--ranks", "8,16,32,64")

    def target_names(self) -> list[str]:
        """The targets, each known.

        Raises:
          ValueError: for an unknown one, or none at all.
        """
        from polar_jax.paging_tools import shapes

        words = _split(self.targets)
        return [checks.one_of("--targets", word, shapes.TARGETS) for word in words] or _none(
            "--targets", ", ".join(shapes.TARGETS)
        )


@dataclasses.dataclass(frozen=True)
class Measure:
    """Time how real adapter files are paged in on this machine, and write a paging file.

    Times reads from disk with the page cache dropped (disk) and from the page cache
    (disk-warm), and the transfer of all tensors to the device (memory). Without an accelerator
    the last one copies within host memory and is called host-copy. `polar-jax run --paging FILE`
    reads the file: a page-in is disk plus memory, --tier takes another.

    Attributes:
      folder: holds a folder per adapter, as PEFT saves them, or is one.
      out: CSV file for the measurements.
      device: what to page to: a platform such as gpu, or a device such as gpu:1.
      repeats: timings per adapter and tier, in [1, 10000].
      overwrite: replace the file if it is there.
      quiet: print nothing but errors.
    """

    folder: Annotated[_Positional[pathlib.Path], tyro.conf.arg(metavar="DIR")]
    out: Annotated[pathlib.Path, _arg("FILE", "paging.csv")] = pathlib.Path("paging.csv")
    device: Annotated[str | None, _arg("STR", "an accelerator, or cpu where there is none")] = None
    repeats: int = 10
    overwrite: bool = False
    quiet: bool = False

    def check(self) -> None:
        """Checks every number.

        Raises:
          ValueError: names the option, what was received and what is allowed.
        """
        checks.between("--repeats", self.repeats, 1, MAX_REPEATS, whole=True)


@dataclasses.dataclass(frozen=True)
class Show:
    """Print a paging file: medians and quantiles, transfer models, what a run would charge.

    Attributes:
      file: CSV, JSON or Parquet file of measured load times; docs/file_formats.md explains it.
      tier: what a run would be given as --tier.
      out: PNG file for a figure; none is drawn without it.
      overwrite: replace the figure if it is there.
    """

    file: Annotated[_Positional[pathlib.Path], tyro.conf.arg(metavar="FILE")]
    tier: Annotated[str | None, _arg("STR", "all that add up")] = None
    out: Annotated[pathlib.Path | None, _arg("FILE", "none")] = None
    overwrite: bool = False


def _split(words: tuple[str, ...]) -> list[str]:
    return [word for entry in words for word in entry.replace(",", " ").split()]


def _none(option: str, allowed: str) -> list:
    raise ValueError(f"{option} must name one or more, such as {allowed}; got none.")
