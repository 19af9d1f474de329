"""Sweeps end to end: slices, order, devices, failures, a kill, a signal, the command."""

import functools
import pathlib
import signal
import subprocess
import time
from typing import Any

import interrupt_sweep
import pytest

from polar_jax import cli, sweep, terminal
from polar_jax.sweep import plan, rows, run, spec, store

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
    monkeypatch.setattr(terminal, "prepare_jax", lambda _: None)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.toml"
    path.write_text(TEXT, "utf-8")
    return path


def test_the_command_runs_reports_and_goes_on(small, capsys, tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    assert cli.main(["sweep", "plan", str(small)]) == 0
    assert "8 configurations on 3 seeds" in capsys.readouterr().out
    assert cli.main(["sweep", "run", str(small)]) == 0
    out = tmp_path / "results" / "small"
    assert (out / "report.html").stat().st_size > 10_000
    assert cli.main(["sweep", "status", str(out)]) == 0
    assert "1 of 1 done" in capsys.readouterr().out
    (out / "report.html").unlink()
    assert cli.main(["sweep", "report", str(out)]) == 0
    assert (out / "report.html").exists()
    assert cli.main(["compare", str(out), str(out)]) == 0
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "rum"], "sweep must be followed by run, plan, status or report; got 'rum'"),
        (["sweep", "run", "none.toml"], "none.toml"),
        (["sweep", "run", "small.toml", "--slice", "3/3"], "--slice must be I/N with 0 <= I < N"),
        (["sweep", "run", "small.toml", "--shard-seconds", "0"], "--shard-seconds must be in (0,"),
        (["sweep", "status", "nowhere"], "holds no sweep"),
        (["compare", "nowhere", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(small, words, message, capsys):
    assert small.exists()
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


LONG = interrupt_sweep.SPEC.replace("30_000", "200_000")


@pytest.mark.slow
def test_killed_and_stopped_sweeps_go_on_bitwise_and_leave_nothing(tmp_path):
    path = tmp_path / "long.toml"
    path.write_text(interrupt_sweep.SPEC, "utf-8")
    interrupt_sweep.finish(interrupt_sweep.start(path, tmp_path / "whole"))
    assert interrupt_sweep.interrupt(tmp_path / "killed", path, kills=3, seed=1) >= 1
    interrupt_sweep.assert_equal_rows(tmp_path / "whole", tmp_path / "killed")
    assert interrupt_sweep.files(tmp_path / "killed") == interrupt_sweep.files(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_checkpoints_and_ends_within_five_seconds(tmp_path, number):
    path = tmp_path / "long.toml"
    path.write_text(LONG, "utf-8")
    process: subprocess.Popen[str] = interrupt_sweep.start(path, tmp_path / "out")
    interrupt_sweep.wait_for_work(process, tmp_path / "out", 0.0, 120.0)
    began = time.perf_counter()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.perf_counter() - began < 5.0
    assert process.returncode == 128 + number
    assert "the same command goes on" in errors
    assert interrupt_sweep.progress(tmp_path / "out") > 0.0
    assert not list((tmp_path / "out" / "claims").glob("*"))
