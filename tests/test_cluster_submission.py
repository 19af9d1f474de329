"""What is handed to a scheduler and how it stands, with a scheduler that tests make up."""

import dataclasses
import io
import pathlib

import pytest
import sweep_helpers
from cluster_scheduler import (
    Scheduler,
    finish,
    four_shards,
    in_place_of_all,
    options,
    states,
    submit,
)
from rich.console import Console

from polar_jax import cli, terminal
from polar_jax.cluster import journal, standing, submission, watch
from polar_jax.cluster.engines import Alive, EngineError
from polar_jax.cluster.task import MAX_FRUITLESS, Task, TaskError, planned
from polar_jax.sweep import plan as plans
from polar_jax.sweep import spec as specs
from polar_jax.sweep import store


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """The scheduler, in the place of all others."""
    return in_place_of_all(monkeypatch)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> plans.Plan:
    """A sweep of four shards."""
    return four_shards(tmp_path_factory.mktemp("spec"))


def test_only_what_is_missing_and_not_queued_is_handed_over(tmp_path, plan, scheduler):
    out = tmp_path / "out"
    first = submit(plan, out)
    assert first.submission is not None
    assert first.submission.tasks == [[0], [1], [2], [3]]
    assert submit(plan, out) == (None, submission.Chosen([], 0, 4, []))
    assert states(out) == ["queued"] * 4
    finish(out, plan, 2)
    del scheduler.alive[1, 2], scheduler.alive[1, 3]
    second = submit(plan, out, shards_per_task=2)
    assert second.submission is not None
    assert second.submission.tasks == [[3]]
    assert states(out) == ["queued", "queued", "done", "queued"]


def test_a_damaged_shard_counts_as_failed_and_is_handed_over_again(tmp_path, plan, scheduler):
    out = tmp_path / "out"
    finish(out, plan, 1)
    sweep_helpers.cut(out / "shards" / "0" / "1.parquet")
    assert submit(plan, out).chosen.shards == [0, 1, 2, 3]
    scheduler.alive = {}
    found = standing.Reader(out).read().shards[1]
    assert found.state == "failed"
    assert "is damaged" in found.detail


def test_sweeps_know_nothing_of_clusters():
    sources = pathlib.Path(store.__file__).parent.glob("*.py")
    assert not [path.name for path in sources if "polar_jax.cluster" in path.read_text("utf-8")]


def test_before_a_sweep_counts_as_done_all_its_pages_are_read(tmp_path, plan, scheduler):
    out = tmp_path / "out"
    for index in range(4):
        finish(out, plan, index)
    assert submit(plan, out) == (None, submission.Chosen([], 4, 0, []))
    path = out / "shards" / "0" / "2.parquet"
    data = bytearray(path.read_bytes())
    # In the pages: the footer says the same as before.
    for place in range(4, 200):
        data[place] ^= 0xFF
    path.write_bytes(data)
    assert states(out) == ["done"] * 4
    chosen, _ = submission.preview(plan, options(plan), out, terminal.prepare_jax)
    assert chosen.shards == [2]
    assert submit(plan, out).chosen.shards == [2]
    assert scheduler.alive


def test_a_shard_that_was_tried_before_gets_a_task_of_its_own(tmp_path, plan, scheduler):
    out = tmp_path / "out"
    scheduler.takes = 1
    with pytest.raises(EngineError, match="full"):
        submit(plan, out, shards_per_task=2)
    scheduler.takes, scheduler.alive = 1000, {}
    second = submit(plan, out, shards_per_task=2).submission
    assert second is not None
    assert second.tasks == [[2, 3], [0], [1]]


def test_several_shards_make_a_task_when_told_so(tmp_path, plan, scheduler):
    del scheduler
    found = submit(plan, tmp_path / "out", shards_per_task=3)
    assert found.submission is not None
    assert found.submission.tasks == [[0, 1, 2], [3]]


def test_states_join_the_queue_the_files_and_the_logs(tmp_path, plan, scheduler):
    out = tmp_path / "out"
    one = submit(plan, out).submission
    assert one is not None
    finish(out, plan, 0)
    scheduler.alive = {(1, 1): Alive(True, "")}
    one.logs.mkdir(parents=True)
    (one.logs / "7_2_0_log.out").write_text(
        "working\nsrun: error: host: task 0: Killed\nsrun: error: Exited with exit code 137\n\n"
    )
    one.record_end(3, "failed", "no GPU here")
    found = standing.Reader(out).read()
    assert [(shard.state, shard.detail) for shard in found.shards] == [
        ("done", ""),
        ("running", ""),
        ("lost", "srun: error: host: task 0: Killed"),
        ("failed", "no GPU here"),
    ]
    assert (found.made, found.total) == (4000, plan.decisions)
    assert found.per_second == pytest.approx(4000 / 1.5)
    told = watch.lines(found)
    assert told[0] == "shards: 1 of 4 done, 1 running, 0 queued, 1 failed, 1 lost"
    assert any("pace: 2.7 k decisions/s on 1 shard at once" in line for line in told)
    assert (
        "shard 2 lost: srun: error: host: task 0: Killed (submitted 1 time; log 7_2_0_log.out)"
        in told
    )


