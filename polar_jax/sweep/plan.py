"""From a spec to what will run: cells, buckets of shared programs, batches and shards.

A *cell* is all configurations that share requests, costs and the static oracle; they
differ in policy or in its constants. A *batch* is cells that run side by side, being equal
in everything that is compiled or scheduled. A *shard* is batches of about five minutes.
The plan depends on the spec, on `shard_seconds` and on the kind of device, on nothing else.
"""

import dataclasses
import functools
import hashlib
import json
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polar_jax import (
    chunks,
    configured,
    epochs,
    lane_calls,
    lanes,
    policies,
    program_names,
    programs,
    replay_streams,
)
from polar_jax.config import RunConfig
from polar_jax.lane_calls import Shape
from polar_jax.policies import Policy, Problem
from polar_jax.sweep import anytime, costs
from polar_jax.sweep.spec import Configuration, Spec

# Options of a policy alone: configurations that differ in nothing else share a cell.
POLICY_OPTIONS = (
    *("policies", "alpha", "ridge", "beta", "prior"),
    *("epoch_length", "window", "switching_term"),
)
# Streams that do not know the horizon: a longer run begins like a shorter one.
ENDLESS_STREAMS = ("clustered", "isotropic", "bernoulli")
SHARD_SECONDS = 300.0
# States of all policies of a batch are held at once.
_BATCH_BYTES = 2**30
_IN_PAIRS = ("polar_oexp",)


class Entry(NamedTuple):
    """One policy of a cell, and the configurations that its run answers."""

    policy: Policy
    own: int  # configuration with the run's own horizon
    read_off: tuple[tuple[int, int], ...]  # (configuration, shorter horizon)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Configurations that share requests, costs and the static oracle.

    Attributes:
      experiment: the cell on all its seeds; its policies are the entries'.
      entries: its policies.
    """

    experiment: lanes.Experiment
    entries: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Cells that run side by side on some of their seeds.

    Attributes:
      cells: equal in everything that is compiled or scheduled.
      seeds: `(first, one past the last)`.
      seconds: estimated, on the machine of the constants.
    """

    cells: tuple[Cell, ...]
    seeds: tuple[int, int]
    seconds: float

    @property
    def decisions(self) -> int:
        """How many decisions it makes."""
        first = self.cells[0].experiment
        lanes_ = len(self.cells) * (self.seeds[1] - self.seeds[0])
        return lanes_ * len(first.policies) * first.problem.horizon

    def experiments(self) -> list[lanes.Experiment]:
        """What the engine runs."""
        return [
            dataclasses.replace(cell.experiment, seeds=range(*self.seeds)) for cell in self.cells
        ]


