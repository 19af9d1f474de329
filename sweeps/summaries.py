"""Copies the small part of finished sweeps to `docs/studies/`: tables and figures, no rows.

Usage, from the repository's root::

    python sweeps/summaries.py results/stream_kinds results/window

Each folder NAME must hold a finished sweep with its report (`polar-jax sweep report`). It writes
`docs/studies/NAME/`: `facts.json` (commit, machine, versions, time, spec hash), the report's CSV
files, of `summary.csv` the columns that a page discusses, and the figures.
"""

import argparse
import json
import pathlib
import shutil

import polars as pl
from PIL import Image

from polar_jax.sweep import store

FIGURES = (
    *("loss_to_full", "regret", "regret_routing", "regret_caching", "regret_switching"),
    *("hit_rate", "paging_ms_per_request", "loads"),
)
KEPT = ("winners", "ratios", "exponents", "slots")
DIGITS, COLOURS = 6, 96


def facts(folder: pathlib.Path) -> dict[str, object]:
    """What a page says about how a sweep was made."""
    opened = store.open_existing(folder)
    manifest = opened.manifest
    shards = opened.all_facts().values()
    return {
        "title": manifest["title"],
        "command": f"polar-jax sweep run sweeps/{manifest['name']}.toml",
        "created": manifest["created"],
        "commit": (manifest["git"] or {}).get("commit"),
        "spec_hash": manifest["spec_hash"],
        "lanes": manifest["num_lanes"],
        "decisions": manifest["decisions"],
        "seconds_in_shards": round(sum(one["seconds"] for one in shards), 1),
        "cpu": manifest["machine"]["cpu"],
        "cores": manifest["machine"].get("usable_cores"),
        "versions": manifest["versions"],
    }


def brief(summary: pl.DataFrame) -> pl.DataFrame:
    """The columns that say which configuration it is, and the discussed means and errors."""
    ends = ("_mean", "_error", "_low", "_high")
    wanted = [f"{name}{end}" for name in FIGURES for end in ends[:2]]
    keys = [name for name in summary.columns if not name.endswith(ends)]
    varied = [name for name in keys if summary[name].n_unique() > 1 or name == "seeds"]
    return summary.select(*varied, *wanted)


def copy(folder: pathlib.Path, out: pathlib.Path) -> None:
    """Copies one sweep's tables and figures."""
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / "facts.json").write_text(json.dumps(facts(folder), indent=2) + "\n", "utf-8")
    tables = {name: pl.read_csv(folder / f"{name}.csv") for name in KEPT if _has(folder, name)}
    tables["summary"] = brief(pl.read_csv(folder / "summary.csv"))
    for name, table in tables.items():
        rounded = table.with_columns(pl.selectors.float().round_sig_figs(DIGITS))
        rounded.write_csv(out / f"{name}.csv")
    for figure in sorted((folder / "figures").glob("*.png")):
        # A few colours are all that a line drawing has: a third of the bytes.
        with Image.open(figure) as picture:
            picture.convert("RGB").quantize(COLOURS).save(out / figure.name, optimize=True)


def _has(folder: pathlib.Path, name: str) -> bool:
    return (folder / f"{name}.csv").exists()


def main() -> None:
    """Copies every folder that is named."""
    parser = argparse.ArgumentParser(
        description="Copies the small part of finished sweeps to docs/studies."
    )
    parser.add_argument("folders", nargs="+", type=pathlib.Path, help="finished sweeps")
    root = pathlib.Path(__file__).parent.parent / "docs" / "studies"
    parser.add_argument("--out", type=pathlib.Path, default=root)
    options = parser.parse_args()
    for folder in options.folders:
        copy(folder, options.out / folder.name)
        print(options.out / folder.name)


if __name__ == "__main__":
    main()