@pytest.mark.parametrize(("free", "said"), [(None, False), (2**19, True), (2**21, False)])
def test_a_full_disk_is_said_beside_what_it_may_have_cut_off(tmp_path, plan, scheduler, free, said):
    submit(plan, tmp_path / "out")
    scheduler.alive = {}
    found = dataclasses.replace(standing.Reader(tmp_path / "out").read(), free_bytes=free)
    assert any(shard.state == "lost" for shard in found.shards)
    line = "the disk of the folder is full: 512 KiB left"
    assert (line in watch.lines(found)) == said
    calm = dataclasses.replace(found, shards=[])
    assert line not in watch.lines(calm)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (9_999, "pace: 100 decisions/s on 1 shard at once; too early to say how long it takes"),
        (10_000, "pace: 100 decisions/s on 1 shard at once; about 2 h 45 min left"),
    ],
)
def test_no_time_is_told_while_most_of_it_was_starting(made: int, said: str) -> None:
    shards = [standing.Shard(0, "running", "", 1)]
    found = standing.Standing("", shards, made, 1_000_000, 100.0, [], [], None)
    assert said in watch.lines(found)


def test_a_shard_that_failed_before_counts_as_lost_when_its_last_task_vanished(
    tmp_path, plan, scheduler
):
    out = tmp_path / "out"
    finish(out, plan, 0)
    store.open_existing(out).record_failure(1, "out of luck", "")
    submit(plan, out)
    scheduler.alive = {}
    later = "2999-01-01T00:00:00+00:00"
    path = out / "failures" / "1.json"
    assert states(out)[1] == "failed"
    path.write_text(path.read_text().replace(path.read_text().split('"time": "')[1][:25], later))
    assert states(out)[1] == "failed"
    path.write_text(path.read_text().replace(later, "1999-01-01T00:00:00+00:00"))
    assert states(out)[1] == "lost"


def test_lost_shards_are_handed_over_again_a_stated_number_of_times(tmp_path, plan, scheduler):
    out = tmp_path / "out"
    for _ in range(2):
        assert submit(plan, out, max_attempts=2).submission is not None
        scheduler.alive = {}
        assert states(out) == ["lost"] * 4
    found = submit(plan, out, max_attempts=2)
    assert found == (None, submission.Chosen([], 0, 0, [0, 1, 2, 3]))
    third = submit(plan, out, max_attempts=3).submission
    assert third is not None
    third.record_cancelled()
    scheduler.alive = {}
    assert states(out) == ["stopped"] * 4
    # What was cancelled does not count.
    assert submit(plan, out, max_attempts=3).submission is not None


def test_what_was_taken_before_a_refusal_is_known(tmp_path, plan, scheduler):
    out = tmp_path / "out"
    scheduler.takes = 2
    with pytest.raises(EngineError, match="full"):
        submit(plan, out)
    assert states(out) == ["queued", "queued", "missing", "missing"]
    scheduler.takes = 0
    with pytest.raises(EngineError, match="full"):
        submit(plan, out)
    # Nothing of the second was taken, so that no record of it is left.
    assert [one.number for one in journal.read(out)] == [1]
    scheduler.takes = 1000
    assert submit(plan, out).chosen.shards == [2, 3]


def test_another_sweeps_folder_is_refused_and_not_changed(tmp_path, plan, scheduler):
    del scheduler
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "letter.txt").touch()
    with pytest.raises(store.StoreError, match=r"already holds files \(such as 'letter.txt'\)"):
        submit(plan, tmp_path / "files")
    submit(plan, tmp_path / "out")
    other = dataclasses.replace(plan, shard_seconds=0.002)
    with pytest.raises(store.StoreError, match=r"shard_seconds is 0\.001 there, 0\.002 here"):
        submit(other, tmp_path / "out")
    finish(tmp_path / "out", plan, 0)
    with pytest.raises(store.StoreError, match=r"shard_seconds is 0\.001 there, 0\.002 here"):
        submit(other, tmp_path / "out")
    with pytest.raises(store.StoreError, match='jax_platform is "cpu" there, "gpu" here'):
        submit(dataclasses.replace(plan, platform="gpu"), tmp_path / "out")
    assert len(journal.read(tmp_path / "out")) == 1


