"""Rounds served in blocks against the engine and the float64 reference."""

import functools
from typing import Any

import kernel_cases
import kernel_lanes
import pytest
from kernel_cases import Shape, check, make_case

from polar_jax import policies, routers
from polar_jax.kernels import blocked_rounds


class TestBlockedKernel(kernel_cases.KernelContract):
    """The contract of every kernel."""

    kernel = staticmethod(blocked_rounds.run_rounds)

    @pytest.mark.parametrize("block", [1, 7, 500])
    def test_the_length_of_blocks_changes_nothing(self, block):
        kernel = functools.partial(blocked_rounds.run_rounds, block=block)
        check(kernel, make_case(Shape("lru"), seed=8)._replace(start=3, stop=111))

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["lin_ts", "epsilon_greedy", "random", "arc", "landlord"])
    def test_rules_beyond_those_of_the_other_kernel(self, name):
        check(self.kernel, make_case(Shape(name), seed=9))


class TestBlockedLanes(kernel_lanes.ReferenceContract):
    """The contract of every kernel's lanes."""

    name = "blocked"


def test_rules_with_a_pooled_prior_are_refused():
    sizes: dict[str, Any] = dict(num_adapters=7, cache_slots=3, context_dim=5, horizon=100)
    for name in policies.NAMES:
        assert blocked_rounds.supports(policies.policy(name, **sizes).rule)
    rule = policies.policy("lru", **sizes).rule
    assert not blocked_rounds.supports(rule._replace(router=rule.router._replace(pooled=True)))
    other = routers.linucb()._replace(score=lambda *_: None)
    assert not blocked_rounds.supports(rule._replace(router=other))
