#!/usr/bin/env python3
"""Runs an image of buildah's storage as Docker would, without a daemon, and checks what docker/README.md promises of it.

    docker/try_image.py IMAGE [--layers_only] [--full_demo] [--buildah='buildah --root ...']

Every check runs the image's own entry point, environment, user and working directory in a new process-id namespace, changed into
the image's files: tini is process 1, and the health check sees what it sees in Docker. Root is needed. Exit status 1 at the first
failure.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
SHM = "512m"
TINY = (
    *("--env=gym_CartPole-v1", "--device=cpu", "--serial_mode=False", "--async_rl=True", "--num_workers=2"),
    *("--num_envs_per_worker=2", "--rollout=16", "--batch_size=32", "--num_batches_per_epoch=2", "--num_epochs=2"),
    *("--fixup_batch_size=0", "--encoder_mlp_layers", "16"),
)
LONG = "--train_for_env_steps=1000000000"
# As Docker sets a container up: /proc of its own processes, devices, shared memory of a fixed size, the volume, a priority of
# its own; $5 makes the rest read-only but for /tmp, as Apptainer and `docker run --read-only --tmpfs /tmp` do.
SET_UP = """
set -e
root=$1 volume=$2 user=$3 shm=$4 read_only=$5
shift 5
if [ "$read_only" = yes ]; then
    mount --bind "$root" "$root"
    mount -o remount,bind,ro "$root"
