"""Scaling studies: exponents of every policy and figure of a sweep, beside the theory's.

Takes columns as arrays and gives `Fit`s; `docs/scaling.md` says how to read them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polar_jax import checks
from polar_jax.sweep import bootstrap
from polar_jax.sweep.exponents import AXES, FIGURES, Fit, fit, least_horizon, refused

_OPTIONS = {"adapters": "num_adapters", "slots": "cache_slots"}
_SIZES = ("num_adapters", "cache_slots", "context_dim", "horizon")
_FIXED_SETS = ("static", "no_cache")
# Policies whose router is LinUCB on net utilities, with or without forced exploration.
_LINUCB = (
    "polar",
    "polar_plus",
    "polar_admit",
    "polar_experts",
    "lru",
    "lfu",
    "gdsf",
    "static",
    "no_cache",
    "full_cache",
    "oracle_cache",
    "no_forced",
    "polar_plus_no_forced",
)
_BOUND = "upper bound d sqrt(N T) + sqrt(K T) up to logarithms (arXiv:2604.16583)"
_LEARNING = (
    "upper bound d sqrt(N T) up to logarithms, LinUCB with beta = theory on linear utilities"
)
_QUOTA = "at most of the order of sqrt(K T) forced rounds, by construction"


def axis_column(axis: str) -> str:
    """The column of an axis, which may be named by its option (`adapters`, `slots`).

    Args:
      axis: name of the axis in the specification.

    Returns:
      A key of `AXES`.

    Raises:
      ValueError: for an axis along which nothing is fitted.
    """
    return checks.one_of("scaling axis", _OPTIONS.get(axis, axis), AXES)


def theory(axis: str, policy: str, figure: str) -> tuple[float, str] | None:
    """What theory says of an exponent on streams of independent requests.

    Args:
      axis: a key of `AXES`.
      policy: name of the policy.
      figure: one of `FIGURES`.

    Returns:
      The exponent and in words where it comes from, or None where nothing is known. Most
      are exponents of upper bounds, which a measured one may stay below.
    """
    in_time = axis == "horizon"
    if figure == "regret_caching" and policy in _FIXED_SETS and in_time:
        return 1.0, "a set that stays loses a constant per request"
    if figure == "loss_to_full" and policy != "full_cache" and in_time:
        return 1.0, "K < N slots lose a constant per request to full memory"
    if figure == "regret_forced" and policy in ("polar_plus", "polar_admit"):
        return (0.5, _QUOTA) if axis in ("horizon", "cache_slots") else None
    if figure == "regret" and policy in _FIXED_SETS and in_time:
        return 1.0, "the caching part, linear in T, outgrows the others"
    if figure == "regret" and policy == "polar_plus":
        exponents = {"horizon": 0.5, "num_adapters": 0.5, "context_dim": 1.0, "cache_slots": 0.5}
        words = f"at most: 0 where the other term leads; {_BOUND}"
        return exponents[axis], words if axis == "cache_slots" else _BOUND
    learnt = figure == "regret_routing" or (figure, policy) == ("loss_to_full", "full_cache")
    if learnt and policy in _LINUCB:
        exponents = {"horizon": 0.5, "num_adapters": 0.5, "context_dim": 1.0}
        return (exponents[axis], _LEARNING) if axis in exponents else None
    return None


def describe(found: Fit) -> str:
    """A fit in one line, as reports print it.

    Args:
      found: the fit, or why there is none.
    """
    held = "".join(f", {name} {value}" for name, value in found.group)
    head = f"{found.policy}, {found.figure}{held}: "
    if found.slope is None or found.span is None:
        return f"{head}not fitted, {found.why_not}"
    letter = AXES[found.axis]
    parts = [f"slope {found.slope} for {letter} from {found.span[0]:g} to {found.span[1]:g}"]
    if found.power is not None:
        power = found.power
        parts.append(
            f"A + B {letter}^p with p {power.exponent}, A {power.offset}, B {power.factor}"
        )
    if found.curvature is not None:
        parts.append(f"curvature {found.curvature}")
    parts += [found.verdict] if found.verdict else []
    parts.append(f"spread between instances {found.spread:.0%}, {found.seeds} seeds")
    parts += [f"{len(found.skipped)} points left out"] if found.skipped else []
    return head + "; ".join(parts)


def _plain(value: Any) -> Any:
    """A value that equals itself: NaN, the null of numeric columns, becomes None."""
    return None if value != value else value


def _ordered(key: Iterable[Any]) -> tuple[tuple[int, Any], ...]:
    """A sort key over numbers, words and nulls."""
    return tuple(
        (0, 0) if value is None else (2, value) if isinstance(value, str) else (1, value)
        for value in key
    )


def _groups(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[tuple, np.ndarray]:
    """Rows of each combination of values, in an order that the rows' own does not change."""
    rows: dict[tuple, list[int]] = {}
    lists = [[_plain(value) for value in columns[name].tolist()] for name in names]
    for row, key in enumerate(zip(*lists, strict=True)):
        rows.setdefault(key, []).append(row)
    return {key: np.asarray(rows[key]) for key in sorted(rows, key=_ordered)}


