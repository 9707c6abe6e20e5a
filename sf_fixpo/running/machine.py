"""Is this machine fit for a run? Each check measures one thing and judges it; the judging is a pure function of the figures.

Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from sf_fixpo.envs.cores import allowed_cores
from sf_fixpo.running.folders import train_dir_faults

OK, WARN, FAIL = "ok", "warn", "fail"
GIB, MIB = 1 << 30, 1 << 20
_PYTHON = ((3, 10), (3, 13))  # from, and below
_SAMPLE_FACTORY, _LEAST_TORCH = "2.1.1", (2, 10)
_PROBE_BYTES = 32 * MIB
_SHARED_MEMORY = Path("/dev/shm")
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Check:
    """What one check has found.

    Attributes:
        name: of what was looked at.
        status: `ok`, `warn` (it will run, but slower or with less) or `fail`.
        found: in words.
        advice: what to do; "" where there is nothing to do.
    """

    name: str
    status: str
    found: str
    advice: str = ""

    def to_row(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def size_text(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def judge_python(version: tuple[int, int]) -> Check:
    """Whether the interpreter is one that the package and its dependencies have builds for."""
    low, high = _PYTHON
    found = f"{version[0]}.{version[1]}"
    if low <= version < high:
        return Check("Python", OK, found)
    return Check(
        "Python", FAIL, found, f"use Python {low[0]}.{low[1]} to {high[0]}.{high[1] - 1}: numpy<2 has no build for others"
    )


def judge_packages(sample_factory: str | None, torch_version: str) -> Check:
    """Whether the two packages that everything stands on are of the versions that the learner is written for.

    Args:
        sample_factory: its version; None where it is not installed.
        torch_version: such as `2.10.0+cu128`.
    """
    found = f"torch {torch_version}, sample-factory {sample_factory or 'not installed'}"
    if sample_factory != _SAMPLE_FACTORY:
        return Check("packages", FAIL, found, f"pip install sample-factory=={_SAMPLE_FACTORY}: the learner overrides its methods")
    if tuple(int(part) for part in torch_version.split("+")[0].split(".")[:2]) < _LEAST_TORCH:
        return Check("packages", FAIL, found, "pip install 'torch>=2.10'")
    return Check("packages", OK, found)


def judge_cuda(built_for: str | None, device: str | None, driver: str | None, error: str | None = None) -> Check:
    """Whether a GPU is there and can be used.

    Args:
        built_for: the CUDA version torch was built for; None for the CPU build.
        device: the name of the first device that torch sees.
        driver: what the system says of NVIDIA's driver; None without one.
        error: of a small computation on the device; None where it went well.
    """
    parts = [f"torch for {'the CPU' if built_for is None else f'CUDA {built_for}'}"]
    parts += [device or "no device", f"driver {driver}" if driver else "no driver"]
    found = ", ".join(parts)
    if error is not None:
        return Check("CUDA", FAIL, f"{found}: {error}", "the driver is too old for this build of torch, or the device is taken")
    if device is not None:
        return Check("CUDA", OK, found)
    if driver is not None:
        what = (
            "install torch's build for CUDA"
            if built_for is None
            else "see what nvidia-smi says; CUDA_VISIBLE_DEVICES may hide it"
        )
        return Check("CUDA", WARN, found, f"{what}; until then --device=cpu")
    return Check("CUDA", OK, f"{found}: runs are on the CPU")


def judge_shared_memory(total: int, free: int) -> Check:
    """Whether the buffers of a run have room: the samples of every rollout lie in shared memory."""
    found = f"{size_text(free)} of {size_text(total)} free in /dev/shm"
    advice = "remove what dead processes left there, or give the container more: docker run --shm-size=4g"
    if free < 64 * MIB:
        return Check("shared memory", FAIL, found, advice)
    return Check("shared memory", WARN, found, advice) if free < GIB else Check("shared memory", OK, found)


def judge_memory(available: int) -> Check:
    """Whether there is memory for a run's processes, 0.3 to 0.5 GiB each."""
    found = f"{size_text(available)} available"
    advice = "fewer --num_workers: each process takes 0.3 to 0.5 GiB"
    return Check("memory", OK, found) if available >= 2 * GIB else Check("memory", WARN, found, advice)


def judge_open_files(soft: int) -> Check:
    """Whether the limit of open files is far enough away: each process needs some for each other one."""
    found = f"{soft:,} allowed" if soft >= 0 else "unlimited"
    if soft < 0 or soft >= 4096:
        return Check("open files", OK, found)
    return Check("open files", FAIL if soft < 256 else WARN, found, "ulimit -n 65536 in the shell that starts the run")


