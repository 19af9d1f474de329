"""One run beside the reference's on the same requests, lane by lane."""

from typing import NamedTuple

import helpers
import numpy as np
from reference import ReferenceLane, run_lane

from polar_jax import lanes, policies


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


def assert_same_lane(case: Case, name: str, lane: int) -> None:
    """Every decision and every booking of a lane equals the reference's."""
    got, expected = case.engine(name, lane), case.reference(name, lane)
    np.testing.assert_array_equal(got.actions, expected.actions)
    np.testing.assert_array_equal(got.forced, expected.forced)
    np.testing.assert_array_equal(got.resident, expected.resident)
    np.testing.assert_array_equal(got.loads, expected.loads)
    np.testing.assert_allclose(got.switching, expected.switching, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got.switching_ms, expected.switching_ms, rtol=1e-9, atol=1e-9)
