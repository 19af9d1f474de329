"""Single output files: never over one that is there unless asked, and whole or absent."""

import csv
import io
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence

from polar_jax.io.peft import PeftAdapter
from polar_jax.io.tables import Measured

COLUMNS = ("adapter", "tier", "ms", "size_bytes", "rank", "device")


def check_out(
    out: pathlib.Path, suffixes: Sequence[str] = (), *, overwrite: bool, option: str = "--out"
) -> None:
    """Checks that a file can be written, before the work for it is done.

    Args:
      out: the file.
      suffixes: those allowed; any where there are none.
      overwrite: whether it may be there already.
      option: that named it, for messages.

    Raises:
      ValueError: for another suffix, a folder, or a file that is there already.
      OSError: if its folder cannot be made or written to.
    """
    if suffixes and out.suffix.lower() not in suffixes:
        raise ValueError(f"{option} must end in {' or '.join(suffixes)}, got {str(out)!r}.")
    if out.is_dir():
        raise ValueError(f"{option} must be a file, got the folder {str(out)!r}.")
    if os.path.lexists(out) and not overwrite:
        raise ValueError(
            f"{option} {str(out)!r} already exists; allowed are another file, or --overwrite."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    # Found out now, not after the work.
    probe = temporary(out)
    probe.touch()
    probe.unlink()


def temporary(out: pathlib.Path) -> pathlib.Path:
    """The name that a file has until it is whole."""
    return out.with_name(f".{os.getpid()}-{out.name}")


def put(out: pathlib.Path, data: bytes, *, overwrite: bool) -> None:
    """Writes a file under a temporary name and moves it into place.

    Args:
      out: the file.
      data: its bytes.
      overwrite: whether one that is there is replaced.

    Raises:
      FileExistsError: if it has come to be there meanwhile.
      OSError: if it cannot be written.
    """
    partial = temporary(out)
    try:
        partial.write_bytes(data)
        if overwrite:
            os.replace(partial, out)
        else:
            # A rename would take the place of a file that has come to be there.
            os.link(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def put_beside(out: pathlib.Path, data: bytes, *, overwrite: bool) -> pathlib.Path:
    """`put`, or beside it as `NAME-2`, `NAME-3`, ... where a file has come to be there meanwhile.

    For what cannot be had again: measurements.

    Returns:
      Where the data is.
    """
    place = out
    for number in itertools.count(2):
        try:
            put(place, data, overwrite=overwrite)
        except FileExistsError:
            place = out.with_name(f"{out.stem}-{number}{out.suffix}")
        else:
            break
    return place


def paging_csv(
    measured: Mapping[str, Measured], adapters: Sequence[PeftAdapter], device: str
) -> bytes:
    """A paging file of measured times, as `polar-jax run --paging` reads it.

    Args:
      measured: by adapter.
      adapters: the same adapters.
      device: what they were put on.

    Returns:
      CSV with the columns `COLUMNS`, a line per measurement.
    """
    out = io.StringIO(newline="")
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(COLUMNS)
    for adapter in adapters:
        for tier, times in measured[adapter.name].tiers.items():
            for ms in times:
                cells = (adapter.name, tier, f"{ms:.4f}", adapter.size_bytes, adapter.rank, device)
                lines.writerow(cells)
    return out.getvalue().encode()
