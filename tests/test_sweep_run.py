"""Sweeps end to end: slices, order, devices, owners, failures, the command."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
from typing import Any

import interrupt_sweep
import pytest
import sweep_helpers

from polar_jax import cli, lanes, sweep, terminal
from polar_jax.sweep import plan, rows, run, shard_files, spec, status, store

TEXT = """
[fixed]
adapters = 5
context_dim = 3
seeds = 3
policies = ["polar_experts", "lru"]
[axes]
slots = [1, 2]
horizon = [300, 600]
"""
SECONDS = 1e-4  # every batch is a shard of its own


@functools.cache
def planned() -> plan.Plan:
    """A small sweep of several shards."""
    made = plan.make(spec.parse(TEXT, name="t", folder=pathlib.Path()), shard_seconds=SECONDS)
    assert len(made.shards) >= 2
    return made


def ran(out: pathlib.Path, **options: Any) -> run.Outcome:
    """Runs the small sweep in a folder."""
    return run.execute(planned(), out, run.Options(**options), lambda _: None, run.Stop())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The sweep, undisturbed."""
    out = tmp_path_factory.mktemp("sweep") / "whole"
    outcome = ran(out)
    assert outcome.failed == {}
    assert outcome.done == outcome.shards == len(planned().shards)
    assert outcome.decisions == planned().decisions
    return out


def test_rows_are_one_per_configuration_and_seed(whole):
    table = sweep.load(whole)
    assert table.height == planned().spec.num_lanes == 8 * 3
    assert table.select("configuration", "seed").is_duplicated().sum() == 0
    for configuration in planned().spec.configurations:
        own = table.filter(configuration=configuration.index)
        assert own["policy"].unique().to_list() == [configuration.config.policies[0]]
        assert own["horizon"].unique().to_list() == [configuration.config.horizon]
        assert own["cache_slots"].unique().to_list() == [configuration.config.slots]
    # Both policies are anytime and the stream is endless: one run answers two horizons.
    assert table["run_horizon"].unique().to_list() == [600]


def test_slices_order_and_devices_change_no_bit(whole, tmp_path):
    backwards = list(range(len(planned().shards)))[::-1]
    for part in range(2):
        outcome = ran(tmp_path / "b", part=(part, 2), num_devices=1, order=backwards)
        assert outcome.failed == {}
    interrupt_sweep.assert_equal_rows(whole, tmp_path / "b")
    assert interrupt_sweep.files(whole) == interrupt_sweep.files(tmp_path / "b")


def test_a_failed_shard_is_reported_and_the_next_call_tries_it_again(whole, tmp_path, monkeypatch):
    real = rows.table

    def broken(made: plan.Plan, batch: plan.Batch, results: Any) -> Any:
        if batch is made.shards[0].batches[0]:
            raise FloatingPointError("regret is not finite")
        return real(made, batch, results)

    monkeypatch.setattr(rows, "table", broken)
    outcome = ran(tmp_path / "out")
    assert outcome.failed == {0: "regret is not finite"}
    assert outcome.done == outcome.shards - 1
    assert store.open_existing(tmp_path / "out").states()[0] == "failed"
    monkeypatch.setattr(rows, "table", real)
    assert ran(tmp_path / "out").failed == {}
    interrupt_sweep.assert_equal_rows(whole, tmp_path / "out")
    assert interrupt_sweep.files(whole) == interrupt_sweep.files(tmp_path / "out")


def test_a_truncated_shard_is_computed_again_and_no_other(whole, tmp_path):
    ran(tmp_path / "out")
    folder = store.open_existing(tmp_path / "out")
    first, second = folder.shard_path(0), folder.shard_path(1)
    first.write_bytes(first.read_bytes()[:100])
    untouched = second.stat().st_mtime_ns
    with pytest.raises(store.StoreError, match="is damaged"):
        sweep.load(tmp_path / "out")
    assert ran(tmp_path / "out").decisions == planned().shards[0].decisions
    assert second.stat().st_mtime_ns == untouched
    interrupt_sweep.assert_equal_rows(whole, tmp_path / "out")


