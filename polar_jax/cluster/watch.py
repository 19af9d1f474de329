"""What `sweep status` prints of a submitted sweep: lines, or one live screen."""

import collections
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from polar_jax import bytesizes
from polar_jax import console as console_
from polar_jax.cluster.standing import Reader, Shard, Standing, State, log_of
from polar_jax.sweep.console import duration

_SECONDS = 3.0
# A pace needs some checkpoints to be seen, and should follow what changes.
_WINDOW = (30.0, 180.0)
# Of a sweep: before, most of what has passed was starting and compiling, and a pace says nothing.
_EARLY = 0.01
_TROUBLE: tuple[State, ...] = ("failed", "lost", "stopped", "foreign")
_ALWAYS: tuple[State, ...] = ("done", "running", "queued", "failed", "lost")
_SOMETIMES: tuple[State, ...] = ("stopped", "missing", "foreign")
_WORDS = {"missing": "to submit"}
_STYLES = {"done": "green", "running": "cyan", "failed": "red", "lost": "red", "foreign": "red"}
_SHOWN = 12
# A shard and its log need about as much.
_FULL_BYTES = 2**20


class _Pace:
    """Decisions per second over the cluster, from what is stored as time passes."""

    def __init__(self) -> None:
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def add(self, found: Standing) -> float | None:
        """The pace with one more look; that of the sweep so far until enough was seen."""
        now = time.monotonic()
        self._seen.append((now, found.made))
        while now - self._seen[0][0] > _WINDOW[1]:
            self._seen.popleft()
        then, made = self._seen[0]
        if now - then < _WINDOW[0] or found.made <= made:
            return found.per_second
        return (found.made - made) / (now - then)


def lines(found: Standing, *, most: int = _SHOWN) -> list[str]:
    """How a sweep stands, for people.

    Args:
      found: how it stands.
      most: troubles to list at most.

    Returns:
      Lines, the title left out.
    """
    counted = [f"{found.count('done')} of {len(found.shards)} done"]
    counted += [f"{found.count(state)} {state}" for state in _ALWAYS[1:]]
    counted += [
        f"{found.count(state)} {_WORDS.get(state, state)}"
        for state in _SOMETIMES
        if found.count(state)
    ]
    share = 100.0 * found.made / max(found.total, 1)
    told = [
        "shards: " + ", ".join(counted),
        f"decisions: {found.made:,} of {found.total:,} stored ({share:.0f} %)",
    ]
    pace = _pace_line(found, found.per_second)
    return [*told, *([pace] if pace else []), *_queue_lines(found), *_trouble_lines(found, most)]


def watch(reader: Reader, console: Console) -> Standing:
    """Shows one live screen until nothing is queued or running.

    Args:
      reader: reads how the sweep stands.
      console: where to; without a terminal it gets a line now and then.

    Returns:
      How it stood at the end.
    """
    pace = _Pace()
    found = reader.read()
    if not console.is_terminal:
        return _follow(reader, console, found)
    with Live(_screen(found, pace.add(found)), console=console, auto_refresh=False) as live:
        while not found.is_over:
            time.sleep(_SECONDS)
            found = reader.read()
            live.update(_screen(found, pace.add(found)), refresh=True)
    return found


def _follow(reader: Reader, console: Console, found: Standing) -> Standing:
    """Prints the lines again whenever they changed."""
    before: list[str] = []
    while True:
        told = lines(found)
        for line in told if told != before else ():
            console.print(line, markup=False, soft_wrap=True)
        if found.is_over:
            return found
        before = told
        time.sleep(_SECONDS)
        found = reader.read()


def _screen(found: Standing, pace: float | None) -> Group:
    counts = Table.grid(padding=(0, 2))
    states: list[State] = [*_ALWAYS, *(state for state in _SOMETIMES if found.count(state))]
    counts.add_row(*(Text(_WORDS.get(state, state), style="bold") for state in states))
    counts.add_row(
        *(Text(f"{found.count(state):,}", style=_STYLES.get(state, "")) for state in states)
    )
    bar = ProgressBar(total=max(found.total, 1), completed=found.made, width=60)
    parts = [
        Text(found.title, style="bold"),
        counts,
        bar,
        Text(_pace_line(found, pace) or "no pace yet: nothing is stored, or nothing runs"),
        *(Text(line) for line in _queue_lines(found)),
        *(Text(line, style="red") for line in _trouble_lines(found, _SHOWN)),
    ]
    return Group(*parts)


def _pace_line(found: Standing, pace: float | None) -> str:
    if not pace:
        return ""
    running = found.count("running")
    left = f"about {duration((found.total - found.made) / pace)} left"
    if found.made < _EARLY * found.total:
        left = "too early to say how long it takes"
    return (
        f"pace: {console_.rate(pace, 1.0)} decisions/s on {running} shard{'s' * (running != 1)} at "
        f"once; {left}"
    )


def _queue_lines(found: Standing) -> list[str]:
    """What the scheduler says, and why tasks wait."""
    told = list(found.notes)
    reasons = collections.Counter(
        one.detail for one in found.shards if one.state == "queued" and one.detail
    )
    if reasons:
        told.append(
            "queued for: " + ", ".join(f"{why} ({count})" for why, count in reasons.most_common())
        )
    if found.submissions:
        last = found.submissions[-1]
        told.append(
            f"last submission: number {last.number}, {last.engine}, {last.created[:16]} UTC"
            f"{', cancelled' * last.cancelled}{', forgotten' * last.forgotten}; logs in {last.logs}"
        )
    return told


def _trouble_lines(found: Standing, most: int) -> list[str]:
    """Shards that ended without being done; those that ended alike share a line."""
    alike: dict[tuple[State, str], list[Shard]] = {}
    for one in found.shards:
        if one.state in _TROUBLE:
            alike.setdefault((one.state, one.detail), []).append(one)
    told = []
    for (state, detail), shards in list(alike.items())[:most]:
        named = ", ".join(str(one.index) for one in shards[:8]) + ", ..." * (len(shards) > 8)
        tries = max(one.attempts for one in shards)
        told.append(
            f"shard{'s' * (len(shards) != 1)} {named} {state}: {detail} (submitted {tries} "
            f"time{'s' * (tries != 1)}{_log_hint(found, shards[0])})"
        )
    if len(alike) > most:
        told.append(f"and {len(alike) - most} more kinds of trouble")
    # A disk that is full cuts off the very logs that would say so.
    if told and found.free_bytes is not None and found.free_bytes < _FULL_BYTES:
        told.append(f"the disk of the folder is full: {bytesizes.shown(found.free_bytes)} left")
    return told


def _log_hint(found: Standing, shard: Shard) -> str:
    for one in reversed(found.submissions):
        if any(shard.index in shards for shards in one.tasks):
            path = log_of(one, one.task_of(shard.index))
            return f"; log {path.name}" if path.exists() else ""
    return ""
