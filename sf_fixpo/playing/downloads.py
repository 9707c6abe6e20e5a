"""A run of the Hugging Face Hub, `hub:USER/NAME`, as a folder here: the few files that are needed to play it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from requests import RequestException

from sf_fixpo.playing.experiment import CHECKPOINTS, BadInputError
from sf_fixpo.records.foreign import is_from_outside
from sf_fixpo.records.update_log import UPDATE_LOG

HUB = "hub:"
FOLDER = Path("train_dir") / "hub"
LARGEST = 8 << 30  # bytes of a checkpoint: the largest network here has a few million weights
_CHECKPOINT = re.compile(r"checkpoint_p\d+/(?:best|checkpoint)_[\w.\-]+\.pth", re.ASCII)


class DownloadError(RuntimeError):
    """The Hub cannot be reached, or has no such run; the message says what helps."""


def local_folder(place: Path, checkpoint: str | None = None, policy_id: int = 0) -> Path:
    """The folder of a run, which is fetched where it is named as `hub:USER/NAME` or `hub:USER/NAME@REVISION`.

    Args:
        place: a folder, which is returned as it is, or the name of one on the Hub.
        checkpoint: `best`, `latest`, or None, as `find_checkpoint` takes it.
        policy_id: which policy of a population.

    Returns:
        `train_dir/hub/USER/NAME`, with config.json, that checkpoint and the update log.

    Raises:
        BadInputError: it is no name of the Hub, the run lacks something or names code of its own, or the folder is in the way.
        DownloadError: the Hub cannot be reached, or has no such run.
    """
    if not str(place).startswith(HUB):
        return place
    repo_id, _, revision = str(place).removeprefix(HUB).partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as exc:
        raise BadInputError(f"{place}: must be hub:USER/NAME or hub:USER/NAME@REVISION ({exc})") from exc
    if "/" not in repo_id:
        raise BadInputError(f"{place}: must be hub:USER/NAME or hub:USER/NAME@REVISION")
    folder = FOLDER / (f"{repo_id}@{revision.replace('/', '_')}" if revision else repo_id)
    if folder.exists() and any(folder.iterdir()) and not is_from_outside(folder):
        raise BadInputError(f"{place}: {folder} is there already, and not from the Hub; move it away")
    try:
        return _fetch(HfApi(), repo_id, revision or None, folder, checkpoint, policy_id)
    except BadInputError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as exc:
        raise DownloadError(
            f"{place}: the Hub has no such model, or it is private: look at its name; for a private one set HF_TOKEN"
        ) from exc
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, RequestException, HfHubHTTPError) as exc:
        raise DownloadError(
            f"{place}: cannot be fetched from {constants.ENDPOINT}: {type(exc).__name__}: {exc}; look at the network "
            f"(HF_HUB_OFFLINE, HF_ENDPOINT) and try again"
        ) from exc
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:  # a bad answer, or a full disk
        raise DownloadError(f"{place}: what came from {constants.ENDPOINT} cannot be used: {type(exc).__name__}: {exc}") from exc


def _fetch(api: HfApi, repo_id: str, revision: str | None, folder: Path, checkpoint: str | None, policy_id: int) -> Path:
    """The few files that are needed to play, each by its name: whatever else lies there stays there."""
    found = api.model_info(repo_id, revision=revision, files_metadata=True).siblings or []
    sizes = {file.rfilename: file.size for file in found}
    if "config.json" not in sizes:
        raise BadInputError(f"{HUB}{repo_id}: holds no config.json, so it is no run of this package")
    wanted = ["config.json", wanted_checkpoint(sizes, checkpoint, policy_id, f"{HUB}{repo_id}")]
    size = sizes[wanted[-1]]
    if size is None or size > LARGEST:
        raise BadInputError(f"{HUB}{repo_id}: {wanted[-1]} has {size} bytes; at most {LARGEST} are fetched")
    wanted += [UPDATE_LOG] if UPDATE_LOG in sizes else []
    for name in wanted:
        api.hf_hub_download(repo_id, name, revision=revision, local_dir=folder)
    return folder


def wanted_checkpoint(names: Iterable[str], which: str | None, policy_id: int, where: str) -> str:
    """Which file of a repository is the checkpoint, as `find_checkpoint` chooses in a folder.

    Raises:
        BadInputError: it has none such.
    """
    if which is not None and which not in CHECKPOINTS:
        raise BadInputError(f"--checkpoint={which}: must be best or latest for {where}")
    whole = sorted(name for name in names if _CHECKPOINT.fullmatch(name))
    kinds = ("best", "latest") if which is None else (which,)
    for kind in kinds:
        pattern = f"checkpoint_p{policy_id}/{CHECKPOINTS[kind]}"
        if chosen := fnmatch.filter(whole, pattern):
            return chosen[-1]
    has = f"it has {', '.join(whole) or 'none'}"
    raise BadInputError(f"--checkpoint={which or 'best or latest'}: {where} has no such file of policy {policy_id}; {has}")
