"""Every message that a command line can refuse something with: it says what, which value, and what to do or what is allowed.

`ROWS` provokes them in this process. The messages are found in the source (`helpers/messages.py`), so that a new one cannot be
forgotten: each must have been said by a row, or be quoted by another test (three words of it in a row, which is not proof that
the test provokes it), or be listed in `ELSEWHERE` with what it takes and the tests that go that way.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from catalogue_elsewhere import ELSEWHERE
from catalogue_rows import ROWS
from messages import REPO, of_source, templates
from saved_policies import save_policy
from small_runs import write_run

PROGRAMS = {
    "launcher": "sf_fixpo.launcher.run", "status": "sf_fixpo.launcher.status", "stop": "sf_fixpo.launcher.stop",
    "resume": "sf_fixpo.launcher.resume", "populate_cache": "sf_fixpo.envs.dmlab.cache.populate_cache",
    "repeat": "sf_fixpo.envs.dmlab.repeat",
}  # fmt: skip
# What a message tells to do, or that what is allowed follows.
ADVICE = re.compile(
    r"\b(must|use|try|set|give|say|take|leave|goe?s? by|train with|name|pip install|did you mean|choose from|is this|needs?|"
    r"move|remove|wait|look|chmod|required|expected|there are|--list_envs|convert|one of|can be shown|make|goes with|it plays|"
    r"only [.\w]+ is|invalid \w+ value|no such file|is not a folder|is no folder|not the folder of|"
    r"cannot be (read|imported|written)|is no checkpoint that can be read|does not fit)\b"
)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """Folders and files with something wrong, by the name that a row has for each."""
    root = tmp_path_factory.mktemp("catalogue")

    def made(name: str, content: str = "", mode: int = 0o644) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
        return path

    run = save_policy(root / "run", "gym_CartPole-v1")
    save_policy(root / "wide", "gym_CartPole-v1", "--encoder_mlp_layers", "7")
    written = write_run(root / "written")
    (root / "empty").mkdir()
    return {
        "root": root, "run": run, "written": written, "empty": root / "empty", "nothing": root / "nothing",
        "file": made("file", "a file"), "torn": made("torn.pth", "PK"),
        "broken": made("broken/config.json", "{").parent,
        "list": made("list/config.json", "[1]").parent,
        "nameless": made("nameless/config.json", '{"seed": 1}').parent,
        "strange": made("strange/config.json", json.dumps({"env": "gym_CartPole-v1", "rollout": "many"})).parent,
        "gone": made("gone/config.json", json.dumps({"env": "gym_Gone-v9"})).parent,
        "scripted": made("scripted/config.json", json.dumps({"env": "mine", "script": {"path": "gone.py", "argv": []}})).parent,
        "scripted_list": made("scripted_list/config.json", json.dumps({"env": "mine", "script": [1]})).parent,
        "bad_log": bad_log(root / "bad_log"),
        "old_log": write_run(root / "old_log", rows=[{"policy_id": 0, "policy_version": 1, "env_steps": 64}]),
        "wide_weights": next((root / "wide" / "checkpoint_p0").glob("*.pth")),
        "dictless": dictless(root / "dictless.pth"),
        "old_run": REPO / "tests" / "data" / "runs" / "0.1.0" / "feed_forward",
        "public": made("public.env", "A=1", 0o644), "unkeyed": made("unkeyed.env", "no key", 0o600),
        "sweepless": made("sweepless/.sweep/manifest.json", "{}").parent.parent,
        "record": made("record.json", "{}"),
        "sweep": sweep(root / "sweep"),
        "exits": made("exits/config.json", json.dumps(script_that_ends(made("mine.py", "import sys; sys.exit(3)\n")))).parent,
        "folder_mp4": made("folder.mp4/x").parent,
        "traced": traced(root / "traced"),
        "modules": [made("catalogue_sweep.py", SWEEP), made("catalogue_empty.py", EMPTY), made("catalogue_envs.py", ENVS)],
        "idle": made("idle.py", "print('nothing')\n"),
        "folder_ts": made("folder.ts/x").parent,
    }  # fmt: skip


# Modules as a user has them in the present folder.
SWEEP = """
from sample_factory.launcher.run_description import Experiment, RunDescription
grid = [{"a": 1}]
RUN_DESCRIPTION = RunDescription("a sweep", [
    Experiment("one", "python -m x --restart_behavior=restart --api_key=abc", grid), Experiment("one", "python -m x", grid),
    Experiment("two words", "python -m no_such_package hf_0123456789abcdefghij", grid),
])
"""
EMPTY = """
from sample_factory.launcher.run_description import RunDescription
RUN_DESCRIPTION, SEARCH_SPACE = RunDescription("empty", []), {"eps_kl": (0.1, 1.0)}
"""
ENVS = """
import gymnasium as gym
from gymnasium import spaces
class Env(gym.Env):
    def __init__(self, observed, chosen):
        self.observation_space, self.action_space = observed, chosen
