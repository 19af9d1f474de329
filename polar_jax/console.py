"""What `polar-jax run` shows: progress while it computes, then the table."""

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from polar_jax import lanes, summary
from polar_jax.statistics import Estimate
from polar_jax.summary import Comparison

# Wide enough for the table where there is no terminal to ask.
_FILE_WIDTH = 132


def stdout() -> Console:
    """A console for results."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)


class _Detail(ProgressColumn):
    """Programs compiled, or decisions per second since the compilation ended."""

    def render(self, task: Task) -> Text:
        """Shows one task's detail."""
        if task.description == "compiling":
            return Text(f"{task.completed:.0f} of {task.total or 0:.0f} programs", style="cyan")
        seconds = task.finished_time or task.elapsed or 0.0
        return Text(f"{rate(task.completed, seconds)} decisions/s", style="cyan")


def rate(count: float, seconds: float) -> str:
    """`count / seconds` for people, such as `1.52 M`."""
    per_second = count / max(seconds, 1e-9)
    if per_second >= 1e6:
        return f"{per_second / 1e6:.2f} M"
    return f"{per_second / 1e3:.1f} k" if per_second >= 1e3 else f"{per_second:.0f}"


class ProgressView:
    """Shows progress on stderr: bars on a terminal, a plain line per phase elsewhere.

    A context manager; call it with what `lanes.run` reports.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._bars: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.percentage:>3.0f} %"),
                _Detail(table_column=Column(no_wrap=True, min_width=20)),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
        self._task: TaskID | None = None
        self._phase = ""
        self._began = time.perf_counter()

    def __enter__(self) -> "ProgressView":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Leaves the terminal as it was; may be called twice."""
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, progress: lanes.Progress) -> None:
        """Shows one step."""
        if progress.phase != self._phase:
            self._phase, self._began = progress.phase, time.perf_counter()
            self._start(progress)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=progress.done)
        elif progress.done >= progress.total and self._task is None:
            # The last step may be reported twice.
            self._task = TaskID(0)
            self._console.print(self._line(progress))

    def _start(self, progress: lanes.Progress) -> None:
        self._task = None
        if self._bars is not None:
            self._task = self._bars.add_task(progress.phase, total=progress.total)

    def _line(self, progress: lanes.Progress) -> str:
        seconds = time.perf_counter() - self._began
        if progress.phase != "running":
            return f"compiled {progress.total} programs in {seconds:.1f} s"
        per_second = rate(progress.total, seconds)
        return f"made {progress.total:,} decisions in {seconds:.1f} s ({per_second} decisions/s)"


class _Column(NamedTuple):
    """A column of the table: heading, figure, how its estimates are shown."""

    heading: str
    figure: str
    show: Callable[[Estimate], str]


def _mean(estimate: Estimate) -> str:
    return summary.number(estimate.mean)


def _percent(estimate: Estimate) -> str:
    return f"{100.0 * float(estimate.mean):.1f} %"


_REGRET = (
    _Column("regret", "regret", summary.with_error),
    _Column("routing", "regret_routing", _mean),
    _Column("of it\nforced", "regret_forced", _mean),
    _Column("caching", "regret_caching", _mean),
    _Column("switch-\ning", "regret_switching", _mean),
)
_SERVING = (
    _Column("loss to\nfull memory", "loss_to_full", summary.with_error),
    _Column("hit\nrate", "hit_rate", _percent),
    _Column("paging\nms/req.", "paging_ms_per_request", _mean),
    _Column("switch.\nms/req.", "switching_ms_per_request", _mean),
    _Column("loads", "loads", _mean),
)
_NET = _Column("net utility\nper request", "net_utility", summary.with_error)
_WAITING = _Column("waiting\nms/req.", "waiting_ms_per_request", _mean)


def print_results(console: Console, comparison: Comparison) -> None:
    """Prints the table that a run ends with, in two where the console is narrow.

    Args:
      console: where to.
      comparison: the summary of the run.
    """
    regret = (_NET, *_REGRET) if comparison.linear_benchmark else _REGRET
    serving = (*_SERVING, _WAITING) if comparison.waited else _SERVING
    whole = _table(comparison, (*regret, *serving))
    # A measure is cut at the console's width unless it is given more.
    roomy = console.options.update(max_width=10 * _FILE_WIDTH)
    if console.measure(whole, options=roomy).maximum <= console.width:
        console.print(whole)
    else:
        console.print(_table(comparison, regret), "", _table(comparison, serving))
    for note in summary.notes(comparison):
        console.print(note, style="dim")


def _table(comparison: Comparison, columns: Sequence[_Column]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    table.add_column("policy", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for policy in comparison.policies:
        table.add_row(
            policy.name + (" *" if policy.is_oracle else ""),
            *(column.show(policy.figures[column.figure]) for column in columns),
            style="bold green" if policy.name == comparison.best else None,
        )
    return table
