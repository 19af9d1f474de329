"""Theory's exponents: what the bounds say, where they say nothing, and of which policies."""

from typing import Any

from polar_jax import policies, routers
from polar_jax.sweep import exponents, theory
from polar_jax.sweep.theory import Premises


def exponent(axis: str, policy: str, figure: str, **premises: Any) -> float | None:
    """Theory's exponent, None where it has none."""
    known = theory.exponent(axis, policy, figure, Premises(**premises))
    return None if known is None else known[0]


def test_theory_has_the_exponents_of_the_bound_and_no_others() -> None:
    bound = {axis: exponent(axis, "polar_plus", "regret") for axis in exponents.AXES}
    assert bound == {"horizon": 0.5, "num_adapters": 0.5, "cache_slots": 0.5, "context_dim": 1.0}
    assert exponent("horizon", "static", "regret_caching") == 1.0
    assert exponent("horizon", "no_cache", "regret_caching") == 1.0
    assert exponent("horizon", "lru", "loss_to_full") == 1.0
    assert exponent("horizon", "full_cache", "loss_to_full") == 0.5
    # Nothing is proven for POLAR-E's sets, nor for routers that explore at a constant rate.
    assert exponent("horizon", "polar_experts", "regret") is None
    assert exponent("horizon", "epsilon_greedy", "regret_routing") is None
    assert exponent("num_adapters", "static", "regret_caching") is None


def test_theory_says_nothing_where_a_premise_fails() -> None:
    for lacking in ({"fewer": False}, {"costly": False}):
        assert exponent("horizon", "static", "regret_caching", **lacking) is None
        assert exponent("horizon", "static", "regret", **lacking) is None
        assert exponent("horizon", "lru", "loss_to_full", **lacking) is None
        assert exponent("horizon", "lru", "regret_routing", **lacking) == 0.5
    assert exponent("horizon", "lru", "regret_routing", beta="constant") is None
    assert exponent("horizon", "full_cache", "loss_to_full", beta="constant") is None
    assert exponent("horizon", "polar_plus", "regret", linear=False) is None
    assert exponent("horizon", "lru", "regret_routing", linear=False) is None
    assert exponent("horizon", "lru", "loss_to_full", linear=False) == 1.0
    known = theory.exponent("horizon", "polar_plus", "regret", Premises(beta="constant"))
    assert known is not None
    assert "these runs have a constant alpha" in known[1]


def test_the_routing_part_has_theory_for_every_policy_that_routes_by_linucb() -> None:
    kinds = ("none", "quota", "relevant")
    selects = {routers.linucb(exploration=kind).select for kind in kinds}
    for name in policies.NAMES:
        policy = policies.policy(name, num_adapters=4, cache_slots=2, context_dim=2, horizon=100)
        linucb = policy.rule.router.select in selects and policy.params.router.cost_weight == 1.0
        assert (exponent("horizon", name, "regret_routing") is not None) == linucb, name
