"""Stored results as one table, and as arrays over the axes of a sweep."""

import concurrent.futures
import difflib
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from polar_jax.sweep import shard_files, store
from polar_jax.sweep.files import StoreError

if TYPE_CHECKING:
    import numpy as np
    import polars
    import xarray

RUN_RESULTS = "results.parquet"
ORDER = ("configuration", "seed")
_THREADS = 8


class Coverage(NamedTuple):
    """How much of a sweep is there.

    Attributes:
      rows: lanes stored, each counted once.
      missing: lanes that are not stored yet, at least 0.
      shards: shards that are done.
      damaged: shards whose files cannot be read.
      foreign: shards that belong to another sweep.
      failed: shards whose last attempt ended in an error.
    """

    rows: int
    missing: int
    shards: int
    damaged: tuple[int, ...]
    foreign: tuple[int, ...]
    failed: tuple[int, ...]


def coverage(out: str | pathlib.Path) -> Coverage:
    """Says how much of a sweep is there, by the configurations and seeds of its rows.

    Args:
      out: the sweep's folder.

    Returns:
      Counts, and the numbers of the shards that are not as they should be.

    Raises:
      StoreError: if it holds no sweep, or a lane twice.
    """
    folder = pathlib.Path(out)
    opened = store.open_existing(folder, whole=True)
    states = opened.states()
    done = [index for index, state in states.items() if state == "done"]
    rows = _distinct(_frames(opened, done, list(ORDER)), folder).height if done else 0

    def having(wanted: str) -> tuple[int, ...]:
        return tuple(index for index, state in states.items() if state == wanted)

    return Coverage(
        rows=rows,
        missing=_num_missing(opened, rows),
        shards=len(done),
        damaged=having("damaged"),
        foreign=having("foreign"),
        failed=having("failed"),
    )


def load(
    out: str | pathlib.Path, *, allow_partial: bool = True, columns: Sequence[str] | None = None
) -> "polars.DataFrame":
    """Loads all results of a folder.

    Args:
      out: the folder of a sweep, or of a `polar-jax run`.
      allow_partial: whether shards may be missing; `coverage` counts them.
      columns: those to load, in this order; all where None.

    Returns:
      A row per lane, sorted by configuration and seed; the rows of `polar-jax run` as they
      are in its file.

    Raises:
      StoreError: if the folder holds no results, a shard is damaged or belongs to another
        sweep, a lane is there twice, a column is not there, or shards are missing and may not
        be.
    """
    folder = pathlib.Path(out)
    wanted = None if columns is None else list(columns)
    single = folder / RUN_RESULTS
    if single.is_file():
        return _read(
            single, wanted, lambda why: f"{str(single)!r} is damaged; run it again ({why})."
        )
    opened = store.open_existing(folder)
    states = opened.states()
    for index, state in states.items():
        if state in ("damaged", "foreign"):
            raise StoreError(opened.complaint(index))
    done = [index for index, state in states.items() if state == "done"]
    if not done:
        raise StoreError(_lacking(opened, 0))

    # Rows are put in order by columns that need not be asked for.
    keys = [] if columns is None else [name for name in ORDER if name not in columns]
    wanted = None if columns is None else [*columns, *keys]
    ordered = _distinct(_frames(opened, done, wanted), folder).sort(ORDER)
    if not allow_partial and _num_missing(opened, ordered.height):
        raise StoreError(_lacking(opened, ordered.height))
    return ordered.drop(keys)


def _frames(
    opened: store.Store, done: Sequence[int], columns: list[str] | None
) -> "polars.DataFrame":
    """The rows of some shards, one shard after the other."""
    import polars

    def read(index: int) -> "polars.DataFrame":
        return _read(opened.shard_path(index), columns, lambda _: opened.complaint(index))

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        frames = list(pool.map(read, done))
    # Relaxed, as an axis may be written 1 in one shard and 0.5 in the next.
    return polars.concat(frames, how="diagonal_relaxed")


def _distinct(rows: "polars.DataFrame", folder: pathlib.Path) -> "polars.DataFrame":
    """The rows themselves, among which no lane may be twice."""
    keys = rows.select(ORDER)
    repeated = keys.filter(keys.is_duplicated())
    if repeated.height:
        configuration, seed = repeated.row(0)
        raise StoreError(
            f"{str(folder)!r} holds configuration {configuration} with seed {seed} more than once: "
            "its shards are of different plans; run the spec with another --out."
        )
    return rows


