"""docs/security.md: what reads a file from outside runs nothing of it, and what the whole code may not use at all."""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.vulnerabilities import judge
from sf_fixpo.learning import checkpoints
from sf_fixpo.records import audit_files

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "sf_fixpo/*.py", "envs/*.py", "launcher/*.py", "docker/*.py", "examples/*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()
]  # fmt: skip

# Modules whose readers build whatever a file names.
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas"}
# Calls that run text or a file as code, or unfold an archive wherever it says; and where each is meant to be, and why.
RUNS = {
    "eval": (), "exec": (), "compile": (), "__import__": (),
    "runpy.run_module": ("running/scripts.py",),  # a user's own script; not of a run from outside
    "runpy.run_path": ("running/scripts.py",),
    "importlib.import_module": (
        "__init__.py",  # of the public names
        "audit.py",  # --import
        "dmlab/engines.py", "dmlab/loader.py",  # deepmind_lab and the stand-in
        "gymnasium_envs/__init__.py",  # gym_<module>:<name>, --env_wrappers; not of a run from outside
        "launcher/backend.py", "launcher/run.py",  # our backends, --run
    ),
    "os.system": (), "os.popen": (), "subprocess.getoutput": (),
    "torch.jit.load": ("playing/export_formats.py",),  # what fixpo-export itself has just written
    "torch.export.load": ("playing/export_formats.py",),
    "yaml.load": (), "yaml.unsafe_load": (), "yaml.full_load": (), "np.fromfile": (), "np.lib.format.read_array": (),
}  # fmt: skip


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the name it is written with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def faults(source: str, name: str) -> list[str]:
    """What of a file's text could run something that another file holds."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"{name}: imports {module}" for module in modules if module.partition(".")[0] in UNPICKLING]
    for called, call in calls(tree):
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if called == "torch.load" and keywords.get("weights_only") != "True":
            found.append(f"{name}:{call.lineno}: torch.load without weights_only=True")
        if called in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            found.append(f"{name}:{call.lineno}: np.load without allow_pickle=False")
        if keywords.get("shell") == "True":
            found.append(f"{name}:{call.lineno}: a shell")
        if called.endswith((".extractall", ".unpack_archive")):
            found.append(f"{name}:{call.lineno}: {called}")
        if called in ("import_module", "run_module", "run_path"):
            called = {"import_module": "importlib"}.get(called, "runpy") + f".{called}"
        if called in RUNS and not name.endswith(RUNS[called] or ("nowhere",)):
            found.append(f"{name}:{call.lineno}: {called}")
    return found


def test_nothing_unpickles_or_runs_what_a_file_says():
    assert len(SOURCES) > 150
    assert [fault for path in SOURCES for fault in faults(path.read_text(), str(path.relative_to(ROOT)))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "archive.extractall(folder)",
        "yaml.load(text)",
        "importlib.import_module(config['module'])",
    ],
)
def test_it_would_be_found(source):
    assert faults(source, "sf_fixpo/new.py")


def test_every_exception_to_the_rule_is_still_there():
    for called, places in RUNS.items():
        for place in places:
            [*paths] = [path for path in SOURCES if str(path).endswith(place)]
            texts = "".join(path.read_text() for path in paths)
            assert called.rpartition(".")[2] in texts, f"{called} is no longer in {place}"


# -- what a hostile file does ---------------------------------------------------------------------------------------------------


class Payload:
    """What runs code when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def hostile_files(folder: Path) -> dict[str, Path]:
    """As torch writes one, as a bare pickle, in the old format, and one that unfolds to far more than it is."""
    mark = folder / "executed"
    torch.save({"model": {"w": torch.zeros(2)}, "extra": Payload(mark)}, folder / "torch.pth")
    (folder / "bare.pth").write_bytes(pickle.dumps(Payload(mark)))
    torch.save({"model": {}, "extra": Payload(mark)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
    return {path.stem: path for path in folder.glob("*.pth")}


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    files = hostile_files(tmp_path)
    assert len(files) == 4
    for path in files.values():
        with pytest.raises(checkpoints.UnreadableError):
            checkpoints.load(path)
        with pytest.raises(audit_files.UnreadableError):
            audit_files.load(path)
    assert not (tmp_path / "executed").exists()
    pickle.loads((tmp_path / "bare.pth").read_bytes()).close()
    assert (tmp_path / "executed").exists(), "it would have run"


def test_a_bomb_is_refused_before_it_unfolds(tmp_path, monkeypatch):
    hostile_files(tmp_path)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was unfolded"))
    with pytest.raises(checkpoints.UnreadableError, match="it holds more than its size"):
        checkpoints.load(tmp_path / "bomb.pth")


# -- make audit -----------------------------------------------------------------------------------------------------------------

UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}
KNOWN = {"name": "rich", "version": "15.0.0", "vulns": []}
FLAWED = {"name": "jinja2", "version": "2.10", "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"]}]}


@pytest.mark.parametrize(
    ("packages", "status", "said"),
    [
        ([UNKNOWN, UNKNOWN], 0, "SKIPPED: the data base of vulnerabilities cannot be reached from here (2 packages, none known"),
        ([KNOWN, UNKNOWN], 0, "1 of 2 packages looked up, 0 known vulnerabilities"),
        ([KNOWN, FLAWED], 1, "jinja2 2.10: PYSEC-2019-217, mended in 2.10.1"),
    ],
)
def test_an_audit_that_looked_nothing_up_is_not_a_pass(packages, status, said):
    found, lines = judge({"dependencies": packages})
    assert found == status
    assert said in "\n".join(lines)
    assert ("SKIPPED" in lines[0]) == (not any("version" in package for package in packages))


def test_no_answer_at_all_is_said():
    assert judge(None, "no route to host") == (0, [judge(None, "no route to host")[1][0]])
    assert "no route to host" in judge(None, "no route to host")[1][0]


# -- images ---------------------------------------------------------------------------------------------------------------------


def test_the_page_says_what_is_checked():
    """Tests that docs/security.md names are there."""
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page)) | {
        Path(path).stem for path in re.findall(r"`tests/[\w/]*?(test_\w+\.py)`", page)
    }
    everything = "".join(path.read_text() + path.stem for path in (ROOT / "tests").rglob("*.py"))
    assert named
    assert {name for name in named if name not in everything} == set()
