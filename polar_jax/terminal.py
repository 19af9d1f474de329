"""What every command of `polar-jax` shares: options, errors of one line, JAX, signals."""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn, TypeVar

from polar_jax import processors, streams

PROGRAM = "polar-jax"
FAILED, BAD_INPUT = 1, 2
# A terminal that is closed hangs up; Slurm and its launchers warn with one of the last two
# before they kill.
SIGNALS = tuple(
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if (number := getattr(signal, name, None)) is not None
)
_T = TypeVar("_T")


def parse(options: type[_T], command: str, words: Sequence[str]) -> _T | None:
    """Options of a command; None where help was asked for and shown.

    Args:
      options: the dataclass that describes them.
      command: the command's name, such as `run`.
      words: the command line behind it.

    Raises:
      ValueError: for options that cannot be used, in one line.
    """
    import tyro

    # tyro explains bad options in a box of several lines and exits; it becomes one line.
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, prog=f"{PROGRAM} {command}", args=words)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise ValueError(one_line(complaint.getvalue(), command)) from None


def one_line(text: str, command: str) -> str:
    """What tyro's box says before its first inner rule, and what it thinks was meant."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    meant = re.search(r"Perhaps you meant:\W*(--[\w-]+)", text)
    # The title stands in the upper edge of a frame, or on a line above it where the
    # encoding has no frames.
    plain = re.sub(r"^\u256d.*", "", text) if "\u256d" in text else text.lstrip().partition("\n")[2]
    blocks = [" ".join(block.split()) for block in re.split(r"[\u2500-]{8,}", plain)]
    said = next((block for block in (_unframed(block) for block in blocks) if block), "bad options")
    hint = f" (did you mean {meant[1]}?)" if meant else ""
    return f"{said.rstrip('.')}{hint}; see {PROGRAM} {command} --help."


def _unframed(text: str) -> str:
    return " ".join(re.sub(r"[\u2500-\u257f]", " ", text).split())


def prepare_jax(devices: int | None, *, portable: bool = False, distributed: bool = False) -> None:
    """Sets what JAX reads once, before it starts.

    Args:
      devices: host devices to make; one per core where None.
      portable: whether compiled code must give the same bits on unlike processors; also where
        the environment says so (`processors.VARIABLE`).
      distributed: whether to join the other processes of a launcher.

    Raises:
      ValueError: if portable code cannot be had here, or there is nobody to join.
    """
    # A variable that was set by hand comes without the flags that make it true.
    portable = portable or processors.code() == processors.PORTABLE
    if portable:
        processors.make_portable()
    # The C++ layers log to stderr from here on up; errors of ours are one line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    from polar_jax import manifest

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # Refused once JAX has started, as where `main` is called from a program.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices or manifest.usable_cores())
    if distributed:
        from polar_jax import processes

        processes.join()
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # A cache that cannot be read or written costs time, never the run.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
    if portable and jax.devices()[0].platform != "cpu":
        found = jax.devices()[0].platform
        raise ValueError(f"--portable is about code for processors, and the device is {found}.")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = _cache_folder(_kind())
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _kind() -> str:
    """What compiled programs depend on beside themselves: the device, or the processor's code."""
    import jax

    device = jax.devices()[0]
    host = (processors.cpu_model(), processors.instruction_set(), processors.code())
    return "-".join((device.platform, device.device_kind, *host))


def _cache_folder(kind: str) -> pathlib.Path | None:
    """Folder for programs compiled on one kind of device, None where none can be written.

    Machines that share a home may differ: code for one processor need not run on another.
    """
    try:
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        name = f"{kind.partition('-')[0]}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
        folder = pathlib.Path(root) / "polar_jax" / "jax" / name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def end_at_signals(clean_up: Callable[[], None], more: str = "") -> None:
    """Makes Ctrl-C and termination end the process at once, after `clean_up`.

    Raising instead would wait for compilations, whose threads cannot be stopped.

    Args:
      clean_up: called first.
      more: what to tell beside that it ended.
    """

    def handler(number: int, _frame: FrameType | None) -> NoReturn:
        with contextlib.suppress(Exception):
            clean_up()
        # A progress bar hides the cursor, and Ctrl-C leaves its own mark on the line.
        start = "\x1b[?25h\n" if sys.stderr.isatty() else ""
        word = "interrupted" if number == signal.SIGINT else "terminated"
        say_at_once(f"{start}{PROGRAM}: {word}{more}\n")
        os._exit(128 + number)

    on_signals(handler)


def on_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Has `handler` called at every signal that asks a process to end."""
    for number in SIGNALS:
        # A process started in the background may have been told to ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def say_at_once(text: str) -> None:
    """Writes to stderr from within a signal's handler, where somebody still reads it."""
    # Without buffers and locks, which the interrupted code may hold. Ctrl-C also ends a
    # `| tee` that would have read this.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def describe(error: BaseException, options: type) -> str:
    """One line for an exception; names of `options` are written as people type them."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {str(error.filename)!r}" if error.filename is not None else ""
        return f"{error.strerror}{where}"
    text = " ".join(str(error).split()) or type(error).__name__
    # The engine names its arguments; whoever typed an option looks for the option.
    first, space, rest = text.partition(" ")
    return f"--{first.replace('_', '-')}{space}{rest}" if first in _names(options) else text


def _names(options: type) -> set[str]:
    return {field.name for field in dataclasses.fields(options)}


def error(message: str, code: int) -> int:
    """Prints an error in one line; returns the exit code."""
    say(f"error: {message}")
    return code


def say(message: str) -> None:
    """Prints a line on stderr, where somebody still reads it: the exit code tells the rest."""
    try:
        print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        streams.detach(sys.stderr)
