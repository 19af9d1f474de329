"""Lanes on which a kernel is held against `simulate.run_rounds`, and the comparison."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import ReferenceProblem, run_lane

from polar_jax import policies, simulate
from polar_jax.types import Decisions, LaneInputs, LaneState, Rounds

RULES = ("oracle_cache", "polar_plus", "lru", "lfu", "gdsf", "polar_admit", "polar_experts")
ROUNDS = 120
SLOW = pytest.mark.slow
# Each of the others asks the same of a part that these have as well.
QUICK = ("polar_plus", "lru", "polar_experts")


def marked(names: Sequence[str]) -> list[Any]:
    """Rules as parameters, those beyond the quick ones marked slow."""
    return [pytest.param(name, marks=() if name in QUICK else SLOW) for name in names]


class Shape(NamedTuple):
    """What a program is compiled for."""

    name: str  # of a policy
    adapters: int = 7
    dim: int = 5
    binary: bool = False
    theory: bool = False
    pooled: bool = False


class Case(NamedTuple):
    """One lane before it is served."""

    lane: simulate.Lane
    state: LaneState
    rounds: Rounds
    quota: Any = 4
    start: int = 0
    stop: int = ROUNDS


def make_lane(shape: Shape, *, slots: int, active: int, features: int, rng: Any) -> simulate.Lane:
    """A lane with random costs; adapters and features beyond the active ones fill up."""
    settings = policies.Settings(
        beta="theory" if shape.theory else "constant",
        alpha=0.3,
        ridge=2.0 if shape.pooled else 1.0,
        prior="pooled" if shape.pooled else "zero",
    )
    policy = policies.policy(
        shape.name,
        num_adapters=shape.adapters,
        cache_slots=slots,
        context_dim=shape.dim,
        horizon=1000,
        settings=settings,
    )
    cost = jnp.asarray(rng.uniform(0.05, 0.5, shape.adapters))
    inputs = LaneInputs(
        paging_cost=cost,
        switch_cost=1.5 * cost,
        paging_ms=65.0 * cost,
        size=jnp.asarray(rng.uniform(1.0, 2.0, shape.adapters)),
        cache_slots=jnp.asarray(slots, jnp.int32),
        active=jnp.arange(shape.adapters) < active,
        num_features=jnp.asarray(features, jnp.int32),
        samples_ms=jnp.zeros((shape.adapters, 0), jnp.float32),
        sample_count=jnp.ones((shape.adapters,), jnp.int32),
        counted=jnp.asarray(True),
    )
    params = jax.tree.map(jnp.asarray, policy.params)
    return simulate.Lane(policy.rule, params, inputs, jnp.asarray([0]), (), shape.binary)


def make_rounds(shape: Shape, *, features: int, rng: Any) -> Rounds:
    """Random requests whose contexts lie in the unit ball."""
    context = rng.normal(size=(ROUNDS, shape.dim)) * (np.arange(shape.dim) < features)
    context /= np.maximum(np.linalg.norm(context, axis=1, keepdims=True), 1.0)
    theta = rng.normal(size=(shape.adapters, shape.dim))
    noise = rng.uniform(size=ROUNDS) if shape.binary else 0.1 * rng.normal(size=ROUNDS)
    return Rounds(
        context=jnp.asarray(context),
        utility=jnp.asarray(0.5 + 0.4 * np.tanh(context @ theta.T)),
        noise=jnp.asarray(noise),
        latency_uniform=jnp.zeros((ROUNDS,), jnp.float32),
        reservoir_slot=jnp.full((ROUNDS,), -1, jnp.int32),
        policy_bits=jnp.zeros((ROUNDS, 2), jnp.uint32),
    )


def make_case(
    shape: Shape,
    *,
    slots: int = 3,
    seed: int = 0,
    active: int | None = None,
    features: int | None = None,
) -> Case:
    """A lane whose first loads are still to be booked."""
    rng = np.random.default_rng(seed)
    active = shape.adapters if active is None else active
    features = shape.dim if features is None else features
    lane = make_lane(shape, slots=slots, active=active, features=features, rng=rng)
    rounds = make_rounds(shape, features=features, rng=rng)
    resident = jnp.arange(shape.adapters) < slots
    state = simulate.init_lane(lane, resident, context_dim=shape.dim)
    state = state.replace(pending_loads=resident & (jnp.arange(shape.adapters) > 0))
    return Case(lane, state, rounds)


def tied(case: Case) -> Case:
    """The same lane with adapters that differ in nothing, and contexts of zeros at first."""
    inputs = case.lane.inputs
    level = jnp.full_like(inputs.paging_cost, 0.25)
    same = inputs.replace(paging_cost=level, switch_cost=level, size=jnp.ones_like(level))
    rounds = case.rounds
    first = (jnp.arange(ROUNDS) < ROUNDS // 4)[:, None]
    rounds = rounds._replace(
        context=jnp.where(first, 0.0, rounds.context),
        utility=jnp.broadcast_to(rounds.utility[:, :1], rounds.utility.shape),
        noise=jnp.zeros_like(rounds.noise),
    )
    return case._replace(lane=case.lane._replace(inputs=same), rounds=rounds)


def filled_decisions(case: Case) -> Decisions:
    """A record that is full of numbers, so that what must stay can be told from zeros."""
    num_rounds, num_adapters = case.rounds.utility.shape
    dtype = case.rounds.noise.dtype
    return Decisions(
        adapter=jnp.full((num_rounds,), -7, jnp.int32),
        forced=jnp.ones((num_rounds,), bool),
        resident=jnp.ones((num_rounds, num_adapters), bool),
        switch_cost=jnp.full((num_rounds,), 3.0, dtype),
        switch_ms=jnp.full((num_rounds,), 5.0, dtype),
        loads=jnp.full((num_rounds,), 11, jnp.int32),
    )


@functools.cache
def program(kernel: Callable[..., Any], rule: Any, binary: bool, dtype: Any) -> Any:
    """`kernel` compiled for lanes of a rule; shapes are told apart by the cache of `jit`."""
    del dtype

    def run(params: Any, inputs: Any, quota: Any, *given: Any) -> Any:
        lane = simulate.Lane(rule, params, inputs, quota, (), binary)
        return kernel(lane, quota, *given)

    return jax.jit(run)


def serve(kernel: Callable[..., Any], case: Case, decisions: Decisions | None = None) -> Any:
    """What `kernel` makes of a case: `(state, decisions)`."""
    lane = case.lane
    compiled = program(kernel, lane.rule, lane.binary_reward, case.rounds.noise.dtype)
    span = [jnp.asarray(one, jnp.int32) for one in (case.start, case.stop)]
    *given, record = arrays_of(case)
    record = record if decisions is None else decisions
    return jax.tree.map(np.asarray, compiled(*given, record, *span))


def assert_equal(got: Any, expected: Any, *, tolerance: float = 1e-9) -> None:
    """Decisions are the same; statistics, memory and bookings agree to rounding."""

    def close(one: np.ndarray, other: np.ndarray) -> None:
        assert one.dtype == other.dtype
        if np.issubdtype(one.dtype, np.floating):
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(one, other)

    jax.tree.map(close, got, expected)


def arrays_of(case: Case) -> Any:
    """A case's arrays in the order that a program over lanes takes them."""
    quota, record = jnp.asarray(case.quota, jnp.int32), filled_decisions(case)
    return case.lane.params, case.lane.inputs, quota, case.state, case.rounds, record