def test_another_spec_in_the_folder_is_refused_before_anything_is_written(whole):
    other = plan.make(
        spec.parse(TEXT.replace("300", "301"), name="t", folder=pathlib.Path()),
        shard_seconds=SECONDS,
    )
    before = interrupt_sweep.files(whole)
    with pytest.raises(store.StoreError, match="another --out"):
        run.execute(other, whole, run.Options(), lambda _: None, run.Stop())
    assert interrupt_sweep.files(whole) == before


def test_a_plan_with_other_shards_in_the_folder_is_refused(whole, monkeypatch):
    # As an upgrade makes it whose estimates are better.
    monkeypatch.setattr(plan, "_shards", lambda batches, _: [plan.Shard(0, tuple(batches))])
    other = plan.make(planned().spec, shard_seconds=SECONDS)
    assert other.spec.spec_hash == planned().spec.spec_hash
    assert other.plan_hash != planned().plan_hash
    with pytest.raises(store.StoreError, match="hold other rows than this plan's"):
        run.execute(other, whole, run.Options(), lambda _: None, run.Stop())


def test_a_shard_with_damaged_pages_is_computed_again(whole, tmp_path):
    ran(tmp_path / "out")
    path = store.open_existing(tmp_path / "out").shard_path(1)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(store.StoreError, match="computes it again"):
        sweep.load(tmp_path / "out")
    assert ran(tmp_path / "out").decisions == planned().shards[1].decisions
    interrupt_sweep.assert_equal_rows(whole, tmp_path / "out")


def test_a_shard_that_reads_back_as_damaged_fails_and_is_not_tried_for_ever(tmp_path, monkeypatch):
    def torn(folder: store.Store, index: int, columns: Any, facts: Any) -> None:
        del columns, facts
        folder.shard_path(index).parent.mkdir(parents=True, exist_ok=True)
        folder.shard_path(index).write_bytes(b"PAR1")

    monkeypatch.setattr(store.Store, "write_shard", torn)
    outcome = ran(tmp_path / "out")
    assert set(outcome.failed) == set(range(outcome.shards))
    assert all("is damaged" in error for error in outcome.failed.values())
    assert (outcome.done, outcome.decisions) == (0, 0)


def test_a_limit_below_one_tile_fails_the_first_shard_of_its_sizes_alone(tmp_path):
    outcome = ran(tmp_path / "out", memory_limit=0)
    assert list(outcome.failed) == [0]
    assert "0 MiB are allowed" in outcome.failed[0]
    assert outcome.done == 0


def in_one_shard() -> plan.Plan:
    """A sweep of one shard of four batches."""
    text = TEXT.replace('"polar_experts", ', "").replace("[300, 600]", "[300]")
    asked = spec.parse(text.replace("seeds = 3", "seeds = 70"), name="t", folder=pathlib.Path())
    cut = plan.make(asked, shard_seconds=SECONDS)
    batches = tuple(batch for shard in cut.shards for batch in shard.batches)
    assert len(batches) == 4
    return dataclasses.replace(cut, shards=(plan.Shard(0, batches),))


