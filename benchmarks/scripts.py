"""The table in docs/scripts.md: the examples in sample-factory's wheel, unchanged, run by `fixpo-run`, audited and played.

    python -m benchmarks.scripts [--only=vizdoom]

A row is a small run: what it shows is that the script trains, that the audit finds no state over the bound, and that evaluation
and film find what the script registers. Engines that are not there are said as the script says it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from benchmarks.programs import run_program
from sf_fixpo import cli

SMALL = "--device=cpu --num_workers=1 --num_envs_per_worker=2 --worker_num_splits=1 --batch_size=256 --rollout=32"
SMALL += " --train_for_env_steps=1000 --save_every_sec=1000 --audit_every=1"
SERIAL = "--serial_mode=True --async_rl=False"
SYNCHRONOUS = "--serial_mode=False --async_rl=False"
ASYNCHRONOUS = "--serial_mode=False --async_rl=True"
CARTPOLE = "sf_examples.train_gym_env --env=CartPole-v1 --use_rnn=False"
POPULATION = "--num_policies=2 --with_pbt=True --pbt_start_mutation=0 --pbt_period_env_steps=300"
# The command, and whether its environment draws pictures.
EXAMPLES = {
    f"{CARTPOLE} {SERIAL}": True,
    f"{CARTPOLE} {SYNCHRONOUS}": True,
    f"{CARTPOLE} {ASYNCHRONOUS}": True,
    f"{CARTPOLE} {POPULATION}": True,
    "sf_examples.train_custom_env_custom_model --env=my_custom_env_v1": False,
    "sf_examples.train_custom_multi_env --env=my_custom_multi_env_v1": False,
    "sf_examples.vizdoom.train_vizdoom --env=doom_basic": True,
    "sf_examples.vizdoom.train_vizdoom --env=doom_battle": True,
    "sf_examples.vizdoom.train_vizdoom --env=doom_duel_bots": True,
    "sf_examples.vizdoom.train_custom_vizdoom_env --env=doom_my_custom_env": True,
    "sf_examples.envpool.mujoco.train_envpool_mujoco --env=mujoco_hopper": False,
    "sf_examples.envpool.atari.train_envpool_atari --env=atari_pong": False,
    "sf_examples.mujoco.train_mujoco --env=mujoco_hopper": True,
    "examples/atari_script.py --env=atari_pong": True,
    "sf_examples.dmlab.train_dmlab --env=dmlab_nonmatch": True,
    "sf_examples.brax.train_brax --env=ant": False,
    "sf_examples.isaacgym_examples.train_isaacgym --env=Ant": False,
}


def row_of(command: str, draws: bool, folder: Path) -> list[str]:
    """Cells of a row: exit status or its cause, versions and states audited, the largest KL over eps_kl, evaluation, film."""
    where = [f"--train_dir={folder}", "--experiment=run"]
    try:
        run_program("sf_fixpo.run", *command.split(), *SMALL.split(), *where)
    except RuntimeError as error:
        words = [
            line for line in re.sub(r"\x1b\[[\d;]*m", "", str(error)).splitlines() if re.search(r"Error\b|fixpo-run:|--env", line)
        ]
        return [(words or str(error).splitlines())[-1]]
    run, cells = folder / "run", ["0"]
    audited = re.search(r"(\d+ files?, \d+ states)", said := run_program("sf_fixpo.audit", run, "--quiet"))
    cells.append(audited[1] if audited else said.strip().splitlines()[-1])
    rows = [json.loads(line) for line in (run / "updates.jsonl").read_text().splitlines()]
    cells.append(f"{max(row['kl_max'] / row['eps_kl'] for row in rows):.3f}")
    result = folder / "result.json"
    run_program("sf_fixpo.evaluate", run, "--episodes=2", "--workers=1", "--max_steps=300", f"--json={result}")
    cells.append(f"{json.loads(result.read_text())['mean']:.1f}")
    return [*cells, _film(run, folder / "film.mp4") if draws else "draws nothing"]


def _film(run: Path, film: Path) -> str:
    try:
        run_program("sf_fixpo.enjoy", run, "--max_steps=30", f"--record={film}")
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]
    return "yes" if film.stat().st_size else "empty"


def main(argv: list[str] | None = None) -> int:
    """Prints the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scripts", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="rows with this in their command")
    args = cli.parse(parser, argv)
    print("| `fixpo-run` | exit status | audit | largest KL / eps_kl | return | film |\n|---|---|---|---|---|---|", flush=True)
    for command, draws in EXAMPLES.items():
        if args.only in command:
            with tempfile.TemporaryDirectory() as folder:
                print(f"| `{command}` | {' | '.join(row_of(command, draws, Path(folder)))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
