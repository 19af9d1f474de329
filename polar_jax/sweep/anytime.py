"""Policies whose run over a long horizon begins exactly as one over a shorter."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from polar_jax.policies import Policy


def begins_like(long: Policy, short: Policy) -> bool:
    """Whether a policy made for a longer horizon begins exactly as one for a shorter.

    Args:
      long: the policy with the longer horizon.
      short: the policy with the shorter.

    Returns:
      True for anytime policies: equal rules, constants, quotas and boundaries.
    """
    end = short.problem.horizon - 1
    a, b = long.schedule, short.schedule
    inside = a.boundaries < end
    length = min(long.quotas.size, short.quotas.size)
    # Only a replan reads over how many rounds it amortises loads.
    planned_a, planned_b = (a.amortised_rounds * a.replans)[inside], b.amortised_rounds * b.replans
    ends_a, ends_b = a.epoch_ends[a.epoch_ends < end], b.epoch_ends[b.epoch_ends < end]
    return (
        long.rule == short.rule
        and long.first_set == short.first_set
        and _equal(jax.tree.leaves(long.params), jax.tree.leaves(short.params))
        and _equal([long.quotas[:length]], [short.quotas[:length]])
        and _equal([ends_a, a.boundaries[inside]], [ends_b, b.boundaries])
        and _equal([a.replans[inside], planned_a], [b.replans, planned_b])
    )


def _equal(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(left, right, strict=True)
    )
