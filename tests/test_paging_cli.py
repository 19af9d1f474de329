"""`polar-jax paging`: what it prints and writes, and one clear line for all that goes wrong."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from polar_jax import cli, io, terminal
from polar_jax.paging_tools import measure, shapes
from polar_jax.paging_tools.commands import Measure, Show, Synthesize

SMALL = "paging synthesize --ranks 1,4 --targets qv"
# What runs in the background of a script ignores Ctrl-C, and so would its children.
LISTENING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("polar_jax", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "prepare_jax", lambda _, **__: None)


def run(words: str | Sequence[str]) -> int:
    return cli.main(words.split() if isinstance(words, str) else words)


def test_adapters_are_written_measured_shown_and_run_by(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(SMALL) == 0
    shown = capsys.readouterr()
    assert "adapters/qwen2.5-7b-qv-r4  2.4 MiB" in shown.out
    assert "writing qwen2.5-7b-qv-r4: 100 %" in shown.err
    assert run("paging measure adapters --repeats 2") == 0
    shown = capsys.readouterr()
    assert "polar-jax: No accelerator was used: host-copy is a copy from host memory" in shown.err
    assert "host-copy: " in shown.out
    assert "bytes / (" in shown.out
    assert shown.out.endswith("paging.csv\n")
    table = io.read_paging_table("paging.csv")
    assert table.adapters == ("qwen2.5-7b-qv-r1", "qwen2.5-7b-qv-r4")
    assert table.size_bytes is not None
    assert table.size_bytes.tolist() == [
        shapes.size_bytes("qwen2.5-7b", rank, "qv") for rank in (1, 4)
    ]
    assert run("paging show paging.csv --out figure.png") == 0
    shown = capsys.readouterr().out
    assert f"tier {table.tier}, 2 adapters" in shown
    assert pathlib.Path("figure.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert run("paging show paging.csv --tier host-copy") == 0
    assert "tier host-copy, 2 adapters" in capsys.readouterr().out
    small = "run --slots 1 --context-dim 2 --horizon 20 --seeds 1 --policies no_cache --out out"
    assert run(f"{small} --adapters 2 --paging paging.csv --tier host-copy --quiet") == 0
    assert "tier host-copy" in pathlib.Path("out/manifest.json").read_text()


def test_quiet_still_says_what_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{SMALL} --quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run("paging measure adapters --repeats 1 --out a/b.csv --quiet") == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(line.startswith("polar-jax: ") for line in shown.err.splitlines())
    assert "not a transfer to a GPU" in shown.err


def test_help_explains_every_option_without_loading_jax() -> None:
    program = (
        "import sys\nfrom polar_jax import cli\n"
        "codes = [cli.main(['paging', name, '--help']) for name in "
        "('synthesize', 'measure', 'show')]\n"
        "codes.append(cli.main(['paging', '--help']))\n"
        "assert 'jax' not in sys.modules\nsys.exit(any(codes))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    for kind in (Synthesize, Measure, Show):
        for field in kind.__dataclass_fields__:
            name = {"folder": "DIR", "file": "FILE"}.get(field, f"--{field}")
            assert name in done.stdout
    assert "docs/paging.md" in done.stdout


def test_the_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "\n  paging  " in capsys.readouterr().out
    assert cli.main(["paging"]) == 2
    assert capsys.readouterr().out.startswith("usage: polar-jax paging COMMAND")


BAD = {
    "weigh": "paging must be followed by synthesize, measure, show or read-log; got 'weigh'.",
    "synthesize --ranks 0": "--ranks must be whole numbers in [1, 1024], separated by commas; got",
    "synthesize --ranks 8,x": "got 'x'.",
    "synthesize --ranks 99999999999999999999": "got '99999999999999999999'.",
    "synthesize --ranks ,": "--ranks must name one or more, such as 8,16,32,64; got none.",
    "synthesize --ranks 8,8": "adapters must not repeat, got qwen2.5-7b-all-r8 more than once.",
    "synthesize --targets qv,vq": "--targets must be one of qv, qkvo, all; got 'vq'",
    "synthesize --targets ,": "--targets must name one or more, such as qv, qkvo, all; got none.",
    "synthesize --model gpt-2": "--model must be one of qwen2.5-7b; got 'gpt-2'.",
    "synthesize --ranks 1 --targets qv --out there": "there/qwen2.5-7b-qv-r1' already exists",
    "synthesize --ranks 1 --targets qv --out loads.csv": "--out must be a folder, got the file",
    "synthesize --ranks 1 --out loads.csv/below": "Not a directory",
    "measure": "DIR",
    "measure nowhere": "No such file or directory: 'nowhere'",
    "measure loads.csv": "Not a directory: 'loads.csv'",
    "measure empty": "'empty' must hold folders with adapter_config.json",
    "measure broken": "'broken/x/adapter_config.json': not valid JSON",
    "measure there --repeats 0": "--repeats must be a whole number in [1, 10000], got 0.",
    "measure there --device tpu": "--device must be one of cpu:0",
    "measure there --out loads.csv": "--out 'loads.csv' already exists; allowed are another file",
    "measure there --out loads.png": "--out must end in .csv, got 'loads.png'.",
    "measure there --out empty.csv": "--out must be a file, got the folder 'empty.csv'.",
    "show": "FILE",
    "show nowhere.csv": "No such file or directory: 'nowhere.csv'",
    "show bad.csv": "'bad.csv': line 2: ms must be a number",
    "show loads.csv --tier tape": "'loads.csv': tier must be one of disk, or several",
    "show loads.csv --out loads.csv": "--out must end in .png, got 'loads.csv'.",
    "show loads.csv --out there.png": "--out 'there.png' already exists",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_line_and_writes_nothing(
    words: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("paging synthesize --ranks 1 --targets qv --out there --quiet") == 0
    for name, text in {
        "loads.csv": "adapter,ms,tier\na,1,disk\n",
        "bad.csv": "adapter,ms\na,fast\n",
        "broken/x/adapter_config.json": "{",
        "there.png": "mine",
        "empty/file": "",
        "empty.csv/file": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert run(f"paging {words}") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("polar-jax: error: ")
    assert shown.err.count("\n") == 1
    assert BAD[words] in shown.err
    after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert after == before


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the disk")


@pytest.mark.parametrize(
    ("words", "broken"),
    [
        (SMALL.removeprefix("paging "), "polar_jax.paging_tools.synthesize._write"),
        ("measure there --repeats 1", "polar_jax.paging_tools.files.put"),
        ("measure there --repeats 1", "polar_jax.paging_tools.measure.run"),
        ("show loads.csv --out figure.png", "polar_jax.paging_tools.files.put"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    words: str,
    broken: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pathlib.Path("loads.csv").write_text("adapter,ms\na,1\n")
    assert run("paging synthesize --ranks 1 --targets qv --out there --quiet") == 0
    before = {path.name for path in tmp_path.rglob("*")}
    monkeypatch.setattr(broken, _full)
    assert run(f"paging {words}") == 1
    error = capsys.readouterr().err
    assert error.endswith("polar-jax: error: No space left on device: 'the disk'\n")
    assert {path.name for path in tmp_path.rglob("*")} - {"adapters"} == before


def test_a_folder_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Refused by hand, because root may write to folders of any mode.
    def denied(path: pathlib.Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "mkdir", denied)
    assert run(SMALL) == 2
    assert capsys.readouterr().err == "polar-jax: error: Permission denied: 'adapters'\n"


def test_a_device_that_runs_out_of_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError("Unable to allocate 308 MiB")

    assert run(f"{SMALL} --quiet") == 0
    monkeypatch.setattr(measure, "run", exhausted)
    assert run("paging measure adapters --quiet") == 1
    assert capsys.readouterr().err == "polar-jax: error: Unable to allocate 308 MiB\n"
    assert not pathlib.Path("paging.csv").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupt_leaves_whole_adapters_alone(
    number: signal.Signals, code: int, tmp_path: pathlib.Path
) -> None:
    words = ["paging", "synthesize", "--ranks", "1,1024", "--targets", "qv,all", "--out", "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, *words], stderr=subprocess.PIPE, text=True
    )
    try:
        began = time.monotonic()
        # Into an adapter of 600 MiB, behind a whole one.
        while not list((tmp_path / "out").glob(".partial-*-qwen2.5-7b-qv-r1024/*.safetensors")):
            assert time.monotonic() - began < 60.0
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in error
    assert error.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["qwen2.5-7b-qv-r1"]
    assert io.read_peft_adapter(tmp_path / "out" / "qwen2.5-7b-qv-r1").rank == 1
