"""One benchmark: cases, what is measured in each, samples taken in turn."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from polar_jax import kernels, lanes, programs
from polar_jax.bench import arithmetic, baselines, engine
from polar_jax.bench.arithmetic import Sample
from polar_jax.bench.limits import Machine

# Lanes of the baselines that serve many: more of them are no faster.
BATCH = 64
# A sample may take so many times the time asked for, where it cannot be shorter.
_PATIENCE = 10.0
# And so many times, where many lanes would else be served for a few rounds a call: packing and
# unpacking a lane is then most of what is timed, and in whole runs a call serves a chunk.
_WHOLE_CALL = 4.0
_MOST_RUN, _MOST = 2**20, 2**30  # rounds of a whole run; of anything
Report = Callable[[str, int, int], None]  # what is in work, what is done, what there is


class Plan(NamedTuple):
    """What to measure."""

    shapes: Sequence[tuple[int, int]]
    lane_counts: Sequence[int]
    policies: Sequence[str]
    rounds: int | None  # that are drawn for a kernel, at most; a run's chunk where None
    repeats: int
    seconds: float  # of a sample, about
    memory_bytes: int
    compare: bool = True  # with the other packages and NumPy over lanes, beside the NumPy loop
    check_rounds: int = 256
    kernels: Sequence[str] = ()  # that are measured alone; those that can run here where none


@dataclasses.dataclass
class Row:
    """One line of the table."""

    group: str  # "kernel", "everything" or "baseline"
    name: str
    num_adapters: int
    context_dim: int
    lanes: int  # that are counted
    computed_lanes: int  # with those that fill up a tile
    all_cores: bool
    requests_per_read: int = 1  # for which statistics are read once
    rounds: int = 0  # per lane and sample
    samples: list[Sample] = dataclasses.field(default_factory=list)
    ratio: float | None = None  # against the NumPy loop, the median over repeats
    worst_gap: float | None = None  # of the choices' scores, where they were checked
    tolerance: float | None = None
    skipped: str = ""

    @property
    def rate(self) -> float | None:
        """Decisions per second, None where it was not measured."""
        return arithmetic.rate(self.samples) if self.samples else None


class Case(NamedTuple):
    """One shape and number of lanes."""

    shape: tuple[int, int]
    lanes: int
    rows: list[Row]


class _Job(NamedTuple):
    """Something to time: serves so many rounds per lane."""

    row: Row
    serve: Callable[[int], Sample]
    least: int  # rounds
    most: int
    whole: int = 0  # rounds of a call in whole runs


def default_memory(platform: str) -> int:
    """Half of what the devices have; 8 GiB where nobody tells."""
    known = programs.device_memory(platform)
    return 2**33 if known is None else known * len(jax.devices()) // 2


def measure(plan: Plan, machine: Machine, report: Report) -> list[Case]:
    """Measures every case, the machine's limits in between.

    Args:
      plan: what to measure.
      machine: takes a sample of its limits before each case and after the last.
      report: told what is in work, and how many steps of how many are done.
    """
    cells = list(itertools.product(plan.shapes, plan.lane_counts))
    speeds: dict[Any, float] = {}
    cases = []
    for number, (shape, count) in enumerate(cells):
        machine.measure()
        step = _Steps(report, number, len(cells), f"{shape[0]} x {shape[1]}, {count:,} lanes")
        cases.append(Case(shape, count, _measure_case(plan, shape, count, speeds, step)))
    machine.measure()
    report("all", len(cells), len(cells))
    return cases


class _Steps:
    """Reports how far a case is, in hundredths of it."""

    def __init__(self, report: Report, number: int, cases: int, label: str) -> None:
        self._report, self._number, self._cases, self._label = report, number, cases, label

    def __call__(self, done: int, total: int) -> None:
        whole = 100 * self._number + 100 * done // max(total, 1)
        self._report(self._label, whole, 100 * self._cases)


def _measure_case(
    plan: Plan, shape: tuple[int, int], count: int, speeds: dict[Any, float], step: _Steps
) -> list[Row]:
    """The rows of one case; `speeds`, with lanes that fill up, are of smaller cases."""
    step(0, 1)
    ready, refusal = _ready(plan, shape, count)
    jobs: list[_Job] = []
    rows = []
    for job in _jobs(plan, shape, count, ready, refusal):
        rows.append(job.row)
        if not job.row.skipped:
            jobs.append(job)
    total = len(jobs) * (plan.repeats + 1)
    timed = []
    for number, job in enumerate(jobs):
        known = speeds.get((job.row.group, job.row.name, *shape))
        sized = _calibrated(plan, job, known)
        if sized is not None:
            timed.append(sized)
        step(number + 1, total)
    taken = itertools.count(len(jobs) + 1)

    def sample(job: _Job) -> Sample:
        found = job.serve(job.row.rounds)
        step(next(taken), total)
        return found

    samples = arithmetic.interleaved(timed, plan.repeats, sample)
    loop = next(found for job, found in zip(timed, samples, strict=True) if _is_loop(job.row))
    for job, found in zip(timed, samples, strict=True):
        job.row.samples = found
        job.row.ratio = arithmetic.paired_ratio(found, loop)
        filled = job.row.computed_lanes / job.row.lanes
        speeds[job.row.group, job.row.name, *shape] = arithmetic.rate(found) * filled
    return rows


def _is_loop(row: Row) -> bool:
    return row.group == "baseline" and row.name == baselines.REFERENCE


def _ready(plan: Plan, shape: tuple[int, int], count: int) -> tuple[engine.Ready, str]:
    """Lanes for the kernels, or one lane for the baselines and why there are no more."""
    platform = jax.devices()[0].platform
    sizes = lanes.Shape(*shape)
    filled = engine.filled_lanes(sizes, count, platform)
    rounds = engine.chunk_rounds(sizes, plan.policies, count, plan.rounds)
    needed = engine.ready_bytes(sizes, filled, rounds, len(plan.policies))
    if needed <= plan.memory_bytes:
        return engine.Ready(sizes, count, plan.rounds, plan.policies), ""
    reason = (
        f"{filled:,} ready lanes need {needed / 2**30:.1f} GiB, "
        f"{plan.memory_bytes / 2**30:.1f} GiB are allowed (--memory-limit)"
    )
    return engine.Ready(sizes, 1, rounds, plan.policies[:1]), reason


def _jobs(
    plan: Plan, shape: tuple[int, int], count: int, ready: engine.Ready, refusal: str
) -> Iterator[_Job]:
    """What to time in a case, the NumPy loop first."""
    stream = ready.stream(BATCH)
    for kind in baselines.installed()[0]:
        if plan.compare or kind.name == baselines.REFERENCE:
            yield _baseline_job(plan, shape, kind, stream)
    filled = engine.filled_lanes(lanes.Shape(*shape), count, ready.platform)
    parallel = count > programs.tile_width(lanes.Shape(*shape), ready.platform)
    names = plan.kernels or kernels.available(ready.platform)
    for name, policy in itertools.product(names, plan.policies):
        row = Row("kernel", f"{name}, {policy}", *shape, count, filled, all_cores=parallel)
        row.skipped = refusal
        taken = engine.taken(name, policy, shape)
        row.requests_per_read = kernels.requests_per_read(taken)
        if not refusal and taken == "xla" != name:
            row.skipped = f"the kernel {name} does not have this policy's rule"
        yield _kernel_job(plan, row, ready, taken, policy)
    for policy in plan.policies:
        row = Row("everything", policy, *shape, count, filled, all_cores=parallel)
        taken = engine.taken(kernels.chosen(ready.platform), policy, shape)
        row.requests_per_read = kernels.requests_per_read(taken)
        yield _run_job(row, policy, ready.rounds)


def _baseline_job(
    plan: Plan, shape: tuple[int, int], kind: baselines.Kind, stream: baselines.Stream
) -> _Job:
    own = stream if kind.batched else baselines.Stream(*(part[:1] for part in stream))
    count = len(own.context)
    row = Row("baseline", kind.name, *shape, count, count, all_cores=kind.cores and count > 1)
    length = own.noise.shape[1]
    checked = min(plan.check_rounds, length)
    row.tolerance = kind.tolerance
    row.worst_gap = check_choices(kind.make(own).serve(0, checked), own, row)
    baseline = kind.make(own)
    position = 0

    def serve(rounds: int) -> Sample:
        nonlocal position
        began = time.perf_counter()
        baseline.serve(position % length, rounds)
        position += rounds
        return Sample(rounds * count, time.perf_counter() - began)

    return _Job(row, serve, least=min(16, kind.most_rounds), most=kind.most_rounds)


def _kernel_job(plan: Plan, row: Row, ready: engine.Ready, name: str, policy: str) -> _Job:
    def serve(rounds: int) -> Sample:
        return ready.serve(name, policy, rounds)

    if not row.skipped:
        ready.compile(name, kernels.run_rounds(name), policy)
        if policy == engine.PLAIN:
            checked = min(plan.check_rounds, ready.rounds)
            ready.restart(policy)
            serve(checked)
            row.tolerance = baselines.SINGLE
            chosen = ready.chosen(policy)[:BATCH, :checked].T
            row.worst_gap = check_choices(chosen, ready.stream(BATCH), row)
    return _Job(row, serve, least=16, most=_MOST, whole=ready.rounds)


def _run_job(row: Row, policy: str, chunk: int) -> _Job:
    shape = lanes.Shape(row.num_adapters, row.context_dim)

    def serve(rounds: int) -> Sample:
        return engine.whole_run(shape, policy, num_lanes=row.lanes, horizon=rounds, chunk=chunk)

    # Doubling epochs crowd at the beginning of a run, and each refreshes the statistics: a run of
    # one chunk would time little else where there are many features.
    chunks = engine.FEW_CHUNKS if row.lanes <= BATCH else 1
    return _Job(row, serve, least=chunks * chunk, most=_MOST_RUN)


def check_choices(chosen: np.ndarray, stream: baselines.Stream, row: Row) -> float:
    """The worst gap of the first lane and the last.

    Raises:
      ArithmeticError: if it is beyond the row's tolerance: what is timed must be right.
    """
    ends = sorted({0, chosen.shape[1] - 1})
    gap = max(baselines.worst_gap(stream, lane, chosen[:, lane]) for lane in ends)
    if row.tolerance is not None and not gap <= row.tolerance:
        raise ArithmeticError(
            f"{row.group} {row.name!r} chose adapters whose scores are {gap:.2g} below the best, "
            f"allowed are {row.tolerance:g}; nothing of it was timed."
        )
    return gap


def _calibrated(plan: Plan, job: _Job, known: float | None) -> _Job | None:
    """Chooses the rounds of a sample; None where even the shortest would take too long.

    Args:
      plan: what was asked for.
      job: what is to be timed.
      known: computed decisions per second in a smaller case, None where there was none.
    """
    row, allowed = job.row, _PATIENCE * plan.seconds
    expected = 0.0 if known is None else job.least * row.computed_lanes / known
    if expected <= allowed:
        job.serve(job.least)  # Compiles and warms up.
        expected = job.serve(job.least).seconds
    if expected > allowed and not _is_loop(row):
        row.skipped = (
            f"the shortest sample ({job.least:,} rounds, lanes: {row.lanes:,}) takes about "
            f"{expected:.1f} s, allowed are {allowed:g} s ({_PATIENCE:.0f} times --seconds)"
        )
        return None
    amount, seconds = job.least, expected
    # One call of a few rounds tells little: longer ones, until one is near enough.
    while seconds < plan.seconds / 4 and amount < job.most:
        amount = arithmetic.amount_for(
            plan.seconds / 2, seconds / amount, least=amount + 1, most=min(16 * amount, job.most)
        )
        amount = _whole(job, amount)
        seconds = job.serve(amount).seconds
    one = seconds / amount
    wanted = arithmetic.amount_for(plan.seconds, one, least=job.least, most=job.most)
    most = max(wanted, job.whole)
    longer = arithmetic.amount_for(_WHOLE_CALL * plan.seconds, one, least=wanted, most=most)
    row.rounds = _whole(job, longer)
    return job


def _whole(job: _Job, rounds: int) -> int:
    """Whole runs have whole chunks: a shorter last one would be drawn in full."""
    if job.row.group != "everything":
        return rounds
    return -(-rounds // job.least) * job.least
