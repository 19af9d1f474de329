"""`polar-jax paging read-log`: what it writes and prints, and one line for every bad input."""

import io
import sys
import threading

import pytest
import serving_excerpts as excerpts

from polar_jax import cli, log_cli, paging_cli, terminal
from polar_jax.io import read_paging_table
from polar_jax.sweep import files


@pytest.fixture(autouse=True)
def in_folder_with_a_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.log").write_text(excerpts.VLLM_COUNTERS)


def run(capsys, line):
    """The exit code, and what was printed, of a command line."""
    code = cli.main(["paging", "read-log", *line.split()])
    return code, *capsys.readouterr()


def test_it_writes_a_table_and_tells_what_it_used(tmp_path, capsys):
    code, out, err = run(capsys, "server.log --out table.csv")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "vllm: 7 lines used, 3 skipped.",
        "4 of 4 loads taken, 2 adapters.",
        "note: 1 counter lines are no single load: the count before them is not in the log.",
        "note: tier sum: disk-to-host + host-to-device.",
        "table.csv",
    ]
    text = (tmp_path / "table.csv").read_text().splitlines()
    assert text[:2] == ["adapter,tier,ms", "dummy-0,disk-to-host,20.8424290176481"]
    assert len(text) == 5
    table = read_paging_table(tmp_path / "table.csv")
    assert table.mean_ms == pytest.approx([23.966, 11.967], abs=1e-3)


def test_one_tier_and_a_given_format(tmp_path, capsys):
    line = "server.log --out table.csv --format vllm --tier host-to-device"
    code, out, _ = run(capsys, line)
    assert code == 0
    assert "note: 2 loads of other tiers are left out." in out
    assert "disk" not in (tmp_path / "table.csv").read_text()


def test_sizes_are_a_column_where_they_are_known(tmp_path, capsys):
    (tmp_path / "server.log").write_text("\n".join(excerpts.SGLANG.splitlines()[:2]))
    assert run(capsys, "server.log --out table.csv")[0] == 0
    assert (tmp_path / "table.csv").read_text() == (
        f"adapter,tier,ms,size_bytes\nsql,disk-to-host,2000.0,{round(0.04 * 2**30)}\n"
    )


def test_a_log_on_standard_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(excerpts.LORAX.encode())))
    code, out, _ = run(capsys, "- --out table.csv")
    assert code == 0
    assert out.startswith("lorax: 7 lines used, 1 skipped.\n")
    assert (tmp_path / "table.csv").exists()


def test_the_table_is_one_that_a_run_reads(tmp_path, capsys, monkeypatch):
    # JAX has started: its cache stays as the tests have set it up.
    monkeypatch.setattr(terminal, "prepare_jax", lambda _, **__: None)
    assert run(capsys, "server.log --out table.csv")[0] == 0
    small = "--slots 1 --context-dim 2 --horizon 300 --seeds 1 --policies lru --quiet"
    words = f"run --paging table.csv --adapters 2 --out out {small}".split()
    assert cli.main(words) == 0
    assert (tmp_path / "out" / "results.parquet").exists()


def test_an_output_that_is_there_is_kept(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("mine")
    code, out, err = run(capsys, "server.log --out table.csv")
    assert (code, out) == (2, "")
    assert err == (
        "polar-jax: error: --out 'table.csv' exists already; allowed are a new name, or "
        "--overwrite.\n"
    )
    assert (tmp_path / "table.csv").read_text() == "mine"
    assert run(capsys, "server.log --out table.csv --overwrite")[0] == 0
    assert (tmp_path / "table.csv").read_text().startswith("adapter,")


def test_an_output_that_appears_meanwhile_is_kept_too(tmp_path, capsys, monkeypatch):
    (tmp_path / "table.csv").write_text("theirs")
    monkeypatch.setattr(log_cli.ReadLog, "check", lambda _: None)
    code, _, err = run(capsys, "server.log --out table.csv")
    assert (code, "exists already" in err) == (2, True)
    assert (tmp_path / "table.csv").read_text() == "theirs"


def test_of_two_at_once_one_writes(tmp_path, monkeypatch):
    codes = []
    together = threading.Barrier(2)
    create = files.create_whole

    def slow(path, data, **rest):
        together.wait()
        return create(path, data, **rest)

    monkeypatch.setattr(files, "create_whole", slow)
    words = ["server.log", "--out", "table.csv"]
    threads = [
        threading.Thread(target=lambda: codes.append(paging_cli.main(["read-log", *words])))
        for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0, 2]
    assert len(read_paging_table(tmp_path / "table.csv").adapters) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"server.log", "table.csv"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("none.log --out t.csv", "No such file or directory: 'none.log'"),
        (". --out t.csv", "Is a directory: '.'"),
        ("empty.log --out t.csv", "'empty.log': none of 0 lines can be used; looked for"),
        ("server.log --out t.txt", "--out must end with .csv, got 't.txt'"),
        ("server.log --out folder.csv", "--out must be a file, got the folder 'folder.csv'"),
        ("log.csv --out log.csv --overwrite", "--out must be another file than the log"),
        ("server.log --out t.csv --tier remote", "--tier remote must be one that the log tells"),
        ("server.log --out t.csv --format sglang", "none of 10 lines can be used; looked for"),
        ("server.log --out t.csv --format tgi", "--format"),
        ("server.log", "--out"),
        ("server.log --out server.log/t.csv", "server.log"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, line, message):
    (tmp_path / "empty.log").touch()
    (tmp_path / "log.csv").write_text(excerpts.CLIENT_CSV)
    (tmp_path / "folder.csv").mkdir()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(capsys, line)
    assert code in (1, 2)
    assert out == ""
    assert err.startswith("polar-jax: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "log.csv").read_text() == excerpts.CLIENT_CSV


def test_a_misspelt_command_is_refused(capsys):
    assert cli.main(["paging", "read-lgo"]) == 2
    assert "show or read-log; got 'read-lgo'" in capsys.readouterr().err


def test_help_names_the_formats(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for word in ("sglang", "client-csv", "host-to-device", "--overwrite"):
        assert word in out
