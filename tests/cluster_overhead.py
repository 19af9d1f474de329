"""What submitting and collecting shards costs, measured on a Slurm of one node.

    python tests/cluster_overhead.py --shards 1000 --shards-per-task 25

submits a sweep through the command's own code to a Slurm started for it. Its tasks do
everything but compute: each shard is claimed, and a row that was made up is stored. So what
is left is planning, submitting, scheduling, starting processes, and collecting: the queue, the
footers of all shards, their rows in one table.
"""

import argparse
import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

import cluster_helpers
import pyarrow
import slurm_cluster

from polar_jax import cluster_cli, sweep
from polar_jax.cluster import journal, standing, submission
from polar_jax.cluster.commands import SweepSubmit
from polar_jax.cluster.task import Task
from polar_jax.sweep import claims, store

MANIFEST = {
    "schema": store.SCHEMA,
    "machine": {"jax_platform": "cpu", "device_kind": "cpu"},
    "buckets": [],
}


class EmptyTask(Task):
    """A task that stores made-up rows; pickled by value, as it is defined in a script."""

    def __call__(self) -> str:
        """Claims and stores every shard."""
        out = pathlib.Path(self.out)
        one = journal.load(out, self.submission)
        request = one.request
        told = {name: request[name] for name in ("spec_hash", "plan_hash", "shard_seconds")}
        told |= {"num_shards": len(request["decisions"]), "title": "", "name": "empty"}
        folder = store.create_or_open(out, {**MANIFEST, **told})
        with claims.Claims(folder.claims_folder) as held:
            for index in one.tasks[self.number]:
                with held.try_claim(index) or contextlib.nullcontext():
                    row = {"configuration": [index], "seed": [0], "policy": ["none"]}
                    facts = {"seconds": 0.0, "decisions": request["decisions"][index]}
                    folder.write_shard(index, pyarrow.table(row), facts)
        return "stored"


@contextlib.contextmanager
def timed(what: str, seconds: dict[str, float]) -> Iterator[None]:
    """Keeps and prints how long a step took."""
    began = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - began
    print(f"{what:>44}: {seconds[what]:7.2f} s", flush=True)


def measure(shards: int, per_task: int, at_once: int) -> dict[str, float]:
    """Submits, waits and collects.

    Args:
      shards: how many, a multiple of 4.
      per_task: shards of a task.
      at_once: tasks that the node runs at once.

    Returns:
      Seconds by step.
    """
    seconds: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        slurm_cluster.running(cpus=at_once, max_array=1001) as cluster,
    ):
        os.environ.update(cluster.environment)
        out = pathlib.Path(folder) / "out"
        path = cluster_helpers.spec(pathlib.Path(folder), shards=shards)
        options = SweepSubmit(path, out, shard_seconds=0.001, shards_per_task=per_task)
        options.check()
        with timed("planning", seconds):
            plan = cluster_cli.planned(options, out)
        with timed("submitting", seconds):
            submission.submit(plan, options, out, lambda _: None)
        with timed("scheduling, starting and ending all tasks", seconds):
            cluster.wait_idle(3600)
        with timed("status", seconds):
            found = standing.Reader(out).read()
        with timed("all rows in one table", seconds):
            rows = sweep.load(out).height
    if (found.count("done"), rows) != (shards, shards):
        raise RuntimeError(f"{found.count('done')} shards are done, {rows} rows are there")
    return seconds


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--shards-per-task", type=int, default=25)
    parser.add_argument("--at-once", type=int, default=2 * (os.cpu_count() or 1))
    given = parser.parse_args()
    submission.Task = EmptyTask
    print(f"{given.shards} shards, {given.shards_per_task} a task, {given.at_once} tasks at once")
    seconds = measure(given.shards, given.shards_per_task, given.at_once)
    print(f"{'together':>44}: {sum(seconds.values()):7.2f} s; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
