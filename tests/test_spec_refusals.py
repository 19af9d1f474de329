"""Specs of sweeps: filters, and what a file is refused for: always one line."""

import json
import pathlib
from collections.abc import Callable

import pytest

from polar_jax.sweep import spec

NOWHERE = pathlib.Path("/nonexistent")


def parsed(text: str, folder: pathlib.Path = NOWHERE) -> spec.Spec:
    """A spec called `study`."""
    return spec.parse(text, name="study", folder=folder)


def refused(text: str, folder: pathlib.Path = NOWHERE) -> str:
    """The one line that a spec is refused with."""
    with pytest.raises(spec.SpecError) as caught:
        parsed(text, folder)
    message = str(caught.value)
    assert message.startswith("study.toml: ")
    assert "\n" not in message
    return message


# Ranges


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("alpha = {from = 0, to = 1}", "must have from, to and one of points and step"),
        ("alpha = {from = 0, points = 2}", "must have from, to"),
        ("alpha = {from = 0, to = 1, points = 2, step = 1}", "one of points and step"),
        ("alpha = {from = 0, to = 1, point = 2}", 'has no key "point" (did you mean points?)'),
        ("alpha = {from = 1, to = 0, points = 2}", "alpha.from must be at most to = 0; got 1"),
        ("alpha = {from = 0, to = 1, points = 1}", "points must be in [2, 100,000]; got 1"),
        ("alpha = {from = 0, to = 1, points = 2.5}", "points must be a whole number; got 2.5"),
        ("alpha = {from = 0, to = 1, points = 1e9}", "got 1000000000"),
        ("alpha = {from = 0, to = 1, step = 0}", "step must be above 0"),
        ("alpha = {from = 0, to = 1, step = 1e-9}", "at most 100,000 values; got 1e-09"),
        ("alpha = {from = 0, to = 1, step = -1}", "step must be above 0"),
        ('alpha = {from = 0, to = 1, points = 3, scale = "log"}', "above 0, and points; got from"),
        ('alpha = {from = 1, to = 9, step = 2, scale = "log"}', "above 0, and points; got step"),
        ('alpha = {from = 1, to = 9, points = 2, scale = "ln"}', '"linear" or "log"; got "ln"'),
        ("slots = {from = 0.5, to = 2, points = 2}", "slots.from must be a whole number; got 0.5"),
        ("costs = {from = 1, to = 2, points = 2}", "must be a list, as it holds no numbers"),
        ("switching_term = {from = 0, to = 1, points = 2}", "holds no numbers"),
        ("alpha = {from = 1, to = 1, points = 2}", "must not repeat a value"),
    ],
)
def test_ranges_that_cannot_be_are_refused(line: str, words: str) -> None:
    message = refused(f"[axes]\n{line}")
    assert words in message
    assert f" {line.split(' =')[0]}" in message


# Filters


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("slots < 2", [0, 1]),
        ("cache_slots <= num_adapters - 12", [0, 1, 2, 3]),
        ("1 <= slots < 3", [1, 2]),
        ("slots in [0, 4, 1 + 1]", [0, 2, 4]),
        ("slots not in (0, 4)", [1, 2, 3]),
        ("not slots % 2 == 0", [1, 3]),
        ("slots // 2 == 1 or slots == 0", [0, 2, 3]),
        ("slots / 2 == 0.5 and (slots > 0)", [1]),
        ("-slots * 2 >= -4", [0, 1, 2]),
        ('policy == "lru" and slots == 1', [1]),
        ('policies != "lru" or slots == +4', [4]),
        ('environment in ["clustered", "sticky"] and true', [0, 1, 2, 3, 4]),
        ("switching_term and slots == 3", [3]),
        ("switching_term == True and slots == 3", [3]),
        ("slots == 0 or 4 / slots == 2", [0, 2]),
        ("  slots == 2 ", [2]),
        ('costs == "qwen2.5-7b" and slots == 2', [2]),
        ("seeds == 64 and base_seed == 0 and slots == 2", [2]),
    ],
)
def test_filters_keep_what_they_say(text: str, kept: list[int]) -> None:
    toml = f'filters = [{json.dumps(text)}]\n[fixed]\npolicies = "lru"\n[axes]\n'
    toml += "slots = [0, 1, 2, 3, 4]\n"
    assert [one.config.slots for one in parsed(toml).configurations] == kept


