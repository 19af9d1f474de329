"""What `polar-jax sweep` prints: progress, the plan, the state of a sweep."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from polar_jax import console as console_
from polar_jax import streams
from polar_jax.sweep import device_layout
from polar_jax.sweep.plan import Plan
from polar_jax.sweep.run import Outcome, Progress

# Without a terminal, a line at least this often.
_QUIET_SECONDS = 30.0


class _Stderr(Console):
    """A console that falls silent once nobody reads it: a sweep goes on without its log."""

    def on_broken_pipe(self) -> None:
        """Called where the reader has gone; rich itself would end the process."""
        self.quiet = True
        streams.detach(sys.stderr)


class SweepView:
    """Shows progress on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = _Stderr(stderr=True, highlight=False, quiet=quiet)
        self._bars: Bars | None = None
        if self._console.is_terminal and not quiet:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[rate]}", style="cyan"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bars.add_task("planning", total=None, rate="")
        self._began = self._shown = time.perf_counter()
        self._first: int | None = None
        self._busy = 0.0  # seconds spent on decisions
        self._last = self._began

    def __enter__(self) -> "SweepView":
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

    def __call__(self, step: Progress) -> None:
        """Shows one step."""
        now = time.perf_counter()
        if step.phase in ("running", "shard"):
            self._busy += now - self._last
        self._last = now
        if self._first is None:
            self._first = step.decisions
        if step.phase == "failed":
            self._console.print(f"failed: {step.note}", style="red", markup=False)
        if self._bars is not None:
            self._bars.update(
                self._task,
                description=self._title(step),
                completed=step.decisions,
                total=step.total,
                rate=self._rate(step),
            )
        elif step.phase == "shard" or now - self._shown >= _QUIET_SECONDS:
            self._shown = now
            self._console.print(f"{self._title(step)}, {self._rate(step)}{self._left(step)}")

    def _made(self, step: Progress) -> int:
        return step.decisions - (self._first or 0)

    def _rate(self, step: Progress) -> str:
        return f"{console_.rate(self._made(step), self._busy)} decisions/s"

    def _left(self, step: Progress) -> str:
        """Time left at the pace of this call, compilation included."""
        made = self._made(step)
        if made <= 0 or step.decisions >= step.total:
            return ""
        pace = (time.perf_counter() - self._began) / made
        return f", about {duration(pace * (step.total - step.decisions))} left"

    def _title(self, step: Progress) -> str:
        text = f"shards {step.shards_done}/{step.shards}"
        if step.phase == "compiling":
            return f"{text}, compiling {step.note}"
        if step.phase == "waiting":
            return f"{text}, waiting {step.note}"
        share = 100.0 * step.decisions / max(step.total, 1)
        return f"{text}, {share:.0f} % of decisions"


def duration(seconds: float) -> str:
    """A length of time for people, such as `3 min 20 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def size(number_of_bytes: float) -> str:
    """An amount of memory for people."""
    if number_of_bytes < 2**30:
        return f"{number_of_bytes / 2**20:,.0f} MiB"
    return f"{number_of_bytes / 2**30:,.1f} GiB"


def print_plan(
    console: Console, plan: Plan, memory: list[int], *, exact: bool, num_devices: int
) -> None:
    """Prints a plan.

    Args:
      console: where to.
      plan: the plan.
      memory: bytes on one device per bucket.
      exact: whether the compiler planned that memory, or it is an estimate.
      num_devices: devices of the machine.
    """
    spec = plan.spec
    console.print(spec.title or spec.name, style="bold", markup=False)
    axes = "; ".join(f"{axis.name} {_values(axis.values)}" for axis in spec.axes)
    console.print(f"axes: {axes}", markup=False, soft_wrap=True)
    for text in spec.filters:
        console.print(f"filter: {text}", markup=False)
    console.print(
        f"{len(spec.configurations):,} configurations on {spec.seeds:,} seeds: "
        f"{spec.num_lanes:,} lanes, {plan.decisions:,} decisions"
    )
    if plan.num_read_off:
        console.print(
            f"{plan.num_read_off:,} configurations are read off longer runs of anytime policies."
        )
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    for heading in ("compiled for", "configurations", "tile", "programs", "memory", "padding"):
        table.add_column(
            heading, justify="left" if heading in ("compiled for", "padding") else "right"
        )
    for bucket, needed in zip(plan.buckets, memory, strict=True):
        configurations = sum(
            1 + len(entry.read_off) for cell in bucket.cells for entry in cell.entries
        )
        table.add_row(
            f"N {bucket.shape.num_adapters}, d {bucket.shape.context_dim}",
            f"{configurations:,}",
            str(bucket.tile),
            str(len(bucket.programs)),
            size(needed),
            bucket.padding,
        )
    console.print(table)
    programs = plan.programs()
    console.print(f"programs ({len(programs)}, of which {len(plan.programs('advance'))} serve):")
    for name in programs:
        console.print(f"  {name}", markup=False, soft_wrap=True)
    kind = "as compiled" if exact else "estimated; --exact-memory compiles to know"
    console.print(f"memory per device: at most {size(max(memory))} ({kind})")
    _print_layout(console, plan, num_devices)
    console.print(
        f"shards: {len(plan.shards):,}; about {duration(plan.seconds)} on 2 cores, and up to "
        f"{duration(compile_seconds(plan))} of compiling the first time"
    )


def _print_layout(console: Console, plan: Plan, num_devices: int) -> None:
    layout, why = device_layout.choose(plan, num_devices)
    console.print(f"layout: {why}", soft_wrap=True)
    if layout.processes > 1:
        own = "--devices" if plan.platform == "cpu" else "CUDA_VISIBLE_DEVICES and --devices"
        console.print(
            f"  start `polar-jax sweep run` {layout.processes} times on the same folder, each with "
            f"{layout.devices} of the devices ({own}); no result depends on it",
            soft_wrap=True,
        )


def compile_seconds(plan: Plan) -> float:
    """Estimated seconds of compiling everything."""
    from polar_jax.sweep import costs

    serving = len(plan.programs("advance"))
    return serving * costs.COMPILE_POLICY + len(plan.programs("draw")) * costs.COMPILE_STREAM


def print_status(console: Console, status: dict[str, Any]) -> None:
    """Prints what `status.read` found."""
    console.print(status["title"], style="bold", markup=False)
    for line in status["lines"]:
        console.print(line, markup=False, soft_wrap=True)


def print_outcome(
    console: Console, outcome: Outcome, written: list[Any], *, planning: float, reporting: float
) -> None:
    """Prints how a call ended.

    Args:
      console: where to.
      outcome: how the shards ended.
      written: files of the report.
      planning: seconds from the spec to the plan.
      reporting: seconds from stored rows to the report; 0 without one.
    """
    whole = planning + outcome.seconds + reporting
    console.print(
        f"{outcome.done} of {outcome.shards} shards are done; this call took "
        f"{duration(whole)}, of which planning {planning:.1f} s, compiling "
        f"{outcome.compiling_seconds:.1f} s, storing {outcome.storing_seconds:.1f} s and reporting "
        f"{reporting:.1f} s."
    )
    for path in written:
        console.print(str(path), markup=False, soft_wrap=True)


def _values(values: tuple[Any, ...]) -> str:
    shown = [str(value) for value in values]
    if len(shown) > 8:
        shown = [*shown[:3], "...", *shown[-2:]]
    return ", ".join(shown)
