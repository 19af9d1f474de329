"""Panels, line styles and held values: how a figure shows the axes that it is not drawn along."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from polar_jax.sweep.studies import Axis, Grid


class Layout(NamedTuple):
    """Which axes become panels, which one a style of lines, and what the others are held at."""

    columns: tuple[Axis, tuple[Any, ...]] | None
    rows: tuple[Axis, tuple[Any, ...]] | None
    held: dict[str, Any]
    styles: Axis | None = None  # of two values


def layout(
    grid: Grid,
    drawn: Iterable[str],
    *,
    most_columns: int = 4,
    most_rows: int = 3,
    styled: bool = False,
) -> Layout:
    """Panels for a figure: the two longest axes that are not drawn, the others held.

    Args:
      grid: the rows.
      drawn: columns of the axes inside a panel.
      most_columns: panels side by side, at most; more values are thinned evenly.
      most_rows: the same from top to bottom.
      styled: whether a further axis of two values may be told by the style of lines.

    Returns:
      The layout; the others are held at a combination that has rows, `middle`.
    """
    inside = set(drawn)
    others = [axis for axis in grid.axes if axis.column not in inside]
    several = sorted((a for a in others if len(a.values) > 1), key=lambda a: -len(a.values))
    panels = [
        (axis, thinned(axis.values, most))
        for axis, most in zip(several, (most_columns, most_rows), strict=False)
    ]
    pairs = (axis for axis in several[len(panels) :] if len(axis.values) == 2)
    styles = next(pairs, None) if styled else None
    chosen = {axis.column for axis, _ in panels} | ({styles.column} if styles else set())
    left = [axis for axis in others if axis.column not in chosen]
    held = middle(left, grid.table.select(axis.column for axis in left).unique().rows())
    columns, rows = ([*panels, None, None])[:2]
    return Layout(columns, rows, held, styles)


def middle(axes: Sequence[Axis], combinations: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    """The combination that figures are held at: numbers in the middle, words at the first.

    Args:
      axes: what is held.
      combinations: those there are, a value per axis; filters may leave out the very middle.

    Returns:
      The combination that lies fewest steps from the middle, by column; empty without any.
    """
    wanted = [0 if axis.numbers is None else (len(axis.values) - 1) // 2 for axis in axes]

    def steps(values: tuple[Any, ...]) -> tuple[int, list[int]]:
        places = [axis.values.index(value) for axis, value in zip(axes, values, strict=True)]
        return sum(abs(a - b) for a, b in zip(places, wanted, strict=True)), places

    nearest = min(combinations, key=steps, default=())
    return dict(zip((axis.column for axis in axes), nearest, strict=False))


def thinned(values: Sequence[Any], most: int) -> tuple[Any, ...]:
    """At most `most` of the values, evenly spaced, both ends included."""
    if len(values) <= most:
        return tuple(values)
    return tuple(values[round(place)] for place in np.linspace(0, len(values) - 1, most))