def test_several_filters_must_all_hold() -> None:
    found = parsed('filters = ["slots > 0", "slots < 2"]\n[axes]\nslots = [0, 1, 2]')
    assert {one.config.slots for one in found.configurations} == {1}
    assert found.filters == ("slots > 0", "slots < 2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cache_slot < 2", "reads cache_slot, which is no option (did you mean cache_slots?)"),
        ("policy == lru", "reads lru, which is no option"),
        ("policy == 'polar_pls'", "got 'polar_pls' (did you mean 'polar_plus'?)"),
        ("environment in ['clustred']", "(did you mean 'clustered'?)"),
        ("__import__('os').system('x')", "must not hold"),
        ("horizon.bit_length() > 3", "must not hold"),
        ("[x for x in [1]] == 1", "must not hold"),
        ("(lambda: True)()", "must not hold"),
        ("slots ** 99999999 > 1", "cannot be read"),
        ("slots == None", "must not hold"),
        ("slots is 3", "cannot be read"),
        ("slots = 3", "cannot be read"),
        ("slots <", "cannot be read"),
        ("", "cannot be read"),
        ("(" * 5000, "cannot be read"),
        ("policy in 'polar_plus'", "needs a list [..] after in"),
        ("slots", '"slots" must be true or false, got 4'),
        ("slots or alpha", "must be true or false"),
        ("not slots", "must be true or false"),
        ("slots / 0 > 1", "division by zero"),
        ("policy < 3", '"polar" cannot be compared with 3'),
        ("policy in [3]", '"polar" cannot be compared with 3'),
        ("switching_term == 1", "true cannot be compared with 1"),
        ("[slots] == [4]", "[4] cannot be compared with [4]"),
        ("policy * 3 == 'lru'", 'arithmetic needs numbers, got "polar"'),
        ("epoch_length < 3", "epoch_length has no value, as the spec does not set it"),
        ("slots > 99", "the grid is empty"),
    ],
)
def test_filters_that_say_nothing_are_refused(text: str, words: str) -> None:
    message = refused(f"filters = [{json.dumps(text)}]")
    assert words in message
    assert "filter" in message


