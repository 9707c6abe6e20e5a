"""Publishes a run on the Hugging Face Hub: checkpoints, settings, update log, evaluations, plots, and a model card.

    python -m sf_fixpo.hub DIR --repo=USER/NAME [--checkpoint=best|latest|PATH] [--private] [--dry_run FOLDER]

Only what is named here leaves the machine: no logs, no TensorBoard files, no audit files; and config.json without secrets, W&B
account or paths of this machine. The token comes from `HF_TOKEN` or from `hf auth login`, never from a flag.

Exit codes: 0 published (or written to the folder of `--dry_run`); 1 there is no token, or the Hub refused or cannot be reached;
2 bad input; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from requests import RequestException
from sample_factory.utils.utils import experiment_dir

from sf_fixpo import cli
from sf_fixpo.envs import UnknownEnvError, find_suite
from sf_fixpo.learning import checkpoints
from sf_fixpo.playing.experiment import BadInputError, find_checkpoint
from sf_fixpo.records.model_card import Card, level_scores, make_card
from sf_fixpo.records.update_log import UPDATE_LOG, latest_rows

PICTURES = ("*.png", "*.gif", "*.mp4")
FILM = "replay.mp4"  # which the Hub plays beside the card
EVALUATIONS = "eval*.json"
LOGIN = "set HF_TOKEN, or log in with `hf auth login` (`huggingface-cli login` in older versions)"

_SECRET_NAME = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|credentials?|webhook)(_|$)", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(hf|ghp|gho|wandb_v\d)_\w{16,}|://[^/\s@]+@", re.IGNORECASE)
# an absolute path in the middle of a text, without the slashes of an address
_PATH = re.compile(r"(?<![\w.~:/])/(?:[^\s/:,;=]+/)+([^\s/:,;=]+)")
_PERSONAL = {"with_wandb": False, "wandb_user": None, "wandb_project": "sample_factory", "wandb_group": None, "wandb_tags": []}
_DROPPED = ("git_repo_name", "hf_repository", "push_to_hub")


class PushError(RuntimeError):
    """The Hub cannot be used or refused; the message says why and what helps."""


# -- what is published -----------------------------------------------------------------------------------------------------------


def public_value(value: Any) -> Any:
    """A setting without what is this machine's own: of an absolute path only the last part is left, of a secret nothing."""
    if isinstance(value, Mapping):
        return {key: public_value(item) for key, item in value.items() if not _SECRET_NAME.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [public_value(item) for item in value]
    if not isinstance(value, str):
        return value
    if _SECRET_VALUE.search(value):
        return ""
    for kind in (PurePosixPath, PureWindowsPath):
        if (path := kind(value)).is_absolute():
            return path.name
    return _PATH.sub(r"\1", value)


def public_config(config: Mapping[str, Any], experiment: str) -> dict[str, Any]:
    """A run's configuration as it may be published; it still loads in every program.

    Args:
        config: sample-factory's config.json.
        experiment: the name under which those who download it will have it, below `train_dir`.
    """
    public = {key: value for key, value in public_value(config).items() if key not in _DROPPED}
    moved = {"train_dir": "train_dir", "experiment": experiment}
    public.update({key: value for key, value in _PERSONAL.items() if key in public})
    public.update(moved)
    given = {key: value for key, value in public.get("cli_args", {}).items() if key not in (*_PERSONAL, *_DROPPED)}
    given.update({key: value for key, value in moved.items() if key in given})
    public["cli_args"] = given
    public["command_line"] = " ".join(_as_flag(key, value) for key, value in given.items())
    return public


def _as_flag(name: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join([f"--{name}", *map(str, value)])
    return f"--{name}={value}"


def stage(experiment: Path, folder: Path, repo_id: str, which: Sequence[str | None] = (None,), policy_id: int = 0) -> list[str]:
    """Writes exactly what is to be published into an empty folder.

    Args:
        experiment: the run's folder.
        folder: where to; made where it does not exist.
        repo_id: `USER/NAME`.
        which: checkpoints, each as `sf_fixpo.evaluate --checkpoint` takes it.
        policy_id: which policy of a population.

    Returns:
        The files, relative to the folder, in order.

    Raises:
        BadInputError: there is no such run or checkpoint, or a file of it cannot be read or holds a secret.
    """
    config = _read_json(experiment / "config.json", "is this an experiment folder?")
    found = list(dict.fromkeys(find_checkpoint(experiment, name, policy_id) for name in which))
    for path in found:
        _check_checkpoint(path)
    evaluations = {path.name: _read_evaluation(path) for path in sorted(experiment.glob(EVALUATIONS))}
    public = public_config(config, repo_id.rpartition("/")[2])
    weights = [f"checkpoint_p{policy_id}/{path.name}" for path in found]
    pictures = {path.name: path for pattern in PICTURES for path in sorted(experiment.glob(pattern)) if path.is_file()}
    films = sorted(experiment.glob("videos/*.mp4"), key=lambda path: path.stat().st_mtime)
    if films and FILM not in pictures:  # the newest of fixpo-enjoy
        pictures[FILM] = films[-1]
    card = Card(
        repo_id=repo_id,
        config=public,
        rows=_read_update_log(experiment / UPDATE_LOG, policy_id),
        evaluations=list(evaluations.values()),
        checkpoints=weights,
        pictures=list(pictures),
        dmlab=_is_dmlab(config),
    )
    texts = {"README.md": make_card(card), "config.json": json.dumps(public, indent=2) + "\n"}
    texts.update({name: json.dumps(record, indent=1) + "\n" for name, record in evaluations.items()})
    files = dict(zip(weights, found, strict=True)) | pictures
    if (log := experiment / UPDATE_LOG).is_file():
        texts[UPDATE_LOG] = log.read_text()
    _refuse_secrets(texts, experiment)
    (folder / f"checkpoint_p{policy_id}").mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    for name, path in files.items():
        shutil.copyfile(path, folder / name)
    return sorted([*texts, *files])


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise BadInputError(f"{path}: cannot be read, {hint} {exc}") from exc
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: {hint} It holds no JSON object")
    return content


def _read_evaluation(path: Path) -> dict[str, Any]:
    """A result of `sf_fixpo.evaluate`; of its checkpoint only the name."""
    hint = "is this a result of sf_fixpo.evaluate?"
    record = public_value(_read_json(path, hint))
    if record.get("checkpoint"):
        record["checkpoint"] = PurePosixPath(record["checkpoint"]).name
    try:
        level_scores(record)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BadInputError(f"{path}: {hint} {type(exc).__name__}: {exc}. Move it away to publish without it") from exc
    return record


def _read_update_log(path: Path, policy_id: int) -> list[dict]:
    try:
        return latest_rows(path, policy_id) if path.is_file() else []
    except (ValueError, KeyError) as exc:
        raise BadInputError(f"{path}: is not an update log: {exc}") from exc


def _check_checkpoint(path: Path) -> None:
    try:
        checkpoints.load(path)["model"]
    except Exception as exc:  # a torn or foreign file fails in many ways
        raise BadInputError(
            f"{path}: is not a checkpoint that can be read ({type(exc).__name__}); name another with --checkpoint"
        ) from exc


def _is_dmlab(config: Mapping[str, Any]) -> bool:
    try:
        return find_suite(str(config.get("env"))).name == "dmlab"
    except UnknownEnvError:
        return False


def _refuse_secrets(texts: Mapping[str, str], experiment: Path) -> None:
    """A last look at what leaves the machine."""
    secrets = {"the Hub's token": get_token(), "WANDB_API_KEY": os.environ.get("WANDB_API_KEY")}
    folder = experiment.resolve()
    # the first folders of a path, such as /home, are nobody's own
    places = {f"the path {place}": str(place) for place in (folder, folder.parent, Path.home()) if len(place.parts) > 2}
    for name, text in texts.items():
        for what, forbidden in {**secrets, **places}.items():
            if forbidden and forbidden in text:
                raise BadInputError(f"{name}: would publish {what}; nothing was published")


# -- publishing ------------------------------------------------------------------------------------------------------------------


def repo_faults(repo_id: Any) -> list[str]:
    """What is wrong with the name of a repository; nothing where it is `USER/NAME` as the Hub allows it."""
    try:
        validate_repo_id(repo_id or "")
    except HFValidationError as exc:
        return [str(exc)]
    return [] if "/" in repo_id else ["it must be USER/NAME"]


def push_to_hub(
    experiment: str | os.PathLike,
    repo_id: str,
    private: bool = False,
    which: Sequence[str | None] = (None,),
    policy_id: int = 0,
) -> str:
    """Publishes a run as one commit; files of earlier pushes that are not overwritten stay.

    Args:
        experiment: the run's folder.
        repo_id: `USER/NAME`; made where it does not exist.
        private: make it a private repository; one that is public already is refused.
        which: checkpoints, each `best`, `latest`, a path, or None for the best one or the latest where none was saved as best.
        policy_id: which policy of a population.

    Returns:
        The repository's address.

    Raises:
        BadInputError: what was asked for does not exist.
        PushError: there is no token, or the Hub refused or cannot be reached.
    """
    if found := repo_faults(repo_id):
        raise BadInputError(f"--repo={repo_id}: {found[0]}")
    with tempfile.TemporaryDirectory(prefix="fixpo_hub_") as folder:
        stage(Path(experiment), Path(folder), repo_id, which, policy_id)
        if get_token() is None:
            raise PushError(f"no token for the Hugging Face Hub: {LOGIN}")
        try:
            return _upload(HfApi(), Path(folder), repo_id, private)
        except PushError:
            raise
        except HfHubHTTPError as exc:
            status = exc.response.status_code if exc.response is not None else 0
            help_text = f"; does the token allow to write there? Else {LOGIN}" if status in (401, 403) else ""
            raise PushError(f"the Hub refused {repo_id}: {exc}{help_text}") from exc
        except (RequestException, OfflineModeIsEnabled) as exc:
            raise PushError(f"the Hub cannot be reached: {type(exc).__name__}: {exc}") from exc
        except (RuntimeError, ValueError) as exc:  # what its client makes of a failed upload, or of a card it refuses
            raise PushError(f"{repo_id} could not be uploaded: {exc}") from exc


def _upload(api: HfApi, folder: Path, repo_id: str, private: bool) -> str:
    url = api.create_repo(repo_id, private=True if private else None, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise PushError(f"--private: {repo_id} exists and is public; nothing was published")
    api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Publish a run of sf_fixpo")
    return str(url)


# -- the end of a training run ---------------------------------------------------------------------------------------------------


def hub_faults(cfg: Any) -> list[str]:
    """Faults of the flags of a run that is to be published, a missing token among them: better said now than after it."""
    found = [f"--hf_repository={cfg.hf_repository}: {fault}" for fault in repo_faults(cfg.hf_repository)]
    if get_token() is None:
        found.append(f"--push_to_hub: no token for the Hugging Face Hub: {LOGIN}")
    return found


def push_finished_run(cfg: Any) -> int:
    """Publishes the run that has just ended, and says where, or why not; returns the exit status."""
    folder = experiment_dir(cfg, mkdir=False)
    try:
        print(f"published at {push_to_hub(folder, cfg.hf_repository, cfg.hf_private)}")
    except (BadInputError, PushError) as exc:
        print(f"{exc}\nTry again: python -m sf_fixpo.hub {folder} --repo={cfg.hf_repository}", file=sys.stderr)
        return 1
    return 0


# -- the program -----------------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m sf_fixpo.hub", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dir", type=Path, metavar="DIR", help="experiment folder, with config.json and checkpoint_p0/")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="made where it does not exist")
    parser.add_argument(
        "--checkpoint", action="append", help="best, latest, or a path, also several times; default: best, else latest"
    )
    parser.add_argument("--policy_id", type=int, default=0, help="which policy of a population")
    parser.add_argument("--private", action="store_true", help="make it a private repository")
    parser.add_argument("--dry_run", type=Path, metavar="FOLDER", help="write what would be published there, and publish nothing")
    args = cli.parse(parser, argv)
    if found := repo_faults(args.repo):
        parser.error(f"--repo={args.repo}: {found[0]}")
    if args.policy_id < 0:
        parser.error(f"--policy_id={args.policy_id}: must be an integer >= 0")
    if args.dry_run and args.dry_run.exists() and (not args.dry_run.is_dir() or any(args.dry_run.iterdir())):
        parser.error(f"--dry_run={args.dry_run}: must be a new or an empty folder")
    args.checkpoint = args.checkpoint or [None]
    return args


def _show(files: Iterable[str]) -> None:
    for name in files:
        print(f"  {name}")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = parse_args(argv)
    try:
        if args.dry_run:
            files = stage(args.dir, args.dry_run, args.repo, args.checkpoint, args.policy_id)
            print(f"{args.dry_run}: what would be published as {args.repo}")
            _show(files)
        else:
            print(f"published at {push_to_hub(args.dir, args.repo, args.private, args.checkpoint, args.policy_id)}")
    except BadInputError as exc:
        print(exc, file=sys.stderr)
        return 2
    except PushError as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
