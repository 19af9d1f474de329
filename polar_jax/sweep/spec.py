"""A sweep's TOML file, read and checked: from text to a list of configurations.

The format is described in `docs/sweep_spec.md`. Does not load JAX.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from polar_jax import checks
from polar_jax import config as options
from polar_jax.config import RunConfig
from polar_jax.sweep import filters, grid
from polar_jax.sweep import spec_files as files
from polar_jax.sweep.grid import Axis, SpecError

__all__ = ["Axis", "Configuration", "Spec", "SpecError", "parse", "read"]

# Counts up when a spec of today would mean other rows tomorrow.
SCHEMA = 1
# Refused beyond: after the filters, and before them, where each is looked at in turn.
MAX_CONFIGURATIONS, MAX_COMBINATIONS = 100_000, 1_000_000
PADDINGS = ("auto", "always", "never")
_SIZES = ("adapters", "context_dim")
SCALING_AXES = ("horizon", "adapters", "slots", "context_dim")
_TABLES = ("fixed", "axes", "zip")
_KEYS = ("title", "description", "padding", "filters", *_TABLES, "scaling", "report")
_Document = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One assignment of every option, one policy included; seeds repeat it.

    Attributes:
      index: its number in the spec, from 0.
      values: the value of every axis, by column.
      config: all options.
    """

    index: int
    values: dict[str, Any]
    config: RunConfig


@dataclasses.dataclass(frozen=True)
class Spec:
    """A sweep, checked.

    Attributes:
      name: the file's name without its suffix.
      title: one sentence; "" where there is none.
      description: a paragraph; "" where there is none.
      text: the TOML.
      fixed: every option that is no axis, defaults included; those without a value are
        left out. A paging file is as written.
      axes: in the order in which they vary, slowest first; policy always is one.
      filters: as written.
      padding: "auto", "always" or "never".
      scaling_axis: column of the axis to fit exponents in, None for no fits.
      report_x: column of the axis to draw along, None where the report chooses.
      report_chosen_on: the best policies are chosen on so many first seeds and judged on the
        others; None where both are done on all.
      configurations: those that the filters keep, in order.
      file_hashes: sha256 of each file that an option names, by its name as written.
    """

    name: str
    title: str
    description: str
    text: str
    fixed: dict[str, Any]
    axes: tuple[Axis, ...]
    filters: tuple[str, ...]
    padding: str
    scaling_axis: str | None
    report_x: str | None
    report_chosen_on: int | None
    configurations: tuple[Configuration, ...]
    file_hashes: dict[str, str] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def spec_hash(self) -> str:
        """sha256, in hexadecimal, of everything that decides the rows, and of nothing else."""
        columns = sorted(axis.name for axis in self.axes)
        head = {"schema": SCHEMA, "padding": self.padding, "columns": columns}
        digest = hashlib.sha256(_canonical(head))
        for configuration in self.configurations:
            resolved = grid.hashed(configuration.config)
            for option in files.FILE_OPTIONS:
                # Where the folder lies does not matter, what the file holds does.
                written = configuration.values.get(option, self.fixed.get(option))
                if files.names_file(option, written):
                    resolved[option] = [written, self.file_hashes.get(str(written))]
            digest.update(_canonical(resolved))
        return digest.hexdigest()

    @property
    def seeds(self) -> int:
        """Lanes per configuration."""
        return self.configurations[0].config.seeds

    @property
    def num_lanes(self) -> int:
        """Simulations in all, one row each."""
        return len(self.configurations) * self.seeds

    def describe(self) -> dict[str, Any]:
        """What a manifest says about the spec: plain values, ready for JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "spec_hash": self.spec_hash,
            "spec_text": self.text,
            "fixed": dict(self.fixed),
            "axes": [
                {"name": axis.name, "values": list(axis.values), "zipped": axis.zipped}
                for axis in self.axes
            ],
            "filters": list(self.filters),
            "num_configurations": len(self.configurations),
            "num_lanes": self.num_lanes,
            "seeds": self.seeds,
            "scaling": None if self.scaling_axis is None else {"axis": self.scaling_axis},
            "report": {"x": self.report_x, "chosen_on": self.report_chosen_on},
        }


def read(path: pathlib.Path) -> Spec:
    """Reads a spec.

    Args:
      path: the TOML file, UTF-8. Files that it names are relative to its folder.

    Returns:
      The spec; it holds one or more configurations.

    Raises:
      SpecError: for a file that cannot be read or used; one line that names it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: must be UTF-8 text; byte {error.start} is not.") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}.") from None
    return _parse(text, name=path.stem, folder=path.parent, file=str(path))


