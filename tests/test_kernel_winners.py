"""Which kernel serves never changes which policy wins: whole float32 runs, every policy ranked."""

import functools

import helpers
import numpy as np
import pytest

from polar_jax import kernels, lanes

NAMES = ("polar", "polar_plus", "polar_experts", "polar_admit", "lru", "lfu", "gdsf", "static")
SEEDS = range(16)
KERNELS = ("native", "blocked")  # Pallas is interpreted here, which takes its time: it has its own.
# What a sum of float32 in another order changes in a lane's loss; a near-tie that went the other
# way changes all that follows. None was seen in 384 lanes.
ROUNDED, NEAR_TIES = 1e-5, 0.02


@functools.cache
def losses(kernel: str, environment: str) -> np.ndarray:
    """`[P, S]` losses to full memory, policies in order of `NAMES`."""
    made = helpers.make_experiment(NAMES, environment=environment, horizon=2_000, seeds=SEEDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(kernels.VARIABLE, kernel)
        results = lanes.run(made)
    return np.stack([results.policies[name].totals["loss_to_full"] for name in NAMES])


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["clustered", "sticky", "isotropic"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_policy_keeps_its_rank_whatever_serves(kernel: str, environment: str) -> None:
    if kernel not in kernels.available("cpu") and kernel == "native":
        pytest.skip("without a C++ compiler there is no native kernel")
    ours, theirs = losses(kernel, environment), losses("xla", environment)
    assert np.argsort(ours.mean(axis=1)).tolist() == np.argsort(theirs.mean(axis=1)).tolist()
    apart = np.abs(ours - theirs) > ROUNDED * np.abs(theirs)
    print(f"{apart.sum()} of {apart.size} lanes met a near-tie that went the other way")
    assert apart.mean() <= NEAR_TIES
    # Another kernel served: to the last bit, not all is the same.
    assert kernel == "blocked" or not np.array_equal(ours, theirs)
