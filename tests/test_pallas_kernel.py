"""The Pallas kernel against the engine and the float64 reference, and its way to a GPU.

Interpret mode runs the kernel's own operations on a CPU. In float64 every decision is the
engine's; the cases are chosen where padding, ties and boundaries could tell.
"""

from typing import Any

import helpers
import jax
import jax.numpy as jnp
import kernel_cases
import kernel_lanes
import numpy as np
import pytest
from kernel_cases import RULES, SLOW, Shape, arrays_of, make_case, marked

from polar_jax import policies, simulate
from polar_jax.kernels import folded, pallas_rounds


class TestPallasKernel(kernel_cases.KernelContract):
    """The contract of every kernel."""

    kernel = staticmethod(pallas_rounds.run_rounds)


class TestPallasLanes(kernel_lanes.ReferenceContract):
    """The contract of every kernel's lanes."""

    name = "pallas"


@pytest.mark.parametrize("size", [4, *(pytest.param(size, marks=SLOW) for size in (2, 8, 16))])
def test_folded_matrices_unfold_multiply_and_change_as_full_ones(size):
    rng = np.random.default_rng(size)
    roots = rng.normal(size=(3, size, size))
    full, x = roots + roots.transpose(0, 2, 1), rng.normal(size=size)

    @jax.jit
    def both(full: jax.Array, x: jax.Array) -> Any:
        kept, v = folded.fold(full), folded.halves(x)
        here = jnp.asarray([False, True, False])
        product = folded.product(folded.selected(kept, here), v)
        changed = folded.unfold(folded.downdated(kept, here, v))
        return folded.unfold(kept), folded.quadratic(kept, v), product, changed

    with helpers.double_precision():
        unfolded, quadratic, product, changed = both(jnp.asarray(full), jnp.asarray(x))
    np.testing.assert_array_equal(unfolded, full)
    np.testing.assert_allclose(quadratic, np.einsum("nij,i,j->n", full, x, x))
    np.testing.assert_allclose(np.concatenate(product), full[1] @ x)
    full[1] -= np.outer(x, x)
    np.testing.assert_allclose(changed, full)


def lowered(name: str, adapters: int, dim: int) -> str:
    """The program of a GPU for two lanes, made without one."""
    case = make_case(Shape(name, adapters=adapters, dim=dim))
    arrays = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), arrays_of(case))

    def run(params: Any, inputs: Any, *given: Any) -> Any:
        lane = simulate.Lane(case.lane.rule, params, inputs, given[0], (), False)
        return pallas_rounds.run_rounds(lane, *given, interpret=False)

    over_lanes = jax.jit(jax.vmap(run, in_axes=(0,) * 6 + (None,) * 2))
    # From 0.12 on, lowering asks which GPU it is for.
    gpu = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        traced = over_lanes.trace(*arrays, np.int32(0), np.int32(9))
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", marked(RULES))
@pytest.mark.parametrize("sizes", [(15, 16), (64, 32)])
# jax 0.12 announces the end of the backend that the kernel is lowered by (docs/performance.md).
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
def test_every_rule_lowers_for_a_gpu(name, sizes):
    program = lowered(name, *sizes)
    assert "triton" in program
    # One kernel serves all lanes and rounds; the host's one loop adds up the sums afterwards.
    assert program.count("custom_call @__gpu$xla.gpu.triton") == 1
    assert program.count("stablehlo.while") == 1


def test_the_kernel_is_offered_where_it_fits_and_serves():
    sizes: dict[str, Any] = dict(num_adapters=7, cache_slots=3, context_dim=5, horizon=100)
    rules = {name: policies.policy(name, **sizes).rule for name in policies.NAMES}
    served = {name for name, rule in rules.items() if pallas_rounds.supports(rule)}
    others = {"polar", "static", "no_cache", "full_cache", "cost_blind", "no_forced"}
    assert served == {*RULES, *others, "polar_plus_no_forced"}
    assert not pallas_rounds.supports(rules["lru"], sized=True)
    pooled = rules["lru"]._replace(router=rules["lru"].router._replace(pooled=True))
    assert not pallas_rounds.supports(pooled)
    assert pallas_rounds.fits(15, 16)
    assert pallas_rounds.fits(64, 32)
    assert not pallas_rounds.fits(256, 64)
