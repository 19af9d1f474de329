"""Progress with the time left, and lines above it."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

from sweeps.real_adapters.run import Say


@contextlib.contextmanager
def watched(work: float) -> Iterator[Say]:
    """Shows a bar where someone looks, and lines in any case.

    Args:
      work: how much there is to do, as `run.work_of` says.

    Yields:
      What `run.run` tells of its progress.
    """
    console = Console(highlight=False)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=work)
        yield Say(
            lambda text: console.print(text, soft_wrap=True),
            lambda done: progress.advance(task, done),
        )