def test_an_owner_that_lost_its_claim_stores_nothing_more(tmp_path, monkeypatch):
    made, out = in_one_shard(), tmp_path / "out"
    run.execute(made, tmp_path / "whole", run.Options(), lambda _: None, run.Stop())
    jobs: list[Any] = []

    class Job(run.ShardRun):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            jobs.append(self)

        def due(self) -> bool:
            return self.batch >= 2

    monkeypatch.setattr(run, "ShardRun", Job)
    stop = run.Stop()

    def first(step: run.Progress) -> None:
        # Its lease ends while it holds a batch's rows in memory: another process goes on.
        if step.phase == "running" and jobs[0].batch == 1 and len(jobs) == 1:
            (out / "claims" / "0").unlink()
            run.execute(made, out, run.Options(), second, stop)

    def second(step: run.Progress) -> None:
        # By now it has stored two batches as one part, and the first one wakes up.
        if step.phase == "running" and jobs[1].batch == 3 and not stop.requested:
            with contextlib.suppress(lanes.StoppedError):
                jobs[0]._checkpoint(None)
            stop.requested = True

    outcome = run.execute(made, out, run.Options(), first, run.Stop())
    assert len(jobs) == 3
    assert jobs[2].batch == 4
    assert (outcome.failed, outcome.done) == ({}, 1)
    assert interrupt_sweep.assert_equal_rows(tmp_path / "whole", out) == made.spec.num_lanes
    assert interrupt_sweep.files(tmp_path / "whole") == interrupt_sweep.files(out)


def test_parts_of_other_batches_are_left_out_and_the_shard_starts_again(tmp_path, monkeypatch):
    made, out, stop = in_one_shard(), tmp_path / "out", run.Stop()
    run.execute(made, tmp_path / "whole", run.Options(), lambda _: None, run.Stop())

    def progress(step: run.Progress) -> None:
        stop.requested = step.phase == "running" and step.decisions > 0.6 * step.total

    run.execute(made, out, run.Options(checkpoint_seconds=1e-9), progress, stop)
    folder = store.create_or_open(out, run.describe(made, None))
    part = out / "checkpoints" / "0" / "part-1.parquet"
    rows_, facts = shard_files.read_table(part), shard_files.read_facts(part)
    shard_files.write_table(part, rows_[:3], facts | {"batches": (0, 1)})
    starts = []
    run.execute(made, out, run.Options(), lambda step: starts.append(step.decisions), run.Stop())
    assert starts[0] == 0
    interrupt_sweep.assert_equal_rows(tmp_path / "whole", out)
    # And where parts pretend to fit, rows that are missing do not pass for a shard.
    path = folder.shard_path(0)
    path.unlink()
    real = rows.table
    monkeypatch.setattr(rows, "table", lambda *given: real(*given)[:-1])
    outcome = run.execute(made, out, run.Options(), lambda _: None, run.Stop())
    assert "rows in place of" in outcome.failed[0]
    assert not path.exists()


def test_a_slice_waits_for_a_shard_whose_owner_is_dead_elsewhere(whole, tmp_path):
    ran(tmp_path / "out", part=(1, 2))
    claims = tmp_path / "out" / "claims"
    claims.mkdir(exist_ok=True)
    owner = {"host": "elsewhere", "boot": "b", "namespace": "n", "pid": 1, "started": 1}
    (claims / "0").write_text(json.dumps({**owner, "token": "t"}))
    sweep_helpers.make_old(claims / "0", 117.0)
    phases = []
    outcome = run.execute(
        planned(),
        tmp_path / "out",
        run.Options(part=(0, 2)),
        lambda step: phases.append(step.phase),
        run.Stop(),
    )
    assert "waiting" in phases
    assert outcome.done == outcome.shards
    interrupt_sweep.assert_equal_rows(whole, tmp_path / "out")


