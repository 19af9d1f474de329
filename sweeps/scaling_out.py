"""What a study takes on many devices: queue, start-up, compilation, shards of unequal length.

    python sweeps/scaling_out.py --out docs/scaling_out      # the tables and the figure of the docs
    python sweeps/scaling_out.py --small                     # one study, in seconds

A discrete-event simulation of `polar-jax sweep run` in one process per device: every job waits in
the queue, starts, and takes one missing shard after the other. Shards and their lengths are those
of `sweep.plan`; the first process to need a program compiles it, later ones read it from the
cache. Everything else is an option, and none of it was measured on a cluster.
"""

import argparse
import csv
import dataclasses
import heapq
import pathlib
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib.axes
import matplotlib.pyplot as plt

from polar_jax.sweep import costs, plan, spec

SWEEPS = pathlib.Path(__file__).parent
SHARD_SECONDS = (300.0, 60.0, 15.0, 4.0)
DEVICES = (1, 8, 64, 1000)
SPEEDS = (1.0, 10.0, 100.0, 1000.0)
ACCELERATOR_PRICE = 2.5  # dollars per hour, a guess


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What is assumed of a cluster.

    Attributes:
      queue: mean seconds that a job waits, exponentially distributed.
      start: seconds from a job's start to its first shard, compilation apart.
      cached: seconds to read a program that somebody has compiled.
      store: seconds to store a shard and to claim the next.
      price: of a device and hour, in dollars; the default is a guess for two cores.
      speed: of a device, times the machine of the plan's constants (2 cores).
    """

    queue: float = 60.0
    start: float = 10.0
    cached: float = 0.1
    store: float = 0.1
    price: float = 0.1
    speed: float = 1.0


class Work(NamedTuple):
    """A shard: its seconds on the machine of the plan's constants, and the programs it needs."""

    seconds: float
    programs: frozenset[int]


class Study(NamedTuple):
    """What a plan asks for."""

    name: str
    decisions: int
    shards: tuple[Work, ...]
    compile_seconds: tuple[float, ...]  # of every program


class Ran(NamedTuple):
    """How a study went."""

    seconds: float  # from submission to the last shard
    device_seconds: float  # that jobs held devices
    efficiency: float  # work's share of them


def study(path: pathlib.Path, shard_seconds: float, times: int = 1) -> Study:
    """The shards of a study, or of one with `times` as many of them.

    Args:
      path: its spec.
      shard_seconds: work that a shard aims at.
      times: more seeds of the same programs.
    """
    made = plan.make(spec.read(path), shard_seconds=shard_seconds)
    first, compiled, of_shape = 0, [], {}
    for bucket in made.buckets:
        names = bucket.programs
        of_shape[bucket.shape] = frozenset(range(first, first + len(names)))
        compiled += [_compile_seconds(name) for name in names]
        first += len(names)
    shards = tuple(
        Work(shard.seconds, frozenset().union(*(of_shape[shape] for shape in shard.shapes)))
        for shard in made.shards
    )
    packed = tuple(_packed(times * shards, shard_seconds))
    return Study(path.stem, times * made.decisions, packed, tuple(compiled))


def _packed(shards: Iterable[Work], shard_seconds: float) -> Iterable[Work]:
    """Shards put together as `sweep.plan` does with batches."""
    waiting: list[Work] = []
    for shard in shards:
        if waiting and sum(one.seconds for one in waiting) + shard.seconds > shard_seconds:
            yield _joined(waiting)
            waiting = []
        waiting.append(shard)
    yield _joined(waiting)


def _joined(shards: Sequence[Work]) -> Work:
    programs = frozenset[int]().union(*(one.programs for one in shards))
    return Work(sum(one.seconds for one in shards), programs)


def _compile_seconds(program: str) -> float:
    serves, draws = program.startswith("advance"), program.startswith("draw")
    # The others of a stream compile in the time that `costs` counts with its draws.
    return costs.COMPILE_POLICY if serves else costs.COMPILE_STREAM if draws else 0.0


def simulate(asked: Study, devices: int, cluster: Cluster, seed: int = 0) -> Ran:
    """Runs a study on so many devices.

    Args:
      asked: the study.
      devices: jobs of one device each, submitted at once.
      cluster: what is assumed.
      seed: of the queue's waits.
    """
    draw = random.Random(seed)
    begins = [
        draw.expovariate(1.0 / cluster.queue) if cluster.queue else 0.0 for _ in range(devices)
    ]
    free = [(begin + cluster.start, number) for number, begin in enumerate(begins)]
    heapq.heapify(free)
    known: list[set[int]] = [set() for _ in range(devices)]
    compiled: dict[int, float] = {}  # when somebody had compiled it
    # Longest first is what no process can know; they take them in the plan's order.
    for shard in asked.shards:
        now, number = heapq.heappop(free)
        for program in sorted(shard.programs - known[number]):
            if compiled.get(program, float("inf")) <= now:
                now += cluster.cached
            else:
                now += asked.compile_seconds[program]
                compiled[program] = min(now, compiled.get(program, float("inf")))
        known[number] |= shard.programs
        heapq.heappush(free, (now + shard.seconds / cluster.speed + cluster.store, number))
    # A job that finds no shard left ends; one that begins after the end costs its start-up.
    held = sum(end - begins[number] for end, number in free)
    work = sum(shard.seconds for shard in asked.shards) / cluster.speed
    used = [end for end, number in free if known[number]]
    return Ran(max(used), held, work / held)


