"""One run beside the reference's on the same requests, lane by lane."""

from typing import Any, NamedTuple

import helpers
import numpy as np
from reference import ReferenceLane, replay_lane, run_lane

from polar_jax import lanes, policies

# In float32 a decision may score so far below the reference's best.
TOLERANCE = 1e-4


class Case(NamedTuple):
    """One run whose lanes are compared."""

    experiment: lanes.Experiment
    results: lanes.Results
    settings: policies.Settings | None

    def engine(self, name: str, lane: int) -> ReferenceLane:
        """What the engine did."""
        return helpers.engine_lane(self.experiment, self.results.policies[name], lane)

    def reference(self, name: str, lane: int) -> ReferenceLane:
        """What the reference does on the same requests."""
        return run_lane(
            name,
            helpers.reference_rounds(self.experiment, self.results.policies[name], lane),
            helpers.reference_problem(self.experiment, self.results, lane),
            helpers.reference_settings(self.settings),
            oracle_set=self.results.oracle_set[lane],
        )

    def replayed(self, name: str, lane: int) -> Any:
        """The reference's judgement of a lane's own decisions."""
        got = self.engine(name, lane)
        return replay_lane(
            name,
            helpers.reference_rounds(self.experiment, self.results.policies[name], lane),
            helpers.reference_problem(self.experiment, self.results, lane),
            helpers.reference_settings(self.settings),
            actions=got.actions,
            forced=got.forced,
            resident=got.resident,
            oracle_set=self.results.oracle_set[lane],
            tolerance=TOLERANCE,
        )


def near_ties(case: Case, name: str, lane: int) -> int:
    """Asserts that every decision scores as the reference's best; how many were near-ties."""
    replay = case.replayed(name, lane)
    assert replay.worst_action_gap <= TOLERANCE
    assert replay.worst_replan_gap <= TOLERANCE
    assert replay.wrong_forced == 0
    assert replay.set_mismatches == 0
    return replay.action_near_ties


def assert_same_lane(case: Case, name: str, lane: int) -> None:
    """Every decision and every booking of a lane equals the reference's."""
    got, expected = case.engine(name, lane), case.reference(name, lane)
    np.testing.assert_array_equal(got.actions, expected.actions)
    np.testing.assert_array_equal(got.forced, expected.forced)
    np.testing.assert_array_equal(got.resident, expected.resident)
    np.testing.assert_array_equal(got.loads, expected.loads)
    np.testing.assert_allclose(got.switching, expected.switching, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got.switching_ms, expected.switching_ms, rtol=1e-9, atol=1e-9)