def test_status_counts_what_is_in_checkpoints(tmp_path):
    made, out, stop = in_one_shard(), tmp_path / "out", run.Stop()
    seen = []

    def progress(step: run.Progress) -> None:
        # Half is reached at the end of the second batch, and once more as the third begins.
        seen.append(step.phase == "running" and step.decisions == step.total // 2)
        stop.requested = sum(seen) == 2

    options = run.Options(checkpoint_seconds=3600.0)
    assert run.execute(made, out, options, progress, stop).stopped
    found = status.read(out)
    batches = made.shards[0].batches
    assert found["decisions"] == 0
    # Two batches whose rows are stored, and a state of the third after its only call.
    assert len(list((out / "checkpoints" / "0").glob("part-*"))) == 1
    assert found["checkpointed"] == sum(batch.decisions for batch in batches[:3])
    assert found["seconds_left"] is not None
    share = round(100 * found["checkpointed"] / found["total"])
    assert (
        f"stored ({share} %), {found['checkpointed']:,} of them in checkpoints" in found["lines"][1]
    )


def test_a_full_disk_ends_the_sweep_and_loses_no_stored_shard(whole, tmp_path, monkeypatch):
    real = store.Store.write_shard

    def full(folder: store.Store, index: int, columns: Any, facts: Any) -> None:
        if index == 1:
            raise store.NoSpaceError("no space left: results so far are kept.")
        real(folder, index, columns, facts)

    monkeypatch.setattr(store.Store, "write_shard", full)
    with pytest.raises(OSError, match="no space left"):
        ran(tmp_path / "out")
    assert store.open_existing(tmp_path / "out").state(0) == "done"
    monkeypatch.setattr(store.Store, "write_shard", real)
    ran(tmp_path / "out")
    interrupt_sweep.assert_equal_rows(whole, tmp_path / "out")


@pytest.fixture
def small(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The spec as a file; JAX stays as the tests have set it up."""
    monkeypatch.setattr(terminal, "prepare_jax", lambda _, **__: None)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(TEXT, "utf-8")
    return path


def test_the_command_runs_reports_and_goes_on(small, capsys, tmp_path):
    assert cli.main(["sweep", "plan", str(small)]) == 0
    assert "8 configurations on 3 seeds" in capsys.readouterr().out
    assert cli.main(["sweep", "run", str(small)]) == 0
    assert re.search(
        r"planning [\d.]+ s, compiling .* and reporting [\d.]+ s", capsys.readouterr().out
    )
    out = tmp_path / "results" / "small"
    assert (out / "report.html").stat().st_size > 10_000
    assert cli.main(["sweep", "status", str(out)]) == 0
    assert "1 of 1 done" in capsys.readouterr().out
    (out / "report.html").unlink()
    assert cli.main(["sweep", "report", str(out)]) == 0
    assert (out / "report.html").exists()
    assert cli.main(["compare", str(out), str(out)]) == 0


def test_what_fails_is_told_in_lines_and_by_the_exit_code(small, capsys):
    words = ["sweep", "run", str(small), "--memory-limit", "1e-10", "--shard-seconds", str(SECONDS)]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.count("0 MiB are allowed") == 1
    total = len(planned().shards)
    assert f"error: 0 of {total} shards are done, 1 failed; the same command tries" in error
    assert cli.main([*words, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.count("0 MiB are allowed") == 1
    assert error.count("\n") == 2


def test_a_plan_that_memory_cannot_hold_is_one_line(small, capsys, monkeypatch):
    def full(*_: Any, **__: Any) -> plan.Plan:
        raise MemoryError("Unable to allocate 14.9 GiB for an array")

    monkeypatch.setattr(plan, "make", full)
    assert cli.main(["sweep", "plan", str(small)]) == 2
    assert capsys.readouterr().err == (
        "polar-jax: error: Unable to allocate 14.9 GiB for an array\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "rum"], "sweep must be followed by run, plan, status, report, submit or cancel"),
        (["sweep", "run", "none.toml"], "none.toml"),
        (["sweep", "run", "small.toml", "--slice", "3/3"], "--slice must be I/N with 0 <= I < N"),
        (["sweep", "run", "small.toml", "--shard-seconds", "0"], "--shard-seconds must be in (0,"),
        (["sweep", "run", "small.toml", "--memory-limit", "2e6"], "--memory-limit must be in (0,"),
        (["sweep", "plan", "endless.toml"], "epoch_length must be a whole number in [200,"),
        (["sweep", "status", "nowhere"], "holds no sweep"),
        (["compare", "nowhere", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(small, words, message, capsys):
    endless = TEXT.replace("[300, 600]", "[2_000_000_000]").replace(
        "seeds", "epoch_length = 1\nseeds"
    )
    small.with_name("endless.toml").write_text(endless, "utf-8")
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
