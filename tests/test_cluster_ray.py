"""Sweeps through a real Ray of one node: bitwise the local run, a killed task lost alone."""

import os
import pathlib
import re
import signal
from collections.abc import Iterator

import cluster_helpers as helpers
import pytest
import ray_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ray_cluster.absent()), reason=ray_cluster.absent() or "there"),
]
LONG = 300_000  # requests: about 8 s of one core


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ray_cluster.Cluster]:
    """A cluster whose tasks share compiled programs."""
    with ray_cluster.running(programs=tmp_path_factory.mktemp("programs")) as running:
        yield running


def submit(cluster: ray_cluster.Cluster, path: pathlib.Path, out: pathlib.Path, *more: str) -> str:
    words = ("--engine", "ray", "--address", cluster.address, *more)
    return helpers.submit(path, out, *words, environment=cluster.environment)


def watch(cluster: ray_cluster.Cluster, out: pathlib.Path) -> tuple[int, str]:
    """Waits for the end; the exit code and what was printed."""
    done = helpers.cli("sweep", "status", out, "--watch", environment=cluster.environment)
    return done.returncode, done.stdout + done.stderr


def test_twenty_shards_are_bitwise_those_of_the_local_run(cluster, tmp_path):
    path, out = helpers.spec(tmp_path, shards=20), tmp_path / "out"
    told = submit(cluster, path, out)
    assert "submitted 20 tasks; of 20 shards 0 are done, 0 queued or running, 20 to do" in told
    assert "nothing was submitted" in submit(cluster, path, out)
    code, told = watch(cluster, out)
    assert code == 0, told
    assert "shards: 20 of 20 done, 0 running, 0 queued, 0 failed, 0 lost" in told
    helpers.run_here(path, tmp_path / "here", cluster.environment)
    helpers.assert_same_bits(out, tmp_path / "here", shards=20)


def test_gpus_are_bound_to_tasks(cluster, tmp_path):
    path, out = helpers.spec(tmp_path, shards=4), tmp_path / "out"
    submit(cluster, path, out, "--gpus-per-task", "1", "--platform", "cpu")
    code, told = watch(cluster, out)
    assert code == 0, told
    logs = [file.read_text() for file in (out / "cluster/1/logs").glob("*.log")]
    used = {tuple(re.findall(r"CUDA_VISIBLE_DEVICES=(\S*)", text)) for text in logs}
    assert used == {("0",), ("1",)}


def test_a_killed_task_loses_its_shard_alone_and_the_next_submit_completes_it(cluster, tmp_path):
    path, out = helpers.spec(tmp_path, shards=3, horizon=LONG), tmp_path / "out"
    fast = ("--checkpoint-seconds", "0.5")
    submit(cluster, path, out, *fast)
    helpers.until(lambda: helpers.checkpointed(out, 1), 120, "a checkpoint")
    os.kill(helpers.owner(out, 1), signal.SIGKILL)
    code, told = watch(cluster, out)
    assert code == 1
    assert "shards: 2 of 3 done, 0 running, 0 queued, 0 failed, 1 lost" in told
    assert re.search(r"shard 1 lost: ray: .* \(submitted 1 time; log 1.log\)", told)
    kept = helpers.stored(out)
    assert "of 3 shards 2 are done" in submit(cluster, path, out, *fast)
    code, told = watch(cluster, out)
    assert code == 0, told
    assert helpers.stored(out) > kept
    helpers.run_here(path, tmp_path / "here", cluster.environment)
    helpers.assert_same_bits(out, tmp_path / "here", shards=3)


def test_cancelled_tasks_checkpoint_and_go_on(cluster, tmp_path):
    path, out = helpers.spec(tmp_path, shards=3, horizon=LONG), tmp_path / "out"
    submit(cluster, path, out, "--checkpoint-seconds", "0.5")
    helpers.until(lambda: helpers.checkpointed(out, 0), 120, "a checkpoint")
    done = helpers.cli("sweep", "cancel", out, environment=cluster.environment)
    assert re.match(r"cancelled [23] tasks; [01] of 3 shards are done", done.stdout), done
    code, told = watch(cluster, out)
    assert code == 1
    assert "stopped: cancelled (submitted 0 times" in told
    assert "asked to end" in (out / "cluster/1/logs/0.log").read_text()
    assert helpers.checkpointed(out, 0)
