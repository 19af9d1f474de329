"""The native kernel against the XLA path: the same decisions in float64, near-ties in float32."""

import functools
import re
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polar_jax import kernels, lanes, policies, simulate
from polar_jax.kernels import native_build, native_rounds
from polar_jax.types import LaneInputs

KNOWN = (
    *("static", "lru", "lfu", "gdsf", "polar_admit", "polar", "polar_plus", "polar_experts"),
    *("no_forced", "cost_blind"),
)
FEW = ("lru", "polar_plus", "polar_experts")
needs_native = pytest.mark.skipif(
    native_build.native().path is None, reason=f"no native kernel: {native_build.native().reason}"
)


def run(kernel: str, names: tuple[str, ...], **options: Any) -> lanes.Results:
    """A run with all its decisions by one kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(kernels.VARIABLE, kernel)
        return helpers.run_kept(helpers.make_experiment(names, **options))


def assert_equal_decisions(names: tuple[str, ...], **options: Any) -> None:
    """Both kernels decide the same in float64, and their figures differ by rounding alone."""
    options |= {"dtype": np.float64}
    got, expected = (run(kernel, names, **options) for kernel in ("native", "xla"))
    for name in names:
        ours, theirs = got.policies[name], expected.policies[name]
        assert ours.decisions is not None
        assert theirs.decisions is not None
        for one, other in zip(ours.decisions, theirs.decisions, strict=True):
            np.testing.assert_array_equal(one, other)
        for part, total in theirs.totals.items():
            np.testing.assert_allclose(ours.totals[part], total, rtol=1e-9, atol=1e-9)


@needs_native
@pytest.mark.parametrize("names", [FEW, pytest.param(KNOWN, marks=pytest.mark.slow)])
def test_rules_that_it_knows_decide_as_the_xla_path_does(names):
    # Two chunks, and epochs that end within them.
    assert_equal_decisions(names, horizon=1200)


SHAPES = {
    "one of everything": {"adapters": 1, "slots": 1, "dim": 1},
    "no slots, odd sizes": {"adapters": 17, "slots": 0, "dim": 3},
    "all slots, more than a vector": {"adapters": 33, "slots": 33, "dim": 18},
    "whole vectors": {"adapters": 16, "slots": 5, "dim": 16},
    "one round": {"horizon": 1},
}


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_every_kind(shape):
    assert_equal_decisions(FEW, **({"horizon": 600} | SHAPES[shape]))


OTHERS: dict[str, dict[str, Any]] = {
    "theory": {"settings": policies.Settings(beta="theory", sigma=0.3)},
    "binary rewards": {"environment": "bernoulli"},
    "a pooled prior": {
        "settings": policies.Settings(prior="pooled", ridge=2.0),
        "environment": "bernoulli",
        "dim": 6,
    },
    "free page-ins": {"costs": lanes.Costs(synthetic_mean=0.0)},
    "very dear page-ins": {"costs": lanes.Costs(synthetic_mean=1e6)},
    "no noise, all alike": {"noise": 0.0, "spread": 0.0, "theta_spread": 0.0},
}


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
def test_other_constants_and_streams(other):
    assert_equal_decisions(FEW, **({"horizon": 600} | OTHERS[other]))


@functools.cache
def single(kernel: str) -> lanes.Results:
    """A float32 run."""
    return run(kernel, ("lru", "polar_experts"), horizon=1200)


@needs_native
@pytest.mark.parametrize("name", ["lru", "polar_experts"])
def test_in_float32_lanes_part_at_near_ties_alone(name):
    # One flipped near-tie sends two correct lanes apart for good; the first one must be near.
    ours, theirs = (single(kernel).policies[name].decisions for kernel in ("native", "xla"))
    assert ours is not None
    assert theirs is not None
    differs = np.asarray(ours.adapter) != np.asarray(theirs.adapter)
    agreed = np.where(differs.any(axis=1), differs.argmax(axis=1), differs.shape[1])
    assert agreed.min() > 30
    mean = [single(kernel).policies[name].totals["regret"].mean() for kernel in ("native", "xla")]
    assert mean[0] == pytest.approx(mean[1], rel=0.05)  # two lanes that may part: not the same


def test_unknown_kernels_and_those_that_cannot_run_are_refused(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"POLAR_JAX_KERNEL.*fast"):
        kernels.chosen("cpu")
    monkeypatch.setenv(kernels.VARIABLE, "native")
    with pytest.raises(ValueError, match="processors alone, and the device is gpu"):
        kernels.chosen("gpu")
    monkeypatch.setattr(native_build, "native", lambda: native_build.Native(None, "no compiler"))
    with pytest.raises(ValueError, match="cannot be had here: no compiler"):
        kernels.chosen("cpu")


def test_without_a_compiler_the_xla_path_serves(monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    monkeypatch.setattr(native_build, "native", lambda: native_build.Native(None, "no compiler"))
    assert kernels.chosen("cpu") == "xla"
    assert kernels.available("cpu") == ("xla",)


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "no C\\+\\+ compiler"),
        ("false", "failed"),
        ("", "cannot be kept|folder"),
    ],
)
def test_why_there_is_no_kernel_is_said_in_one_line(compiler, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if not compiler:
        (tmp_path / "cache").write_text("a file where a folder should be")
        monkeypatch.setattr(native_build, "_compiler", lambda: ["true"])
    found = native_build.native.__wrapped__()
    assert found.path is None
    assert "\n" not in found.reason
    assert re.search(reason, found.reason)


@needs_native
def test_it_is_built_once_and_another_processor_builds_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = []

    def build(compiler: list[str], path: Any) -> None:
        del compiler
        built.append(path.name)
        path.write_bytes(b"")

    monkeypatch.setattr(native_build, "_build", build)
    first, again = native_build._built(), native_build._built()
    monkeypatch.setattr(native_build, "_processor", lambda: "another one")
    assert native_build._built() != first == again
    assert len(set(built)) == len(built) == 2


def test_what_it_does_not_know_takes_the_xla_path():
    sizes: dict[str, Any] = {
        "num_adapters": 7,
        "cache_slots": 3,
        "context_dim": 5,
        "horizon": 100,
    }
    rules = {name: policies.policy(name, **sizes).rule for name in policies.NAMES}
    known = {name for name, rule in rules.items() if native_rounds.supports(rule, sized=False)}
    assert set(KNOWN) <= known
    assert known.isdisjoint({"lin_ts", "epsilon_greedy", "random", "oracle", "arc", "lecar"})
    assert not native_rounds.supports(rules["lru"], sized=True)
    assert kernels.taken("native", rules["arc"], (7, 5), sized=False) == "xla"


def served_chunk(bad: bool) -> tuple[Any, Any]:
    """Two lanes through a chunk by the native kernel, the first with a reward that is no number."""
    problem = helpers.make_experiment(("polar_experts",), dim=10, horizon=256)
    rounds = helpers.run_kept(problem).policies["polar_experts"].rounds
    assert rounds is not None
    spoilt = np.array(rounds.noise)
    if bad:
        spoilt[0, 10] = np.nan
    policy = problem.policies[0]
    rounds = jax.tree.map(jnp.asarray, rounds._replace(noise=spoilt))
    cost = jnp.full((7,), 0.3, jnp.float32)
    inputs = LaneInputs(
        paging_cost=cost,
        switch_cost=cost,
        paging_ms=cost,
        size=jnp.ones_like(cost),
        cache_slots=jnp.int32(3),
        active=jnp.ones((7,), bool),
        num_features=jnp.int32(10),
        samples_ms=jnp.zeros((7, 0), jnp.float32),
        sample_count=jnp.zeros((7,), jnp.int32),
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), policy.params)
    quotas = jnp.zeros((1,), jnp.int32)
    lane = simulate.Lane(policy.rule, params, inputs, quotas, (), False)

    def one(rounds: Any) -> Any:
        state = simulate.init_lane(lane, jnp.arange(7) < 3, context_dim=10)
        length = rounds.context.shape[0]
        nothing = simulate._empty_decisions(length, 7, jnp.float32)
        return native_rounds.run_rounds(
            lane, jnp.int32(5), state, rounds, nothing, jnp.int32(0), jnp.int32(length)
        )

    return jax.device_get(jax.jit(jax.vmap(one))(rounds))


@needs_native
def test_a_lane_that_goes_wrong_spoils_no_other():
    whole, spoilt = served_chunk(bad=False), served_chunk(bad=True)
    assert np.isnan(spoilt[0].router.theta_hat[0]).any()
    assert ((spoilt[1].adapter >= 0) & (spoilt[1].adapter < 7)).all()
    for ours, theirs in zip(jax.tree.leaves(spoilt), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_a_command_that_cannot_be_read_is_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", 'g++ "')
    assert "is no command" in native_build.native.__wrapped__().reason
