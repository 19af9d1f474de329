"""Sweeps through a real Slurm of one node: bitwise the local run, whatever happens to it."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import cluster_helpers as helpers
import pytest
import slurm_cluster

pytest.importorskip("submitit")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm_cluster.absent()), reason=slurm_cluster.absent() or "there"),
]
TEMPLATES = pathlib.Path(__file__).parents[1] / "sweeps" / "batch"
LONG = 300_000  # requests: about 8 s of one core


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.Cluster]:
    """A cluster whose tasks share compiled programs."""
    # Two processors, as the machine has: more tasks at once would only wait for each other.
    with slurm_cluster.running(cpus=2) as running:
        folder = tmp_path_factory.mktemp("programs")
        running.environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        yield running


@pytest.fixture(scope="module")
def twenty(
    cluster: slurm_cluster.Cluster, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, pathlib.Path, str]:
    """A sweep of 20 shards after Slurm ran it, the same run here, and what was watched."""
    folder = tmp_path_factory.mktemp("twenty")
    path = helpers.spec(folder, shards=20)
    helpers.run_here(path, folder / "here", cluster.environment)
    # Ten tasks: what is slow here is to start JAX in each.
    more = ["--shards-per-task", "2"]
    if cluster.gpus:
        more += ["--platform", "cpu", "--gpus-per-task", "1"]
    helpers.submit(path, folder / "out", *more, environment=cluster.environment)
    again = helpers.submit(path, folder / "out", *more, environment=cluster.environment)
    assert "20 queued or running, 0 to do; nothing was submitted" in again
    watched = helpers.cli(
        *("sweep", "status", folder / "out", "--watch"), environment=cluster.environment
    )
    assert watched.returncode == 0, watched.stdout + watched.stderr
    return folder / "out", folder / "here", watched.stdout


def test_twenty_shards_are_bitwise_those_of_the_local_run(twenty):
    out, here, watched = twenty
    helpers.assert_same_bits(out, here, shards=20)
    assert "shards: 20 of 20 done, 0 running, 0 queued, 0 failed, 0 lost" in watched


def test_arrays_are_split_at_what_the_cluster_allows(twenty):
    scripts = sorted((twenty[0] / "cluster/1/logs").glob("[0-9]*_submission.sh"))
    sizes = [re.findall(r"--array=0-(\d+)", path.read_text()) for path in scripts]
    assert sorted(sizes) == [["1"], ["7"]]


def test_two_gpus_are_used_in_turn(cluster, twenty):
    if not cluster.gpus:
        pytest.skip("mknod, which makes devices for Slurm to hand out, is root's alone")
    logs = [path.read_text() for path in (twenty[0] / "cluster/1/logs").glob("*_log.out")]
    used = [re.findall(r"CUDA_VISIBLE_DEVICES=(.*)", text) for text in logs]
    assert len(used) == 10
    assert {len(one) for one in used} == {1}
    counts = [sum(one == [device] for one in used) for device in ("0", "1")]
    assert sum(counts) == 10
    assert min(counts) >= 3


def test_a_dry_run_shows_the_script_and_writes_nothing(cluster, tmp_path):
    path = helpers.spec(tmp_path, shards=20)
    told = helpers.submit(
        *(path, tmp_path / "out", "--dry-run", "--time", "30", "--partition", "urgent"),
        *("--setup", "module load cuda", "--sbatch", "constraint=a100"),
        environment=cluster.environment,
    )
    for line in (
        *("#SBATCH --array=0-7%8", "#SBATCH --partition=urgent", "#SBATCH --requeue"),
        *("#SBATCH --signal=USR2@90", "#SBATCH --time=30", "#SBATCH --constraint=a100"),
        *(
            "module load cuda",
            "srun --unbuffered",
            "--cpus-per-task=1",
            "# task 3: shards 19",
            "20 to do; nothing was submitted.",
        ),
    ):
        assert line in told
    assert not (tmp_path / "out").exists()
    assert cluster.queue() == {}


def test_the_script_asks_for_what_the_plan_chose_of_a_nodes_accelerators(cluster, tmp_path):
    path = helpers.spec(tmp_path, shards=1)
    one_tile = path.read_text()
    for seeds, chosen in ((64, 1), (8 * 4096, 8)):
        path.write_text(one_tile.replace("seeds = 64", f"seeds = {seeds}"), "utf-8")
        told = helpers.cli(
            *("sweep", "submit", path, "--out", tmp_path / "out", "--dry-run"),
            *("--gpus-per-node", "8", "--cpus-per-task", "3"),
            environment=cluster.environment,
        ).stdout
        for line in (f"#SBATCH --gpus-per-task={chosen}\n", "#SBATCH --cpus-per-task=3\n"):
            assert line in told
        assert f"; a task gets {chosen} of a node's 8.\n" in told
    assert not (tmp_path / "out").exists()


def test_a_killed_task_loses_its_shard_alone_and_the_next_submit_completes_it(cluster, tmp_path):
    path, out = helpers.spec(tmp_path, shards=4, horizon=LONG), tmp_path / "out"
    fast = ("--checkpoint-seconds", "0.5")
    helpers.submit(path, out, *fast, environment=cluster.environment)
    helpers.until(lambda: helpers.checkpointed(out, 1), 120, "a checkpoint")
    os.kill(helpers.owner(out, 1), signal.SIGKILL)
    cluster.wait_idle(180)
    told = helpers.status(out, cluster.environment)
    assert "shards: 3 of 4 done, 0 running, 0 queued, 0 failed, 1 lost" in told
    assert re.search(r"shard 1 lost: .*Killed.*\(submitted 1 time; log \d+_1_0_log.out\)", told)
    kept = helpers.stored(out)
    told = helpers.submit(path, out, *fast, environment=cluster.environment)
    assert "of 4 shards 3 are done, 0 queued or running, 1 to do" in told
    cluster.wait_idle(120)
    assert helpers.stored(out) > kept
    helpers.run_here(path, tmp_path / "here", cluster.environment)
    helpers.assert_same_bits(out, tmp_path / "here", shards=4)


def test_preempted_and_cancelled_tasks_go_on_from_their_checkpoints(cluster, tmp_path):
    path, out = helpers.spec(tmp_path, shards=1, horizon=2 * LONG), tmp_path / "out"
    fast = ("--checkpoint-seconds", "0.5")
    helpers.submit(path, out, *fast, environment=cluster.environment)
    log = out / "cluster/1/logs"

    def printed(words: str) -> int:
        return sum(path.read_text().count(words) for path in log.glob("*_log.out"))

    helpers.until(lambda: helpers.checkpointed(out, 0), 120, "a checkpoint")
    before = helpers.stored(out)
    cluster.run(
        "sbatch", "--partition=urgent", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"
    )
    helpers.until(lambda: printed("asked to end; 0 of 1 shards are done"), 60, "preemption")
    preempted = helpers.stored(out)
    assert preempted >= before > 0
    # Between its two lives it is queued, neither lost nor stopped.
    assert "0 of 1 done, 0 running, 1 queued, 0 failed, 0 lost" in helpers.status(
        out, cluster.environment
    )
    helpers.until(lambda: printed("1 of 1 shards are missing") == 2, 60, "the second start")
    helpers.until(lambda: helpers.stored(out) > preempted, 120, "the next checkpoint")
    cancelled = helpers.cli("sweep", "cancel", out, environment=cluster.environment)
    assert cancelled.stdout.startswith("cancelled 1 task; 0 of 1 shards are done")
    cluster.wait_idle(60)
    assert helpers.stored(out) > preempted
    assert "shard 0 stopped: cancelled" in helpers.status(out, cluster.environment)
    # What was cancelled does not count as an attempt.
    more = ("--max-attempts", "1")
    told = helpers.submit(path, out, *fast, *more, environment=cluster.environment)
    assert "submitted 1 task (slurm" in told
    cluster.wait_idle(120)
    helpers.run_here(path, tmp_path / "here", cluster.environment)
    helpers.assert_same_bits(out, tmp_path / "here", shards=1)


def test_a_task_past_its_time_limit_is_queued_again_and_loses_nothing(cluster, tmp_path):
    # Slurm looks at limits every 30 s and warns up to 30 s early: here 20 to 50 s after the start,
    # when the work must have begun and not be over.
    horizon = helpers.horizon_of(60.0, tmp_path, cluster.environment)
    path, out = helpers.spec(tmp_path, shards=1, horizon=horizon), tmp_path / "out"
    more = ("--time", "1", "--signal-seconds", "10", "--checkpoint-seconds", "1000")
    helpers.submit(path, out, *more, environment=cluster.environment)
    # Beside it, one that is never stopped, to compare with.
    helpers.submit(path, tmp_path / "undisturbed", environment=cluster.environment)
    seen = 0

    def done() -> bool:
        nonlocal seen
        now = helpers.stored(out)
        assert now >= seen, "what is stored became less"
        seen = now
        return (out / "shards/0/0.parquet").exists()

    helpers.until(done, 400, "the end")
    cluster.wait_idle(400)
    (log,) = (out / "cluster/1/logs").glob("*_log.out")
    assert "Caught signal SIGUSR2" in log.read_text()
    assert re.search(r"Requeued job \d+ ", log.read_text())
    assert log.read_text().count("1 of 1 shards are missing [0]") >= 2
    helpers.assert_same_bits(out, tmp_path / "undisturbed", shards=1)


def test_a_controller_that_is_restarted_in_the_middle_costs_nothing(cluster, tmp_path):
    path, out = helpers.spec(tmp_path, shards=8), tmp_path / "out"
    helpers.submit(path, out, environment=cluster.environment)
    helpers.until(lambda: any((out / "shards").rglob("*.parquet")), 120, "the first shard")
    cluster.stop_controller()
    try:
        told = helpers.status(out, cluster.environment)
        refused = helpers.cli(
            *("sweep", "submit", path, "--out", out, "--shard-seconds", helpers.SHARD_SECONDS),
            environment=cluster.environment,
        )
    finally:
        cluster.start_controller()
    assert "what is queued is not known: Slurm does not answer" in told
    assert "0 lost" in told
    assert refused.returncode == 1
    assert refused.stderr.startswith("polar-jax: error: Slurm does not answer")
    cluster.wait_idle(180)
    helpers.submit(path, out, environment=cluster.environment)
    cluster.wait_idle(180)
    helpers.run_here(path, tmp_path / "here", cluster.environment)
    helpers.assert_same_bits(out, tmp_path / "here", shards=8)


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: str) -> Iterator[pathlib.Path]:
    """A disk of so many bytes in memory, for as long as the block runs."""
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small disk was refused, as root in a container may be")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_stored_and_the_next_submit_goes_on(cluster, tmp_path):
    if os.getuid():
        pytest.skip("mounting a small disk needs root, and so would a quota")
    path = helpers.spec(tmp_path, shards=8)
    helpers.run_here(path, tmp_path / "here", cluster.environment)
    with small_disk(tmp_path / "disk", "8m") as disk:
        out, filler = disk / "out", disk / "filler"
        # Room for the records, the logs and about three shards of 90 KiB.
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - 400 * 1024))
        helpers.submit(path, out, "--array-parallelism", "1", environment=cluster.environment)
        cluster.wait_idle(180)
        told = helpers.status(out, cluster.environment)
        done = len(list((out / "shards").rglob("*.parquet")))
        assert 0 < done < 8, told
        # The log may be cut off before it says so.
        assert "the disk of the folder is full: " in told, told
        filler.unlink()
        helpers.submit(path, out, environment=cluster.environment)
        cluster.wait_idle(180)
        helpers.assert_same_bits(out, tmp_path / "here", shards=8)


def test_a_wrong_partition_is_said_in_sbatchs_words_and_leaves_no_record(cluster, tmp_path):
    path, out = helpers.spec(tmp_path, shards=4), tmp_path / "out"
    done = helpers.cli(
        *("sweep", "submit", path, "--out", out, "--partition", "nowhere"),
        environment=cluster.environment,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "polar-jax: error: sbatch refused: invalid partition specified: nowhere; Batch job "
        "submission failed: Invalid partition name specified\n"
    )
    assert not list((out / "cluster").glob("[0-9]*"))


def by_template(
    cluster: slurm_cluster.Cluster,
    name: str,
    path: pathlib.Path,
    out: pathlib.Path,
    *more: str,
    options: str = "",
) -> str:
    """Hands a template over as a user would; returns the script."""
    environment = {
        **cluster.environment,
        "SPEC": str(path),
        "OUT": str(out),
        "POLAR_JAX": f"{sys.executable} -m polar_jax",
        "OPTIONS": f"--shard-seconds {helpers.SHARD_SECONDS} {options}",
    }
    script = TEMPLATES / name
    subprocess.run(
        ["sbatch", *more, "--chdir", str(out.parent), str(script)],
        env=environment,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return script.read_text()


def test_the_template_without_submitit_runs_its_slices(cluster, tmp_path):
    path, out = helpers.spec(tmp_path, shards=20), tmp_path / "out"
    # As a part that is submitted again: Slurm counts 2 tasks then, the slices stay of 16.
    script = by_template(cluster, "array.sbatch", path, out, "--array=2,3")
    cluster.wait_idle(120)
    found = {int(file.stem) for file in (out / "shards").rglob("*.parquet")}
    assert found == {2, 18, 3, 19}
    assert "#SBATCH --array=0-15" in script


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm_cluster.Cluster]:
    """A cluster of two nodes, each with a daemon of its own, on this machine."""
    with slurm_cluster.running(nodes=2, cpus=2) as running:
        folder = tmp_path_factory.mktemp("programs")
        running.environment["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        yield running


@pytest.mark.parametrize("nodes", [1, 2])
def test_processes_of_one_srun_compute_shards_together_to_the_bit(two_nodes, tmp_path, nodes):
    path, out = helpers.spec(tmp_path, shards=4), tmp_path / "out"
    words = (sys.executable, "-m", "polar_jax", "sweep", "run", str(path), "--out", str(out))
    options = ("--devices", "1", "--no-report", "--shard-seconds", helpers.SHARD_SECONDS)
    step = ("srun", f"--nodes={nodes}", "--ntasks=2", "--label")
    said = two_nodes.run(*step, *words, "--distributed", *options, timeout=300)
    # Process 0 alone tells, once the transport has greeted.
    (line,) = (line for line in said.splitlines() if "[Gloo]" not in line)
    assert line.startswith("0: 4 of 4 shards are done")
    helpers.run_here(path, tmp_path / "here", two_nodes.environment)
    helpers.assert_same_bits(out, tmp_path / "here", shards=4)
    told = helpers.status(out, two_nodes.environment)
    assert "shards: 4 of 4 done, 0 missing, 0 failed, 0 in work" in told


def test_a_preempted_job_of_two_nodes_is_queued_again_and_goes_on(two_nodes, tmp_path):
    path, out = helpers.spec(tmp_path, shards=1, horizon=2 * LONG), tmp_path / "out"
    by_template(two_nodes, "distributed.sbatch", path, out, options="--checkpoint-seconds 0.5")
    helpers.until(lambda: helpers.checkpointed(out, 0), 120, "a checkpoint")
    assert "0 of 1 done, 1 missing, 0 failed, 1 in work" in helpers.status(
        out, two_nodes.environment
    )
    two_nodes.run(
        *("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 1"),
        "--output=/dev/null",
    )
    (log,) = tmp_path.glob("together-*.log")
    # Slurm tells the job step, and srun the same processes once more: one checkpoint for all.
    helpers.until(lambda: "the one in work is checkpointed" in log.read_text(), 60, "preemption")
    preempted = helpers.stored(out)
    assert preempted > 0
    # The same job, queued again by Slurm.
    helpers.until(lambda: helpers.stored(out) > preempted, 120, "the next checkpoint")
    two_nodes.wait_idle(120)
    helpers.run_here(path, tmp_path / "here", two_nodes.environment)
    helpers.assert_same_bits(out, tmp_path / "here", shards=1)