@dataclasses.dataclass(frozen=True)
class Shard:
    """One unit of work and one result file.

    Attributes:
      index: its number, from 0.
      batches: what it runs, in order.
    """

    index: int
    batches: tuple[Batch, ...]

    @property
    def decisions(self) -> int:
        """How many decisions it makes."""
        return sum(batch.decisions for batch in self.batches)

    @property
    def seconds(self) -> float:
        """Estimated seconds, compilation left out."""
        return sum(batch.seconds for batch in self.batches)

    @property
    def shapes(self) -> set[Shape]:
        """Sizes that its programs are compiled for."""
        return {batch.cells[0].experiment.compiled_shape for batch in self.batches}

    @property
    def rows(self) -> int:
        """Rows of its file: a row per configuration and seed."""
        return sum(
            (batch.seeds[1] - batch.seeds[0])
            * sum(1 + len(entry.read_off) for cell in batch.cells for entry in cell.entries)
            for batch in self.batches
        )


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Cells that share compiled programs.

    Attributes:
      shape: sizes that the programs are compiled for.
      padding: whether and why they are more than the problems' own, a sentence.
      cells: the cells.
      programs: every program, by description.
      tile: lanes that one device runs side by side.
    """

    shape: Shape
    padding: str
    cells: tuple[Cell, ...]
    programs: tuple[str, ...]
    tile: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep will run.

    Attributes:
      spec: what was asked for.
      shard_seconds: what a shard aims at.
      platform: kind of device, which tiles depend on.
      buckets: groups of cells that share programs.
      shards: units of work, by index.
    """

    spec: Spec
    shard_seconds: float
    platform: str
    buckets: tuple[Bucket, ...]
    shards: tuple[Shard, ...]

    @property
    def decisions(self) -> int:
        """How many decisions the sweep makes."""
        return sum(shard.decisions for shard in self.shards)

    @property
    def seconds(self) -> float:
        """Estimated seconds of running, on the machine of the constants."""
        return sum(shard.seconds for shard in self.shards)

    @functools.cached_property
    def plan_hash(self) -> str:
        """sha256, in hexadecimal, of which rows every shard holds, batch by batch."""
        digest = hashlib.sha256()
        for shard in self.shards:
            held = [[batch.seeds, _answers(batch)] for batch in shard.batches]
            digest.update(json.dumps(held).encode())
        return digest.hexdigest()

    @property
    def num_read_off(self) -> int:
        """Configurations that are read off a longer run."""
        cells = (cell for bucket in self.buckets for cell in bucket.cells)
        return sum(len(entry.read_off) for cell in cells for entry in cell.entries)

    @property
    def num_linear_benchmarks(self) -> int:
        """Configurations whose perfect routing knows a linear model's predictions only."""
        cells = (cell for bucket in self.buckets for cell in bucket.cells)
        return sum(
            1 + len(entry.read_off)
            for cell in cells
            if replay_streams.is_linear(cell.experiment.environment_params)
            for entry in cell.entries
        )

    def programs(self, kind: str | None = None) -> tuple[str, ...]:
        """Every program; with `kind`, those whose description begins with it.

        Two that differ in what a description leaves out, as in tables of another size, are two.
        """
        # Buckets differ in shape, so that none of their programs is another's.
        found = [name for bucket in self.buckets for name in bucket.programs]
        return tuple(name for name in found if kind is None or name.startswith(kind))


def _answers(batch: Batch) -> list[Any]:
    """Configurations that a batch answers, and at which horizon where it is a shorter one."""
    return [[entry.own, *entry.read_off] for cell in batch.cells for entry in cell.entries]


def make(spec: Spec, *, shard_seconds: float = SHARD_SECONDS, platform: str = "cpu") -> Plan:
    """Plans a sweep.

    Args:
      spec: what was asked for.
      shard_seconds: work that a shard aims at, above 0.
      platform: kind of device that will run it.

    Returns:
      The plan; equal arguments give equal plans on every machine.

    Raises:
      ValueError: for a configuration that cannot run.
      OSError: for a paging file that cannot be read.
    """
    groups: dict[Any, list[Configuration]] = {}
    for configuration in spec.configurations:
        groups.setdefault(_cell_key(configuration.config), []).append(configuration)
    cells = list(_with_horizons([_cell(group) for group in groups.values()]))
    shaped, buckets = _buckets(cells, spec.padding, platform)
    batches = _batches(shaped, platform, shard_seconds)
    return Plan(
        spec, shard_seconds, platform, tuple(buckets), tuple(_shards(batches, shard_seconds))
    )


# A policy's options as they are where cells are compared: those that have no say in the cell.
_NEUTRAL = {
    field.name: field.default
    for field in dataclasses.fields(RunConfig)
    if field.name in POLICY_OPTIONS
} | {"policies": ("static",)}
_cell_key = operator.attrgetter(
    *(field.name for field in dataclasses.fields(RunConfig) if field.name not in POLICY_OPTIONS)
)


# Cells that differ in a price, say, have the same policies.
@functools.lru_cache(maxsize=128)
def _built(name: str, problem: Problem, settings: policies.Settings) -> Policy:
    return policies.policy(name, **problem._asdict(), settings=settings)


def _policy(configuration: Configuration, experiment: lanes.Experiment, sigma: float) -> Policy:
    config = configuration.config
    settings = configured.policy_settings(config, sigma=sigma)
    made = _built(config.policies[0], experiment.problem, settings)
    # Names must differ within a run.
    return made._replace(name=f"{made.name}#{configuration.index}")


def _cell(group: Sequence[Configuration]) -> Cell:
    config = group[0].config
    # The cell's problem, stream and costs; its one policy is replaced.
    found = configured.configure(dataclasses.replace(config, **_NEUTRAL))
    experiment, sigma = found.experiment, found.settings.sigma
    entries = tuple(Entry(_policy(one, experiment, sigma), one.index, ()) for one in group)
    return Cell(_with(experiment, entries), entries)


