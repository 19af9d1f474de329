"""Whole lanes served by a kernel, beside the NumPy reference: chunks, refreshes, replans."""

from collections.abc import Callable, Iterator
from typing import Any

import helpers
import numpy as np
import pytest
from comparison import Case, assert_same_lane
from kernel_cases import RULES
from reference import replay_lane

from polar_jax import programs, simulate

HORIZON = 1200  # Two chunks, four doubling epochs.
TOLERANCE = 1e-4


class ReferenceContract:
    """What every kernel's lanes have in common with the reference's."""

    kernel: Callable[..., Any]

    @pytest.fixture(autouse=True)
    def _served_by_the_kernel(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        # Programs are known by what they compute, and a kernel is no part of that.
        programs.forget()
        monkeypatch.setattr(simulate, "run_rounds", type(self).kernel)
        yield
        programs.forget()

    def run(self, *names: str, dtype: Any, **sizes: Any) -> Case:
        """A run of policies whose rounds the kernel serves."""
        given = {"environment": "sticky", "horizon": HORIZON, "seeds": (0, 1)} | sizes
        experiment = helpers.make_experiment(names, dtype=dtype, **given)
        return Case(experiment, helpers.run_kept(experiment), None)

    @pytest.mark.slow
    @pytest.mark.parametrize("environment", ["sticky", "bernoulli"])
    def test_every_lane_in_float64_equals_the_reference(self, environment):
        names = (*RULES, "polar", "cost_blind")
        case = self.run(*names, dtype=np.float64, environment=environment)
        for name in names:
            for lane in (0, 1):
                assert_same_lane(case, name, lane)

    @pytest.mark.slow
    def test_every_float32_decision_scores_as_the_references_best(self, record_property):
        case = self.run(*RULES, dtype=np.float32)
        near_ties = dict.fromkeys(RULES, 0)
        for name in RULES:
            for lane in (0, 1):
                replay = replayed(case, name, lane)
                assert replay.worst_action_gap <= TOLERANCE
                assert replay.worst_replan_gap <= TOLERANCE
                assert replay.wrong_forced == 0
                assert replay.set_mismatches == 0
                near_ties[name] += replay.action_near_ties
        record_property("near_ties", near_ties)
        print(f"near-ties in {2 * HORIZON} rounds: {near_ties}")


def replayed(case: Case, name: str, lane: int) -> Any:
    """The reference's judgement of one lane's own decisions."""
    got = case.engine(name, lane)
    return replay_lane(
        name,
        helpers.reference_rounds(case.experiment, case.results.policies[name], lane),
        helpers.reference_problem(case.experiment, case.results, lane),
        helpers.reference_settings(None),
        actions=got.actions,
        forced=got.forced,
        resident=got.resident,
        oracle_set=case.results.oracle_set[lane],
        tolerance=TOLERANCE,
    )
