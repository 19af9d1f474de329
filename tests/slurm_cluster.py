"""A real Slurm of one or two nodes on loopback, for tests: own folder, ports, key; no accounting.

Needs Debian's packages `slurmctld slurmd slurm-client munge`; neither systemd nor cgroups.
"""

import contextlib
import functools
import getpass
import os
import pathlib
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun", "munged")
GPUS = 2
MAX_ARRAY = 8
_SECONDS, _BUSY = 30.0, 5.0
# More processors than there are: tasks of tests wait more than they compute. A job that is
# requeued may not start before its first credential has ended, which is 120 s by default.
_CONFIGURATION = """
ClusterName=polartest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
MaxArraySize={max_array}
MaxJobCount=20000
MinJobAge=10
KillWait=20
SlurmctldTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=2,bf_interval=2{scheduling}
{gres}
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
    "RealMemory=4000{gres} State=UNKNOWN"
)


def absent() -> str:
    """Why no cluster can be started here; "" where one can."""
    found = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    missing = [name for name in PROGRAMS if shutil.which(name, path=found) is None]
    return f"Slurm is not installed: no {', '.join(missing)}" if missing else ""


class Process(NamedTuple):
    """A daemon and how to start it again."""

    running: "subprocess.Popen[bytes]"
    start: Callable[[], "subprocess.Popen[bytes]"]


class Cluster:
    """A running cluster.

    Attributes:
      folder: where it keeps everything.
      environment: variables under which Slurm's commands reach it.
      gpus: how many fake GPUs it has.
      nodes: names of its nodes.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        nodes: int = 1,
        cpus: int = 8,
        max_array: int = MAX_ARRAY,
        scheduling: str = "",
    ) -> None:
        """Writes its configuration; `start` starts it.

        Args:
          folder: an existing folder of its own that every user may enter.
          nodes: 1, or 2, which have no fake GPUs.
          cpus: processors that each of its nodes claims to have.
          max_array: tasks of an array.
          scheduling: more of `SchedulerParameters`.
        """
        self.folder = folder
        self.host = socket.gethostname().partition(".")[0]
        path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
        self.environment = {**os.environ, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
        self._running: dict[str, Process] = {}
        devices = self._fake_gpus() if nodes == 1 else []
        self.gpus = len(devices)
        # The first has a name that can be resolved, which is where processes meet.
        self.nodes = [self.host, *(f"{self.host}-{number}" for number in range(2, nodes + 1))]
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (folder / name).mkdir()
        gres = f" Gres=gpu:{len(devices)}" if devices else ""
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                host=self.host,
                controller_port=_free_port(),
                folder=folder,
                user=getpass.getuser(),
                max_array=max_array,
                scheduling=f",{scheduling}" if scheduling else "",
                gres="GresTypes=gpu" if devices else "",
                nodes="\n".join(
                    _NODE.format(name=name, host=self.host, port=_free_port(), cpus=cpus, gres=gres)
                    for name in self.nodes
                ),
            ),
            "utf-8",
        )
        lines = [f"Name=gpu File={path} Flags=nvidia_gpu_env\n" for path in devices]
        (folder / "gres.conf").write_text("".join(lines), "utf-8")

    def start(self) -> None:
        """Starts all daemons and waits until the nodes take jobs."""
        self._start("munged", self._munged, self._munge_answers)
        self._start("slurmctld", lambda: self._daemon("slurmctld"), self._controller_answers)
        for node in self.nodes:
            start = functools.partial(self._daemon, "slurmd", "-N", node)
            self._start(f"slurmd {node}", start, functools.partial(self._node_is_idle, node))

    def stop(self) -> None:
        """Ends all daemons and what they started, by process number."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--quiet", f"--user={getpass.getuser()}", timeout=10)
            self._until(lambda: not self.queue(), 25.0)
        # What was started last first.
        for name in reversed(list(self._running)):
            _end(self._running.pop(name).running)
        for steps in _processes_below(str(self.folder)):
            with contextlib.suppress(OSError):
                os.kill(steps, signal.SIGKILL)

    def stop_controller(self) -> None:
        """Ends the controller; what runs goes on."""
        # In order, so that it saves its state: after a crash within seconds of a job's start it
        # takes the job for one that waits, and the node for broken.
        _end(self._running["slurmctld"].running)

    def start_controller(self) -> None:
        """Starts the controller again, from the state that it saved."""
        self._start("slurmctld", self._running["slurmctld"].start, self._controller_answers)

    def run(self, *words: str, timeout: float = 60.0) -> str:
        """Runs one of Slurm's commands; returns what it prints."""
        done = subprocess.run(
            words,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )
        return done.stdout.strip()

    def queue(self) -> dict[str, str]:
        """Jobs that are queued, run or end, as `123_4`, to their states."""
        lines = self.run("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    def wait_idle(self, seconds: float) -> None:
        """Waits until nothing is queued or runs; machines may be busy with much else.

        Raises:
          TimeoutError: after so many seconds, were it quiet.
        """
        if not self._until(lambda: not self.queue(), _BUSY * seconds):
            raise TimeoutError(f"still queued after {seconds} s: {self.queue()}\n{self._logs()}")

    def _start(
        self, name: str, start: Callable[[], "subprocess.Popen[bytes]"], ready: Callable[[], bool]
    ) -> None:
        process = start()
        self._running[name] = Process(process, start)
        if not self._until(lambda: process.poll() is not None or ready(), _SECONDS):
            raise TimeoutError(f"{name} did not answer within {_SECONDS} s\n{self._logs()}")
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.returncode}\n{self._logs()}")

    def _daemon(self, name: str, *more: str) -> "subprocess.Popen[bytes]":
        with open(self.folder / f"{name}.out", "ab") as output:
            return subprocess.Popen(
                [*_dying_with_us(), name, "-D", *more],
                env=self.environment,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _munged(self) -> "subprocess.Popen[bytes]":
        """munged as its own user where this is root, who should not run it."""
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755, exist_ok=True)
        key = folder / "key"
        if not key.exists():
            key.write_bytes(os.urandom(128))
            key.chmod(0o400)
        user = None
        if os.getuid() == 0:
            user = "munge"
            owner = pwd.getpwnam(user)
            for path in (folder, key):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log"}
        options = [f"--{option}={folder / name}" for option, name in names.items()]
        with open(self.folder / "munged.out", "ab") as output:
            return subprocess.Popen(
                [
                    *_dying_with_us(),
                    "munged",
                    "--foreground",
                    *options,
                    f"--seed-file={folder / 'seed'}",
                ],
                env=self.environment,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _fake_gpus(self) -> list[pathlib.Path]:
        """Character devices that stand for GPUs; none where this is not root."""
        devices = [self.folder / f"nvidia{number}" for number in range(GPUS)]
        try:
            for number, path in enumerate(devices):
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(195, number))
        except PermissionError:
            return []
        return devices

    def _munge_answers(self) -> bool:
        return (self.folder / "munge" / "socket").exists()

    def _controller_answers(self) -> bool:
        with contextlib.suppress(subprocess.SubprocessError):
            return "is UP" in self.run("scontrol", "ping", timeout=10)
        return False

    def _node_is_idle(self, node: str) -> bool:
        words = ("sinfo", "--noheader", f"--nodes={node}", "--format=%T")
        with contextlib.suppress(subprocess.SubprocessError):
            return self.run(*words, timeout=10).startswith("idle")
        return False

    def _until(self, true: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if true():
                return True
            time.sleep(0.1)
        return False

    def _logs(self) -> str:
        paths = [*self.folder.glob("*.out"), *self.folder.glob("*.log"), *self.folder.glob("*/log")]
        return "\n".join(f"{path.name}: {path.read_text('utf-8')[-1500:]}" for path in paths)


@contextlib.contextmanager
def running(
    *, nodes: int = 1, cpus: int = 8, max_array: int = MAX_ARRAY, scheduling: str = ""
) -> Iterator[Cluster]:
    """A cluster for as long as the block runs; nothing of it is left, whatever happens."""
    # Every user must be able to enter it, and paths of sockets are short.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    cluster = None
    try:
        cluster = Cluster(
            folder, nodes=nodes, cpus=cpus, max_array=max_array, scheduling=scheduling
        )
        cluster.start()
        yield cluster
    finally:
        if cluster is not None:
            cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _dying_with_us() -> list[str]:
    """What to put before a command so that it ends when this process is killed."""
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _processes_below(folder: str) -> list[int]:
    """Processes whose environment names this cluster: steps that outlived their daemon."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"SLURM_CONF={folder}/".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found