def letters(): return Env(spaces.Text(3), spaces.Discrete(2))
def hollow(): return Env(spaces.Box(0, 1, (0,)), spaces.Discrete(2))
def writes(): return Env(spaces.Box(0, 1, (2,)), spaces.Text(3))
"""


def script_that_ends(path: Path) -> dict:
    return {"env": "mine", "script": {"path": str(path), "argv": []}}


def traced(folder: Path) -> Path:
    (write_run(folder) / "trace.jsonl").write_text('{"policy_id": 0}\n' * 2)
    return folder


def bad_log(folder: Path) -> Path:
    (write_run(folder) / "updates.jsonl").write_text("no row\n" * 2)
    return folder


def dictless(path: Path) -> Path:
    import torch

    torch.save({"weights": torch.zeros(1)}, path)
    return path


def sweep(folder: Path) -> Path:
    from sf_fixpo.launcher.sweep import Run, Sweep

    made = Sweep.create(folder, [Run("a", ("python", "-m", "sf_fixpo.train"), "e/a", {})], "mine")
    made.save_launch("local", {})
    return folder


@pytest.fixture
def answer(places, tmp_path, monkeypatch, capsys):
    """Runs a row in this process, in an empty folder; returns its exit status and what it says."""
    from sf_fixpo import train

    def start(*args):
        raise AssertionError("the run was started")

    monkeypatch.setattr(train, "run_fixpo", start)
    monkeypatch.setattr(train, "end_when_preempted", lambda: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(places["root"]))

    def run(program: str, words: str) -> tuple[int | str | None, str]:
        argv = [word.format(**places) for word in shlex.split(words)]
        module = importlib.import_module(PROGRAMS.get(program, f"sf_fixpo.{program}"))
        try:
            status = module.main(argv)
        except SystemExit as exc:
            status = exc.code
        out, err = capsys.readouterr()
        return status, err or out

    return run


def faults_of(row, status: int | str | None, text: str, places) -> list[str]:
    """What is wrong with an answer."""
    found = [] if status in (1, 2) else [f"exit status {status}"]
    found += ["a traceback"] if "Traceback" in text else []
    found += [f"not in it: {part}" for part in row[2] if part.format(**places) not in text]
    return found + [f"says not what to do: {line}" for line in text.splitlines() if line.strip() and not ADVICE.search(line)]


def test_every_message_names_what_is_wrong_and_what_to_do_and_none_is_left_out(answer, places):
    """One test, because pytest-xdist deals single tests out to processes: every message must have been said in this one."""
    wrong, said = [], []
    for row in ROWS:
        try:
            status, text = answer(*row[:2])
        except Exception as exc:  # noqa: BLE001 - which is what no user may see
            status, text = None, f"Traceback: {exc!r}"
        said.append(text)
        wrong += [f"{row[0]} {row[1]}: {fault}" for fault in faults_of(row, status, text, places)]
    assert not wrong, "\n".join(wrong)
    lines = [line for text in said for line in text.splitlines()]
    found = {template.text: template for template in templates()}
    unsaid = {text: template for text, template in found.items() if not any(map(template.is_in, lines))}
    others = "\n".join(path.read_text() for path in (REPO / "tests").rglob("test_*.py") if path != Path(__file__))
    unread = {text for text, template in unsaid.items() if not template.is_quoted_in(others)}
    listed = {text for texts in ELSEWHERE.values() for text in texts}
    assert not [f"{found[text].file}:{found[text].line}: {text}" for text in sorted(unread - listed)], "in no test: add a row"
    assert not listed - unread, "listed, and in a test or no longer in the source"


@pytest.mark.parametrize("tests", ELSEWHERE)
def test_what_is_listed_goes_by_tests_that_are_there(tests):
    assert all((REPO / name).is_file() for name in tests.split())


def test_a_message_that_nobody_provokes_would_be_found():
    """The reader of the source sees a new one, wherever one may stand."""
    source = """
def some_faults(cfg):
    found = [f"--a={cfg.a}: must be an odd number"]
    if cfg.b:
        raise BadInputError(f"--b={cfg.b}: nobody ever saw this")
    return found
def other():
    parser.error(f"--c={1}: and not this either")
    raise KeyError("which is no message of a user's")
"""
    texts = {"...".join(parts) for _, parts in of_source(source)}
    assert texts == {"--a=...: must be an odd number", "--b=...: nobody ever saw this", "--c=...: and not this either"}
