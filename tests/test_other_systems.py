"""What only Linux has is asked for first: the package works where it is not there (sample-factory supports macOS)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import psutil
import pytest

from sf_fixpo import evaluate
from sf_fixpo.envs.cores import allowed_cores
from sf_fixpo.envs.dmlab import SUITE as DMLAB
from sf_fixpo.envs.pool.simulators import num_threads
from sf_fixpo.launcher.backends.local import cores_in_order
from sf_fixpo.running import machine
from sf_fixpo.running.eval_during_training import lower_priority

ROOT = Path(__file__).resolve().parents[1]
# Attributes that Python has on Linux alone, of the modules that may have them.
LINUX_ONLY = {
    *("sched_getaffinity", "sched_setaffinity", "sched_setscheduler", "memfd_create", "pidfd_open", "pidfd_send_signal"),
    *("eventfd", "inotify", "epoll", "posix_fadvise", "posix_fallocate", "splice", "copy_file_range", "sendfile", "getrandom"),
    *("prlimit", "ionice", "SIGPWR", "SIGSTKFLT", "O_TMPFILE", "unshare", "setns", "listxattr", "getxattr", "setxattr"),
}
# Where each of them is used, and what asks first.
GUARDED = {
    ("envs/cores.py", "sched_getaffinity"): "hasattr",
    ("launcher/backends/local.py", "sched_getaffinity"): "hasattr: no cores are chosen",
    ("launcher/backends/local.py", "sched_setaffinity"): "no cores were chosen",
    ("sf_fixpo/running/eval_during_training.py", "ionice"): "hasattr",
}


def test_what_only_linux_has_is_used_where_it_is_known_to_be_guarded():
    found = {
        (str(path.relative_to(ROOT)), node.attr)
        for folder in ("sf_fixpo", "envs", "launcher")
        for path in (ROOT / folder).rglob("*.py")
        if path.relative_to(ROOT).parts[:2] not in {("sf_fixpo", "envs"), ("sf_fixpo", "launcher")}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in LINUX_ONLY
    }
    assert found == set(GUARDED)


@pytest.fixture
def elsewhere(monkeypatch):
    """As on macOS: no affinity, no priorities for the disk, no /proc and no /dev/shm."""
    for module, name in ((os, "sched_getaffinity"), (os, "sched_setaffinity"), (psutil.Process, "ionice")):
        monkeypatch.delattr(module, name, raising=False)
    missing = Path("/no/such/place")
    monkeypatch.setattr(machine, "_SHARED_MEMORY", missing)
    monkeypatch.setattr(machine, "_DRIVER", missing)


def test_without_it_the_machines_own_figures_are_taken(elsewhere):
    assert allowed_cores() == os.cpu_count()
    assert 1 <= machine.usable_cores() <= allowed_cores()
    assert num_threads(Namespace(envpool_num_threads=0, num_workers=1)) == os.cpu_count()
    assert cores_in_order() == []
    assert evaluate.parse_args(["train_dir/x"]).workers == os.cpu_count()
    cfg = Namespace(preset="paper", device="cpu", train_for_env_steps=10**9, train_for_seconds=10**9, env="x")
    assert DMLAB.notes(cfg)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        lower_priority(child.pid)
        assert psutil.Process(child.pid).nice() == 19
        child.communicate(b"\n")
    assert machine.check_shared_memory().status == machine.WARN
