"""Capacities in bytes from the outside: the command, its files, specs, plans and sweeps' rows."""

import json
import pathlib
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import polar_jax
from polar_jax import bytesizes, cli, config, configured, lanes, report, tables
from polar_jax.sweep import pairing, plan, rows, spec
from polar_jax.sweep.grid import SpecError

SMALL = "--adapters 4 --context-dim 2 --horizon 300 --seeds 2 --policies lru,polar_experts"
SIZED_FILE = "adapter,ms,size_bytes\na,10,30\nb,20,10\nc,30,20\nd,40,10\n"
EQUAL_FILE = "adapter,ms,size_bytes\na,10,8\nb,20,8\nc,30,8\nd,40,8\n"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("200e6", 200_000_000),
        ("2E8", 200_000_000),
        ("64MiB", 64 * 2**20),
        ("1.5 gib", 3 * 2**29),
        (" 200MB ", 200_000_000),
        ("9007199254740992", 2**53),
        ("0.5kB", 500),
        ("7B", 7),
    ],
)
def test_bytes_are_read_as_people_write_them(text, number):
    assert bytesizes.parse("--x", text, least=0) == number


@pytest.mark.parametrize(
    "text",
    [
        *("", "-1", "1e-3", "0.3", "1.1B", "64 MiBs", "x", "nan", "inf", "1e99", "1 2", "\u0661"),
        *("1_000", "0x10", "1e999999999", "9" * 10_000, "9007199254740993"),
    ],
)
def test_what_is_no_number_of_bytes_is_refused_in_one_short_line(text):
    with pytest.raises(ValueError, match=r"--x must be a whole number of bytes") as error:
        bytesizes.parse("--x", text, least=0)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (64 * 2**20, "64 MiB"), (200_000_000, "200 MB"), (1_234_567, "1.235 MB")],
)
def test_bytes_are_shown_short(number, text):
    assert bytesizes.shown(number) == text


