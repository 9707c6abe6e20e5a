"""A Slurm cluster of one host for tests: munged, slurmctld and slurmd from Debian's packages, in one folder, on free ports."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CPUS = 4  # more than the host may have: what is tested is not their speed

# AuthInfo: a requeued job waits until the credential of its last start has expired, by default two minutes.
# SchedulerParameters: what is submitted or requeued starts within a second.
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=graceful Nodes={host} MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


class SlurmHost:
    """A running cluster.

    Attributes:
        env: what its programs need in their environment.
    """

    def __init__(self, folder: Path):
        """Starts nothing."""
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *command: str) -> str:
        """Output of one of Slurm's programs."""
        done = subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def states(self) -> dict[str, str]:
        """State of each job that is pending, running or completing, by id; array tasks one by one."""
        rows = (line.split() for line in self.call("squeue", "--noheader", "--array", "--format=%i %T").splitlines())
        return dict(rows)

    def show(self, job_id: str) -> dict[str, str]:
        """What the controller knows of a job, an ended one too."""
        words = self.call("scontrol", "--oneliner", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


@contextmanager
def slurm_host() -> Iterator[SlurmHost]:
    """Starts a cluster; it and all its jobs are gone when the block ends.

    Raises:
        AssertionError: Slurm is not installed.
    """
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    assert not missing, f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    # not in pytest's folder, which munged and jobs of other users could not enter, and short, for the socket's name
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))
    folder.chmod(0o755)
    host = SlurmHost(folder)
    try:
        with ExitStack() as stack:
            stack.callback(_kill_all, host)
            _write_files(folder)
            programs = {
                "munged": ["--foreground", "--force", *_munge_files(folder)],
                "slurmctld": ["-D", "-f", host.env["SLURM_CONF"]],
                "slurmd": ["-D", "-f", host.env["SLURM_CONF"]],
            }
            for name, flags in programs.items():
                stack.enter_context(_daemon([shutil.which(name, path=path) or name, *flags], folder / f"{name}.log", host.env))
                if name == "munged":
                    _wait(lambda: (folder / "munge.socket").exists(), folder / f"{name}.log")
            _wait(lambda: "idle" in _quietly(host, "sinfo", "--noheader", "--format=%T"), folder / "slurmctld.log")
            yield host
            _quietly(host, "scancel", f"--user={getpass.getuser()}")
    finally:
        shutil.rmtree(folder)


def _write_files(folder: Path) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    ctld_port, slurmd_port = _free_ports(2)
    text = _CONF.format(
        host=socket.gethostname().partition(".")[0],
        user=getpass.getuser(),
        folder=folder,
        cpus=CPUS,
        ctld_port=ctld_port,
        slurmd_port=slurmd_port,
    )
    (folder / "slurm.conf").write_text(text)


def _munge_files(folder: Path) -> list[str]:
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munged.seed"}
    return [f"--{flag}={folder / name}" for flag, name in files.items()]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _daemon(command: list[str], log: Path, env: dict[str, str]) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **env}, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(condition: Callable[[], bool], log: Path, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"nothing after {timeout:.0f} s; {log.name}:\n{log.read_text()[-3000:]}"
        time.sleep(0.1)


def _quietly(host: SlurmHost, *command: str) -> str:
    """Output of a program that may fail because the controller is not there (yet)."""
    done = subprocess.run(command, env={**os.environ, **host.env}, capture_output=True, text=True, timeout=60)
    return done.stdout


def _kill_all(host: SlurmHost) -> None:
    """Ends what is left of the cluster's jobs: they carry its configuration in their environment."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_CONF") == host.env["SLURM_CONF"] and process.pid != os.getpid():
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
