"""Programs compiled for more adapters and features than a problem has give its results."""

import dataclasses
import functools

import helpers
import jax.numpy as jnp
import numpy as np
import pytest

from polar_jax import lanes, metrics, policies, routers

# Masked in their scores, their quotas, their searches, their draws and their pairs.
HORIZON = 700


@functools.cache
def both(environment: str, names: tuple[str, ...]) -> tuple[lanes.Results, lanes.Results]:
    """Policies in float64, compiled for their own sizes and for more."""
    settings = policies.Settings(beta="theory", sample="reservoir")
    own = helpers.make_experiment(
        names,
        environment=environment,
        adapters=5,
        slots=2,
        dim=3,
        horizon=HORIZON,
        settings=settings,
        dtype=np.float64,
    )
    padded = dataclasses.replace(own, shape=lanes.Shape(8, 4))
    return helpers.run_kept(own), helpers.run_kept(padded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ("sticky", policies.NAMES),
        ("bernoulli", policies.NAMES),
    ],
)
def test_padding_changes_no_decision_in_float64(environment, names):
    own, padded = both(environment, names)
    assert padded.paging_cost.shape == (2, 8)
    np.testing.assert_allclose(padded.paging_cost[:, :5], own.paging_cost, rtol=1e-6)
    np.testing.assert_array_equal(padded.oracle_set[:, :5], own.oracle_set)
    for name in names:
        ours, theirs = padded.policies[name].decisions, own.policies[name].decisions
        assert ours is not None
        assert theirs is not None
        np.testing.assert_array_equal(ours.adapter, theirs.adapter, err_msg=name)
        np.testing.assert_array_equal(ours.forced, theirs.forced, err_msg=name)
        np.testing.assert_array_equal(ours.resident[..., :5], theirs.resident, err_msg=name)
        assert not ours.resident[..., 5:].any()
        for part in metrics.PARTS:
            a, b = padded.policies[name].curves[part], own.policies[name].curves[part]
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-4, err_msg=f"{name} {part}")


def test_a_shape_below_the_problem_is_refused():
    experiment = helpers.make_experiment(("lru",))
    with pytest.raises(ValueError, match=r"shape must be at least .*got Shape\(num_adapters=6"):
        dataclasses.replace(experiment, shape=lanes.Shape(6, 5))


def test_thompson_normals_of_more_adapters_start_with_those_of_fewer():
    bits = jnp.array([3, 2**31 + 5], jnp.uint32)
    more = routers.thompson_normal(bits, num_adapters=32)
    for fewer in (1, 5, 17):
        np.testing.assert_array_equal(
            routers.thompson_normal(bits, num_adapters=fewer), more[:fewer]
        )
