"""`sweep submit`, `cancel` and `status`: one clear line for whatever cannot be done."""

import socket
import sys

import cluster_helpers as helpers
import pytest

from polar_jax import cli
from polar_jax.cluster import slurm


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """The one line that a command ends with."""
    assert cli.main(["sweep", *map(str, words)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("polar-jax: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shards-per-task", "0"], "--shards-per-task must be a whole number in [1, 1e+06]"),
        (["--max-attempts", "0"], "--max-attempts must be a whole number in [1, 1e+06], got 0"),
        (["--gpus-per-task", "-1"], "--gpus-per-task must be a whole number in [0, 1e+06]"),
        (["--gpus-per-node", "0"], "--gpus-per-node must be a whole number in [1, 4096]"),
        (
            ["--gpus-per-node", "8", "--gpus-per-task", "1"],
            "--gpus-per-node and --gpus-per-task exclude each other",
        ),
        (["--time", "0"], "--time must be a whole number in [1, 1e+06], got 0"),
        (["--memory", "nan"], "--memory must be in (0, 1.04858e+06], got nan"),
        (["--checkpoint-seconds", "0"], "--checkpoint-seconds must be in (0, 86400], got 0"),
        (["--time", "1", "--signal-seconds", "60"], "--signal-seconds must be below --time (60 s)"),
        (["--address", "auto"], "--address is for --engine ray, got 'auto' with slurm"),
        (["--sbatch", "--constraint=a100"], "see polar-jax sweep submit --help"),
        (["--sbatch", "Constraint"], "--sbatch takes options as sbatch spells them, without dash"),
        (["--sbatch", "array=1-9"], "--sbatch takes no option that the tasks depend on (array, "),
        (["--sbatch", "exclusive", "ntasks-per-core=2"], "depend on"),
        (["--sbatch", "job=mine"], "depend on"),
        (["--sbatch", "no-requeue"], "depend on"),
        (["--out", "results/50%"], "--out must be without '%', which Slurm takes for a pattern"),
        (["--engine", "ray", "--partition", "gpu"], "--partition is for --engine slurm, got it"),
        (["--engine", "pbs"], "pbs"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path, capsys, words, message):
    path = helpers.spec(tmp_path, shards=4)
    said = refused(capsys, 2, "submit", path, "--out", tmp_path / "out", *words)
    assert message in said
    assert not (tmp_path / "out").exists()


def test_without_submitit_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    said = refused(capsys, 1, "submit", helpers.spec(tmp_path, shards=4))
    assert "needs submitit: pip install 'polar-jax[slurm]'" in said


def test_without_slurm_the_missing_command_is_named(tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refused(capsys, 1, "submit", helpers.spec(tmp_path, shards=4))
    assert "there is no 'sbatch'; use a login node of the cluster" in said


def test_without_ray_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refused(capsys, 1, "submit", helpers.spec(tmp_path, shards=4), "--engine", "ray")
    assert "needs Ray: pip install 'polar-jax[ray]'" in said


@pytest.mark.slow
def test_an_address_without_ray_is_named(tmp_path, capsys):
    pytest.importorskip("ray")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    more = ("--engine", "ray", "--address", address)
    said = refused(capsys, 1, "submit", helpers.spec(tmp_path, shards=4), *more)
    assert f"no Ray cluster answers at --address {address}: Connection refused." in said


def test_a_folder_without_a_submission_cannot_be_cancelled(tmp_path, capsys):
    said = refused(capsys, 2, "cancel", tmp_path)
    assert "holds nothing that was submitted" in said


def test_a_folder_without_a_sweep_has_no_status_to_watch(tmp_path, capsys):
    said = refused(capsys, 2, "status", tmp_path, "--watch")
    assert "nothing was submitted or run in this folder yet" in said


def test_a_spec_that_is_missing_is_named(tmp_path, capsys, monkeypatch):
    answers = slurm.ENGINE._replace(check=lambda _: {"tasks_per_array": 8})
    monkeypatch.setattr(slurm, "ENGINE", answers)
    said = refused(capsys, 2, "submit", tmp_path / "gone.toml", "--out", tmp_path / "out")
    assert "gone.toml: cannot be read: No such file or directory" in said
