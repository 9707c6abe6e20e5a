"""Every flag of sample-factory does with us what its help says, or is refused by name with the reason."""

from __future__ import annotations

import ast
import math
from functools import cache
from pathlib import Path

import pytest
import sample_factory
from programs import SERIAL
from sample_factory.cfg.arguments import parse_sf_args

from sf_fixpo import train
from sf_fixpo.algorithm.ranges import RANGES

ROOT = Path(__file__).resolve().parents[1]
# Read by code that does not run here: sample-factory's own programs to play and to look around.
NOT_RUN = ("cfg/", "enjoy.py", "eval.py", "launcher/", "huggingface/", "envs/")
# Flag and value -> what the refusal says.
REFUSED = {
    "use_env_info_cache": ("True", "has no effect with --algo=FIXPO, leave it out: the environment is asked"),
    "use_record_episode_statistics": ("True", "has no effect with --algo=FIXPO"),
    "ppo_clip_ratio": ("0.2", "has no effect with --algo=FIXPO, leave it out: FixPO clips no likelihood ratio"),
    "kl_loss_coeff": ("0.1", "has no effect with --algo=FIXPO, leave it out: the multiplier beta"),
    "env_framestack": ("4", "the gym suite has no use for it"),
    "pixel_format": ("HWC", "the gym suite has no use for it"),
}
# Read where the name stands in a string or a list, or by the parser itself.
OTHERWISE = {"help", "wandb_user", "wandb_project", "wandb_group", "wandb_tags", "wandb_job_type"}


def flags() -> list[str]:
    return [action.dest for action in parse_sf_args(["--env=x"])[0]._actions]


@cache
def read_somewhere() -> frozenset[str]:
    """Attributes and strings in the code that runs: what sample-factory or we read of the settings."""
    theirs = Path(sample_factory.__file__).parent
    files = [path for path in theirs.rglob("*.py") if not str(path.relative_to(theirs)).startswith(NOT_RUN)]
    files += [path for room in ("sf_fixpo", "envs") for path in (ROOT / room).rglob("*.py")]
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ROOT in path.parents:
                names.add(node.value)
    return frozenset(names)


@pytest.mark.parametrize("name", flags())
def test_a_flag_that_nobody_reads_is_refused(name):
    assert name in REFUSED or name in OTHERWISE or name in read_somewhere(), f"--{name} would silently do nothing"


# Numbers that have rules of their own, beside others; and GPUs by their index.
NUMBERS_ELSEWHERE = {"recurrence", "worker_num_splits", "actor_worker_gpus"}


@pytest.mark.parametrize("action", [action for action in parse_sf_args(["--env=x"])[0]._actions if action.type in (int, float)])
def test_every_number_has_a_range(action):
    """A number that nobody looked at ends a run in its middle, or never: with 0 frames a step no run comes to its end."""
    if action.dest in NUMBERS_ELSEWHERE:
        return
    _, valid = RANGES[action.dest]
    defaults = action.default if isinstance(action.default, list) else [action.default]
    assert all(valid(value) for value in defaults if value is not None)
    assert not valid(math.nan if action.type is float else -99)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_silently_do_nothing_is_refused_where_it_is_asked_for(tmp_path, name):
    value, reason = REFUSED[name]
    argv = [*SERIAL, f"--train_dir={tmp_path}", "--experiment=x"]
    train.parse_cfg(argv)
    with pytest.raises(train.BadInputError) as refused:
        train.parse_cfg([*argv, f"--{name}={value}"])
    [line] = str(refused.value).splitlines()
    assert line.startswith(f"--{name}={value}: {reason}")


def test_appo_heeds_its_own(tmp_path):
    argv = [*SERIAL, f"--train_dir={tmp_path}", "--experiment=x", "--algo=APPO"]
    assert train.parse_cfg([*argv, "--ppo_clip_ratio=0.2", "--kl_loss_coeff=0.1"]).ppo_clip_ratio == 0.2


def test_dmlab_heeds_the_pixel_format(tmp_path):
    argv = ["--env=dmlab_30_rooms_collect_good_objects", "--preset=laptop", "--dmlab_engine=vizdoom", f"--train_dir={tmp_path}"]
    assert train.parse_cfg([*argv, "--pixel_format=HWC"]).pixel_format == "HWC"
    with pytest.raises(train.BadInputError, match="--env_framestack=4: the dmlab suite has no use for it"):
        train.parse_cfg([*argv, "--env_framestack=4"])
