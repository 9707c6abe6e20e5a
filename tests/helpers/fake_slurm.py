"""Slurm's programs as far as tests of what is asked of them need it: they write down how they were called, and answer."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from sf_fixpo.launcher.backends.slurm import PROGRAMS, SlurmBackend
from sf_fixpo.launcher.flags import add_job_args


def args_of(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_job_args(parser)
    SlurmBackend.add_args(parser)
    return parser.parse_args(flags)


class FakeSlurm:
    """Slurm's programs, which write down how they were called and answer what the test wants."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        for name in PROGRAMS:
            program = folder / name
            program.write_text(
                f'#!/bin/sh\ncd "{folder}"\necho {name} "$@" >> calls\nenv > {name}.env\n'
                f"if [ -f {name}.err ]; then cat {name}.err >&2; exit 1; fi\n"
                f"if [ -f {name}.out ]; then cat {name}.out; fi\n"
            )
            program.chmod(0o755)
        self.answer("sbatch", "Submitted batch job 12\n")

    def answer(self, name: str, text: str) -> None:
        (self.folder / f"{name}.out").write_text(text)

    def refuse(self, name: str, text: str) -> None:
        (self.folder / f"{name}.err").write_text(text)

    def recover(self, name: str) -> None:
        (self.folder / f"{name}.err").unlink()

    def calls(self, name: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [line for line in lines if line.split()[0] == name]

    def env(self, name: str) -> dict[str, str]:
        lines = (self.folder / f"{name}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def start_tasks(self) -> None:
        """From now on srun starts its tasks, all on this host."""
        program = self.folder / "srun"
        program.write_text(f'#!/bin/sh\necho srun "$@" >> "{self.folder}/calls"\nexec "{sys.executable}" "{__file__}" "$@"\n')


def srun_parser() -> argparse.ArgumentParser:
    """What this project asks of srun."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("ntasks", "nodes", "ntasks-per-node", "cpus-per-task", "wait", "gpus-per-node", "kill-on-bad-exit"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("job-name", "distribution", "cpu-bind", "gpu-bind", "export", "output"):
        parser.add_argument(f"--{name}")
    for name in ("unbuffered", "overlap"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return parser


def main() -> int:
    """srun: starts the tasks, passes signals on, ends with the highest status."""
    args = srun_parser().parse_args()
    tasks = []
    for number in range(args.ntasks):
        env = {"SLURM_PROCID": number, "SLURM_LOCALID": number % args.ntasks_per_node, "SLURM_STEP_NUM_TASKS": args.ntasks}
        env |= {"SLURM_STEP_ID": 3, "SLURM_STEP_NODELIST": f"n[1-{args.nodes}]", "SLURM_NODEID": number // args.ntasks_per_node}
        tasks.append(subprocess.Popen(args.command, env={**os.environ, **{key: str(value) for key, value in env.items()}}))
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda signum, _: [task.send_signal(signum) for task in tasks])
    return max(status if status >= 0 else 128 - status for status in [task.wait() for task in tasks])


if __name__ == "__main__":
    sys.exit(main())