def _aligned(columns: Mapping[str, np.ndarray], axis: str, rows: np.ndarray) -> np.ndarray:
    """Rows as `[S, P]`: seeds that every point has, in their order; points increasing.

    Raises:
      ValueError: if two rows have the same seed and point.
    """
    x, points = np.unique(columns[axis][rows], return_inverse=True)
    seeds, lanes = np.unique(columns["seed"][rows], return_inverse=True)
    table = np.full((seeds.size, x.size), -1)
    table[lanes, points] = rows
    if np.count_nonzero(table >= 0) < rows.size:
        raise ValueError(
            f"{rows.size} rows for {seeds.size} seeds at {x.size} values of {axis}, at most "
            f"{table.size} are allowed: name the axis that tells them apart in `by`."
        )
    return table[(table >= 0).all(axis=1)]


def _also_changing(columns: Mapping[str, np.ndarray], axis: str, rows: np.ndarray) -> str | None:
    """Why a group's points are not comparable: another size changes along the axis."""
    for name in _SIZES:
        if name != axis and np.unique(columns[name][rows]).size > 1:
            return f"{name} changes along {axis} too"
    return None


def _check(columns: Mapping[str, np.ndarray], needed: Sequence[str]) -> None:
    """Refuses a table that lacks a column."""
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ValueError(f"the table must have columns {', '.join(needed)}; lacks {missing}.")


def study(
    columns: Mapping[str, np.ndarray],
    axis: str,
    *,
    by: Sequence[str] = (),
    stream: str = "clustered",
    figures: Sequence[str] = FIGURES,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> list[Fit]:
    """Fits every figure of every policy along one axis, apart for all else that varies.

    Args:
      columns: a row per lane, `[L]` each: policy, seed, the sizes, the figures, and `by`.
      axis: the axis, by its column or its option.
      by: the sweep's other axes, by column; `axis`, the policy and the seed may be among
        them. Rows that only an axis left out here tells apart are refused.
      stream: environment where `environment` is not among `by`.
      figures: what to fit, of `FIGURES`.
      resamples: of the bootstrap. All fits of equally many seeds share them.
      seed: of the bootstrap.

    Returns:
      A fit per group and figure, sorted by policy and group, whatever the order of rows.

    Raises:
      ValueError: for missing columns, an unknown axis or figure, or ambiguous rows.
    """
    axis = axis_column(axis)
    others = [name for name in dict.fromkeys(by) if name not in (axis, "policy", "seed")]
    _check(columns, ["policy", "seed", *_SIZES, *others, *figures])
    fits = []
    for (policy, *held), rows in _groups(columns, ["policy", *others]).items():
        group = tuple(zip(others, held, strict=True))
        table = _aligned(columns, axis, rows)
        changing = _also_changing(columns, axis, rows)
        points = table[0] if table.size else np.empty(0, np.int64)
        for figure in figures:
            if changing or not table.size:
                why_not = changing or f"no seed was run at every value of {axis}"
                fits.append(refused(figure, policy, axis, group, seeds=len(table), why_not=why_not))
                continue
            fits.append(
                fit(
                    columns[figure][table],
                    columns[axis][points],
                    figure=figure,
                    policy=policy,
                    axis=axis,
                    stream=dict(group).get("environment", stream),
                    horizon=columns["horizon"][points],
                    least=least_horizon(
                        columns["num_adapters"][points], columns["context_dim"][points]
                    ),
                    group=group,
                    resamples=resamples,
                    seed=seed,
                )
            )
    return fits
