"""Schedulers that do not answer, or not any more: nothing is lost, and nothing stays locked."""

import dataclasses

import pytest
from cluster_scheduler import Scheduler, finish, four_shards, in_place_of_all, states, submit

from polar_jax import cli
from polar_jax.cluster import engines, journal, standing
from polar_jax.cluster.engines import EngineError
from polar_jax.sweep import plan as plans


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """The scheduler, in the place of all others."""
    return in_place_of_all(monkeypatch)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> plans.Plan:
    """A sweep of four shards."""
    return four_shards(tmp_path_factory.mktemp("spec"))


def test_a_scheduler_that_does_not_answer_makes_nothing_lost(tmp_path, plan, scheduler):
    out = tmp_path / "out"
    submit(plan, out)
    scheduler.answers = False
    found = standing.Reader(out).read()
    assert [one.state for one in found.shards] == ["queued"] * 4
    assert found.notes == [
        "what is queued is not known: it sleeps (submission 1; if it is gone for good: `sweep "
        "cancel OUT --forget 1`)"
    ]
    assert not found.is_over
    with pytest.raises(engines.UnreachableError, match="it sleeps"):
        submit(plan, out)


def test_a_scheduler_is_not_asked_about_what_is_done(tmp_path, plan, scheduler):
    out = tmp_path / "out"
    submit(plan, out)
    for index in range(4):
        finish(out, plan, index)
    scheduler.answers, scheduler.asked = False, set()
    found = standing.Reader(out).read(sure=True)
    assert found.is_over
    assert not found.notes
    assert not scheduler.asked


def test_all_done_is_over_whatever_a_scheduler_says(tmp_path, plan, scheduler):
    submit(plan, tmp_path / "out")
    scheduler.answers = False
    found = standing.Reader(tmp_path / "out").read()
    done = [dataclasses.replace(one, state="done") for one in found.shards]
    assert found.notes
    assert dataclasses.replace(found, shards=done).is_over
    assert not dataclasses.replace(found, shards=[*done, found.shards[0]]).is_over


def test_one_address_that_is_gone_leaves_the_others_known(tmp_path, plan, scheduler, capsys):
    out = tmp_path / "out"
    scheduler.takes = 2
    with pytest.raises(EngineError, match="full"):
        submit(plan, out, engine="ray", address="gone:1")
    submit(plan, out, engine="ray", address="here:2")
    scheduler.dead = {"gone:1"}
    queue, complaints = standing.ask(journal.read(out))
    assert set(queue) == {(2, 0), (2, 1)}
    assert complaints == {1: "it sleeps"}
    with pytest.raises(engines.UnreachableError, match="sweep cancel OUT --forget 1"):
        submit(plan, out, engine="ray", address="here:2")
    # What answers is cancelled, what does not is said.
    assert cli.main(["sweep", "cancel", str(out)]) == 1
    assert scheduler.cancelled == [2]
    captured = capsys.readouterr()
    assert captured.out.startswith("cancelled 2 tasks")
    assert captured.err.startswith("polar-jax: error: it sleeps (submission 1; ")
    assert captured.err.count("\n") == 1


def test_a_submission_whose_scheduler_is_gone_can_be_forgotten(tmp_path, plan, scheduler, capsys):
    out = tmp_path / "out"
    submit(plan, out)
    words = ["sweep", "cancel", str(out), "--forget"]
    assert cli.main([*words, "1"]) == 2
    assert "that of submission 1 has tasks of it" in capsys.readouterr().err
    assert cli.main([*words, "2"]) == 2
    assert "--forget must be the number of a submission (1), got 2" in capsys.readouterr().err
    scheduler.answers = False
    assert cli.main([*words, "1"]) == 0
    assert "no scheduler is asked about submission 1 any more" in capsys.readouterr().out
    found = standing.Reader(out).read(sure=True)
    assert [(one.state, one.attempts) for one in found.shards] == [("lost", 0)] * 4
    assert found.is_over
    assert submit(plan, out).chosen.shards == [0, 1, 2, 3]


@pytest.mark.parametrize(("answers", "said"), [(True, "has tasks of"), (False, "is not known")])
def test_a_submission_that_the_scheduler_may_have_stays_on_record(
    tmp_path, plan, scheduler, answers, said
):
    out = tmp_path / "out"
    scheduler.loses, scheduler.answers = True, answers
    with pytest.raises(EngineError, match=rf"^timed out; .*{said}.*, so its record stays$"):
        submit(plan, out)
    assert [one.number for one in journal.read(out)] == [1]
    scheduler.loses, scheduler.answers = False, True
    assert states(out) == ["queued", "missing", "missing", "missing"]
    assert submit(plan, out).chosen.shards == [1, 2, 3]