def judge_threads(cores: int, setting: str | None) -> Check:
    """Whether the processes' thread pools leave each other room.

    Args:
        cores: that this process may use.
        setting: of OMP_NUM_THREADS; None where it is not set.
    """
    found = f"{cores} core{'s' if cores != 1 else ''}, OMP_NUM_THREADS{f'={setting}' if setting else ' not set'}"
    advice = "export OMP_NUM_THREADS=1: otherwise every process of a run starts a thread for each core"
    if not setting:
        return Check("cores", WARN if cores > 1 else OK, found, advice if cores > 1 else "")
    if not setting.isdigit() or int(setting) < 1:
        return Check("cores", WARN, found, f"must be a whole number >= 1; {advice}")
    return Check("cores", WARN, found, advice) if int(setting) > max(1, cores // 2) else Check("cores", OK, found)


def judge_disk(folder: str, free: int, speed: float, sync: float) -> Check:
    """Whether checkpoints are written in no time.

    Args:
        folder: `--train_dir`.
        free: room there.
        speed: of writing, bytes a second, down to the disk.
        sync: to force a small file down to the disk.
    """
    found = f"{folder}: {size_text(free)} free, {speed / MIB:,.0f} MiB/s, {1000 * sync:.0f} ms to be safe on the disk"
    if free < 100 * MIB:
        return Check("train_dir", FAIL, found, "make room, or use another --train_dir")
    if free < GIB:
        return Check("train_dir", WARN, found, "make room: a run with audit files or films takes gigabytes")
    if speed < 20 * MIB or sync > 1:
        return Check("train_dir", WARN, found, "use a local disk for --train_dir, or save less often (--save_every_sec)")
    return Check("train_dir", OK, found)


def judge_wandb(version: str | None, environment: Mapping[str, str]) -> Check:
    """Whether `--with_wandb=True` would work; nothing is asked over the network, and no key is read."""
    if version is None:
        return Check("W&B", WARN, "not installed", "pip install wandb, for --with_wandb=True")
    mode = environment.get("WANDB_MODE", "online")
    if mode in ("offline", "disabled", "dryrun"):
        return Check("W&B", OK, f"{version}, WANDB_MODE={mode}")
    return Check("W&B", OK, version, "for --with_wandb=True: `wandb login` once, or WANDB_MODE=offline")


# --- measured here


def driver_version(text: str) -> str | None:
    """The version in what NVIDIA's kernel module says of itself; None where there is none."""
    found = re.search(r"Kernel Module\D*(?:x86_64|aarch64)?\s+(\d+(?:\.\d+)+)", text)
    return found[1] if found else None


def check_cuda() -> Check:
    """Looks for a GPU and computes something on it."""
    driver, device, error = None, None, None
    with suppress(OSError):
        driver = driver_version(_DRIVER.read_text())
    try:
        if torch.cuda.is_available():
            size = torch.cuda.get_device_properties(0).total_memory
            device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)} ({size_text(size)})"
            float(torch.ones(64, 64, device="cuda").mm(torch.ones(64, 64, device="cuda")).sum())
    except RuntimeError as exc:
        error = str(exc).splitlines()[0]
    return judge_cuda(torch.version.cuda, device, driver, error)


def check_shared_memory() -> Check:
    """Room in shared memory."""
    try:
        usage = psutil.disk_usage(str(_SHARED_MEMORY))
    except OSError as exc:
        return Check("shared memory", WARN, f"{_SHARED_MEMORY} cannot be asked: {exc.strerror}", "is this Linux?")
    return judge_shared_memory(usage.total, usage.free)


def check_open_files() -> Check:
    """This process's soft limit."""
    try:
        import resource
    except ImportError:
        return Check("open files", OK, "this system has no such limit")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return judge_open_files(-1 if soft == resource.RLIM_INFINITY else soft)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and where a container has less, its share."""
    cores = allowed_cores()
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def check_disk(train_dir: str) -> Check:
    """Writes a file in `--train_dir`, or in the nearest folder that is there, and takes it away again."""
    if faults := train_dir_faults(train_dir):
        return Check("train_dir", FAIL, faults[0], "choose a --train_dir that can be written")
    path = Path(train_dir).absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.is_dir())
    probe = nearest / f".fixpo_doctor_{os.getpid()}"
    block = os.urandom(MIB)
    try:
        start = time.perf_counter()
        with probe.open("wb") as file:
            for _ in range(_PROBE_BYTES // MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written = time.perf_counter()
            file.write(b"row\n")
            file.flush()
            os.fsync(file.fileno())
            synced = time.perf_counter()
        free = psutil.disk_usage(str(nearest)).free
    except OSError as exc:
        return Check("train_dir", FAIL, f"{nearest}: {exc.strerror or exc}", "make room, or use another --train_dir")
    finally:
        probe.unlink(missing_ok=True)
    return judge_disk(train_dir, free, _PROBE_BYTES / (written - start), synced - written)


def _version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine_checks(train_dir: str) -> list[Check]:
    """All of the above, in the order in which one would look."""
    return [
        judge_python(sys.version_info[:2]),
        judge_packages(_version_of("sample-factory"), torch.__version__),
        check_cuda(),
        judge_threads(usable_cores(), os.environ.get("OMP_NUM_THREADS")),
        judge_memory(psutil.virtual_memory().available),
        check_shared_memory(),
        check_open_files(),
        check_disk(train_dir),
        judge_wandb(_version_of("wandb"), os.environ),
    ]