@pytest.fixture(scope="module")
def sized_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run on sizes from a paging file, by the command."""
    folder = tmp_path_factory.mktemp("sized")
    (folder / "loads.csv").write_text(SIZED_FILE)
    words = f"run {SMALL} --paging {folder}/loads.csv --capacity-bytes 0.04kB --out {folder}/out"
    assert cli.main([*words.split(), "--quiet"]) == 0
    return folder / "out"


@pytest.mark.slow
def test_a_run_says_its_capacity_in_the_table_the_manifest_and_the_report(sized_run):
    table = pyarrow.parquet.read_table(sized_run / "results.parquet").to_pydict()
    assert set(table[tables.CAPACITY]) == {40}
    assert set(table["cache_slots"]) == {3}
    assert [name for name in table if name != tables.CAPACITY] == list(tables.COLUMNS)
    manifest = json.loads((sized_run / "manifest.json").read_text())
    assert manifest["problem"]["capacity_bytes"] == manifest["options"]["capacity_bytes"] == 40
    assert manifest["problem"]["size_bytes"] == [30, 10, 20, 10]
    assert "memory" not in manifest["problem"]
    page = (sized_run / "report.html").read_text()
    assert "4 adapters of 10 bytes to 30 bytes, 40 bytes of fast memory (at most 3 at once)" in page
    assert pairing.read(sized_run).rows["capacity_bytes"].unique().to_list() == [40]


def test_slots_say_nothing_of_bytes():
    problem = {"num_adapters": 4, "cache_slots": 2}
    assert report._memory(problem) == ", 2 cache slots"


BAD = {
    "--capacity-bytes 40 --slots 2": "--slots and --capacity-bytes exclude each other, got --slots",
    "--capacity-bytes 4x0": "must be a whole number of bytes in [0, 2^53], as 200e6, 200MB or",
    "--capacity-bytes -1": "polar-jax: error",
    "--size-bytes 1,2,3,4": "--size-bytes needs --capacity-bytes, got --size-bytes '1,2,3,4' alone",
    "--capacity-bytes 40 --size-bytes 1,2": "each of 4 adapters, got 2; adapter 3 has none.",
    "--capacity-bytes 40 --size-bytes 1,2,3,4,5": "each of 4 adapters, got 5.",
    "--capacity-bytes 40 --size-bytes 1,2,,4": "--size-bytes of adapter 3 must be a whole number",
    "--capacity-bytes 40 --size-bytes 1,0,3,4": "--size-bytes of adapter 2 must be a whole number",
    "--capacity-bytes 40": "adapter 'qwen2.5-7b-r8-00' of the default has none; give --size-bytes",
    "--capacity-bytes 40 --costs synthetic:1": "adapter 1 with synthetic costs has none",
    "--capacity-bytes 40 --paging none.csv": "adapter 'a' of none.csv has none; give --size-bytes",
    "--capacity-bytes 40 --paging hole.csv": "line 4: bytes of adapter 'c' must be a number",
    "--capacity-bytes 40 --size-bytes 1,2,3,4 --policies arc": "policy 'arc' must have adapters of",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_sizes_are_one_line_and_write_nothing(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("none.csv").write_text("adapter,ms\na,1\nb,2\nc,3\nd,4\n")
    pathlib.Path("hole.csv").write_text(SIZED_FILE.replace("c,30,20", "c,30,"))
    assert cli.main(["run", *SMALL.split(), *words.split()]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("polar-jax: error: ")
    assert shown.err.count("\n") == 1
    assert BAD[words] in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hole.csv", "none.csv"]


def made(tmp_path: pathlib.Path, text: str, **options: Any) -> lanes.Experiment:
    """What options mean, with a paging file."""
    (tmp_path / "loads.csv").write_text(text)
    given: dict[str, Any] = {"adapters": 4, "horizon": 300, "context_dim": 2, "seeds": 2}
    given |= {"policies": ("lru",)} | options
    asked = config.RunConfig(paging=tmp_path / "loads.csv", **given)
    return configured.configure(asked).experiment


def test_sizes_given_by_hand_come_before_the_files_and_a_file_alone_changes_nothing(tmp_path):
    by_file = made(tmp_path, SIZED_FILE, capacity_bytes=40).problem
    assert by_file.memory == ((30, 10, 20, 10), 40)
    by_hand = made(tmp_path, SIZED_FILE, capacity_bytes=40, size_bytes="5, 1KiB,7,8").problem
    assert by_hand.memory == ((5, 1024, 7, 8), 40)
    slots = made(tmp_path, SIZED_FILE).problem
    assert (slots.memory, slots.cache_slots) == (None, 4)


def test_equal_sizes_in_a_file_are_slots_for_every_policy(tmp_path):
    experiment = made(tmp_path, EQUAL_FILE, capacity_bytes=30, policies=("all",))
    assert experiment.problem.cache_slots == 3
    assert experiment.problem.differing is None


def parsed(toml: str, folder: pathlib.Path) -> spec.Spec:
    """A spec beside the sized paging file."""
    (folder / "loads.csv").write_text(SIZED_FILE)
    return spec.parse(toml, name="study", folder=folder)


SWEEP = """
[fixed]
adapters = 4
context_dim = 2
horizon = 300
seeds = 2
paging = "loads.csv"
policies = ["lru", "polar"]
[axes]
capacity_bytes = [0, 20, "0.04kB", 70]
"""


def test_a_sweep_over_capacities_compiles_each_program_once_and_says_them_in_its_rows(tmp_path):
    found = parsed(SWEEP, tmp_path)
    assert [axis.values for axis in found.axes if axis.name == "capacity_bytes"] == [
        (0, 20, 40, 70)
    ]
    assert "slots" not in found.fixed
    planned = plan.make(found)
    assert len(planned.programs("advance")) == 2
    assert all("of different size" in name for name in planned.programs("oracle"))
    (shard,) = planned.shards
    seen: dict[int, set[int]] = {}
    for batch in shard.batches:
        results = lanes.run_many(batch.experiments())
        written = rows.table(planned, batch, results).to_pydict()
        for room, slots in zip(written["capacity_bytes"], written["cache_slots"], strict=True):
            seen.setdefault(room, set()).add(slots)
    assert seen == {0: {0}, 20: {2}, 40: {3}, 70: {4}}


def test_capacities_with_the_same_number_of_adapters_are_not_read_off_each_other(tmp_path):
    toml = SWEEP.replace('[0, 20, "0.04kB", 70]', "[40, 50]").replace(
        "[axes]", "[axes]\nhorizon = [200, 300]"
    )
    planned = plan.make(parsed(toml.replace("horizon = 300\nseeds", "seeds"), tmp_path))
    cells = [cell for bucket in planned.buckets for cell in bucket.cells]
    own = {
        cell.experiment.problem.memory.capacity_bytes
        for cell in cells
        if cell.experiment.problem.memory
    }
    assert own == {40, 50}
    answered = sum(len(entry.read_off) + 1 for cell in cells for entry in cell.entries)
    assert answered == 2 * 2 * 2


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (SWEEP.replace("seeds = 2", "seeds = 2\nslots = 2"), "slots and .* exclude each other"),
        (SWEEP.replace("70]", "-1]"), "capacity_bytes must be a whole number in .* got -1"),
        (SWEEP.replace("70]", "1.5]"), "must be a whole number; got 1.5"),
        (SWEEP.replace("70]", '"7 apples"]'), "must be a whole number of bytes .*'7 apples'"),
        (SWEEP.replace("70]", "40]"), "must not repeat a value"),
        ('[fixed]\nadapters = 4\nsize_bytes = "1,2,3,4"', "size_bytes needs capacity_bytes"),
    ],
)
def test_specs_that_cannot_be_used_are_refused(toml, message, tmp_path):
    with pytest.raises(SpecError, match=message) as error:
        parsed(toml, tmp_path)
    assert "\n" not in str(error.value)


def test_sizes_and_capacity_decide_the_hash_and_old_specs_keep_theirs(tmp_path):
    base = SWEEP.replace('capacity_bytes = [0, 20, "0.04kB", 70]', "capacity_bytes = [40]")
    hashes = {
        parsed(text, tmp_path).spec_hash
        for text in (
            base,
            base.replace("[40]", "[41]"),
            base.replace("[40]", '["40B"]'),
            base.replace("seeds = 2", 'seeds = 2\nsize_bytes = "1,2,3,4"'),
            base.replace("seeds = 2", 'seeds = 2\nsize_bytes = "1,2,3,5"'),
        )
    }
    assert len(hashes) == 4


@pytest.mark.slow
def test_the_library_takes_a_sized_problem():
    problem = polar_jax.sized_problem([3, 1, 2], 4, context_dim=2, horizon=256)
    stream = polar_jax.environment("clustered")
    results = polar_jax.run(
        polar_jax.Experiment(
            problem=problem,
            environment=stream,
            environment_params=polar_jax.environment_params(stream, horizon=256),
            costs=polar_jax.Costs(synthetic_mean=0.3),
            policies=[polar_jax.policy("lru", **problem._asdict())],
            seeds=range(2),
        )
    )
    assert problem.cache_slots == 2
    assert np.isfinite(results.policies["lru"].totals["regret"]).all()
