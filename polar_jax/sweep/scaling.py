"""Scaling studies: exponents of every policy and figure of a sweep, beside the theory's.

Takes columns as arrays and gives `Fit`s; `docs/scaling.md` says how to read them.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polar_jax import checks
from polar_jax.config import RunConfig, is_replay
from polar_jax.sweep import bootstrap, theory
from polar_jax.sweep.exponents import AXES, FIGURES, Fit, fit, least_horizon, refused
from polar_jax.sweep.theory import Premises

_OPTIONS = {"adapters": "num_adapters", "slots": "cache_slots"}
_SIZES = ("num_adapters", "cache_slots", "context_dim", "horizon")


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


def _also_changing(
    columns: Mapping[str, np.ndarray], axis: str, along: Sequence[str], rows: np.ndarray
) -> str | None:
    """Why a group's points are not comparable: something else changes along the axis."""
    for name in dict.fromkeys((*_SIZES, *along)):
        values = columns[name][rows].tolist()
        if name != axis and len({_plain(value) for value in values}) > 1:
            return f"{name} changes along {axis} too"
    return None


# What theory has to know, where neither the sweep nor a row says it.
_DEFAULTS = {name: getattr(RunConfig, name) for name in ("environment", "beta", "prior")}


def _stream(held: Mapping[str, Any]) -> str:
    """The kind of stream: an environment's name, "replay" for every replay."""
    environment = str(held["environment"])
    return "replay" if is_replay(environment) else environment


def _premises(
    columns: Mapping[str, np.ndarray], rows: np.ndarray, held: Mapping[str, Any]
) -> Premises:
    return Premises(
        # The proven schedule bounds the distance of every theta from 0, where estimates start.
        beta=held["beta"] if held["prior"] in (None, "zero") else "constant",
        linear=_stream(held) not in ("bernoulli", "replay"),
        fewer=bool((columns["cache_slots"][rows] < columns["num_adapters"][rows]).all()),
        costly=bool((columns["mean_paging_cost"][rows] > 0.0).all()),
    )


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
    along: Sequence[str] = (),
    fixed: Mapping[str, Any] | None = None,
    figures: Sequence[str] = FIGURES,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> list[Fit]:
    """Fits every figure of every policy along one axis, apart for all else that varies.

    Args:
      columns: a row per lane, `[L]` each: policy, seed, the sizes, the figures,
        `mean_paging_cost`, `by` and `along`.
      axis: the axis, by its column or its option.
      by: the sweep's other axes, by column; `axis`, the policy and the seed may be among
        them. Rows that only an axis left out here tells apart are refused.
      along: columns that the sweep moves together with `axis`. Groups in which one of them
        changes are refused: the slope would belong to both.
      fixed: options that are neither; what is missing has the default of `polar-jax run`.
        The stream and the schedule of widths are read.
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
    _check(columns, ["policy", "seed", "mean_paging_cost", *_SIZES, *others, *along, *figures])
    known = {**_DEFAULTS, **(fixed or {})}
    fits = []
    for (policy, *values), rows in _groups(columns, ["policy", *others]).items():
        group = tuple(zip(others, values, strict=True))
        own = {"policy": policy, "axis": axis, "group": group}
        table = _aligned(columns, axis, rows)
        why_not = _also_changing(columns, axis, along, rows)
        if why_not is None and not table.size:
            why_not = f"no seed was run at every value of {axis}"
        if why_not is not None:
            told = {"seeds": len(table), "why_not": why_not}
            fits += [refused(figure, **own, **told) for figure in figures]
            continue
        held = {**known, **dict(group), **{name: columns[name][rows[0]] for name in along}}
        options = {"stream": _stream(held), "resamples": resamples, "seed": seed}
        said = _premises(columns, rows, held)
        fits += [
            dataclasses.replace(one, theory=theory.exponent(axis, policy, one.figure, said))
            for one in _fit_figures(columns, table, figures, **own, **options)
        ]
    return fits


def _fit_figures(
    columns: Mapping[str, np.ndarray],
    table: np.ndarray,
    figures: Sequence[str],
    *,
    axis: str,
    **options: Any,
) -> list[Fit]:
    """The fit of every figure over the rows `[S, P]` of one group."""
    at = {name: columns[name][table[0]] for name in _SIZES}
    least = least_horizon(at["num_adapters"], at["context_dim"])
    return [
        fit(
            columns[figure][table],
            at[axis],
            figure=figure,
            axis=axis,
            horizon=at["horizon"],
            least=least,
            **options,
        )
        for figure in figures
    ]