fi
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o "size=$shm,mode=1777" shm "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount --bind "$volume" "$root/runs"
renice -n 0 -p $$ >/dev/null
exec chroot --userspec="$user" "$root" /usr/bin/env --ignore-environment "$@"
"""


class FailedCheckError(Exception):
    """The image does not do what it should; the message says what it did."""


def check(condition: bool, what: str, seen: object = "") -> None:
    """Prints a check that passed.

    Raises:
        FailedCheckError: it did not.
    """
    if not condition:
        raise FailedCheckError(f"{what}\n{seen}")
    print(f"  ok  {what}", flush=True)


def captured(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Runs a command whatever its exit status; standard error comes with the output."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False)


class Image:
    """An image, mounted.

    Attributes:
        root: its files.
        config: user, environment, entry point and so on, as Docker has them.
        history: the commands it was made by.
    """

    def __init__(self, buildah: list[str], name: str, volume: Path):
        """Mounts the image; `volume` stands for its volume."""

        def output(*args: str) -> str:
            return subprocess.run([*buildah, *args], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

        described = json.loads(output("inspect", "--type", "image", name))
        self.config = described["Docker"]["config"]
        self.history = described["History"]
        self.raw = json.dumps(described)
        self.container = output("from", "--pull-never", name)
        self.root = Path(output("mount", self.container))
        self.volume = volume

    def environment(self, **more: str) -> list[str]:
        """NAME=VALUE, the image's own and more."""
        return [*self.config["Env"], *(f"{name}={value}" for name, value in more.items())]

    def command(self, *args: str, user: str = "", read_only: bool = False, **env: str) -> list[str]:
        """What to run on this side for `docker run IMAGE args...`."""
        inside = [*self.config["Entrypoint"], *(args or self.config["Cmd"])]
        user = user or f"{self.config['User']}:0"
        set_up = [str(self.root), str(self.volume), user, SHM, "yes" if read_only else "no"]
        workdir = f"--chdir={self.config['WorkingDir']}"
        space = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SET_UP, "sh"]
        return [*space, *set_up, workdir, *self.environment(**env), *inside]

    def run(self, *args: str, timeout: float = 300, **options) -> subprocess.CompletedProcess[str]:
        """`docker run IMAGE args...`; standard error comes with the output."""
        return subprocess.run(
            self.command(*args, **options),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    @contextmanager
    def started(self, *args: str, **options):
        """The same in the background; yields its process and that process's id 1. Nothing of it is left afterwards."""
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(self.command(*args, **options), stdout=out, stderr=subprocess.STDOUT)
            try:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                while not children.read_text().split():
                    time.sleep(0.05)
                yield process, int(children.read_text().split()[0])
            except (FailedCheckError, subprocess.TimeoutExpired) as exc:
                out.seek(0)
                raise FailedCheckError(f"{exc}\n--- output\n{out.read()[-4000:]}") from None
            finally:
                process.kill()
                process.wait()

    def execute(self, first: int, *args: str) -> subprocess.CompletedProcess[str]:
        """`docker exec`: in the container whose process 1 is `first` on this side."""
        user = ["--setuid", self.config["User"], "--setgid", "0"]
        space = ["nsenter", "--target", str(first), "--mount", "--pid", "--root", *user]
        inside = ["/usr/bin/env", "--ignore-environment", f"--chdir={self.config['WorkingDir']}", *self.environment()]
        return captured([*space, *inside, *args], timeout=60)


def layers(buildah: list[str], image: Image) -> None:
    """Prints the size of each layer that has files, the lowest first."""
    info = json.loads(subprocess.run([*buildah, "info"], check=True, stdout=subprocess.PIPE, text=True).stdout)["store"]
    known = json.loads((Path(info["GraphRoot"]) / f"{info['GraphDriverName']}-layers" / "layers.json").read_text())
    size = {layer["diff-digest"]: layer["diff-size"] for layer in known if "diff-digest" in layer}
    digests = json.loads(json.loads(image.raw)["Config"])["rootfs"]["diff_ids"]
    made_by = [entry["created_by"] for entry in image.history if not entry.get("empty_layer")]
    for digest, command in zip(digests, made_by, strict=True):
        command = re.sub(r"^.*?/bin/sh -c (#\(nop\) )?", "", command)
        print(f"  {size[digest] / 1e6:8.1f} MB  {' '.join(command.split())[:90]}")
    print(f"  {sum(size[digest] for digest in digests) / 1e6:8.1f} MB  in all, not compressed")


def index_settings(public_hosts: Sequence[str] = ()) -> list[str]:
    """Addresses and folders that pip on this side is set to, but for hosts that are no secret; none may be in the image."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True, check=False
    ).stdout
    words = re.findall(r"(?:[a-z+]+:/)?/[^\s'\"]+", listed)
    public = [f"//{host}" for host in public_hosts]
    usual = ("/etc/ssl/", "/etc/pip", "/etc/xdg")
    return [word for word in words if not any(p in word for p in public) and not word.startswith(usual)]


def leaks(image: Image, settings: list[str]) -> list[str]:
    """Where one of the settings is found: the image's description, /etc, the home folders, and what pip has recorded."""
    found = [f"the description has setting {k}" for k, word in enumerate(settings) if word in image.raw]
    places = [image.root / name for name in ("etc", "root", "home")]
    files = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    files += (image.root / "venv").glob("lib/python*/site-packages/*.dist-info/*.json")
    for path in files:
        content = path.read_bytes()
        found += [
            f"{path.relative_to(image.root)} has setting {k}" for k, word in enumerate(settings) if word.encode() in content
        ]
    return found


def try_basics(image: Image, public_hosts: Sequence[str] = ()) -> None:
    """What needs no training."""
    done = image.run()
    check(done.returncode == 0 and "fixpo PROGRAM" in done.stdout, "no arguments: the usage", done.stdout)
    done = image.run("sh", "-c", "id -u; pwd; touch /runs/x && rm /runs/x; cat /proc/1/comm; command -v fixpo-train")
    check(done.stdout.split() == ["10001", "/runs", "tini", "/venv/bin/fixpo-train"], "user, folder, process 1", done.stdout)
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (REPO / "constraints.txt").read_text(), re.MULTILINE))
    show = "import torch, numpy, cv2, vizdoom, envpool; print(torch.__version__, torch.version.cuda, numpy.__version__)"
    done = image.run("python", "-W", "error::DeprecationWarning:__main__", "-c", show)
    check(
        done.stdout.split()[-3:] == [f"{pins['torch']}+cpu", "None", pins["numpy"]], "PyTorch's CPU build, as pinned", done.stdout
    )
    done = image.run("train", "--list_envs")
    check(done.returncode == 0 and "dmlab_30" in done.stdout and "mujoco" in done.stdout, "train --list_envs", done.stdout)
    done = image.run("train", "--env=gym_CartPole-v1", "--eps_kl=-1", "--device=cpu")
    check(done.returncode == 2 and "--eps_kl" in done.stdout, "bad input: exit status 2", done.stdout)
    (image.volume / "key").write_text("not a real key\n")
    done = image.run("sh", "-c", "echo $WANDB_API_KEY $WANDB_MODE", WANDB_API_KEY_FILE="/runs/key")
    check(done.stdout == "not a real key offline\n", "W&B: its key by file, offline", done.stdout)
    settings = index_settings(public_hosts)
    found = leaks(image, settings)
    check(not found, f"none of pip's {len(settings)} settings of this machine is in the image", "\n".join(found))


