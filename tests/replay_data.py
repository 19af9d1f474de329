"""Small made-up replays that tests share."""

import numpy as np

from polar_jax import replays


def made(
    num_requests: int = 300,
    num_adapters: int = 5,
    context_dim: int = 4,
    num_domains: int = 3,
    *,
    binary: bool = False,
    seed: int = 0,
    order: np.ndarray | None = None,
) -> replays.Replay:
    """Experts of domains: an adapter is good on requests of its own domain."""
    rng = np.random.default_rng(seed)
    # Every domain occurs, in unequal numbers.
    domains = np.minimum(rng.integers(0, num_domains + 1, num_requests), num_domains - 1)
    domains[:num_domains] = np.arange(num_domains)
    contexts = np.eye(num_domains, context_dim)[domains]
    contexts = contexts + 0.2 * rng.normal(size=(num_requests, context_dim))
    own = np.arange(num_adapters)[None, :] % num_domains == domains[:, None]
    chance = 0.25 + 0.5 * own + 0.2 * rng.random((num_requests, num_adapters))
    utilities = rng.random(chance.shape) < chance if binary else chance
    return replays.make_replay(contexts, utilities.astype(np.float64), domains=domains, order=order)
