"""What a sweep of the launcher's tests runs: writes an update log, keeps checkpoints and answers signals as a training does.

Started in place of `sf_fixpo.train`, it takes an instant instead of seconds; tests/test_launcher_training.py has real trainings.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

PREEMPTED = 75


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train_dir", type=Path, required=True)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--pace", type=float, default=0.0, help="Seconds for an update")
    parser.add_argument("--fault", default="none", help="At the second update: raise, kill, hang, bad_input, preempt")
    parser.add_argument("--times", type=int, default=1, help="How many attempts meet the fault")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--height", type=float, default=1.0, help="Return per update, but for a half of one update's")
    parser.add_argument("--train_for_env_steps", type=int, help="For the search to read")
    parser.add_argument("--deaf", action="store_true", help="SIGTERM is heard, and that is all")
    args = parser.parse_args()
    folder = args.train_dir / args.experiment
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "starts").open("a") as starts:
        starts.write(f"{os.getpid()} {sorted(os.sched_getaffinity(0))} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    attempt = len((folder / "starts").read_text().splitlines())
    asked = []

    def hear(signum, frame) -> None:
        print("heard", signal.Signals(signum).name, flush=True)
        if not args.deaf:
            asked.append(signum)

    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, hear)
    checkpoint = folder / "checkpoint"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    print(f"from update {done}")
    while done < args.updates:
        if done == 1 and attempt <= args.times:
            meet(args.fault)
        time.sleep(args.pace)
        done += 1
        with (folder / "updates.jsonl").open("a") as log:
            log.write(f'{{"policy_id": 0, "policy_version": {done}, "env_steps": {done * 100}}}\n')
        checkpoint.write_text(str(done))
        print(f"{done * 100}/{args.updates * 100} steps | return {done * args.height + 0.5:.2f}", flush=True)
        if asked and done < args.updates:
            return PREEMPTED
    return 0


def meet(fault: str) -> None:
    if fault == "raise":
        raise RuntimeError("the fault that was asked for")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(1000)
    if fault == "bad_input":
        sys.exit(2)
    if fault == "preempt":
        sys.exit(PREEMPTED)


if __name__ == "__main__":
    sys.exit(main())