def try_training(image: Image) -> None:
    """Short runs on CartPole."""
    options = {"user": "12345:54321", "read_only": True}
    done = image.run(
        "train", *TINY, "--train_dir=theirs", "--experiment=short", "--train_for_env_steps=2000", "--audit_every=1", **options
    )
    rows = image.volume / "theirs" / "short" / "updates.jsonl"
    check(done.returncode == 0 and rows.is_file(), "trains as any user id, on a read-only file system", done.stdout)
    check(rows.stat().st_uid == 12345, "what it writes belongs to that user")
    done = image.run("evaluate", "theirs/short", "--episodes=2", "--workers=1", **options)
    check(done.returncode == 0, "evaluate", done.stdout)
    done = image.run("audit", "theirs/short", **options)
    check(done.returncode == 0, "audit: every version is inside the bound", done.stdout)
    done = image.run("tensorboard", "--inspect", "--logdir=theirs/short")
    check(done.returncode == 0, "tensorboard reads the run", done.stdout)

    rows = image.volume / "train_dir" / "stopped" / "updates.jsonl"
    with image.started("train", *TINY, "--experiment=stopped", LONG) as (process, first):
        health = image.execute(first, *image.config["Healthcheck"]["Test"][1:])
        check(health.returncode == 0 and "no row yet" in health.stdout, "healthy while it starts", health.stdout)
        deadline = time.monotonic() + 120
        while not (rows.is_file() and rows.read_bytes().count(b"\n") > 20):
            if process.poll() is not None or time.monotonic() > deadline:
                raise FailedCheckError("training in the background: no 20 updates")
            time.sleep(0.2)
        health = image.execute(first, *image.config["Healthcheck"]["Test"][1:])
        check(health.returncode == 0 and "newest row" in health.stdout, "healthy while it trains", health.stdout)
        health = image.execute(first, "fixpo-health", "--minutes=0.000001")
        check(health.returncode == 1 and "unhealthy" in health.stdout, "unhealthy where no row is young enough", health.stdout)
        asked = time.monotonic()
        os.kill(first, signal.SIGTERM)
        status = process.wait(45)
        check(status == 75, f"SIGTERM: exit status 75, {time.monotonic() - asked:.1f} s later", status)
    saved = list((rows.parent / "checkpoint_p0").glob("checkpoint_*.pth"))
    check(bool(saved), "its checkpoint is saved", os.listdir(rows.parent))


def try_demo(image: Image, full: bool) -> None:
    """What `make demo` runs.

    Its short form learns nothing, and on a slow machine writes nothing to audit: exit status 1 is what it should have then.
    """
    started = time.monotonic()
    done = image.run("demo", *(() if full else ("--minutes=0.5", "--episodes=4")), timeout=1800)
    print("\n".join(f"      {line}" for line in done.stdout.splitlines()[-24:]))
    check(done.returncode in ((0,) if full else (0, 1)), f"demo: exit status {done.returncode}")
    drawn = (image.volume / "train_dir" / "demo" / "plot.png").is_file()
    check(drawn and "standard errors" in done.stdout, f"demo: trained, played and drawn in {time.monotonic() - started:.0f} s")


def main() -> int:
    """Runs all checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("image")
    parser.add_argument("--layers_only", action="store_true", help="show them, and try nothing")
    parser.add_argument("--full_demo", action="store_true", help="12 minutes instead of one")
    parser.add_argument("--public_host", action="append", default=[], help="of a package index that may be named in the image")
    parser.add_argument("--buildah", default="buildah", help="the command, with its global options")
    args = parser.parse_args()
    buildah = shlex.split(args.buildah)
    with tempfile.TemporaryDirectory(prefix="runs_") as volume:
        os.chmod(volume, 0o1777)  # as the folder that the volume starts as a copy of
        image = Image(buildah, args.image, Path(volume))
        try:
            layers(buildah, image)
            if args.layers_only:
                return 0
            try_basics(image, args.public_host)
            try_training(image)
            try_demo(image, args.full_demo)
        except FailedCheckError as exc:
            print(f"FAILED: {exc}", file=sys.stderr)
            return 1
        finally:
            subprocess.run([*buildah, "rm", image.container], stdout=subprocess.DEVNULL, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
