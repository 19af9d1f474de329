"""`polar-jax run` on replays and `polar-jax replay check`: what they print, write and refuse."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from replay_data import made

from polar_jax import cli, configured, replay_facts, replays
from polar_jax.config import RunConfig
from polar_jax.io import write_replay

SMALL = "--slots 2 --horizon 300 --seeds 2 --policies lru"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_replay(tmp_path / "mine.npz", made())
    write_replay(tmp_path / "outcomes.parquet", made(binary=True))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def facts_of(replay: replays.Replay) -> replay_facts.Facts:
    return replay_facts.facts(replay, slots=(1, 2, 9))


def test_facts_are_what_plain_loops_say():
    replay = made(num_requests=200, num_adapters=4)
    found = facts_of(replay)
    u = replay.utilities.astype(np.float64)
    assert (found.requests, found.adapters, found.features, found.domains) == (200, 4, 4, 3)
    assert found.best_adapter == replay.adapters[int(np.argmax(u.mean(axis=0)))]
    assert found.best_adapter_utility == pytest.approx(u.mean(axis=0).max(), rel=1e-6)
    assert found.oracle_utility == pytest.approx(u.max(axis=1).mean(), rel=1e-6)
    by_domain = sum(u[replay.domains == g].sum(axis=0).max() for g in range(3)) / 200
    assert found.domain_utility == pytest.approx(by_domain, rel=1e-6)
    pairs = {(i, j): u[:, [i, j]].max(axis=1).mean() for i in range(4) for j in range(i)}
    assert [one.slots for one in found.static_sets] == [1, 2]
    assert found.static_sets[1].utility == pytest.approx(max(pairs.values()), rel=1e-6)
    assert found.static_sets[1].exact
    fitted = replays.cross_fitted(replay.contexts, replay.utilities)
    chosen = np.mean([u[m, np.argmax(fitted[m])] for m in range(200)])
    assert found.linear_utility == pytest.approx(chosen, rel=1e-6)
    r2 = [
        1 - ((u[:, i] - fitted[:, i]) ** 2).sum() / ((u[:, i] - u[:, i].mean()) ** 2).sum()
        for i in range(4)
    ]
    assert found.r_squared == pytest.approx(np.mean(r2), abs=1e-4)


def test_the_verdict_tells_whether_a_linear_router_can_learn():
    rng = np.random.default_rng(0)
    good = facts_of(made())
    assert "can learn here" in replay_facts.verdict(good)
    assert 0.5 < good.learnable <= 1.0
    # Contexts that say nothing: routing by them is no better than the best single adapter.
    blind = replays.make_replay(
        rng.normal(size=(300, 4)), rng.random((300, 5)) + np.eye(5)[0] * 0.3
    )
    assert "nothing to learn" in replay_facts.verdict(facts_of(blind))
    alike = replays.make_replay(rng.random((20, 2)), np.ones((20, 3)))
    assert "nothing to route" in replay_facts.verdict(facts_of(alike))
    assert replay_facts.plain(facts_of(alike))["learnable"] is None


@pytest.mark.usefixtures("folder")
def test_check_prints_facts_and_a_verdict(capsys):
    assert cli.main(["replay", "check", "mine.npz"]) == 0
    shown = capsys.readouterr().out
    for words in ("requests, M", "300", "the best static 2", "cross-fitted", "can learn here"):
        assert words in shown
    assert cli.main(["replay", "check", "outcomes.parquet", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["binary"] is True
    assert told["adapters"] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("replay chekc mine.npz", "replay must be followed by check; got 'chekc'"),
        ("replay check none.npz", "No such file or directory: 'none.npz'"),
        ("replay check mine.csv", "No such file or directory: 'mine.csv'"),
        ("replay check mine.npz --slots 0", "--slots must be whole numbers of at least 1; got 0"),
        ("replay check mine.npz --missing some", "--missing must be a number or adapter-mean"),
        ("run --environment mine.npz --adapters 5", "--adapters must be left out with a replay"),
        ("run --environment mine.npz --context-dim 4", "--context-dim must be left out"),
        ("run --environment mine.npz --slots 6", "--slots must be a whole number in [0, 5]"),
        ("run --environment mine.npz --order sorted", "--order must be one of recorded"),
        ("run --environment mine.npz --benchmark best", "--benchmark must be one of auto"),
        ("run --environment mine.npz --arrivals none.csv", "No such file"),
        ("run --environment mine.npz --prior none", "--prior must be one of zero, pooled"),
        ("run --order sticky", "--order needs a replay as --environment"),
        ("run --arrivals azure-2023-conv", "--arrivals needs a replay"),
        ("run --missing 0", "--missing needs a replay"),
        ("run --benchmark linear", "--benchmark needs a replay"),
        ("run --environment mine.txt", "--environment must be one of"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, capsys, words, message):
    before = sorted(folder.rglob("*"))
    assert cli.main(words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_run_on_a_replay_says_what_was_replayed(folder, capsys):
    words = f"run --environment mine.npz --order trace {SMALL} --out out"
    assert cli.main(words.split()) == 0
    details = json.loads((folder / "out" / "manifest.json").read_text())
    stream = details["environment"]
    assert stream["name"] == "replay-trace"
    assert stream["source"] == "mine.npz"
    assert stream["digest"] == configured.read_replay(RunConfig(environment="mine.npz")).digest
    assert stream["arrivals"] == "azure-2023-conv"
    assert stream["benchmark"] == "utilities as measured"
    assert stream["largest_norm"] == pytest.approx(1.0, abs=1e-6)
    assert details["problem"]["num_adapters"] == 5
    assert details["policy_settings"]["prior"] == "pooled"
    rows = pl.read_parquet(folder / "out" / "results.parquet")
    assert rows["waiting_ms_per_request"].dtype == pl.Float64
    assert "mine.npz" in (folder / "out" / "report.html").read_text()
    assert "regret" in capsys.readouterr().out


@pytest.mark.slow
def test_single_outcomes_say_that_net_utility_is_the_figure_to_read(folder, capsys):
    words = f"run --environment outcomes.parquet {SMALL} --out out"
    assert cli.main(words.split()) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "read net utility first" in shown
    details = json.loads((folder / "out" / "manifest.json").read_text())
    assert "linear" in details["environment"]["benchmark"]
    assert "read net utility first" in (folder / "out" / "report.html").read_text()
