"""The native kernel against the engine and the float64 reference, and where it is built."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import kernel_cases
import kernel_lanes
import numpy as np
import pytest
from kernel_cases import (
    ROUNDS,
    RULES,
    SLOW,
    Shape,
    arrays_of,
    assert_equal,
    check,
    filled_decisions,
    make_case,
    marked,
    serve,
    tied,
)

from polar_jax import kernels, policies, simulate
from polar_jax.kernels import native_build, native_rounds

needs_native = pytest.mark.skipif(
    native_build.native().path is None, reason=f"no native kernel: {native_build.native().reason}"
)


def as_dtype(leaf: Any, dtype: Any) -> Any:
    """An array in the dtype if it holds floats, else what is given."""
    floats = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(dtype) if floats else leaf


@needs_native
class TestNativeKernel(kernel_cases.KernelContract):
    """The contract of every kernel."""

    kernel = staticmethod(native_rounds.run_rounds)

    # Less and more than a vector, rows that end within one and with it, shapes with code of
    # their own (16, 32 and 64 features).
    @pytest.mark.parametrize("sizes", [(17, 3), (33, 18), (16, 16), (20, 32), (3, 64)])
    @pytest.mark.parametrize("name", ["lru", pytest.param("polar_experts", marks=SLOW)])
    def test_shapes_round_its_vectors(self, name, sizes):
        for slots in (1, sizes[0] // 2):
            check(self.kernel, make_case(Shape(name, *sizes), slots=slots, seed=11))

    @pytest.mark.parametrize("name", marked(RULES))
    @pytest.mark.parametrize("sizes", [(7, 5), pytest.param((17, 16), marks=SLOW)])
    def test_a_prior_that_adapters_have_in_common(self, name, sizes):
        case = make_case(Shape(name, *sizes, pooled=True), seed=12)
        check(self.kernel, case)
        # While contexts are zeros. Past them equal adapters' bonuses are equal but for rounding,
        # and XLA may round a row otherwise than the next (0.12 does, unoptimised).
        check(self.kernel, tied(case)._replace(stop=ROUNDS // 4))

    # Numbers of the first update are 1e6 times those that are left: what an update adds to one half
    # of an inverse and not to the other would be all that is left of it.
    @pytest.mark.parametrize("dim", [5, 16, 18, pytest.param(64, marks=SLOW)])
    def test_a_tiny_ridge_keeps_inverses_symmetric_and_positive(self, dim):
        case = make_case(Shape("lru", 2, dim), slots=1, seed=17)
        params = case.lane.params
        tiny = params.router.replace(ridge=jnp.asarray(1e-6))
        lane = case.lane._replace(params=params.replace(router=tiny))
        state = simulate.init_lane(lane, case.state.resident, context_dim=dim)
        case = case._replace(lane=lane, state=state)
        case = jax.tree.map(lambda x: as_dtype(x, jnp.float32), case)
        state, decisions = case.state, None
        for seed in range(60):
            rounds = jax.tree.map(
                lambda x: as_dtype(x, jnp.float32),
                make_case(Shape("lru", 2, dim), slots=1, seed=seed).rounds,
            )
            piece = case._replace(state=state, rounds=rounds)
            state, decisions = serve(self.kernel, piece, decisions)
        inverse = np.asarray(state.router.precision_inv)
        np.testing.assert_array_equal(inverse, inverse.swapaxes(1, 2))
        assert np.linalg.eigvalsh(inverse.astype(float)).min() > 0.0

    # Of so many adapters the largest is looked for 64 at a time.
    @pytest.mark.parametrize("adapters", [8, 70, 130])
    def test_ties_and_maxima_among_many_adapters(self, adapters):
        case = make_case(Shape("lru", adapters, 3), slots=adapters // 2, seed=18)
        check(self.kernel, case)
        check(self.kernel, tied(case)._replace(stop=ROUNDS // 4))
        best = case.rounds.utility.at[:, -1].add(5.0)
        check(self.kernel, case._replace(rounds=case.rounds._replace(utility=best)))

    # Requests are looked at in pairs: which ones make a pair must not show in any bit.
    @pytest.mark.parametrize("sizes", [(7, 5), (15, 16), (20, 32)])
    @pytest.mark.parametrize("name", ["lru", pytest.param("polar_experts", marks=SLOW)])
    @pytest.mark.parametrize("pooled", [False, pytest.param(True, marks=SLOW)])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
    def test_where_a_call_begins_and_ends_changes_no_bit(self, sizes, name, pooled, dtype):
        case = make_case(Shape(name, *sizes, pooled=pooled), seed=16)
        case = jax.tree.map(lambda x: as_dtype(x, dtype), case)
        whole = serve(self.kernel, case)
        state, decisions = case.state, None
        for start, stop in ((0, 1), (1, 2), (2, 7), (7, 50), (50, 51), (51, ROUNDS)):
            piece = case._replace(state=state, start=start, stop=stop)
            state, decisions = serve(self.kernel, piece, decisions)
        assert_equal((state, decisions), whole, tolerance=0.0)

    @pytest.mark.parametrize("cost", [0.0, 1e6])
    def test_loads_for_nothing_and_loads_that_nothing_is_worth(self, cost):
        for name in ("gdsf", "polar_experts"):
            case = make_case(Shape(name), seed=13)
            level = jnp.full((7,), cost)
            inputs = case.lane.inputs.replace(paging_cost=level, switch_cost=level)
            check(self.kernel, case._replace(lane=case.lane._replace(inputs=inputs)))

    def test_a_lane_that_only_fills_up_a_tile_is_left_out(self):
        case = make_case(Shape("polar_experts"), seed=14)
        inputs = case.lane.inputs.replace(counted=jnp.asarray(False))
        left_out = case._replace(lane=case.lane._replace(inputs=inputs))
        state, decisions = serve(self.kernel, left_out, filled_decisions(case))
        assert_equal((state, decisions), (case.state, filled_decisions(case)), tolerance=0.0)
        # The same lane, counted, does change.
        served = serve(self.kernel, case, filled_decisions(case))[1]
        assert not np.array_equal(served.adapter, decisions.adapter)


@needs_native
class TestNativeLanes(kernel_lanes.ReferenceContract):
    """The contract of every kernel's lanes."""

    name = "native"


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
    assert set(RULES) <= known
    assert known.isdisjoint({"lin_ts", "epsilon_greedy", "random", "oracle", "arc", "lecar"})
    assert not native_rounds.supports(rules["lru"], sized=True)
    assert kernels.taken("native", rules["arc"], (7, 5), sized=False) == "xla"