def test_portable_code_is_asked_of_tasks_and_kept_apart(tmp_path, plan, scheduler, monkeypatch):
    out = tmp_path / "out"
    one = submit(plan, out, portable=True).submission
    assert one is not None
    with pytest.raises(store.StoreError, match="portable is True there, False here"):
        submit(plan, out)
    asked = []
    monkeypatch.setattr(plans, "make", lambda *_, **__: plan)
    planned(one.request, lambda devices, **more: asked.append((devices, more)))
    assert asked == [(1, {"portable": True})]
    finish(out, plan, 0)
    with pytest.raises(store.StoreError, match=r"the code \(--portable\) is .* there, .* here"):
        submit(plan, out, portable=True)
    # The environment says it for all tasks.
    scheduler.alive = {}
    assert submit(plan, out).submission is not None
    monkeypatch.setenv("POLAR_JAX_PORTABLE", "1")
    with pytest.raises(store.StoreError, match=r"the code \(--portable\) is"):
        submit(plan, out)
    with pytest.raises(ValueError, match=r"--portable is about .* the plan is for gpu\.$"):
        submit(dataclasses.replace(plan, platform="gpu"), out)


ON_GPUS = """
[fixed]
adapters = 5
context_dim = 3
seeds = {seeds}
policies = ["lru"]
horizon = 2_000
[axes]
price_per_ms = {prices}
"""


def on_gpus(folder: pathlib.Path, *, many: bool) -> plans.Plan:
    """A plan for GPUs: many shards of one tile each, or one shard of 8 tiles."""
    seeds, prices = (
        (64, [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08]) if many else (32_768, [0.01])
    )
    path = folder / "gpus.toml"
    path.write_text(ON_GPUS.format(seeds=seeds, prices=prices), "utf-8")
    return plans.make(specs.read(path), shard_seconds=1e-3 if many else 1e4, platform="gpu")


@pytest.mark.parametrize(
    ("many", "each", "why"),
    [
        (True, 1, "8 processes of one device each: busy 100% of the time"),
        (False, 8, "one process over all 8 devices: busy 100% of the time"),
    ],
)
def test_the_plan_chooses_how_many_accelerators_a_task_gets(tmp_path, scheduler, many, each, why):
    plan, out = on_gpus(tmp_path, many=many), tmp_path / "out"
    assert len(plan.shards) == (8 if many else 1)
    asked = submission.request(plan, options(plan, gpus_per_node=8), out)["resources"]
    assert (asked["gpus_per_task"], asked["gpus_per_node"]) == (each, 8)
    assert asked["layout"].startswith(why)
    # As asked for where the plan is not to choose.
    asked = submission.request(plan, options(plan, gpus_per_task=2), out)["resources"]
    assert (asked["gpus_per_task"], asked["gpus_per_node"], asked["layout"]) == (2, None, "")
    # Whatever is done by then, and also where it is not said again, the choice stays.
    submit(plan, out, gpus_per_node=8)
    scheduler.alive = {}
    for again, chosen in (({"gpus_per_node": 8}, each), ({}, each), ({"gpus_per_task": 0}, 0)):
        later = submission.request(plan, options(plan, **again), out)["resources"]
        assert later["gpus_per_task"] == chosen
    # What was asked for in its place stays as well.
    submit(plan, out, gpus_per_task=3)
    scheduler.alive = {}
    later = submission.request(plan, options(plan), out)["resources"]
    assert (later["gpus_per_task"], later["gpus_per_node"]) == (3, None)


def test_a_plan_for_processors_does_not_choose_accelerators(tmp_path, plan, scheduler):
    del scheduler
    with pytest.raises(ValueError, match=r"--gpus-per-node is .* the plan is for cpu; got 4\.$"):
        submit(plan, tmp_path / "out", gpus_per_node=4)
    assert submission.platform_of(options(plan, gpus_per_node=4), tmp_path / "out") == "gpu"


def test_submit_says_what_the_plan_chose(tmp_path, scheduler, capsys):
    del scheduler
    plan = on_gpus(tmp_path, many=False)
    words = ["sweep", "submit", str(tmp_path / "gpus.toml"), "--out", str(tmp_path / "out")]
    said = "layout: one process over all 8 devices: busy 100% of the time"
    for more in (["--dry-run"], []):
        assert cli.main([*words, "--shard-seconds", "1e4", "--gpus-per-node", "8", *more]) == 0
        told = capsys.readouterr().out
        assert said in told
        assert "; a task gets 8 of a node's 8.\n" in told
    (one,) = journal.read(tmp_path / "out")
    assert one.request["resources"]["gpus_per_task"] == 8
    assert one.request["plan_hash"] == plan.plan_hash


