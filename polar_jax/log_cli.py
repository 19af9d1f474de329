"""`polar-jax paging read-log`: load times out of a serving system's log, as a paging CSV."""

import dataclasses
import pathlib
from typing import Literal

import tyro

from polar_jax import terminal
from polar_jax.terminal import BAD_INPUT, FAILED


@dataclasses.dataclass(frozen=True)
class ReadLog:
    """Read the load times in the log of vLLM, SGLang or LoRAX, or a client's own timings.

    Writes a paging CSV, which `polar-jax run --paging` reads, and prints how many lines were
    used and skipped and what the times are worth. docs/serving_logs.md says how to get such a
    log, and what is taken for one load.

    Attributes:
      file: the log; - for standard input.
      out: the paging CSV to write.
      format: which system wrote it; auto finds out by the first line that tells.
      tier: the part of a load that counts as its time; sum adds up all that the log tells apart.
      overwrite: whether OUT may be there already.
    """

    file: tyro.conf.Positional[str]
    out: pathlib.Path
    format: Literal["auto", "vllm", "sglang", "lorax", "client-csv"] = "auto"
    tier: Literal["sum", "disk-to-host", "host-to-device", "disk-to-device", "remote"] = "sum"
    overwrite: bool = False

    def check(self) -> None:
        """Sees that the output can be written as asked, before anything is read.

        Raises:
          ValueError: if OUT is no .csv, is FILE itself, or is there and not to be overwritten.
        """
        if self.out.suffix.lower() != ".csv":
            raise ValueError(f"--out must end with .csv, got {str(self.out)!r}.")
        if not self.out.exists():
            return
        if self.file != "-" and pathlib.Path(self.file).exists() and self.out.samefile(self.file):
            raise ValueError(f"--out must be another file than the log, got {str(self.out)!r}.")
        if self.out.is_dir():
            raise ValueError(f"--out must be a file, got the folder {str(self.out)!r}.")
        if not self.overwrite:
            raise ValueError(taken(self.out))


def taken(out: pathlib.Path) -> str:
    """The message for an output that is there."""
    return f"--out {str(out)!r} exists already; allowed are a new name, or --overwrite."


def run(options: ReadLog) -> int:
    """Reads the log and writes the table.

    Returns:
      The exit code: 0, or 1 where the table cannot be written.

    Raises:
      ValueError: for a log or an option that cannot be used.
      OSError: for a log that cannot be read.
    """
    options.check()
    from polar_jax.io import logs
    from polar_jax.sweep import files

    log = logs.read_serving_log(options.file, options.format)
    chosen = logs.select(log, options.tier)
    data = logs.to_paging_csv(chosen).encode()
    try:
        if options.overwrite:
            files.write_whole(options.out, lambda file: file.write(data))
        elif not files.create_whole(options.out, data):
            # Somebody wrote it since it was looked for.
            return terminal.error(taken(options.out), BAD_INPUT)
    except OSError as error:
        return terminal.error(terminal.describe(error, ReadLog), FAILED)
    kept = sum(len(loads) for rows in chosen.times.values() for loads in rows.values())
    print(f"{log.format}: {log.lines_used} lines used, {log.lines_skipped} skipped.")
    print(f"{kept} of {len(log.loads)} loads taken, {len(chosen.times)} adapters.")
    for note in (*log.notes, *chosen.notes):
        print(f"note: {note}")
    print(options.out)
    return 0
