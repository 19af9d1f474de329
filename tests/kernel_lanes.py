"""Whole lanes served by a kernel, beside the NumPy reference: chunks, refreshes, replans."""

from collections.abc import Iterator
from typing import Any

import helpers
import numpy as np
import pytest
from comparison import Case, assert_same_lane, near_ties
from kernel_cases import RULES

from polar_jax import kernels, programs

HORIZON = 1200  # Two chunks, four doubling epochs.


class ReferenceContract:
    """What every kernel's lanes have in common with the reference's."""

    name: str  # what `kernels.taken` says of these lanes

    @pytest.fixture(autouse=True)
    def _served_by_the_kernel(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Has runs take the kernel as users would, and sees that they did."""
        served = []
        monkeypatch.setenv(kernels.VARIABLE, self.name)
        serve = kernels.run_rounds(self.name)

        def seen(*args: Any) -> Any:
            served.append(args[0].rule)
            return serve(*args)

        monkeypatch.setitem(kernels._FUNCTIONS, self.name, seen)
        # Traced anew, or nothing would be seen.
        programs.forget()
        yield
        programs.forget()
        assert len(set(served)) >= len(RULES)

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
        found = {name: sum(near_ties(case, name, lane) for lane in (0, 1)) for name in RULES}
        record_property("near_ties", found)
        print(f"near-ties in {2 * HORIZON} rounds: {found}")