def _with(
    experiment: lanes.Experiment, entries: Sequence[Entry], **changes: Any
) -> lanes.Experiment:
    return dataclasses.replace(
        experiment, policies=tuple(entry.policy for entry in entries), **changes
    )


def _with_horizons(cells: list[Cell]) -> Iterable[Cell]:
    """Cells of one stream and several horizons: what the longest run answers is left to it."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        exp = cell.experiment
        alone = exp.environment.name not in ENDLESS_STREAMS
        constants = tuple(np.asarray(x).tobytes() for x in _numbers(exp))
        size = exp.problem._replace(horizon=0)
        replayed = replay_streams.fingerprint(exp.environment_params)
        key = size, exp.environment, replayed, exp.base_seed, len(exp.seeds), constants
        groups.setdefault((key, exp.problem.horizon if alone else 0), []).append(cell)
    for group in groups.values():
        yield from _read_off(group) if len(group) > 1 else group


def _numbers(experiment: lanes.Experiment) -> list[Any]:
    """The numbers of a stream and its costs, but for the length of its segments."""
    # What is replayed has its fingerprint.
    params, _ = replay_streams.split(experiment.environment_params, *experiment.compiled_shape)
    adapters = experiment.problem.num_adapters
    costs_ = lane_calls.cost_arrays(experiment.costs, adapters, adapters, np.float64)
    names = [field.name for field in dataclasses.fields(params) if field.name != "segment_rounds"]
    return [*(getattr(params, name) for name in names), *costs_.values()]


def _read_off(group: list[Cell]) -> list[Cell]:
    """Moves entries of shorter cells to the longest, where its run begins like theirs."""
    group = sorted(group, key=lambda cell: cell.experiment.problem.horizon)
    *shorter, longest = group
    entries = list(longest.entries)
    kept = []
    for cell in shorter:
        own = []
        for entry in cell.entries:
            place = next(
                (i for i, e in enumerate(entries) if anytime.begins_like(e.policy, entry.policy)),
                None,
            )
            room = place is not None and _has_room(entries, cell.experiment.problem.horizon)
            if place is None or not room:
                own.append(entry)
                continue
            horizon = entry.policy.problem.horizon
            held = entries[place]
            entries[place] = held._replace(read_off=(*held.read_off, (entry.own, horizon)))
        if own:
            kept.append(Cell(_with(cell.experiment, own), tuple(own)))
    horizons = tuple(sorted({horizon for entry in entries for _, horizon in entry.read_off}))
    whole = _with(longest.experiment, entries, shorter_horizons=horizons)
    return [*kept, Cell(whole, tuple(entries))]


def _has_room(entries: Sequence[Entry], horizon: int) -> bool:
    horizons = {one for entry in entries for _, one in entry.read_off} | {horizon}
    return len(horizons) <= epochs.MAX_HORIZONS


def _own_shape(cell: Cell) -> Shape:
    return Shape(cell.experiment.problem.num_adapters, cell.experiment.problem.context_dim)


def _entry_seconds(entry: Entry, problem: Problem, shape: Shape) -> float:
    controller = entry.policy.rule.controller
    experts = "experts" in getattr(controller.admit, "__module__", "")
    pairs = "online_submodular" in getattr(controller.admit, "__module__", "")
    served = problem.horizon * costs.decision_seconds(shape, experts=experts, pairs=pairs)
    replans = int(np.count_nonzero(entry.policy.schedule.replans))
    return served + costs.work_seconds(replans * chunks.replan_work(entry.policy, shape))


def _cell_seconds(cell: Cell, shape: Shape, num_seeds: int) -> float:
    """Estimated seconds of a cell on some seeds."""
    problem = cell.experiment.problem
    served = sum(_entry_seconds(entry, problem, shape) for entry in cell.entries)
    return num_seeds * (served + costs.stream_seconds(problem, shape))


def _buckets(cells: list[Cell], padding: str, platform: str) -> tuple[list[Cell], list[Bucket]]:
    """Decides on padding, and groups cells by the shape that they are compiled for."""
    rungs: dict[Shape, list[Cell]] = {}
    for cell in cells:
        rungs.setdefault(costs.padded(_own_shape(cell)), []).append(cell)
    shaped: dict[int, Cell] = {}
    buckets = []
    for ladder, group in rungs.items():
        own: dict[Shape, float] = {}
        for cell in group:
            shape = _own_shape(cell)
            seconds = _cell_seconds(cell, shape, len(cell.experiment.seeds))
            own[shape] = own.get(shape, 0.0) + seconds
        pad, why = costs.padding_verdict(
            padding,
            list(own.items()),
            ladder,
            work=sum(_cell_seconds(cell, ladder, len(cell.experiment.seeds)) for cell in group),
            num_rules=len({_rule_key(entry) for cell in group for entry in cell.entries}),
            num_streams=len({cell.experiment.environment for cell in group}),
        )
        for shape in [ladder] if pad else own:
            members = [cell for cell in group if pad or _own_shape(cell) == shape]
            reshaped = [_reshaped(cell, shape) for cell in members]
            shaped |= {id(old): new for old, new in zip(members, reshaped, strict=True)}
            tile = programs.tile_width(shape, platform)
            needed = _programs(reshaped, platform)
            buckets.append(Bucket(shape, why, tuple(reshaped), needed, tile))
    return [shaped[id(cell)] for cell in cells], buckets


def _reshaped(cell: Cell, shape: Shape) -> Cell:
    return dataclasses.replace(cell, experiment=dataclasses.replace(cell.experiment, shape=shape))


def _rule_key(entry: Entry) -> Any:
    return entry.policy.rule


def _programs(cells: Sequence[Cell], platform: str) -> tuple[str, ...]:
    """Every program that some cells of one shape need."""
    found: dict[Any, str] = {}
    for cell in cells:
        for key, name in program_names.descriptions(cell.experiment, platform):
            found.setdefault(key, name)
    return tuple(found.values())


def _batches(cells: list[Cell], platform: str, shard_seconds: float) -> list[Batch]:
    """Cells side by side, cut where work or memory would be too much."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        for part in _parts(cell, platform):
            groups.setdefault(
                (lane_calls.kinship(part.experiment), len(part.experiment.seeds)), []
            ).append(part)
    batches: list[Batch] = []
    for group in groups.values():
        batches += _cut(group, platform, shard_seconds)
    return batches


