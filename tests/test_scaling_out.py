"""The simulation of studies on many devices: what can be worked out by hand."""

import importlib.util
import pathlib
import sys

import pytest

PATH = pathlib.Path(__file__).parents[1] / "sweeps" / "scaling_out.py"
_found = importlib.util.spec_from_file_location("scaling_out", PATH)
assert _found is not None
assert _found.loader is not None
scaling_out = importlib.util.module_from_spec(_found)
sys.modules["scaling_out"] = scaling_out
_found.loader.exec_module(scaling_out)
QUIET = scaling_out.Cluster(queue=0.0, start=10.0, cached=1.0, store=0.5)


def study(*shards: tuple[float, set[int]]):
    """A study of some shards and two programs of 20 and 30 s."""
    works = tuple(scaling_out.Work(seconds, frozenset(programs)) for seconds, programs in shards)
    return scaling_out.Study("t", 1000, works, (20.0, 30.0))


def test_one_device_starts_compiles_once_and_stores_each_shard():
    ran = scaling_out.simulate(study((100.0, {0}), (100.0, {0, 1})), 1, QUIET)
    assert ran.seconds == pytest.approx(10 + 20 + 100 + 0.5 + 30 + 100 + 0.5)
    assert ran.device_seconds == ran.seconds
    assert ran.efficiency == pytest.approx(200 / ran.seconds)


def test_who_comes_while_another_compiles_compiles_too_and_later_ones_read_it():
    ran = scaling_out.simulate(study(*[(100.0, {0})] * 3), 2, QUIET)
    # The third shard goes to a process that has the program by then.
    assert ran.seconds == pytest.approx(10 + 20 + 2 * 100.5)
    assert ran.device_seconds == pytest.approx(2 * (10 + 20) + 3 * 100.5)
    ran = scaling_out.simulate(study((100.0, {0}), (100.0, {1}), (100.0, {0, 1})), 2, QUIET)
    # The first one is free first; it reads the other's program.
    assert ran.seconds == pytest.approx(10 + 20 + 100.5 + 1 + 100.5)


def test_more_devices_than_shards_cost_and_do_not_help():
    few, many = (scaling_out.simulate(study((100.0, {0})), n, QUIET) for n in (1, 8))
    assert many.seconds == few.seconds
    assert many.device_seconds == few.device_seconds + 7 * 10


def test_a_faster_device_shortens_work_alone():
    fast = scaling_out.dataclasses.replace(QUIET, speed=100.0)
    ran = scaling_out.simulate(study((100.0, {0})), 1, fast)
    assert ran.seconds == pytest.approx(10 + 20 + 1 + 0.5)
    assert ran.efficiency == pytest.approx(1 / ran.seconds)


def test_the_shipped_study_is_cut_as_the_plan_cuts_it():
    path = PATH.parent / "quick.toml"
    once, often = (scaling_out.study(path, 300.0, times) for times in (1, 1000))
    assert often.decisions == 1000 * once.decisions
    works = [sum(work.seconds for work in one.shards) for one in (once, often)]
    assert works[1] == pytest.approx(1000 * works[0])
    assert max(work.seconds for work in often.shards) <= 300.0
    # Its lanes fill a processor's tiles, and almost none of an accelerator's.
    assert scaling_out.tile_fill(path, "cpu") == 1.0
    assert scaling_out.tile_fill(path, "gpu") < 0.05