def parse(text: str, *, name: str, folder: pathlib.Path) -> Spec:
    """Reads a spec from its text.

    Args:
      text: TOML.
      name: what the sweep is called; errors name `<name>.toml`.
      folder: what files that it names are relative to.

    Returns:
      The spec; it holds one or more configurations.

    Raises:
      SpecError: for text that cannot be used; one line.
    """
    return _parse(text, name=name, folder=folder, file=f"{name}.toml")


def _parse(text: str, *, name: str, folder: pathlib.Path, file: str) -> Spec:
    try:
        return _spec(text, _document(text), name, folder)
    except ValueError as error:
        raise SpecError(f"{file}: {_spoken(str(error))}") from None


def _spec(text: str, document: _Document, name: str, folder: pathlib.Path) -> Spec:
    fixed, groups = _grid(document)
    axes = tuple(axis for group in groups for axis in group)
    padding = checks.one_of("padding", _string(document, "padding", "auto"), PADDINGS)
    conditions = _conditions(document)
    scaling = _table(document, "scaling", ("axis",))
    report = _table(document, "report", ("x", "chosen_on"))
    # An axis of policies has no order to draw along.
    drawn = tuple(axis.option for axis in axes if axis.option != "policies")
    configurations = tuple(_configurations(fixed, groups, conditions, folder))
    _fill_sizes(fixed, configurations)
    return Spec(
        name=name,
        title=_string(document, "title", ""),
        description=_string(document, "description", ""),
        text=text,
        fixed={option: value for option, value in fixed.items() if value is not None},
        axes=axes,
        filters=tuple(condition.text for condition in conditions),
        padding=padding,
        scaling_axis=_axis_hint("[scaling] axis", scaling, "axis", axes, SCALING_AXES),
        report_x=_axis_hint("[report] x", report, "x", axes, drawn),
        report_chosen_on=_chosen_on(report, configurations[0].config.seeds),
        configurations=configurations,
        file_hashes=files.hashes(fixed, axes, folder),
    )


def _document(text: str) -> _Document:
    """The TOML, whose outer keys are known and of the right shape."""
    try:
        # With a last line break, an error on the last line is told with its number.
        document = tomllib.loads(text + "\n")
    except (ValueError, RecursionError) as error:
        reason = str(error).replace("end of document", f"the end, line {len(text.splitlines())}")
        raise SpecError(f"not valid TOML: {reason}.") from None
    for key in document:
        if key not in _KEYS and grid.option_of(key) in grid.KINDS:
            raise SpecError(f"{key} must stand under [fixed], [axes] or [[zip]], not above them.")
        if key not in _KEYS:
            raise grid.unknown_key("the file", key, _KEYS)
    for key in ("fixed", "axes", "scaling", "report"):
        if not isinstance(document.get(key, {}), dict):
            raise SpecError(f"{key} must be a table, [{key}]; got {grid.shown(document[key])}.")
    blocks = document.get("zip", [])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise SpecError(f"zip must be written [[zip]], once per block; got {grid.shown(blocks)}.")
    return document


def _string(document: _Document, key: str, default: str) -> str:
    value = document.get(key, default)
    if not isinstance(value, str):
        raise SpecError(f"{key} must be a string; got {grid.shown(value)}.")
    return value


def _conditions(document: _Document) -> list[filters.Filter]:
    given = document.get("filters", [])
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise SpecError(f"filters must be a list of strings; got {grid.shown(given)}.")
    return [filters.parse(one) for one in given]