# What is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[fixed]\nhorizn = 3", '[fixed] has no key "horizn" (did you mean horizon?); allowed: '),
        ("[axes]\ncontext-dim = [3]", '"context-dim" (did you mean context_dim?)'),
        (
            "[[zip]]\nnum_adapter = [3]",
            '[[zip]] block 1 has no key "num_adapter" (did you mean num',
        ),
        ("[axis]\nslots = [1]", 'no key "axis" (did you mean axes?); allowed: title, description'),
        ("horizon = 10", "horizon must stand under [fixed], [axes] or [[zip]]"),
        (
            "[fixed]\nout = 'x'",
            "must not hold out: it is about the machine and belongs on the command",
        ),
        ("[fixed]\ndevices = 2", "as --devices"),
        ("[axes]\nquiet = [true]", "as --quiet"),
        ("[[zip]]\noverwrite = [true]", "as --overwrite"),
        ("[axes]\nseeds = [1, 2]", "they repeat every configuration and are no axis"),
        ("[fixed]\nadapters = 4.5", "[fixed] adapters must be a whole number; got 4.5."),
        ("[fixed]\nadapters = true", "adapters must be a whole number; got true."),
        ('[fixed]\nadapters = "4"', 'must be a whole number; got "4".'),
        ("[fixed]\nhorizon = inf", "must be a whole number; got Infinity."),
        ("[fixed]\nalpha = nan", "must be a finite number; got NaN."),
        ("[fixed]\nalpha = true", "must be a finite number; got true."),
        ("[fixed]\nalpha = 2024-01-01", "must be a finite number; got"),
        ("[fixed]\nswitching_term = 1", "must be true or false; got 1."),
        ("[fixed]\ncosts = 1", "must be a string; got 1."),
        ("[fixed]\npaging = 1", "must be a file's path in a string; got 1."),
        ("[fixed]\nslots = [1, 2]", "a list or a range belongs in [axes]"),
        ("[axes]\nslots = 3", "must be a list or a range"),
        ("[axes]\nslots = []", "[axes] slots must hold 1 to 100,000 values; got 0."),
        ("[axes]\nslots = [1, 2.5]", "[axes] slots[1] must be a whole number; got 2.5."),
        ("[axes]\nalpha = [0.5, 1, 0.5]", "got 0.5 more than once"),
        ("[axes]\nslots = [1, 1.0]", "got 1 more than once"),
        ("[axes]\nslots = [1]\n[fixed]\ncache_slots = 2", "sets what [axes] slots sets already"),
        ("[axes]\nslots = [1]\ncache_slots = [2]", "[axes] cache_slots sets what [axes] slots"),
        ("[[zip]]\nslots = [1]\n[[zip]]\nslots = [2]", "[[zip]] block 2 slots sets what [[zip]] b"),
        ("[zip]\nslots = [1]", "zip must be written [[zip]]"),
        ("[[zip]]", "[[zip]] block 1 is empty"),
        ("[[zip]]\nslots = [1, 2]\nalpha = [1]", "equal length; got cache_slots 2, alpha 1"),
        ("[[zip]]\nslots = [1, 1]\nalpha = [2, 2]", "got [1, 2.0] more than once"),
        ("[[axes]]\nslots = [1]", "axes must be a table, [axes]"),
        ("fixed = 3", "fixed must be a table, [fixed]; got 3"),
        ("title = 3", "title must be a string; got 3"),
        ('padding = "allways"', "one of auto, always, never; got 'allways' (did you mean 'always'"),
        ('filters = "slots > 1"', "filters must be a list of strings"),
        ("filters = [1]", "filters must be a list of strings"),
        ('[fixed]\nenvironment = "stiky"', "got 'stiky' (did you mean 'sticky'?)"),
        ('[fixed]\nbeta = "theroy"', "beta must be one of constant, theory"),
        ('[fixed]\npolicies = ["polr"]', "[fixed] policies must be one of polar"),
        ('[fixed]\npolicies = ["lru", "all"]', "got 'all'"),
        ('[fixed]\npolicies = ["lru", "lru"]', "got lru more than once"),
        ("[fixed]\npolicies = []", "[fixed] policies must name one or more"),
        ("[axes]\npolicy = [1]", "must be a list of policies' names; got [1]"),
        ('[[zip]]\npolicy = ["all"]', "policy[0] must be one of"),
        (
            '[scaling]\naxis = "slots"',
            "[scaling] axis must be an axis of this sweep; slots is none",
        ),
        ('[scaling]\naxis = "alpha"', "one of horizon, adapters, slots, context_dim; got 'alpha'"),
        ('[scaling]\naxes = "slots"', 'has no key "axes" (did you mean axis?)'),
        ("[scaling]", "[scaling] is empty; allowed: axis"),
        ("[scaling]\naxis = 3", "[scaling] axis must be the name of an axis; got 3"),
        (
            "[report]\nchosen_on = 64",
            "chosen_on must be a whole number in [1, 63], got 64",
        ),
        ("[fixed]\nseeds = 1\n[report]\nchosen_on = 1", "chosen_on needs 2 or more seeds"),
        ('[report]\nx = "slots"', "[report] x needs an axis other than policy"),
        ('[report]\nx = "policy"\n[axes]\nslots = [1]', "[report] x must be one of slots"),
        ("[fixed", "not valid TOML: "),
        ("[fixed]\nslots = 1\nslots = 2", "(at line 3, column 10)"),
        ("it = " + "[" * 5000, "not valid TOML"),
        ("[fixed]\nhorizon = 0x" + "f" * 9000, "[fixed] horizon must be a whole number"),
    ],
)
def test_a_spec_that_cannot_be_used_is_refused_in_one_line(text: str, words: str) -> None:
    assert words in refused(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slots = [1, 99]", 'cache_slots = 99, policy = "polar": slots must be in [0, 15]'),
        ("slots = [1, 99]", 'filters = ["cache_slots <= num_adapters"]'),
        ("slots = [-1]", "slots must be a whole number in [0, 15]"),
        ("horizon = [0]", "horizon must be a whole number in [1, "),
        ("context_dim = [8, 0]", "configuration context_dim = 0, "),
        ("ridge = [0]", "ridge must be a number in [1e-06, 1e+06]"),
        ("stay = [0.95]", "stay must be a number in [0, 0.9]"),
        ("segments = [30000]", "segments must be a whole number in [1, 20000]"),
        ('costs = ["synthetic:x"]', "costs must be "),
        ("price_per_ms = [-1]", "price_per_ms must be a number"),
    ],
)
def test_values_out_of_range_name_the_configuration(text: str, words: str) -> None:
    message = refused(f"[axes]\n{text}")
    assert words in message
    assert "--" not in message


