"""A real Ray of one node on loopback, for tests: `ray start --head` with its own folder."""

import contextlib
import importlib.util
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

# Ray takes 127.0.0.1 for a request to find the machine's address on its network.
_HOST = "127.0.0.2"
_SECONDS = 90.0
_OBJECT_BYTES = 100 * 2**20


class Cluster(NamedTuple):
    """A running cluster."""

    address: str
    environment: dict[str, str]


def absent() -> str:
    """Why no cluster can be started here; "" where one can."""
    return "" if importlib.util.find_spec("ray") else "Ray is not installed"


@contextlib.contextmanager
def running(*, cpus: int = 2, programs: pathlib.Path) -> Iterator[Cluster]:
    """A cluster for as long as the block runs; nothing of it is left, whatever happens.

    Args:
      cpus: tasks of one processor that it runs at once.
      programs: folder of compiled programs, which tasks share.
    """
    # Paths of sockets are short.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ray-"))
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    words = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--node-ip-address={_HOST}", f"--port={port}", f"--num-cpus={cpus}", "--num-gpus=2"),
        *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"),
        f"--object-store-memory={_OBJECT_BYTES}",
    ]
    dying = ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []
    with open(folder / "start.out", "wb") as output:
        process = subprocess.Popen(
            [*dying, *words],
            env=environment,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        _wait(process, port, folder / "start.out")
        yield Cluster(f"{_HOST}:{port}", environment)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        for number in _processes(str(folder)):
            with contextlib.suppress(OSError):
                os.kill(number, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: "subprocess.Popen[bytes]", port: int, output: pathlib.Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while "Ray runtime started" not in output.read_text("utf-8", "replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"ray start failed:\n{output.read_text('utf-8')[-2000:]}")
        time.sleep(0.1)
    socket.create_connection((_HOST, port), timeout=5).close()


def _processes(folder: str) -> list[int]:
    """Processes whose command line names this cluster's folder."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if folder.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
