"""Everything that was measured, as plain values for `--json`."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from polar_jax import kernels, manifest
from polar_jax.bench import arithmetic, limits
from polar_jax.bench.limits import Machine
from polar_jax.bench.runs import Case, Row
from polar_jax.paging_tools import files


class Standing(NamedTuple):
    """How a row stands to the machine's limits."""

    ns: float  # per decision
    floor_ns: float
    bound_by: str  # "arithmetic", "memory" or a cache

    @property
    def fraction(self) -> float:
        """Share of the limit that is reached."""
        return self.floor_ns / self.ns


def standing(row: Row, machine: Machine) -> Standing | None:
    """A row against the limits of the cores it may use; None where either is unknown."""
    if row.rate is None or (machine.platform != "cpu" and row.group == "baseline"):
        return None
    shape = row.num_adapters, row.context_dim
    floor, bound_by = arithmetic.floor_ns(
        arithmetic.work(*shape, row.requests_per_read),
        machine.limits(all_cores=row.all_cores),
        arithmetic.lane_state_bytes(*shape),
    )
    return Standing(1e9 / row.rate, floor, bound_by)


def build(
    cases: Sequence[Case], machine: Machine, missing: Mapping[str, str], options: dict[str, Any]
) -> dict[str, Any]:
    """Plain values, ready for JSON.

    Args:
      cases: what was measured.
      machine: with the limits measured in the same run.
      missing: baselines that could not run, and why.
      options: of the command.
    """
    return {
        "created": manifest.now(),
        "options": {
            name: str(value) if isinstance(value, pathlib.Path) else value
            for name, value in options.items()
        },
        **limits.surroundings(),
        "kernels": sorted({row.name.partition(",")[0] for row in _kernel_rows(cases)}),
        "kernel_of_whole_runs": kernels.chosen(machine.platform),
        "limits": {
            "units": "per second: operations of float32, bytes read and written",
            "samples": machine.samples,
        },
        "formula": arithmetic.FORMULA,
        "missing": dict(missing),
        "cases": [_case(case, machine) for case in cases],
    }


def _kernel_rows(cases: Sequence[Case]) -> Iterator[Row]:
    return (row for case in cases for row in case.rows if row.group == "kernel")


def _case(case: Case, machine: Machine) -> dict[str, Any]:
    return {
        "num_adapters": case.shape[0],
        "context_dim": case.shape[1],
        "lanes": case.lanes,
        "per_decision": arithmetic.work(*case.shape)._asdict(),
        "lane_state_bytes": arithmetic.lane_state_bytes(*case.shape),
        "rows": [_row(row, machine) for row in case.rows],
    }


def _row(row: Row, machine: Machine) -> dict[str, Any]:
    found = standing(row, machine)
    values = dataclasses.asdict(row) | {
        "samples": [one._asdict() for one in row.samples],
        "decisions_per_second": row.rate,
    }
    if found is None:
        return values
    return values | found._asdict() | {"fraction_of_limit": found.fraction}


def write_json(path: pathlib.Path, values: dict[str, Any], *, overwrite: bool) -> None:
    """Writes a file whole or not at all."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    files.put(path, text.encode(), overwrite=overwrite)