@needs_native
def test_a_lane_that_goes_wrong_spoils_no_other():
    # Rows of 10 features end within a vector, whose rest every lane of a call passes on.
    cases = [make_case(Shape("polar_experts", dim=10), seed=seed) for seed in (14, 15)]
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(arrays_of, cases))
    rule, kernel = cases[0].lane.rule, TestNativeKernel.kernel

    def run(params: Any, inputs: Any, quota: Any, *given: Any) -> Any:
        lane = simulate.Lane(rule, params, inputs, quota, (), False)
        span = jnp.int32(0), jnp.int32(ROUNDS)
        return kernel(lane, quota, *given, *span)

    served: Any = jax.jit(jax.vmap(run))
    *before, rounds, record = many
    wrong = rounds._replace(noise=rounds.noise.at[0, 10].set(jnp.nan))
    whole, spoilt = (jax.device_get(served(*before, one, record)) for one in (rounds, wrong))
    assert np.isnan(spoilt[0].router.theta_hat[0]).any()
    assert ((spoilt[1].adapter >= 0) & (spoilt[1].adapter < 7)).all()
    for ours, theirs in zip(jax.tree.leaves(spoilt), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_a_command_that_cannot_be_read_is_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", 'g++ "')
    assert "is no command" in native_build.native.__wrapped__().reason