def _parts(cell: Cell, platform: str) -> list[Cell]:
    """A cell in parts whose policies' states fit in memory together."""
    n, d = cell.experiment.compiled_shape
    tile = programs.tile_width(cell.experiment.compiled_shape, platform)
    state = 4 * n * d * (2.5 * d + 4) * tile
    most = max(1, int(_BATCH_BYTES // state))
    entries = cell.entries
    if len(entries) <= most:
        return [cell]
    return [
        Cell(_with(cell.experiment, entries[i : i + most]), entries[i : i + most])
        for i in range(0, len(entries), most)
    ]


def _cut(group: list[Cell], platform: str, shard_seconds: float) -> list[Batch]:
    """Batches of about `shard_seconds` at most: some cells whole, or some seeds of one."""
    shape = group[0].experiment.compiled_shape
    num_seeds = len(group[0].experiment.seeds)
    each = _cell_seconds(group[0], shape, num_seeds)
    if each <= shard_seconds:
        at_once = max(1, int(shard_seconds // each))
        return [
            Batch(
                tuple(part), (0, num_seeds), sum(_cell_seconds(c, shape, num_seeds) for c in part)
            )
            for part in (group[i : i + at_once] for i in range(0, len(group), at_once))
        ]
    # Two tiles at least, so that two devices have work; whole tiles, so that none is filled up.
    unit = programs.tile_width(shape, platform) * (2 if platform == "cpu" else 1)
    wanted = num_seeds * shard_seconds / each
    step = max(unit, int(wanted // unit) * unit)
    return [
        Batch((cell,), bounds, _cell_seconds(cell, shape, bounds[1] - bounds[0]))
        for cell in group
        for bounds in ((i, min(i + step, num_seeds)) for i in range(0, num_seeds, step))
    ]


def _shards(batches: list[Batch], shard_seconds: float) -> Iterable[Shard]:
    """Packs batches, in order, into shards."""
    waiting: list[Batch] = []
    index = 0
    for batch in batches:
        if waiting and sum(one.seconds for one in waiting) + batch.seconds > shard_seconds:
            yield Shard(index, tuple(waiting))
            waiting, index = [], index + 1
        waiting.append(batch)
    if waiting:
        yield Shard(index, tuple(waiting))
