"""The command: what it prints, its exit codes, one clear line for every bad input."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

import polar_jax
from polar_jax import cli, terminal

DATA = pathlib.Path(__file__).parent / "data"
SMALL = "--adapters 4 --slots 2 --context-dim 2 --horizon 300 --seeds 2 --policies lru,static"


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def warm_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves JAX as the tests have set it up: it has started."""
    monkeypatch.setattr(terminal, "prepare_jax", lambda _, **__: None)


# What runs in the background of a script ignores Ctrl-C, and so would its children.
LISTENING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("polar_jax", run_name="__main__", alter_sys=True)
"""


def _start(words: Sequence[str], cache: pathlib.Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LISTENING, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )


def test_public_names_are_deliberate() -> None:
    expected = (DATA / "public_names.txt").read_text().split()
    assert sorted(polar_jax.__all__) == expected
    assert len(expected) <= 25
    for name in expected:
        assert getattr(polar_jax, name).__doc__
        assert name in dir(polar_jax)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'polar'"):
        _ = polar_jax.polar


def test_import_loads_neither_files_nor_figures_nor_the_command_line() -> None:
    # Importing loads nothing heavy; using the engine's names loads no more than the engine
    # (flax loads rich of itself), and starts no device.
    program = (
        "import sys, polar_jax as pj\n"
        "heavy = {'jax', 'pyarrow', 'matplotlib', 'rich', 'tyro'}\n"
        "assert not heavy & set(sys.modules)\n"
        "job = ('RunConfig', 'run_experiment')\n"
        "used = [getattr(pj, name) for name in pj.__all__ if name not in job]\n"
        "assert not heavy - {'jax', 'rich'} & set(sys.modules)\n"
        "import jax\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"
        "assert len(jax.devices('cpu')) == 3\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_help_explains_every_option_without_loading_jax() -> None:
    program = (
        "import sys\nfrom polar_jax import cli\ncode = cli.main(['run', '--help'])\n"
        "assert 'jax' not in sys.modules\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    for field in polar_jax.RunConfig.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in done.stdout
    assert "(default: 0.0154)" in done.stdout
    assert "None" not in done.stdout


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("polar-jax ")
    assert cli.main(["--help"]) == 0
    assert "polar-jax COMMAND --help" in capsys.readouterr().out
    assert cli.main(["rum"]) == 2
    said = "the command must be run, sweep, paging, compare, replay or bench; got 'rum'."
    assert capsys.readouterr().err == f"polar-jax: error: {said}\n"


@pytest.mark.usefixtures("warm_jax")
def test_runs_are_numbered_and_end_with_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    for number in ("001", "002"):
        assert cli.main(["run", *SMALL.split()]) == 0
        shown = capsys.readouterr()
        for text in ("lru", "static", "hit", f"results/run-{number}/report.html"):
            assert text in shown.out
        assert "decisions/s" in shown.err
    assert len(list(pathlib.Path("results/run-002").iterdir())) == 4


@pytest.mark.usefixtures("warm_jax")
def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *SMALL.split(), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("warm_jax")
def test_a_paging_file_decides_the_costs() -> None:
    pathlib.Path("loads.csv").write_text("adapter,ms\na,10\nb,20\nc,30\nd,40\n")
    words = f"run {SMALL} --paging loads.csv --price-per-ms 0.01 --out out --quiet"
    assert cli.main(words.split()) == 0
    manifest = pathlib.Path("out/manifest.json").read_text()
    assert "file 'loads.csv', 4 adapters" in manifest


BAD = {
    "--slots 5": "--slots must be a whole number in [0, 4], the number of adapters; got 5.",
    "--slots -1": "--slots must be a whole number in [0, 4], the number of adapters; got -1.",
    "--adapters 0": "--adapters must be a whole number in [1, 2.14748e+09], got 0.",
    "--horizon 0": "--horizon must be a whole number in [1, 2.14748e+09], got 0.",
    "--seeds 0": "--seeds must be a whole number in [1, 2.14748e+09], got 0.",
    "--seed -1": "--seed must be a whole number in [0, 2.14748e+09], got -1.",
    "--segments 0": "--segments must be a whole number in [1, 2.14748e+09], got 0.",
    "--clusters 0": "--clusters must be a whole number in [1, 2.14748e+09], got 0.",
    "--devices 0": "--devices must be a whole number in [1, 4096], got 0.",
    "--policies lur": "got 'lur' (did you mean 'lru'?).",
    "--policies lru lru": "--policies must not repeat, got lru more than once.",
    "--environment clusterd": "got 'clusterd' (did you mean 'clustered'?).",
    "--stay 0.95": "--stay must be a number in [0, 0.9], got 0.95.",
    "--beta thoery": "--beta must be one of constant, theory; got 'thoery'",
    "--price-per-ms nan": "--price-per-ms must be a number in [0, 1e+06], got nan.",
    "--price-per-ms 1e6": "--price-per-ms must keep every cost of a page-in at 1e+06 or below",
    "--costs synthetic:0.3 --price-per-ms 0": "--price-per-ms must be a number in [1e-09, 1e+06]",
    "--noise inf": "--noise must be a number in [0, 1e+06], got inf.",
    "--ridge 0": "--ridge must be a number in [1e-06, 1e+06], got 0.0.",
    "--costs synthetic:abc": "got 'synthetic:abc'.",
    "--costs synthetic:-1": "got 'synthetic:-1'.",
    "--costs free": '--costs must be "qwen2.5-7b" or "synthetic:MEAN"',
    "--costs synthetic:1 --paging good.csv": "--costs and --paging exclude each other",
    "--paging missing.csv": "No such file or directory: 'missing.csv'",
    "--paging nan.csv": "'nan.csv': line 2: ms must be a number of ms in [0, 1e+09], got nan.",
    "--paging negative.csv": "must be a number of ms in [0, 1e+09], got -3.",
    "--paging text.csv": "must be a number",
    "--paging empty.csv": "the file is empty",
    "--paging short.csv": "--adapters must be in [1, 1], as 'short.csv' holds 1 adapters; got 4.",
    "--paging .": "A paging table must be a file, got a directory",
    "--out full": "--out 'full' already holds files",
    "--out good.csv": "--out must be a folder, got the file 'good.csv'.",
    "--out good.csv/below": "Not a directory",
    "--adapters x": "invalid literal for int() with base 10: 'x'",
    "--adaptrs 4": "Unrecognized options: --adaptrs, 4 (did you mean --adapters?)",
    "--stay": "Missing value for argument '--stay'",
    "surplus": "Unrecognized options: surplus",
}
FILES = {
    "good.csv": "adapter,ms\na,1\nb,2\nc,3\nd,4\n",
    "nan.csv": "adapter,ms\na,nan\n",
    "negative.csv": "adapter,ms\na,-3\n",
    "text.csv": "adapter,ms\na,fast\n",
    "empty.csv": "",
    "short.csv": "adapter,ms\na,1\n",
    "full/thesis.tex": "years of work",
}


@pytest.mark.usefixtures("warm_jax")
@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    words: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    small = "--adapters 4 --slots 2 --context-dim 2 --horizon 300 --seeds 2"
    assert cli.main(["run", *small.split(), *words.split()]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("polar-jax: error: ")
    assert shown.err.count("\n") == 1
    assert BAD[words] in shown.err
    assert sorted(tmp_path.rglob("*")) == before


def test_complaints_are_read_from_boxes_of_any_encoding() -> None:
    framed = (
        "\u256d Oops \u256e\n\u2502 Bad: --x \u2502\n" + 9 * "\u2500" + "\n\u2502 more \u2502\n"
    )
    plain = " Oops\n ---------\n  Bad: --x\n  ---------\n  more\n"
    for text in (framed, plain):
        assert terminal.one_line(text, "run") == "Bad: --x; see polar-jax run --help."


@pytest.mark.usefixtures("warm_jax")
def test_a_folder_that_cannot_be_written_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Refused by hand, because root may write to folders of any mode.
    def denied(path: pathlib.Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "mkdir", denied)
    assert cli.main(["run", *SMALL.split()]) == 2
    assert capsys.readouterr().err == "polar-jax: error: Permission denied: 'results'\n"


@pytest.mark.usefixtures("warm_jax")
def test_a_failure_while_running_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "results.parquet")

    monkeypatch.setattr("polar_jax.tables.write_parquet", full_disk)
    assert cli.main(["run", *SMALL.split(), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error == "polar-jax: error: No space left on device: 'results.parquet'\n"
    assert not pathlib.Path("results").exists()


def test_bad_input_has_no_traceback_as_a_command(tmp_path: pathlib.Path) -> None:
    process = _start(["run", "--slots", "99"], tmp_path / "cache")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert error.startswith("polar-jax: error: --slots")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_does_not_fail_a_run(tmp_path: pathlib.Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    words = "--adapters 2 --slots 1 --context-dim 1 --horizon 10 --seeds 1 --policies static"
    process = _start(["run", *words.split()], tmp_path / "cache")
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "run-001" in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_at_once_and_leaves_nothing(
    number: signal.Signals, code: int, tmp_path: pathlib.Path
) -> None:
    process = _start(["run", "--horizon", "1000000", "--out", "out"], tmp_path / "cache")
    began = time.monotonic()
    while not (tmp_path / "out" / ".incomplete").exists():
        assert time.monotonic() - began < 60.0
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.5)  # Into the compilation.
    process.send_signal(number)
    sent = time.monotonic()
    try:
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert time.monotonic() - sent < 5.0
    assert error.startswith("polar-jax: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
