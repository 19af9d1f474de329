"""Code that gives the same bits on unlike processors, and what a manifest says of them."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import emulated
import polars
import pytest
import sweep_helpers

from polar_jax import processors, sweep, terminal
from polar_jax.kernels import native_build
from polar_jax.sweep import manifests, status, store

SPEC = """
[fixed]
adapters = 5
context_dim = 3
seeds = 3
policies = ["lru"]
horizon = 1_000
[axes]
slots = [2]
"""
WIDE = "flags\t\t: fpu avx avx2 bmi1 bmi2 f16c fma abm movbe gfni {}\nmodel name\t: A B\n"
FULL = "avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni"


def info(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, text: str) -> None:
    """Makes the system tell of another processor."""
    path = tmp_path / "cpuinfo"
    path.write_text(text, "utf-8")
    monkeypatch.setattr(processors, "_INFO", path)


@pytest.mark.parametrize(
    ("more", "told"),
    [("", "x86-64-v3 gfni"), (FULL, "x86-64-v4 avx512_vnni gfni"), ("avx512f", None)],
)
def test_an_instruction_set_is_a_level_and_what_is_beyond_it(monkeypatch, tmp_path, more, told):
    info(monkeypatch, tmp_path, WIDE.format(more))
    assert processors.instruction_set() == (told or "x86-64-v3 avx512f gfni")
    assert processors.cpu_model() == "A B"


def test_portable_code_is_refused_where_it_could_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {})
    info(monkeypatch, tmp_path, "flags : fpu avx\n")
    with pytest.raises(ValueError, match=r"has no abm, avx2, bmi1, bmi2, f16c, fma, movbe\.$"):
        processors.make_portable()
    assert os.environ == {}
    assert processors.code() == processors.NATIVE


def test_portable_code_keeps_other_flags_and_refuses_another_cap(monkeypatch, tmp_path):
    info(monkeypatch, tmp_path, WIDE.format(""))
    monkeypatch.setattr(os, "environ", {"XLA_FLAGS": "--xla_cpu_max_isa=AVX"})
    with pytest.raises(ValueError, match="XLA_FLAGS has --xla_cpu_max_isa=AVX"):
        processors.make_portable()
    monkeypatch.setattr(os, "environ", {"XLA_FLAGS": "--xla_a=1"})
    for _ in range(2):
        processors.make_portable()
        first, *flags = os.environ["XLA_FLAGS"].split()
        assert first == "--xla_a=1"
        assert sorted(flags) == sorted(set(flags))
        assert "--xla_cpu_max_isa=AVX2" in flags
    assert processors.code() == processors.PORTABLE
    assert "-march=x86-64-v3" in native_build._flags()
    assert native_build._processor() == processors.PORTABLE


def test_a_variable_set_by_hand_gets_the_flags_that_make_it_true(monkeypatch):
    called = []
    monkeypatch.setattr(processors, "make_portable", lambda: called.append(True))
    for said, times in (("0", 0), ("1", 1)):
        monkeypatch.setenv(processors.VARIABLE, said)
        terminal.prepare_jax(1)
        assert len(called) == times


def test_every_kind_of_code_has_its_folder_of_programs(monkeypatch, tmp_path):
    kinds = set()
    for more in ("", FULL):
        info(monkeypatch, tmp_path, WIDE.format(more))
        for said in ("0", "1"):
            monkeypatch.setenv(processors.VARIABLE, said)
            kinds.add(terminal._kind())
    assert len(kinds) == 4


def machine(**changes: Any) -> dict[str, Any]:
    """A sweep's manifest on another processor."""
    return sweep_helpers.changed(machine=changes)


def test_portable_and_other_code_are_never_mixed_in_a_folder(tmp_path):
    portable = machine(code=processors.PORTABLE)
    sweep_helpers.filled(tmp_path / "a")
    with pytest.raises(store.StoreError, match=r"the code \(--portable\) is"):
        store.create_or_open(tmp_path / "a", portable)
    opened = store.create_or_open(tmp_path / "b", portable)
    shutil.copytree(tmp_path / "a" / "shards", tmp_path / "b" / "shards")
    assert set(opened.states(4).values()) == {"foreign"}
    assert "code is" in opened.complaint(0)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (processors.NATIVE, "unlike instructions (x86-64-v3; x86-64-v4) and without --portable"),
        (processors.PORTABLE, "unlike processors (A) with the same portable code"),
    ],
)
def test_shards_of_unlike_processors_are_told(tmp_path, code, told):
    for name in ("x86-64-v3", "x86-64-v4"):
        here = machine(code=code, instruction_set=name) | {"num_shards": 4, "decisions": 8}
        here |= {"title": ""}
        opened = store.create_or_open(tmp_path, here)
        opened.write_shard(int(name[-1]) - 3, sweep_helpers.rows(0), sweep_helpers.FACTS)
    (line,) = manifests.said_of_mixed(opened.mixed(), opened.manifest)
    assert told.replace("(A)", "(x86-64-v3; x86-64-v4)") in line
    assert line in status.read(tmp_path)["lines"]


def run(out: pathlib.Path, *more: str, cpu: str = "", **env: str) -> polars.DataFrame:
    """The rows of a small sweep, run in a process of its own, on an emulated processor if named."""
    spec = out.with_suffix(".toml")
    spec.write_text(SPEC, "utf-8")
    words = ["-m", "polar_jax", "sweep", "run", str(spec), "--out", str(out), "--quiet"]
    before = emulated.before(cpu) if cpu else []
    done = subprocess.run(
        [*before, sys.executable, *words, "--no-report", "--devices", "1", *more],
        env={**os.environ, "XDG_CACHE_HOME": str(out.parent / f"cache{cpu}"), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sweep.load(out)


@emulated.has_portable
@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["xla", "native"])
def test_portable_code_gives_the_bits_of_a_lesser_processor(tmp_path, kernel):
    emulated.before("Haswell")
    if kernel == "native" and native_build.native().reason:
        pytest.skip(f"there is no native code to compare: {native_build.native().reason}")
    env = {"POLAR_JAX_KERNEL": kernel}
    here = run(tmp_path / "here", "--portable", **env)
    found = json.loads((tmp_path / "here" / "manifest.json").read_text())["machine"]
    assert found["code"] == processors.PORTABLE
    assert found["instruction_set"] == processors.instruction_set()
    # Of another make, and without AVX-512; minutes, as every instruction is translated.
    assert run(tmp_path / "lesser", "--portable", cpu="Haswell", **env).equals(here)
    # The control: where code may use all that this processor has, its bits differ.
    if "x86-64-v4" in processors.instruction_set():
        assert not run(tmp_path / "full", **env).equals(here)