def best(path: pathlib.Path, devices: int, cluster: Cluster, times: int = 1) -> tuple[float, Ran]:
    """The shard length that ends first, and how it went; the longest of equals.

    Args:
      path: the study's spec.
      devices: how many.
      cluster: what is assumed.
      times: more seeds of the same programs.
    """
    tried = [
        (length, simulate(_cached(path, length, times), devices, cluster))
        for length in SHARD_SECONDS
    ]
    soonest = min(ran.seconds for _, ran in tried)
    return next(one for one in tried if one[1].seconds <= 1.02 * soonest)


_STUDIES: dict[tuple[pathlib.Path, float, int], Study] = {}


def _cached(path: pathlib.Path, length: float, times: int) -> Study:
    if (path, length, times) not in _STUDIES:
        _STUDIES[path, length, times] = study(path, length, times)
    return _STUDIES[path, length, times]


def table(
    paths: Iterable[pathlib.Path], cluster: Cluster, times: Sequence[int]
) -> list[dict[str, object]]:
    """A row per study, size and number of devices."""
    rows: list[dict[str, object]] = []
    for path in paths:
        for many in times:
            for devices in DEVICES:
                length, ran = best(path, devices, cluster, many)
                asked = _cached(path, length, many)
                rows.append(
                    {
                        "study": path.stem,
                        "times": many,
                        "devices": devices,
                        "speed": cluster.speed,
                        "shard_seconds": length,
                        "shards": len(asked.shards),
                        "decisions": asked.decisions,
                        "seconds": round(ran.seconds, 1),
                        "decisions_per_second": round(asked.decisions / ran.seconds),
                        "efficiency": round(ran.efficiency, 4),
                        "device_hours": round(ran.device_seconds / 3600, 4),
                        "cost": round(ran.device_seconds / 3600 * cluster.price, 4),
                    }
                )
    return rows


def faster(cluster: Cluster, speed: float) -> Cluster:
    """The same cluster with accelerators, so many times as fast as two cores."""
    price = cluster.price if speed == 1.0 else ACCELERATOR_PRICE
    return dataclasses.replace(cluster, speed=speed, price=price)


def tile_fill(path: pathlib.Path, platform: str) -> float:
    """Share of the lanes in all tiles that are not copies.

    Args:
      path: the study's spec.
      platform: "cpu" or "gpu".
    """
    made = plan.make(spec.read(path), platform=platform)
    tiles = {bucket.shape: bucket.tile for bucket in made.buckets}
    own = all_ = 0.0
    for batch in (one for shard in made.shards for one in shard.batches):
        lanes = len(batch.cells) * (batch.seeds[1] - batch.seeds[0])
        tile = tiles[batch.cells[0].experiment.compiled_shape]
        work = batch.decisions / lanes
        own, all_ = own + lanes * work, all_ + -(-lanes // tile) * tile * work
    return own / all_


def draw(
    rows: Sequence[dict[str, object]], fast: Sequence[dict[str, object]], file: pathlib.Path
) -> None:
    """Efficiency over devices, for the studies as they are and larger, and over speed."""
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.8), sharey=True, layout="constrained")
    sizes = sorted({int(str(row["times"])) for row in rows})
    for axis, many in zip(axes, sizes, strict=False):
        _lines(axis, [row for row in rows if row["times"] == many], "devices")
        title = f"studies with {many:,} times the seeds" if many > 1 else "studies as shipped"
        axis.set(title=title, xlabel="devices", xscale="log")
    _lines(axes[2], fast, "speed")
    axes[2].set(
        title=f"{sizes[-1]:,} times the seeds, {DEVICES[-1]:,} devices",
        xlabel="speed of a device (1: 2 CPU cores)",
        xscale="log",
    )
    axes[0].set(ylabel="work's share of device time", ylim=(0, 1.02))
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def _lines(axis: matplotlib.axes.Axes, rows: Sequence[dict[str, object]], along: str) -> None:
    names = list(dict.fromkeys(str(row["study"]) for row in rows))
    for name in names:
        own = [row for row in rows if row["study"] == name]
        place = names.index(name)
        axis.plot(
            [float(str(row[along])) for row in own],
            [float(str(row["efficiency"])) for row in own],
            color=f"C{place % 10}",
            linestyle="-" if place < 10 else "--",
            marker="o",
            markersize=3,
            label=name,
        )


def main() -> None:
    """Prints the tables, and writes them and the figure."""
    options = argparse.ArgumentParser(description="A study on many devices, simulated.")
    options.add_argument("--small", action="store_true", help="one study, no files")
    options.add_argument("--out", type=pathlib.Path, help="folder for CSV and PNG")
    for field in dataclasses.fields(Cluster):
        options.add_argument(f"--{field.name}", type=float, default=field.default)
    given = options.parse_args()
    cluster = Cluster(
        **{field.name: getattr(given, field.name) for field in dataclasses.fields(Cluster)}
    )
    paths = [SWEEPS / "quick.toml"] if given.small else sorted(SWEEPS.glob("*.toml"))
    rows = table(paths, cluster, (1, 1000))
    fast = [
        row
        for speed in SPEEDS
        for row in table(paths, faster(cluster, speed), (1000,))
        if row["devices"] == DEVICES[-1]
    ]
    for row in rows + fast:
        print(*row.values(), sep="\t")
    for path in paths:
        fill = [f"{kind} {tile_fill(path, kind):.2f}" for kind in ("cpu", "gpu")]
        print(path.stem, "tiles filled:", *fill)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        with open(given.out / "scaling_out.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows + fast)
        draw(rows, fast, given.out / "scaling_out.png")


if __name__ == "__main__":
    main()
