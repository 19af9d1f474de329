"""The figures' identities hold on any rounds and any decisions."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_jax import metrics
from polar_jax.types import Decisions, LaneInputs, Rounds

N, ROUNDS = 5, 32
_parts = jax.jit(metrics.round_parts)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 10), st.integers(0, N))
def test_parts_add_up_and_losses_are_never_negative(seed: int, scale: float, slots: int) -> None:
    rng = np.random.default_rng(seed)
    cost = jnp.asarray(scale * rng.random(N), jnp.float32)
    oracle_set = jnp.asarray(rng.permutation(N) < slots)
    rounds = Rounds(
        context=jnp.zeros((ROUNDS, 1), jnp.float32),
        utility=jnp.asarray(rng.uniform(-1, 1, (ROUNDS, N)), jnp.float32),
        noise=jnp.zeros(ROUNDS, jnp.float32),
        latency_uniform=jnp.zeros(ROUNDS, jnp.float32),
        reservoir_slot=jnp.zeros(ROUNDS, jnp.int32),
        policy_bits=jnp.zeros((ROUNDS, 2), jnp.uint32),
    )
    decisions = Decisions(
        adapter=jnp.asarray(rng.integers(0, N, ROUNDS), jnp.int32),
        forced=jnp.asarray(rng.random(ROUNDS) < 0.5),
        resident=jnp.asarray(rng.random((ROUNDS, N)) < 0.5),
        switch_cost=jnp.asarray(rng.random(ROUNDS), jnp.float32),
        switch_ms=jnp.zeros(ROUNDS, jnp.float32),
        loads=jnp.zeros(ROUNDS, jnp.int32),
    )
    inputs = LaneInputs(
        paging_cost=cost,
        switch_cost=cost,
        paging_ms=cost,
        size=jnp.ones(N, jnp.float32),
        cache_slots=jnp.int32(slots),
        active=jnp.ones(N, bool),
        num_features=jnp.int32(1),
        samples_ms=jnp.zeros((N, 0), jnp.float32),
        sample_count=jnp.ones(N, jnp.int32),
        counted=jnp.asarray(True),
    )
    table = np.asarray(_parts(rounds, decisions, inputs, oracle_set, jnp.float32(0))[0], np.float64)
    part: dict[str, np.ndarray] = {
        name: table[:, column] for column, name in enumerate(metrics.PARTS)
    }
    summed = part["regret_routing"] + part["regret_caching"] + part["regret_switching"]
    size = 1 + sum(np.abs(part[f"regret_{x}"]) for x in ("routing", "caching", "switching"))
    # Four float32 roundings of numbers of size `scale + 1`.
    np.testing.assert_array_less(np.abs(part["regret"] - summed), 1e-6 * (size + scale))
    assert (part["regret_routing"] >= 0).all()
    assert (part["loss_to_full"] >= 0).all()
    assert (part["regret_forced"] <= part["regret_routing"]).all()
    hits = np.asarray(decisions.resident)[np.arange(ROUNDS), np.asarray(decisions.adapter)]
    np.testing.assert_array_equal(part["page_ins"], ~hits)