def _table(document: _Document, table: str, allowed: Sequence[str]) -> _Document:
    """The entries of `[scaling]` or `[report]`; none without the table."""
    for found in document.get(table, {}):
        if found not in allowed:
            raise grid.unknown_key(f"[{table}]", found, allowed)
    if table in document and not document[table]:
        raise SpecError(f"[{table}] is empty; allowed: {', '.join(allowed)}.")
    return document.get(table, {})


def _axis_hint(
    label: str, entries: _Document, key: str, axes: Iterable[Axis], allowed: Sequence[str]
) -> str | None:
    """The column of the axis that an entry names, None without the entry."""
    if key not in entries:
        return None
    name = entries[key]
    if not isinstance(name, str):
        raise SpecError(f"{label} must be the name of an axis; got {grid.shown(name)}.")
    if not allowed:
        raise SpecError(f"{label} needs an axis other than policy; this sweep has none.")
    option = checks.one_of(label, grid.option_of(name), allowed)
    if option not in {axis.option for axis in axes}:
        raise SpecError(f"{label} must be an axis of this sweep; {name} is none.")
    return grid.column(option)


def _chosen_on(report: _Document, seeds: int) -> int | None:
    if "chosen_on" not in report:
        return None
    given = report["chosen_on"]
    if seeds < 2:
        raise SpecError("[report] chosen_on needs 2 or more seeds; this sweep has 1.")
    return int(checks.between("[report] chosen_on", given, 1, seeds - 1, whole=True))


def _grid(document: _Document) -> tuple[dict[str, Any], list[list[Axis]]]:
    """Values of the options that are no axis, and the axes, zipped ones together.

    Groups are in the order of the file; the one with the policies is last.
    """
    places: dict[str, str] = {}
    fixed: dict[str, Any] = {option: getattr(RunConfig(), option) for option in grid.KINDS}
    groups: list[list[Axis]] = []
    for table in (key for key in document if key in _TABLES):
        if table == "zip":
            groups += [
                _zipped(i, block, places)
                for i, block in enumerate(document[table])  # Each [[zip]] is crossed.
            ]
            continue
        for key, given in document[table].items():
            option = _place(f"[{table}]", key, places)
            label = f"[{table}] {key}"
            if option == "policies":
                groups.append([_policy_axis(label, given)])
            elif table == "axes":
                groups.append([_axis(label, option, given)])
            elif isinstance(given, list | dict):
                raise SpecError(f"{label} must be one value; a list or a range belongs in [axes].")
            else:
                fixed[option] = grid.typed(label, option, given)
    if "policies" not in places:
        groups.append([Axis("policy", "policies", options.DEFAULT_POLICIES)])
    for option in places:
        if not places[option].startswith("[fixed]") or option == "policies":
            del fixed[option]
    fixed.pop("policies", None)
    fixed |= grid.slots_unless_bytes(places)
    if not {"costs", "paging"} & set(places):
        fixed["costs"] = options.MEASURED_COSTS
    groups.sort(key=lambda group: any(axis.option == "policies" for axis in group))
    return fixed, groups


def _place(where: str, key: str, places: dict[str, str]) -> str:
    """The option that a key stands for; remembers where it stood, and refuses a second."""
    option = grid.known_option(where, key)
    if option == "seeds" and where != "[fixed]":
        raise SpecError(
            f"{where} must not hold seeds: they repeat every configuration and are no axis; "
            "write seeds under [fixed]."
        )
    here = f"{where} {key}"
    if option in places:
        raise SpecError(f"{here} sets what {places[option]} sets already; keep one of them.")
    places[option] = here
    return option


def _axis(label: str, option: str, given: object) -> Axis:
    values = grid.expand(label, option, given)
    _refuse_repeats(label, values)
    return Axis(grid.column(option), option, values)


def _policy_axis(label: str, given: object) -> Axis:
    """A list of policies, or one string as `polar-jax run` takes it."""
    named = [given] if isinstance(given, str) else given
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise SpecError(f"{label} must be a list of policies' names; got {grid.shown(given)}.")
    try:
        names = options.policy_names(RunConfig(policies=tuple(named)), options.POLICIES)
    except ValueError as error:
        raise SpecError(str(error).replace("--policies", label)) from None
    return Axis("policy", "policies", names)


