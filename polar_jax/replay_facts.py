"""What a replay holds for a router and a cache to learn: the facts of `polar-jax replay check`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from polar_jax import oracles, replays
from polar_jax.replays import Replay

# Far above every utility, so that an adapter outside the set is never used.
_NEVER = 1e3
_MOST_REQUESTS = 20_000


@dataclasses.dataclass(frozen=True)
class StaticSet:
    """The best set of some size that never changes, under perfect routing within it.

    Attributes:
      slots: how many adapters it holds.
      adapters: their names.
      utility: mean utility per request.
      exact: whether it is the best of all sets; otherwise it was searched for.
    """

    slots: int
    adapters: tuple[str, ...]
    utility: float
    exact: bool


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts of a replay; utilities are means per request.

    Attributes:
      requests: `M`.
      adapters: `N`.
      features: `d`.
      domains: `G`.
      order: how many requests the recorded order has.
      binary: whether utilities are single outcomes, 0 or 1.
      missing: utilities that were missing and filled.
      largest_norm: what contexts were divided by.
      best_adapter: the best single adapter for all requests.
      best_adapter_utility: its mean.
      domain_utility: with the best adapter of every domain.
      static_sets: best sets of a few sizes.
      oracle_utility: with the best adapter of every request.
      linear_utility: with the adapter that a linear model, cross-fitted, expects most of.
      r_squared: of the linear model's predictions, cross-fitted, mean over adapters that vary.
      r_squared_between: the same of the differences between a request's adapters, which are
        what a router chooses by.
    """

    requests: int
    adapters: int
    features: int
    domains: int
    order: int
    binary: bool
    missing: int
    largest_norm: float
    best_adapter: str
    best_adapter_utility: float
    domain_utility: float
    static_sets: tuple[StaticSet, ...]
    oracle_utility: float
    linear_utility: float
    r_squared: float
    r_squared_between: float

    @property
    def learnable(self) -> float:
        """Share of what choosing per request can gain that a linear model gets; NaN for none."""
        room = self.oracle_utility - self.best_adapter_utility
        gained = self.linear_utility - self.best_adapter_utility
        return gained / room if room > 1e-9 else float("nan")


def facts(replay: Replay, slots: Sequence[int] = (1, 2, 4, 8)) -> Facts:
    """Looks at a replay.

    Args:
      replay: the requests.
      slots: sizes of static sets to look for; those of `N` or more are left out.

    Returns:
      The facts.
    """
    utility = replay.utilities
    mean = utility.mean(axis=0, dtype=np.float64)
    best = int(np.argmax(mean))
    fitted = replays.cross_fitted(replay.contexts, utility)
    by_domain = [utility[replay.domains == g] for g in range(len(replay.domain_names))]
    in_domain = sum(float(one.sum(axis=0, dtype=np.float64).max()) for one in by_domain)
    chosen = np.argmax(fitted, axis=1)
    return Facts(
        requests=len(utility),
        adapters=utility.shape[1],
        features=replay.contexts.shape[1],
        domains=len(replay.domain_names),
        order=len(replay.order),
        binary=replay.binary,
        missing=replay.missing,
        largest_norm=replay.largest_norm,
        best_adapter=replay.adapters[best],
        best_adapter_utility=float(mean[best]),
        domain_utility=in_domain / len(utility),
        static_sets=tuple(_static(replay, k) for k in slots if k < utility.shape[1]),
        oracle_utility=float(utility.max(axis=1).mean(dtype=np.float64)),
        linear_utility=float(utility[np.arange(len(utility)), chosen].mean(dtype=np.float64)),
        r_squared=_r_squared(utility, fitted),
        r_squared_between=_r_squared(
            utility - utility.mean(axis=1, keepdims=True),
            fitted - fitted.mean(axis=1, keepdims=True),
        ),
    )


def _static(replay: Replay, slots: int) -> StaticSet:
    # Every so many requests: the search holds a few copies of what it looks at.
    step = -(-len(replay.utilities) // _MOST_REQUESTS)
    utility = jnp.asarray(replay.utilities[::step])
    size = float(np.abs(replay.utilities).max()) + 1.0
    cost = jnp.full((utility.shape[1],), _NEVER * size, jnp.float32)
    weight = jnp.ones((utility.shape[0],), jnp.float32)
    held = np.asarray(oracles.static_oracle(utility, cost, weight, cache_slots=slots))
    return StaticSet(
        slots=slots,
        adapters=tuple(np.asarray(replay.adapters)[held].tolist()),
        utility=float(replay.utilities[:, held].max(axis=1).mean(dtype=np.float64)),
        exact=step == 1 and oracles.oracle_is_exact(utility.shape[1], slots),
    )


def _r_squared(values: np.ndarray, fitted: np.ndarray) -> float:
    """Mean over columns of the share of the variance that is told; NaN where none vary."""
    left = np.square(values - fitted, dtype=np.float64).sum(axis=0)
    whole = np.square(values - values.mean(axis=0), dtype=np.float64).sum(axis=0)
    varies = whole > 1e-9 * max(float(np.square(values, dtype=np.float64).sum()), 1e-300)
    return float(np.mean(1.0 - left[varies] / whole[varies])) if varies.any() else float("nan")


def verdict(found: Facts) -> str:
    """Whether a linear router can learn there, in a sentence."""
    share = found.learnable
    if np.isnan(share):
        return "One adapter is the best for every request: there is nothing to route."
    gained = found.linear_utility - found.best_adapter_utility
    if gained <= 0.0:
        return (
            "A linear router has nothing to learn here: the adapters that a linear model of these "
            f"contexts chooses are worse than {found.best_adapter} for all "
            f"({found.linear_utility:.4f} against {found.best_adapter_utility:.4f}). Contexts that "
            "tell the domains apart would help."
        )
    return (
        f"A linear router can learn here: it gains up to {gained:.4f} per request over "
        f"{found.best_adapter} for all, {100 * share:.0f} % of what the best adapter of every "
        "request would gain."
    )


def plain(found: Facts) -> dict[str, Any]:
    """The facts as plain values, ready for JSON."""
    values = {**dataclasses.asdict(found), "learnable": found.learnable}
    return {
        name: None if isinstance(value, float) and np.isnan(value) else value
        for name, value in values.items()
    }