def test_one_call_at_a_time_works_on_a_sweep(tmp_path, plan, scheduler):
    del scheduler
    submit(plan, tmp_path / "out")
    with (
        journal.locked(tmp_path / "out"),
        pytest.raises(store.StoreError, match="another `polar-jax sweep submit` or `cancel`"),
    ):
        submit(plan, tmp_path / "out")


def test_more_arrays_than_may_run_at_once_are_refused(tmp_path, plan, scheduler):
    del scheduler
    with pytest.raises(ValueError, match="--array-parallelism must be at least 2, as 4 tasks"):
        submit(plan, tmp_path / "out", array_parallelism=1)


def test_cancelling_tells_the_scheduler_and_is_remembered(tmp_path, plan, scheduler, capsys):
    submit(plan, tmp_path / "out")
    assert cli.main(["sweep", "cancel", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("cancelled 4 tasks; 0 of 4 shards are done")
    assert scheduler.cancelled == [1]
    assert states(tmp_path / "out") == ["stopped"] * 4
    assert cli.main(["sweep", "cancel", str(tmp_path / "out")]) == 0
    assert "nothing was cancelled" in capsys.readouterr().out
    # A task that outlived the first call is taken away by the second.
    scheduler.alive = {(1, 3): Alive(True, "")}
    assert cli.main(["sweep", "cancel", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("cancelled 1 task;")
    assert scheduler.cancelled == [1, 1]


def test_the_screen_shows_counts_pace_and_troubles(tmp_path, plan, scheduler):
    out = tmp_path / "out"
    one = submit(plan, out).submission
    assert one is not None
    finish(out, plan, 0)
    one.record_end(1, "failed", "no GPU here")
    scheduler.alive = {}
    console = Console(force_terminal=True, width=100, record=True, file=io.StringIO())
    found = watch.watch(standing.Reader(out), console)
    assert found.is_over
    shown = console.export_text()
    for words in ("Small shards", "done", "lost", "shard 1 failed: no GPU here", "it left no log"):
        assert words in shown


@pytest.mark.slow
def test_a_task_runs_its_shards_and_does_nothing_again(tmp_path, plan, scheduler, capsys):
    del scheduler
    one = submit(plan, tmp_path / "out", shards_per_task=2).submission
    assert one is not None
    task = Task(one.request["out"], 1, 1, lambda _: None)
    assert task() == "2 of 2 shards are done"
    assert states(tmp_path / "out") == ["queued", "queued", "done", "done"]
    assert "task 1 of submission 1: 2 of 2 shards are missing [2, 3]" in capsys.readouterr().out
    assert task() == "0 of 2 shards are done"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"platform": "tpu"}, "the sweep was planned for tpu, this node's JAX has cpu"),
        ({"plan_hash": "0" * 64}, "the spec plans other shards here than where it was submitted"),
    ],
)
def test_a_task_on_the_wrong_node_says_so_and_computes_nothing(
    tmp_path, plan, scheduler, changes, message
):
    one = submit(plan, tmp_path / "out").submission
    assert one is not None
    text = (one.folder / "request.json").read_text()
    for name, value in changes.items():
        text = text.replace(f'"{name}": "{one.request[name]}"', f'"{name}": "{value}"')
    (one.folder / "request.json").write_text(text)
    with pytest.raises(TaskError, match=message):
        Task(one.request["out"], 1, 0, lambda _: None)()
    scheduler.alive = {}
    found = standing.Reader(tmp_path / "out").read().shards[0]
    assert found.state == "failed"
    assert message in found.detail


class Idle:
    """Work that has stored nothing when it is told to end."""

    error = None

    def __init__(self, one: journal.Submission) -> None:
        self.one = one

    def end(self) -> None:
        """Ends at once."""

    def has_stored(self) -> bool:
        return False

    def record(self, state: str, error: str) -> None:
        self.one.record_end(0, state, error)


def test_a_task_that_never_gets_to_store_anything_gives_up(tmp_path, plan, scheduler, monkeypatch):
    pytest.importorskip("submitit")
    one = submit(plan, tmp_path / "out").submission
    assert one is not None
    task = Task(one.request["out"], 1, 0, lambda _: None)
    again = task.checkpoint()
    assert again is not None
    for _ in range(MAX_FRUITLESS - 1):
        monkeypatch.setattr(task, "_work", Idle(one))
        again = task.checkpoint()
        assert again is not None
        task = dataclasses.replace(task, fruitless=vars(again.function)["fruitless"])
    monkeypatch.setattr(task, "_work", Idle(one))
    assert task.checkpoint() is None
    scheduler.alive = {}
    assert "before anything was stored" in standing.Reader(tmp_path / "out").read().shards[0].detail
