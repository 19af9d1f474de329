"""Who wins: every policy's figures over seeds, and paired differences between policies."""

from typing import NamedTuple

import numpy as np

from polar_jax import statistics, tables
from polar_jax.lanes import Results
from polar_jax.policies import ORACLES
from polar_jax.statistics import Estimate


class PolicySummary(NamedTuple):
    """One policy."""

    name: str
    is_oracle: bool  # knows what no server can know; never the best
    figures: dict[str, Estimate]  # by name in tables.FIGURES
    excess: float  # loss to full memory above the best learnt policy's, as a fraction


class Comparison(NamedTuple):
    """All policies of a run; policies are in order of regret."""

    policies: tuple[PolicySummary, ...]
    best: str | None  # least regret among those that are no oracles
    differences: dict[tuple[str, str], Estimate]  # (a, b): regret of a - regret of b
    num_seeds: int
    oracle_exact: bool
    linear_benchmark: bool  # regret and loss are against the best linear policy in hindsight

    @property
    def waited(self) -> bool:
        """Whether any request waited for a load: never where requests have no times."""
        waiting = (one.figures["waiting_ms_per_request"].mean for one in self.policies)
        return any(float(mean) > 0.0 for mean in waiting)

    def policy(self, name: str) -> PolicySummary:
        """The summary of one policy."""
        return next(policy for policy in self.policies if policy.name == name)


def compare(results: Results, horizon: int, *, linear_benchmark: bool = False) -> Comparison:
    """Summarises a run.

    Args:
      results: what was run.
      horizon: `T`.
      linear_benchmark: whether perfect routing knew a linear model's predictions only.

    Returns:
      The comparison. On equal streams the difference of two policies' regrets is also
      that of their losses to full memory, as both benchmarks are shared.
    """
    lanes = {name: tables.figures(one, horizon) for name, one in results.policies.items()}
    regret = {name: columns["regret"] for name, columns in lanes.items()}
    order = sorted(lanes, key=lambda name: float(regret[name].mean()))
    learnt = [name for name in order if name not in ORACLES]
    best = learnt[0] if learnt else None
    least_loss = float(lanes[best]["loss_to_full"].mean()) if best else float("nan")
    summaries = []
    for name in order:
        loss = float(lanes[name]["loss_to_full"].mean())
        summaries.append(
            PolicySummary(
                name=name,
                is_oracle=name in ORACLES,
                figures={key: statistics.estimate(one) for key, one in lanes[name].items()},
                excess=loss / least_loss - 1.0 if least_loss > 0.0 else float("nan"),
            )
        )
    return Comparison(
        policies=tuple(summaries),
        best=best,
        differences={
            (a, b): statistics.paired_difference(regret[a], regret[b])
            for a in order
            for b in order
            if a != b
        },
        num_seeds=len(next(iter(regret.values()))),
        oracle_exact=results.oracle_exact,
        linear_benchmark=linear_benchmark,
    )


def number(value: float | np.ndarray) -> str:
    """A figure for people: about three digits, thousands separated, a dash for NaN."""
    number_ = float(value)
    if np.isnan(number_):
        return "\N{EN DASH}"
    size = abs(number_)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{number_:,.{digits}f}"
    if float(text.replace(",", "")) == 0.0:
        text = "0"
    return text.replace("-", "\N{MINUS SIGN}")


def with_error(estimate: Estimate) -> str:
    """`mean ± standard error` with the digits of the error, `mean` alone for one seed."""
    mean, error = float(estimate.mean), float(estimate.error)
    if np.isnan(error) or mean == error == 0.0:
        return number(mean)
    size = max(error, 1e-3)
    digits = 0 if size >= 9.5 else 1 if size >= 0.95 else 2 if size >= 0.095 else 3
    text = f"{mean:,.{digits}f} ± {error:,.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def notes(comparison: Comparison) -> list[str]:
    """What a reader of the table has to know."""
    lines = ["Sums over all requests, in units of utility; ± is the standard error over seeds."]
    if any(policy.is_oracle for policy in comparison.policies):
        lines.append("* knows what no server can know, and is left out where policies are ranked.")
    if comparison.linear_benchmark:
        lines.append(
            "Perfect routing knows what a linear model expects, cross-fitted: regret and loss "
            "are against the best linear policy in hindsight and may be negative; read net "
            "utility first."
        )
    if comparison.waited:
        lines.append(
            "Waiting: what arrives while an adapter is being loaded waits until it is; waiting "
            "costs no utility here."
        )
    if not comparison.oracle_exact:
        lines.append(
            "The best static set was searched for, not enumerated: regret is a lower bound."
        )
    return lines
