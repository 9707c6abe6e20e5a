"""Takes a policy elsewhere: one file that needs nothing of ours, and that is held against the actor before it is kept.

    python -m sf_fixpo.export DIR [--format=onnx|torchscript|torch_export] [--checkpoint=best|latest|PATH] [--out=FILE]

In: observations as the environment gives them (the normaliser is inside) and the recurrent state. Out: the likeliest action,
the distribution, its parameters, the new state. The actor plays `--check_steps` real steps; the file, read back as its user would
read it (ONNX by onnxruntime), must give the same at each of them. What it is for, and how the trust region held, is in its
metadata and beside it as JSON. `examples/play_onnx.py` plays one.

Exit status: 0 written; 1 the policy cannot be exported, or what came out is not what acts; 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo import cli
from sf_fixpo.enjoy import choose_config
from sf_fixpo.envs import find_suite
from sf_fixpo.learning import checkpoints
from sf_fixpo.playing.downloads import DownloadError, local_folder
from sf_fixpo.playing.evaluation_worker import Slots, set_log_level
from sf_fixpo.playing.experiment import BadInputError, find_checkpoint
from sf_fixpo.playing.export_formats import FORMATS, Format, example_inputs
from sf_fixpo.playing.exported import ExportedPolicy, Played, compare, load_policy, play
from sf_fixpo.records.export_metadata import make_metadata
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows

_PROGRAM = "fixpo-export"


class ExportError(RuntimeError):
    """No file that does what the actor does; the message says why."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with exit status 2."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "dir", type=Path, metavar="DIR", help="experiment folder, with config.json and checkpoint_p0/; or hub:USER/NAME"
    )
    parser.add_argument("--format", choices=tuple(FORMATS), default="onnx", help="of the file; default: onnx")
    parser.add_argument("--checkpoint", help="best, latest, or a path; default: best where there is one, else latest")
    parser.add_argument("--policy_id", type=int, default=0, help="which policy of a population")
    parser.add_argument("--env", help="the environment played for the check; default: the first that the run is evaluated on")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: DIR/export/<checkpoint>.<onnx, ts or pt2>")
    parser.add_argument("--check_steps", type=int, default=1000, help="real steps at which file and actor must agree")
    parser.add_argument("--seed", type=int, default=0, help="of the environment and the actions of the check")
    args = cli.parse(parser, argv)
    for name, least in (("policy_id", 0), ("check_steps", 1), ("seed", 0)):
        if (value := getattr(args, name)) < least:
            parser.error(f"--{name}={value}: must be an integer >= {least}")
    if missing := FORMATS[args.format].missing:
        parser.error(f"--format={args.format}: needs {', '.join(missing)}; pip install 'sf_fixpo[onnx]'")
    return args


