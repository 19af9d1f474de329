"""The `polar-jax` command: parses, prepares JAX, calls, prints. No science.

Imports are inside functions, so that `--help` answers before JAX could load.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from polar_jax.config import RunConfig
    from polar_jax.experiment import Prepared
    from polar_jax.lanes import Results

PROGRAM = "polar-jax"
_USAGE = f"""usage: {PROGRAM} run [OPTIONS]

Caching and routing of LoRA adapters: simulates policies on one stream of requests and
shows who wins.

commands:
  run         run the experiment; `{PROGRAM} run --help` lists its options

options:
  -h, --help  show this help
  --version   show the version
"""
FAILED, BAD_INPUT = 1, 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      arguments: the command line without the program's name; `sys.argv` where None.

    Returns:
      The exit code: 0, 1 for a failure while running, 2 for bad input. An interrupt ends
      the process at once with 130.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # Where the encoding has no "\u00b1", a "?" is better than no table.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _end_at_signals(lambda: None)
    try:
        return _dispatch(words)
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does; the files are written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        import polar_jax

        print(f"{PROGRAM} {polar_jax.__version__}")
        return 0
    if words[0] != "run":
        return _error(f"the command must be run; got {words[0]!r}.", BAD_INPUT)
    try:
        config = _parse(words[1:])
    except ValueError as error:
        return _error(str(error), BAD_INPUT)
    return 0 if config is None else _run(config)


def _parse(words: Sequence[str]) -> "RunConfig | None":
    """The options; None where help was asked for and shown."""
    import tyro

    from polar_jax.config import RunConfig

    # tyro explains bad options in a box of several lines and exits; it becomes one line.
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(RunConfig, prog=f"{PROGRAM} run", args=words)
    except SystemExit as stop:
        if not stop.code:
            return None
        raise ValueError(_one_line(complaint.getvalue())) from None


def _one_line(text: str) -> str:
    """What tyro's box says before its first inner rule, and what it thinks was meant."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    meant = re.search(r"Perhaps you meant:\W*(--[\w-]+)", text)
    # The title stands in the upper edge of a frame, or on a line above it where the
    # encoding has no frames.
    plain = re.sub(r"^\u256d.*", "", text) if "\u256d" in text else text.lstrip().partition("\n")[2]
    blocks = [" ".join(block.split()) for block in re.split(r"[\u2500-]{8,}", plain)]
    said = next((block for block in (_unframed(block) for block in blocks) if block), "bad options")
    hint = f" (did you mean {meant[1]}?)" if meant else ""
    return f"{said.rstrip('.')}{hint}; see {PROGRAM} run --help."


def _unframed(text: str) -> str:
    return " ".join(re.sub(r"[\u2500-\u257f]", " ", text).split())


def _run(config: "RunConfig") -> int:
    _prepare_jax(config.devices)
    import jax

    from polar_jax import console, experiment, store

    try:
        prepared = experiment.prepare(config)
    except (ValueError, OSError, MemoryError, OverflowError) as error:
        return _error(_describe(error), BAD_INPUT)
    _end_at_signals(lambda: store.release(prepared.folder))
    try:
        with console.ProgressView(quiet=config.quiet) as view:
            results = experiment.execute(prepared, view)
    except (OSError, MemoryError, ArithmeticError, jax.errors.JaxRuntimeError) as error:
        return _error(_describe(error), FAILED)
    if not config.quiet:
        _show(prepared, results)
    return 0


def _show(prepared: "Prepared", results: "Results") -> None:
    from polar_jax import console, summary

    comparison = summary.compare(results, prepared.experiment.problem.horizon)
    out = console.stdout()
    console.print_results(out, comparison)
    out.print()
    for path in sorted(prepared.folder.path.iterdir()):
        out.print(str(path), markup=False, soft_wrap=True)


def _prepare_jax(devices: int | None) -> None:
    """Sets what JAX reads once, before it starts."""
    # The C++ layers log to stderr from here on up; errors of ours are one line.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    from polar_jax import manifest

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # Refused once JAX has started, as where `main` is called from a program.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices or manifest.usable_cores())
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # A cache that cannot be read or written costs time, never the run.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
    folder = _cache_folder()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _cache_folder() -> pathlib.Path | None:
    """Folder for compiled programs, None where none can be written."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(root) / "polar_jax" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _end_at_signals(clean_up: Callable[[], None]) -> None:
    """Makes Ctrl-C and termination end the process at once, after `clean_up`.

    Raising instead would wait for compilations, whose threads cannot be stopped.
    """

    def handler(number: int, _frame: FrameType | None) -> NoReturn:
        with contextlib.suppress(Exception):
            clean_up()
        # Written without buffers and locks: the interrupted code may hold them. A
        # progress bar hides the cursor, and Ctrl-C leaves its own mark on the line.
        start = "\x1b[?25h\n" if sys.stderr.isatty() else ""
        word = "interrupted" if number == signal.SIGINT else "terminated"
        with contextlib.suppress(OSError):
            os.write(2, f"{start}{PROGRAM}: {word}\n".encode())
        os._exit(128 + number)

    for number in _SIGNALS:
        # A process started in the background may have been told to ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _describe(error: BaseException) -> str:
    """One line for an exception."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {str(error.filename)!r}" if error.filename is not None else ""
        return f"{error.strerror}{where}"
    text = " ".join(str(error).split()) or type(error).__name__
    # The engine names its arguments; whoever typed an option looks for the option.
    first, space, rest = text.partition(" ")
    return f"--{first.replace('_', '-')}{space}{rest}" if first in _options() else text


def _options() -> set[str]:
    from polar_jax.config import RunConfig

    return {field.name for field in dataclasses.fields(RunConfig)}


def _error(message: str, code: int) -> int:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr, flush=True)
    return code