def test_a_filter_keeps_impossible_configurations_from_being_refused() -> None:
    axes = "[axes]\nadapters = [4, 8]\nslots = [2, 6]"
    assert "filters = " in refused(axes)
    found = parsed(f'filters = ["cache_slots <= num_adapters"]\n{axes}')
    sizes = {(one.config.adapters, one.config.slots) for one in found.configurations}
    assert sizes == {(4, 2), (8, 2), (8, 6)}


def test_grids_too_large_are_refused_before_they_are_made() -> None:
    many = "{from = 0, to = 1, points = 1001}"
    message = refused(f"[axes]\nalpha = {many}\nnoise = {many}")
    assert "the axes make 9,018,009 combinations; at most 1,000,000" in message


def test_more_configurations_than_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "MAX_CONFIGURATIONS", 8)
    assert "must make at most 8 configurations" in refused("")
    assert len(parsed("filters = [\"policy != 'lru'\"]").configurations) == 8


def test_paging_files_must_be_there_and_stand_alone(tmp_path: pathlib.Path) -> None:
    assert 'paging "no.csv" cannot be read: No such file' in refused(
        '[fixed]\npaging = "no.csv"', tmp_path
    )
    both = '[fixed]\npaging = "no.csv"\ncosts = "qwen2.5-7b"'
    assert "costs and paging exclude each other" in refused(both, tmp_path)


# Files


def test_a_file_is_read_with_its_name_and_folder(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "my_study.toml"
    path.write_bytes(b'\xef\xbb\xbftitle = "\xc3\xa9t\xc3\xa9"\r\n[fixed]\r\nslots = 2\r\n')
    found = spec.read(path)
    assert (found.name, found.title, found.fixed["slots"]) == ("my_study", "\u00e9t\u00e9", 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (pathlib.Path.exists, "No such file or directory"),
        (pathlib.Path.mkdir, "Is a directory"),
        (lambda path: path.write_bytes(b"title = '\xff'"), "must be UTF-8 text; byte 9 is not"),
        (lambda path: path.write_text("[fixed]\nx = "), "not valid TOML: Invalid value"),
        (lambda path: path.write_text("[fixed]\nx = = 3"), "(at line 2, column 5)"),
        (lambda path: path.write_text("\n\nx = [3,"), "(at the end, line 3)"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: pathlib.Path, make: Callable[[pathlib.Path], object], words: str
) -> None:
    path = tmp_path / "bad.toml"
    make(path)
    with pytest.raises(spec.SpecError) as caught:
        spec.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
