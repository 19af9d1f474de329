"""What `polar-jax paging` shows: progress while it works, then tables."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from polar_jax.paging import PagingTable
from polar_jax.paging_tools import summary
from polar_jax.paging_tools.summary import Fit, Row

# Lines of a table; a file may hold 10,000 adapters.
_MOST = 60
# Without a terminal, a line at least this often.
_QUIET_SECONDS = 10.0


class View:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere.

    A context manager; call it with a label, what is done and what there is.
    """

    def __init__(self, doing: str, *, quiet: bool = False) -> None:
        self._doing = doing
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._bars: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bars.add_task(doing, total=None)
        self._shown = time.perf_counter()

    def __enter__(self) -> "View":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, label: str, done: int, total: int) -> None:
        """Shows one step."""
        if self._bars is not None:
            self._bars.update(
                self._task, description=f"{self._doing} {label}", completed=done, total=total
            )
        elif done >= total or time.perf_counter() - self._shown > _QUIET_SECONDS:
            self._shown = time.perf_counter()
            share = 100.0 * done / max(total, 1)
            self._console.print(f"{self._doing} {label}: {share:.0f} %", markup=False)


def print_rows(console: Console, found: Sequence[Row]) -> None:
    """A line per adapter and tier.

    Args:
      console: where to.
      found: figures; of more than 60 the first are shown.
    """
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    table.add_column("adapter", overflow="fold")
    table.add_column("tier", overflow="fold")
    low, high = f"{100 * summary.LOW:.0f} %", f"{100 * summary.HIGH:.0f} %"
    for heading in ("MiB", "times", "median ms", low, high, "mean ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found[:_MOST]:
        size = "" if row.size_bytes is None else f"{row.size_bytes / 2**20:.1f}"
        times = (number(ms) for ms in (row.median, row.low, row.high, row.mean))
        # Names come from files: they are no markup.
        table.add_row(_plain(row.adapter), _plain(row.tier), size, str(row.number), *times)
    console.print(table)
    if len(found) > _MOST:
        console.print(f"... and {len(found) - _MOST:,} more lines", style="dim")


def print_fits(console: Console, fits: Mapping[str, Fit]) -> None:
    """A line per transfer model."""
    for tier, fit in fits.items():
        console.print(f"{tier}: {model_text(fit)}", markup=False, soft_wrap=True)


def model_text(fit: Fit) -> str:
    """A transfer model in words."""
    model = fit.model
    share = (
        f"bytes / ({model.gb_per_s:.3g} GB/s)"
        if model.bytes_per_ms < float("inf")
        else "nothing that grows with bytes"
    )
    return f"{number(model.overhead_ms)} ms + {share}; medians within {100 * fit.worst:.0f} % of it"


def print_charge(console: Console, table: PagingTable, price_per_ms: float) -> None:
    """What `polar-jax run` makes of a file.

    Args:
      console: where to.
      table: the file as a run reads it.
      price_per_ms: of the run's default.
    """
    low, high = float(table.mean_ms.min()), float(table.mean_ms.max())
    mean = float(table.mean_ms.mean())
    draws = "drawn from its measurements" if table.samples_ms is not None else "its mean"
    console.print(
        f"As `polar-jax run` reads it: tier {table.tier}, {len(table.adapters)} adapters, a "
        f"page-in costs {number(low)} to {number(high)} ms (mean {number(mean)} ms, "
        f"{number(mean * price_per_ms)} units of utility at {price_per_ms:g} per ms); the latency "
        f"of each is {draws}.",
        markup=False,
        soft_wrap=True,
    )


def number(value: float) -> str:
    """A figure with three digits or more."""
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