def check(kernel: Callable[..., Any], case: Case) -> Any:
    """Holds a kernel against the engine on one case in float64; what the engine did."""
    expected = serve(simulate.run_rounds, case)
    assert_equal(serve(kernel, case), expected)
    return expected


class KernelContract:
    """What every form of `run_rounds` keeps to; a test class per kernel inherits it.

    One shape of two routers and two controllers is quick, the rest asks the same of other rules.
    """

    kernel: Callable[..., Any]

    @pytest.fixture(autouse=True)
    def _in_double_precision(self) -> Iterator[None]:
        with helpers.double_precision():
            yield

    @pytest.mark.parametrize("name", marked(RULES))
    def test_every_decision_is_the_engines_and_states_agree(self, name):
        case = make_case(Shape(name))
        state, decisions = check(self.kernel, case._replace(start=5, stop=ROUNDS - 3))
        assert np.all(decisions.adapter[:5] == -7)
        assert np.all(decisions.loads[-3:] == 11)
        assert state.router.pulls.sum() == ROUNDS - 8
        assert len(np.unique(decisions.adapter[5:-3])) > 3

    @pytest.mark.parametrize("name", marked(RULES))
    @pytest.mark.parametrize("slots", [0, 1, 7])
    def test_caches_of_no_slot_one_slot_and_all_slots(self, name, slots):
        check(self.kernel, make_case(Shape(name), slots=slots, seed=1))

    @pytest.mark.parametrize("name", marked(RULES))
    def test_ties_go_to_the_lowest_index(self, name):
        _, decisions = check(self.kernel, tied(make_case(Shape(name), seed=2))._replace(quota=0))
        assert decisions.adapter[0] == 0

    @pytest.mark.parametrize("name", ["lru", "no_forced", pytest.param("lfu", marks=SLOW)])
    def test_lanes_equal_the_reference(self, name):
        case = make_case(Shape(name), seed=10)
        inputs, nothing = case.lane.inputs, jnp.zeros_like(case.state.pending_loads)
        case = case._replace(state=case.state.replace(pending_loads=nothing), quota=0)
        state, decisions = serve(self.kernel, case)
        costs = map(np.asarray, (inputs.paging_cost, inputs.switch_cost, inputs.paging_ms))
        expected = run_lane(
            name,
            helpers.rounds_of(case.rounds, binary=False),
            ReferenceProblem(*costs, cache_slots=int(inputs.cache_slots)),
            helpers.reference_settings(policies.Settings(alpha=0.3)),
        )
        np.testing.assert_array_equal(decisions.adapter, expected.actions)
        np.testing.assert_array_equal(decisions.resident, expected.resident)
        np.testing.assert_allclose(decisions.switch_cost, expected.switching, atol=1e-12)
        np.testing.assert_allclose(state.router.theta_hat, expected.theta_hat, atol=1e-9)

    @pytest.mark.parametrize("name", marked(RULES))
    def test_two_calls_with_a_boundary_between_them_equal_one(self, name):
        whole = make_case(Shape(name), seed=3)
        expected = serve(self.kernel, whole)
        state, decisions = serve(self.kernel, whole._replace(stop=47))
        rest = whole._replace(state=jax.tree.map(jnp.asarray, state), start=47)
        assert_equal(serve(self.kernel, rest, decisions), expected)

    @pytest.mark.parametrize("span", [(0, 0), (9, 9), (9, 4), (ROUNDS - 1, ROUNDS)])
    def test_spans_of_no_round_and_of_one(self, span):
        check(self.kernel, make_case(Shape("lru"))._replace(start=span[0], stop=span[1]))

    @pytest.mark.parametrize("name", marked(RULES))
    def test_adapters_and_features_that_fill_up_change_nothing(self, name):
        _, decisions = check(self.kernel, make_case(Shape(name), active=5, features=4, seed=4))
        assert decisions.adapter.max() < 5

    def test_forced_exploration_happens_in_the_same_rounds(self):
        for name, quota in (("polar_plus", 9), ("polar_experts", 30)):
            _, decisions = check(self.kernel, make_case(Shape(name), seed=5)._replace(quota=quota))
            assert 0 < decisions.forced.sum() < ROUNDS

    @pytest.mark.slow
    @pytest.mark.parametrize("name", RULES)
    def test_rewards_of_zero_and_one_and_the_theory_schedule(self, name):
        check(self.kernel, make_case(Shape(name, binary=True, theory=True), seed=6))

    @pytest.mark.parametrize(
        "sizes", [(1, 3), pytest.param((2, 1), marks=SLOW), pytest.param((15, 16), marks=SLOW)]
    )
    @pytest.mark.parametrize("name", ["lru", pytest.param("polar_experts", marks=SLOW)])
    def test_other_shapes(self, name, sizes):
        shape = Shape(name, adapters=sizes[0], dim=sizes[1])
        for slots in {0, 1, (sizes[0] + 1) // 2, sizes[0]}:
            check(self.kernel, make_case(shape, slots=slots, seed=7))

    def test_lanes_side_by_side_equal_lanes_alone(self):
        cases = [make_case(Shape("lru"), slots=slots, seed=slots) for slots in (2, 3)]
        many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(arrays_of, cases))
        rule = cases[0].lane.rule

        def run(params: Any, inputs: Any, *given: Any) -> Any:
            lane = simulate.Lane(rule, params, inputs, given[0], (), False)
            span = jnp.asarray(0, jnp.int32), jnp.asarray(ROUNDS, jnp.int32)
            return type(self).kernel(lane, *given, *span)

        got = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(*many))
        for lane, case in enumerate(cases):
            alone = serve(simulate.run_rounds, case)
            assert_equal(jax.tree.map(lambda leaf, lane=lane: leaf[lane], got), alone)

    def test_the_comparison_sees_another_stream(self):
        case = make_case(Shape("lru"))
        other = case.rounds._replace(utility=case.rounds.utility[:, ::-1])
        got = serve(self.kernel, case._replace(rounds=other))
        with pytest.raises(AssertionError):
            assert_equal(got, serve(simulate.run_rounds, case))