def _zipped(index: int, block: _Document, places: dict[str, str]) -> list[Axis]:
    """The axes of one `[[zip]]` block."""
    where = f"[[zip]] block {index + 1}"
    found: list[Axis] = []
    for key, given in block.items():
        option = _place(where, key, places)
        values = grid.expand(f"{where} {key}", option, given)
        found.append(Axis(grid.column(option), option, values, zipped=index))
    if not found:
        raise SpecError(f"{where} is empty; it needs one or more options with lists.")
    lengths = {axis.name: len(axis.values) for axis in found}
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise SpecError(f"{where} must hold lists of equal length; got {counted}.")
    _refuse_repeats(where, list(zip(*(axis.values for axis in found), strict=True)))
    return found


def _refuse_repeats(label: str, values: Sequence[Any]) -> None:
    """Raises where a value comes twice: two configurations would be the same."""
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise SpecError(
                f"{label} must not repeat a value, as it would give one configuration twice; "
                f"got {grid.shown(value)} more than once."
            )
        seen.add(value)


def _configurations(
    fixed: Mapping[str, Any],
    groups: Sequence[Sequence[Axis]],
    conditions: Sequence[filters.Filter],
    folder: pathlib.Path,
) -> Iterator[Configuration]:
    """Every combination that the filters keep, checked; the last group varies fastest."""
    count = math.prod(len(group[0].values) for group in groups)
    if count > MAX_COMBINATIONS:
        raise SpecError(f"the axes make {count:,} combinations; at most {MAX_COMBINATIONS:,}.")
    axes = [axis for group in groups for axis in group]
    base = RunConfig(**files.resolved(fixed, folder))
    rows = (list(zip(*(axis.values for axis in group), strict=True)) for group in groups)
    index = 0
    for combination in itertools.product(*rows):
        values = list(itertools.chain.from_iterable(combination))
        changes = dict(zip((axis.option for axis in axes), values, strict=True))
        named = dict(zip((axis.name for axis in axes), values, strict=True))
        try:
            config = dataclasses.replace(base, **files.resolved(changes, folder))
            config = files.with_own_sizes(config)
            scope = {**fixed, **changes, **dict(zip(_SIZES, options.sizes(config), strict=True))}
            if not all(filters.keeps(condition, scope) for condition in conditions):
                continue
            _check(config)
        except ValueError as error:
            raise SpecError(f"configuration {_assigned(named)}: {error}") from None
        if index >= MAX_CONFIGURATIONS:
            raise SpecError(f"must make at most {MAX_CONFIGURATIONS:,} configurations; got more.")
        yield Configuration(index, named, config)
        index += 1
    if index == 0:
        given = grid.shown([condition.text for condition in conditions])
        raise SpecError(f"the grid is empty: filters {given} remove all {count:,} combinations.")


def _fill_sizes(fixed: dict[str, Any], configurations: Sequence[Configuration]) -> None:
    """Numbers of adapters and features that all configurations share without naming them."""
    for option in _SIZES:
        held = {getattr(one.config, option) for one in configurations}
        if option in fixed and fixed[option] is None and len(held) == 1:
            fixed[option] = held.pop()


def _check(config: RunConfig) -> None:
    """Raises for what `polar-jax run` would refuse before it reads any file."""
    slots, adapters = options.num_slots(config), options.sizes(config)[0]
    if slots is not None and slots > adapters >= 1:
        raise SpecError(
            f"slots must be in [0, {adapters}], the number of adapters; got "
            f'{slots}; the line filters = ["cache_slots <= num_adapters"] leaves such '
            "configurations out."
        )
    options.check_numbers(config)
    options.synthetic_mean(config)
    checks.between("--stay", config.stay, 0.0, options.MAX_STAY)


def _assigned(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {grid.shown(value)}" for name, value in values.items())


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _spoken(message: str) -> str:
    """A message on one line, with options as a spec writes them."""

    def option(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return name if name in grid.KINDS else found[0]

    return " ".join(re.sub(r"--([a-z][a-z-]*)", option, message).split())