def _num_missing(opened: store.Store, rows: int) -> int:
    return max(0, int(opened.manifest.get("num_lanes", rows)) - rows)


def _lacking(opened: store.Store, rows: int) -> str:
    return (
        f"{str(opened.out)!r} lacks {_num_missing(opened, rows)} rows; `polar-jax sweep run SPEC "
        f"--out {opened.out}` computes them."
    )


def to_xarray(table: "polars.DataFrame", axes: Sequence[str]) -> "xarray.Dataset":
    """Arranges rows over axes and seeds.

    Args:
      table: rows as `load` returns them, or a selection of them.
      axes: columns that, with the seed, tell every row from every other; `"policy"` is one
        like the rest.

    Returns:
      A data set with dimensions `[*axes, "seed"]`, coordinates in rising order, and every
      other column as a variable; curves, which are lists, are left out. Where a row is
      missing, numbers and truth values are NaN and texts empty.

    Raises:
      ImportError: if xarray is not installed.
      ValueError: if a column is not there, or rows are not told apart.
    """
    import numpy as np

    try:
        import xarray
    except ImportError as error:
        raise ImportError(
            'to_xarray needs xarray, which is not installed: pip install "polar_jax[xarray]".'
        ) from error
    names = list(dict.fromkeys([*axes, "seed"]))
    _check_columns(table.columns, names, "the table")
    coordinates, places = {}, []
    for name in names:
        values, place = np.unique(_array(table[name]), return_inverse=True)
        coordinates[name] = values
        places.append(place)
    shape = tuple(len(values) for values in coordinates.values())
    flat = np.asarray(np.ravel_multi_index(tuple(places), shape))
    if len(np.unique(flat)) < len(flat):
        raise ValueError(_undistinguished(table, names))
    others = [name for name in table.columns if name not in names and not _is_list(table[name])]
    variables = {name: (names, _arranged(_array(table[name]), flat, shape)) for name in others}
    return xarray.Dataset(variables, coords=coordinates)


def _read(
    path: pathlib.Path, columns: list[str] | None, complaint: Callable[[Exception], str]
) -> "polars.DataFrame":
    import polars

    try:
        if columns is None:
            return polars.DataFrame(shard_files.read_table(path))
        present = shard_files.column_names(path)
        _check_columns(present, columns, repr(str(path)))
        return polars.DataFrame(shard_files.read_table(path, columns)).select(columns)
    except shard_files.DamagedError as error:
        raise StoreError(complaint(error)) from None


def _check_columns(present: Sequence[str], columns: Sequence[str], where: str) -> None:
    for name in columns:
        if name not in present:
            near = difflib.get_close_matches(name, present, 1)
            hint = f"; nearest is {near[0]!r}" if near else f"; it has {', '.join(present)}"
            raise StoreError(f"{where} has no column {name!r}{hint}.")


def _is_list(column: "polars.Series") -> bool:
    return column.dtype.is_nested()


def _array(column: "polars.Series") -> "np.ndarray":
    """`[rows]`; what is null becomes NaN, or "" among texts."""
    import numpy as np
    import polars

    if column.dtype.is_numeric() or column.dtype == polars.Boolean:
        # A float where something is missing: whole numbers have no NaN.
        return (column.cast(polars.Float64) if column.null_count() else column).to_numpy()
    return np.asarray(["" if value is None else str(value) for value in column.to_list()])


def _arranged(values: "np.ndarray", flat: "np.ndarray", shape: tuple[int, ...]) -> "np.ndarray":
    """Puts `[rows]` values at their places; `[*shape]`."""
    import numpy as np

    size = math.prod(shape)
    if values.dtype.kind == "U":
        arranged = np.full(size, "", values.dtype)
    elif size == len(values):
        arranged = np.empty(size, values.dtype)
    else:
        arranged = np.full(size, np.nan)
    arranged[flat] = values
    return arranged.reshape(shape)


def _undistinguished(table: "polars.DataFrame", names: list[str]) -> str:
    """Says which columns would tell the rows apart: settings, which no seed changes."""
    key = "configuration"
    known = {*names, key}
    configurations = table[key].n_unique() if key in table.columns else 0
    varying = [
        name
        for name in table.columns
        if name not in known
        and configurations
        and not _is_list(table[name])
        and table[name].n_unique() > 1
        and table.select(key, name).n_unique() == configurations
    ]
    hint = f" Settings that vary too: {', '.join(varying)}." if varying else ""
    return f"axes must tell rows apart, but several rows share one {', '.join(names)}.{hint}"
