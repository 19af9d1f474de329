"""A run that is stopped between two calls goes on bitwise, wherever it was stopped."""

import dataclasses
import functools

import helpers
import jax
import numpy as np
import pytest

from polar_jax import lanes, metrics, policies

HORIZON = 2_600  # three chunks, the last one short
NAMES = ("polar_plus", "polar_experts", "lru")


@functools.cache
def experiments() -> tuple[lanes.Experiment, ...]:
    """Two experiments that differ in numbers, 70 lanes: two waves of tiles on two devices."""
    first = helpers.make_experiment(
        NAMES, environment="sticky", horizon=HORIZON, seeds=range(40), noise=0.1
    )
    settings = policies.Settings(alpha=0.2)
    second = helpers.make_experiment(
        NAMES,
        environment="sticky",
        horizon=HORIZON,
        seeds=range(5, 35),
        noise=0.3,
        settings=settings,
    )
    return first, second


@functools.cache
def whole() -> list[lanes.Results]:
    """Both experiments, undisturbed."""
    return lanes.run_many(experiments())


class StopAfter:
    """A watch that stops after some calls and keeps the last snapshot."""

    def __init__(self, calls: int, *, save_chunks: bool = False) -> None:
        self.left, self.save_chunks = calls, save_chunks
        self.kept: lanes.Snapshot | None = None

    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0

    def due(self) -> bool:
        return self.save_chunks

    def save(self, snapshot: lanes.Snapshot) -> None:
        # What is stored must not change while the run goes on.
        self.kept = jax.tree.map(np.array, snapshot)


def assert_same(got: list[lanes.Results]) -> None:
    """Every figure of every policy is bitwise that of the undisturbed run."""
    for ours, theirs in zip(got, whole(), strict=True):
        np.testing.assert_array_equal(ours.oracle_set, theirs.oracle_set)
        np.testing.assert_array_equal(ours.paging_cost, theirs.paging_cost)
        for name in NAMES:
            for part in metrics.PARTS:
                a, b = ours.policies[name], theirs.policies[name]
                np.testing.assert_array_equal(a.curves[part], b.curves[part])


@pytest.mark.slow
def test_experiments_side_by_side_are_those_that_run_alone():
    for alone, together in zip(experiments(), whole(), strict=True):
        for name, result in lanes.run(alone).policies.items():
            for part in metrics.PARTS:
                np.testing.assert_array_equal(
                    result.curves[part], together.policies[name].curves[part]
                )


# Calls of the whole run: 2 waves x 3 chunks x 3 policies. The first of a wave, one in the
# middle of a chunk, the last of a chunk, of a wave and of all.
@pytest.mark.parametrize("calls", [0, 1, 2, 4, 8, 9, 13, 17])
def test_a_stopped_run_goes_on_bitwise(calls):
    watch = StopAfter(calls)
    with pytest.raises(lanes.StoppedError):
        lanes.run_many(experiments(), watch=watch)
    assert watch.kept is not None
    assert_same(lanes.run_many(experiments(), resume=watch.kept))


def test_a_killed_run_goes_on_from_its_last_snapshot():
    watch = StopAfter(10**9, save_chunks=True)
    assert_same(lanes.run_many(experiments(), watch=watch))
    assert watch.kept is not None
    assert watch.kept.position["first_round"] == 3 * watch.kept.position["chunk"]
    assert_same(lanes.run_many(experiments(), resume=watch.kept))


@pytest.mark.parametrize("calls", [4, 13])
def test_a_snapshot_serves_another_number_of_devices(calls):
    watch = StopAfter(calls)
    with pytest.raises(lanes.StoppedError):
        lanes.run_many(experiments(), watch=watch)
    assert_same(lanes.run_many(experiments(), resume=watch.kept, num_devices=1))


def test_a_snapshot_that_is_changed_changes_the_result():
    # Control: resuming reads the snapshot, and does not start again.
    watch = StopAfter(4)
    with pytest.raises(lanes.StoppedError):
        lanes.run_many(experiments(), watch=watch)
    assert watch.kept is not None
    arrays = watch.kept.arrays | {"0/totals/0": watch.kept.arrays["0/totals/0"] + 1.0}
    with pytest.raises(AssertionError):
        assert_same(lanes.run_many(experiments(), resume=watch.kept._replace(arrays=arrays)))


def test_experiments_of_other_sizes_do_not_run_side_by_side():
    other = helpers.make_experiment(NAMES, environment="sticky", horizon=HORIZON, slots=2)
    with pytest.raises(ValueError, match="experiments must be equal in problem"):
        lanes.run_many([experiments()[0], other])


def test_curves_hold_the_shorter_horizons_that_are_asked_for():
    longer = dataclasses.replace(
        helpers.make_experiment(("lru",), horizon=1_500), shorter_horizons=(300, 777)
    )
    shorter = helpers.make_experiment(("lru",), horizon=300)
    long, short = lanes.run(longer), lanes.run(shorter)
    assert {300, 777} <= set(long.curve_round.tolist())
    place = long.curve_round.tolist().index(300)
    for part in metrics.PARTS:
        np.testing.assert_allclose(
            long.policies["lru"].curves[part][:, place],
            short.policies["lru"].totals[part],
            rtol=1e-6,
            atol=1e-5,
        )


def test_a_limit_below_one_tile_is_refused():
    with pytest.raises(
        MemoryError, match=r"one tile needs .* MiB per device and 1 MiB are allowed"
    ):
        lanes.run_many(experiments(), memory_limit=2**20)