def out_path(args: argparse.Namespace, checkpoint: Path) -> Path:
    """Where the file goes; its folder is made.

    Raises:
        BadInputError: nothing can be written there.
    """
    suffix = FORMATS[args.format].suffix
    path = args.out or args.dir / "export" / f"{checkpoint.stem}{suffix}"
    if path.suffix != suffix:
        raise BadInputError(f"--out={path}: must end in {suffix} with --format={args.format}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise BadInputError(f"--out={path}: must be a file in a folder that can be written: {exc.strerror}") from exc
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadInputError(f"--out={path}: must be a file in a folder that can be written")
    return path


def make_slots(cfg: Any, seed: int) -> Slots:
    """The environment in which the actor plays; of a pool of simulators one."""
    cfg = AttrDict(cfg)
    cfg.update(seed=seed, device="cpu", num_workers=1, serial_mode=True)
    flags = {"dmlab_optimistic_rewards": False, "dmlab_remember_seeds": False, "env_agents": 1}
    cfg.update({flag: value for flag, value in flags.items() if flag in cfg})
    env = find_suite(cfg.env).make_env(cfg.env, cfg, AttrDict(worker_index=0, vector_index=0, env_id=0), None)
    return Slots(env, cfg.env)


def _load(cfg: Any, checkpoint: Path, slots: Slots) -> tuple[ExportedPolicy, dict[str, Any]]:
    """The policy, and what its checkpoint is called.

    Raises:
        BadInputError: the file is no checkpoint, or of another network.
    """
    try:
        saved = checkpoints.load(checkpoint)
        policy = load_policy(cfg, str(checkpoint), slots)
    except (checkpoints.UnreadableError, KeyError, OSError) as exc:
        raise BadInputError(f"--checkpoint={checkpoint}: is no checkpoint that can be read: {exc}") from exc
    except RuntimeError as exc:  # torch names each weight that differs: the first ones will do
        differences = " ".join(line.strip() for line in str(exc).splitlines()[:3])
        raise BadInputError(f"--checkpoint={checkpoint}: does not fit --env={cfg.env}: {differences}") from exc
    return policy, {"name": checkpoint.name, "policy_version": saved.get("train_step"), "env_steps": saved.get("env_steps")}


def _rows(directory: Path, policy_id: int) -> Sequence[dict[str, Any]]:
    """The update log; empty where there is none."""
    try:
        return latest_rows(directory / UPDATE_LOG, policy_id)
    except (OSError, ValueError, KeyError):
        return []


def write_checked(
    form: Format, policy: ExportedPolicy, played: Played, metadata: dict[str, Any], path: Path
) -> tuple[dict[str, float], dict[str, Any]]:
    """Writes the file for any number of samples, or where that cannot be, for one; keeps it if it does what the actor does.

    Returns:
        The largest differences to the actor, and the metadata in the file.

    Raises:
        ExportError: neither can be written, or is the same function.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    first = [played.observations[key][0, :1] for key in policy.keys]
    failures = []
    try:
        for any_batch in (True, False):
            found = {**metadata, "samples_at_once": "any" if any_batch else 1}
            try:
                form.write(policy, example_inputs(first, policy.state_size, 2 if any_batch else 1), any_batch, temporary, found)
                function, said = form.read(temporary)
                differences = compare(function, played, policy, any_batch)
            except Exception as exc:  # noqa: BLE001 - exporters raise anything at what they cannot do; all of it is the answer
                failures.append(f"{'any number of samples' if any_batch else 'one sample'}: {type(exc).__name__}: {exc}")
                continue
            os.replace(temporary, path)
            return differences, said
    finally:
        temporary.unlink(missing_ok=True)
    raise ExportError("; ".join(" ".join(text.split())[:400] for text in failures))


def export(args: argparse.Namespace) -> None:
    """Does what the command line says, and prints what came of it.

    Raises:
        BadInputError: something asked for cannot be had.
        ExportError: no file does what the actor does.
    """
    args.dir = local_folder(args.dir, args.checkpoint, args.policy_id)
    checkpoint = find_checkpoint(args.dir, args.checkpoint, args.policy_id)
    cfg = choose_config(args.dir, args.env)
    path = out_path(args, checkpoint)
    torch.manual_seed(args.seed)
    slots = make_slots(cfg, args.seed)
    try:
        policy, named = _load(cfg, checkpoint, slots)
        played = play(cfg, str(checkpoint), slots, policy, args.check_steps)
    finally:
        slots.env.close()
    engine = str(getattr(slots.env.unwrapped, "engine", None) or find_suite(cfg.env).name)
    spaces = (slots.observation_space, policy.keys, slots.action_space, policy.state_size)
    config = json.loads((args.dir / "config.json").read_text())
    metadata = make_metadata(config, cfg.env, engine, named, *spaces, _rows(args.dir, args.policy_id))
    metadata["exported_by"] = {"format": args.format, "torch": torch.__version__}
    differences, said = write_checked(FORMATS[args.format], policy, played, metadata, path)
    said["check"] = {"steps": int(played.ends.size), "largest_differences": differences}
    path.with_name(f"{path.name}.json").write_text(json.dumps(said, indent=1) + "\n")
    worst = ", ".join(f"{name} within {value:.1e}" for name, value in differences.items())
    print(f"{path}: {path.stat().st_size:,} bytes, the actor's at {played.ends.size:,} real steps: {worst}")
    if said["samples_at_once"] == 1:
        print("It takes one sample at a time: the network cannot be exported for any number of them")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse_args(argv)
    set_log_level(logging.ERROR)
    try:
        export(args)
    except BadInputError as exc:
        for line in str(exc).splitlines():
            print(f"{_PROGRAM}: {line}", file=sys.stderr)
        return 2
    except DownloadError as exc:
        print(f"{_PROGRAM}: {exc}", file=sys.stderr)
        return 1
    except ExportError as exc:
        print(f"{_PROGRAM}: --format={args.format}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
