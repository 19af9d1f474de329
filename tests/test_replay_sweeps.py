"""Replays in sweeps: sizes, files, hashes, axes, what may be read off a longer run."""

from pathlib import Path

import numpy as np
import pytest
from replay_data import made

from polar_jax import cli, lanes
from polar_jax.config import RunConfig
from polar_jax.experiment import run_experiment
from polar_jax.io import write_replay
from polar_jax.sweep import load, plan, spec
from polar_jax.sweep.grid import SpecError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_replay(tmp_path / "mine.npz", made())
    write_replay(tmp_path / "other.npz", made(num_adapters=4, seed=2))
    return tmp_path


def parsed(text: str, folder: Path) -> spec.Spec:
    return spec.parse(text, name="study", folder=folder)


FIXED = '[fixed]\nenvironment = "mine.npz"\nslots = 2\nhorizon = 500\nseeds = 2\npolicies = "lru"\n'


def test_sizes_are_the_replays_and_filters_know_them(folder):
    found = parsed(FIXED + '[axes]\norder = ["recorded", "sticky"]', folder)
    assert {one.config.adapters for one in found.configurations} == {5}
    assert {one.config.context_dim for one in found.configurations} == {4}
    assert (found.fixed["adapters"], found.fixed["environment"]) == (5, "mine.npz")
    text = (
        'filters = ["cache_slots < num_adapters"]\n[fixed]\npolicies = "lru"\n'
        '[axes]\nenvironment = ["mine.npz", "other.npz", "clustered"]\nslots = [3, 4]'
    )
    kept = [one.values for one in parsed(text, folder).configurations]
    assert {"policy": "lru", "environment": "other.npz", "cache_slots": 4} not in kept
    assert len(kept) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FIXED + "adapters = 5", "adapters must be left out with a replay"),
        (FIXED.replace("mine", "none"), "cannot be read"),
        (FIXED + 'order = "sorted"', "order"),
        (FIXED + 'arrivals = "none.csv"', "arrivals .* cannot be read"),
        (FIXED.replace("mine.npz", "sticky") + 'order = "sticky"', "order needs a replay"),
        (FIXED.replace("slots = 2", "slots = 6"), r"slots must be in \[0, 5\]"),
        (FIXED.replace("mine.npz", "mine.txt"), "environment"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, text, message):
    with pytest.raises(SpecError, match=message) as caught:
        parsed(text, folder)
    assert "\n" not in str(caught.value)


def test_the_hash_covers_what_files_hold_and_every_option_of_replays(folder):
    base = parsed(FIXED, folder)
    changes = ['order = "sticky"', 'arrivals = "azure-2023-code"', 'missing = "0"']
    changes += ['benchmark = "linear"', 'prior = "zero"']
    hashes = {parsed(f"{FIXED}{line}\n", folder).spec_hash for line in changes}
    assert len(hashes | {base.spec_hash}) == len(changes) + 1
    write_replay(folder / "mine.npz", made(seed=5))
    assert parsed(FIXED, folder).spec_hash != base.spec_hash


def test_no_replay_is_read_off_a_longer_run(folder):
    # C* is chosen in hindsight, and popularity changes with the horizon.
    text = FIXED.replace("horizon = 500\n", "") + "[axes]\nhorizon = [300, 600]"
    for order in ("recorded", "sticky"):
        made_plan = plan.make(parsed(text.replace("[axes]", f'order = "{order}"\n[axes]'), folder))
        assert made_plan.num_read_off == 0


@pytest.mark.slow
def test_cells_that_differ_in_data_alone_share_nothing(folder):
    write_replay(folder / "outcomes.npz", made(binary=True))
    text = FIXED.replace("mine.npz", "outcomes.npz") + 'order = "sticky"\n[axes]\n'
    for axis in ('benchmark = ["utilities", "linear"]', 'arrivals = ["a.csv", "b.csv"]'):
        for name, gap in (("a", 5), ("b", 50)):
            rows = "\n".join(str(gap * i) for i in range(40))
            (folder / f"{name}.csv").write_text(f"arrival_ms\n{rows}\n")
        found = plan.make(parsed(text + axis, folder))
        assert found.num_read_off == 0
        assert found.num_linear_benchmarks == (1 if "benchmark" in axis else 2)
        batches = [batch for shard in found.shards for batch in shard.batches]
        assert [len(batch.cells) for batch in batches] == [1, 1]
        results = [lanes.run_many(batch.experiments())[0].policies.values() for batch in batches]
        figures = [next(iter(one)).totals for one in results]
        part = "regret" if "benchmark" in axis else "waiting_ms"
        assert not np.array_equal(figures[0][part], figures[1][part])


@pytest.mark.slow
def test_a_sweep_over_orders_runs_and_gives_what_a_run_gives(folder, tmp_path):
    spec_file = tmp_path / "study.toml"
    spec_file.write_text(
        FIXED + 'arrivals = "azure-2023-conv"\n[axes]\norder = ["shuffled", "sticky"]'
    )
    out = tmp_path / "out"
    assert cli.main(["sweep", "run", str(spec_file), "--out", str(out), "--quiet"]) == 0
    rows = load(out)
    for order in ("shuffled", "sticky"):
        config = RunConfig(
            environment=str(folder / "mine.npz"),
            order=order,
            arrivals="azure-2023-conv",
            slots=2,
            horizon=500,
            seeds=2,
            policies=("lru",),
            out=tmp_path / order,
        )
        alone = run_experiment(config).policies["lru"].totals
        mine = rows.filter(rows["order"] == order).sort("seed")
        # Padding rounds differently; the decisions are the same.
        for part in ("regret", "loss_to_full"):
            np.testing.assert_allclose(mine[part].to_numpy(), alone[part], rtol=1e-4, atol=1e-3)
        waiting = mine["waiting_ms_per_request"].to_numpy() * 500
        np.testing.assert_allclose(waiting, alone["waiting_ms"], rtol=1e-4, atol=1e-3)
