"""The documentation: links lead somewhere, commands are what the programs take, what is generated has all that there is."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib

from sf_fixpo import train
from sf_fixpo.launcher.flags import FlagParser
from sf_fixpo.records.update_log import UpdateRecord

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs" / "site"))

import reference  # noqa: E402

PAGES = sorted(
    path
    for path in subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not path.startswith("tests/")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# -- links -----------------------------------------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(path: Path) -> set[str]:
    """Of the headings of a page, as GitHub and MyST name them."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def broken_links(page: str, text: str) -> list[str]:
    """What a page points at inside the repository, and is not there."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        place, _, anchor = target.partition("#")
        if ":" in place or place.startswith("generated/"):
            continue
        path = (ROOT / page).parent / place if place else ROOT / page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_lead_somewhere(page):
    assert broken_links(page, (ROOT / page).read_text()) == []


def test_a_broken_link_would_be_found():
    text = "[a](nowhere.md) [b](install.md#no-such-heading) [c](install.md#extras) `[d](code.md)`"
    assert broken_links("docs/index.md", text) == ["nowhere.md", "install.md#no-such-heading"]


def test_every_page_is_in_the_table_of_contents():
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", (ROOT / "docs" / "index.md").read_text(), re.M | re.S)
    listed = {re.sub(r".*<(.*)>", r"\1", line) for tree in trees for line in tree.splitlines() if line and line[0] != ":"}
    pages = {f"/{page}" if not page.startswith("docs/") else page.removeprefix("docs/") for page in PAGES}
    expected = {page.removesuffix(".md") for page in pages} - {"index"} | {"generated/flags", "generated/metrics"}
    assert listed == expected, "list it in docs/index.md (and in docs/site/conf.py, where it lies elsewhere)"


# -- what is generated ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flags_page():
    return reference.flags_page()


def test_every_flag_of_every_program_is_on_the_page(flags_page):
    modules = [*reference.scripts().values(), *reference.OTHERS]
    parsers = [*reference.suite_parsers().values()]
    parsers += [parser for module in modules if (parser := reference.parser_of(importlib.import_module(module).main))]
    actions = [action for p in parsers for action in p._actions if reference.is_shown(action)]
    flags = {option for action in actions for option in action.option_strings}
    assert len(flags) > 200
    assert {flag for flag in flags if f"| `{flag}`" not in flags_page and f", `{flag}`" not in flags_page} == set()
    assert {action.dest for action in actions if not (action.help or "").strip()} == set(), "without help"
    assert all(f"\n## {program}\n" in flags_page for program in PROJECT["scripts"])
    assert "| `--eps_kl` | `0.5` | Bound of the trust region" in flags_page, "the flag's default, not a preset's"


def test_every_column_of_the_update_log_is_on_the_page():
    page = reference.metrics_page()
    for field in dataclasses.fields(UpdateRecord):
        assert re.search(rf"^\| `{field.name}` \| `[^`]+` \| \w", page, re.M), field.name
    assert "`fixpo/kl_max_rel`" in page
    assert "`collapse`" in page


# -- commands ------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Command:
    """A line of a page that a reader may type."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """As a shell divides it; what may be left out is there, and a number stands where N does."""
        text = re.sub(r"[\[\]](?=--|\s|$)|(?<=\s)\[", " ", self.text) if "'" not in self.text else self.text
        words = shlex.split(re.sub(r"=N\b", "=1", text), comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        return words[3:] if words[:1] == ["nice"] else words


def commands() -> Iterator[Command]:
    """Of all pages: fences without a language or of a shell, and indented lines that begin with one of our programs."""
    for page in PAGES:
        text = (ROOT / page).read_text().replace("\\\n", " ")
        for language, block in re.findall(r"^```([^\n]*)\n(.*?)^```", text, re.M | re.S):
            lines = block.splitlines() if language in ("", "bash", "sh", "console") else []
            yield from (Command(page, line.strip()) for line in lines if line.strip())
        for line in re.findall(r"^    ((?:nice -n \d+ )?(?:python -m|fixpo-\w+|make|pip install) .*)$", prose(text), re.M):
            yield Command(page, line)


COMMANDS = [command for command in commands() if not re.match(r"(agent|random|difference)\b", command.text)]


def check_program(module: str, argv: list[str]) -> None:
    """Whether a program takes these flags; what they name need not be there."""
    package = not hasattr(importlib.import_module(module), "main")
    main = importlib.import_module(f"{module}.__main__" if package else module).main
    if module == "sf_fixpo.train":
        if "--list_envs" in argv:
            return
        parser, suite = train._make_parser(argv)
        args = parser.parse_args(argv)
        assert args.preset in suite.presets
        return
    if module == "sf_fixpo.run":
        assert importlib.util.find_spec(argv[0]) or (ROOT / argv[0]).is_file() or argv[0].isupper(), argv[0]
        return
    parser = reference.parser_of(main, [word for word in argv if word.startswith("--backend=")])
    assert parser is not None, f"{module} has no parser"

    def refuse(message):
        raise AssertionError(message)

    parser.error = refuse
    if isinstance(parser, FlagParser):
        parser.parse(argv)
        assert parser.found == []
    else:
        parser.parse_args(argv)


def check_docker(words: list[str]) -> None:
    """Targets and files that are named, and the program that an image runs."""
    for flag, value in itertools.pairwise(words):
        if flag == "-f":
            assert (ROOT / value).is_file(), value
        if flag == "--target":
            assert f" AS {value}\n" in (ROOT / "docker" / "Dockerfile").read_text(), value
    if words[1] == "run":
        image = next(i for i, word in enumerate(words) if word.startswith("sf_fixpo:"))
        program, *argv = [*words[image + 1 :], "", ""]
        argv = [word for word in argv if word and not word.endswith("=...")]
        if program in ("train", "evaluate", "demo") and (argv or program != "train"):
            check_program(f"sf_fixpo.{program}", argv if program != "train" else [*argv, "--env=dmlab_30_rooms"])


def check_python(words: list[str]) -> None:
    """A module or a file, and what is given to it where it is ours."""
    if words[1] != "-m":
        assert (ROOT / words[1]).is_file()
        return check_program("sf_fixpo.train", ["--env=gym_CartPole-v1", *words[2:]])
    assert importlib.util.find_spec(words[2]), words[2]
    module = re.sub(r"^(envs|launcher)\.", r"sf_fixpo.\1.", words[2])
    return None if module in ("venv", "pip") else check_program(module, words[3:])


def check_torchrun(words: list[str]) -> None:
    """Torchrun's own flags, and what it is to run."""
    from torch.distributed.run import get_args_parser

    args = get_args_parser().parse_args(words[1:])
    assert args.module
    check_program(args.training_script, [word for word in args.training_script_args if word != "..."] or ["--env=dmlab_30_rooms"])


def check_make(words: list[str]) -> None:
    """A target of the Makefile."""
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words


def check_pip(words: list[str]) -> None:
    """Extras that there are."""
    for extras in re.findall(r"(?:sf_fixpo|\.)\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def check_files(words: list[str]) -> None:
    """Files of the repository that are there."""
    assert all((ROOT / word).exists() for word in words if word.startswith(("tests/", "docker/")))


def check_sbatch(words: list[str]) -> None:
    """A job that trains."""
    check_files(words)
    check_program("sf_fixpo.train", words[2:])


# What is given to programs of others is checked where it is ours.
CHECKS = {
    "python": check_python, "make": check_make, "pip": check_pip, "pytest": check_files, "sbatch": check_sbatch,
    "torchrun": check_torchrun, "docker": check_docker, "build_without_daemon.sh": check_files,
    "cp": lambda words: check_files(words[:-1]),
    **dict.fromkeys(("git", "cd", "hf", "uvx", "apptainer", "kubectl", "apt-get", "python3"), check_files),
}  # fmt: skip


def check(command: Command) -> None:
    """Fails where a command is not what its program takes."""
    program = Path(command.words[0]).name
    if program in PROJECT["scripts"]:
        check_program(PROJECT["scripts"][program].partition(":")[0], command.words[1:])
    else:
        assert program in CHECKS, f"{program}: is it a program, and what checks it?"
        CHECKS[program](command.words)


@pytest.mark.parametrize("page", sorted({command.page for command in COMMANDS}))
def test_commands_are_what_the_programs_take(page):
    faults = []
    for command in COMMANDS:
        if command.page == page:
            try:
                check(command)
            except (Exception, SystemExit) as exc:  # noqa: BLE001  (all of them are told)
                faults.append(f"{command.text}\n    {type(exc).__name__}: {exc}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "text",
    [
        "fixpo-train --env=gym_CartPole-v1 --epskl=0.5",
        "python -m sf_fixpo.train --env=gym_CartPole-v1 --preset=desktop",
        "python -m sf_fixpo.evaluate train_dir/x --episode=100 --unknown",
        "python -m sf_fixpo.launcher.run --run=sf_fixpo.launcher.sweeps.paper_figures --backend=slurm --slurm_gpu=1",
        "make nothing",
        "pip install 'sf_fixpo[nothing]'",
        "docker build -f docker/Dockerfile --target tpu .",
        "somebody --elses=program",
    ],
)
def test_a_wrong_command_would_be_found(text):
    with pytest.raises((Exception, SystemExit)):
        check(Command("docs/index.md", text))


def test_commands_are_found():
    assert {"README.md", "docs/install.md", "docs/benchmarks.md", "launcher/README.md"} <= {c.page for c in COMMANDS}
    assert sum("sf_fixpo" in command.text for command in COMMANDS) > 30


# -- slow: the whole site, and the commands themselves ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """Every link between pages, every name of the API and every include is looked up."""
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", str(tmp_path / "trees"), "-c", "docs/site"]
    done = subprocess.run([*build, ".", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "README.html", "docs/index.html", "docs/generated/flags.html", "launcher/README.html"} <= pages
    guarantee = (tmp_path / "site" / "docs" / "guarantee.html").read_text()
    assert guarantee.count("<math") > 8
    assert "cdn" not in guarantee, "nothing is fetched from elsewhere"


# What no test of this file runs, and why; everything else on a page is run.
NOT_RUN = {
    r"docker|apptainer|sbatch|kubectl|apt-get": "a container runtime or a cluster; tests/docker has what can be had",
    r"backend=(slurm|ray|kubernetes)|test_launcher": "a cluster; tests/launcher makes small ones",
    r"paper_figures|eps_kl_x_c_beta|benchmarks\.|NAME": "hours, days; tests/launcher, test_figures, test_studies have small ones",
    r"USER/NAME|hf |uvx|git clone|pip |venv|dmlab_gym|wheels": "the network, or root; test_hub and test_export run the programs",
    r"torchrun": "ranks; tests/running/test_rank_runs starts some",
    r"broken_": "a file that a broken level leaves; tests/envs/dmlab break some",
    r"make|cd sf_fixpo|cp ": "set-up, and what CI itself runs",
    r"my_module|metaworld|atari": "a module of the reader's, or engines; tests/envs runs them",
    r"train_dir/(FIXPO|fourier)|mujoco|eval_every=N|populate_cache|demo": "minutes to hours; benchmarks.md has what they gave",
    r"example|fixpo_in_cleanrl": "tests/test_examples.py runs them",
}
# Runs that are long are made short: of a flag that is given twice the last counts.
SHORT = {
    "train": ["--train_for_env_steps=3000", "--audit_every=1", "--num_workers=1", "--num_envs_per_worker=3", "--device=cpu",
              "--worker_num_splits=1", "--serial_mode=True", "--async_rl=False", "--rollout=32", "--recurrence=32",
              "--batch_size=96", "--num_batches_per_epoch=1", "--num_epochs=1", "--eval_every=0"],
    "evaluate": ["--episodes=3", "--workers=1"],
    "enjoy": ["--max_steps=50"],
    "export": ["--check_steps=20"],
    "watch": ["--once"],
    "measure": ["--episodes=2"],
}  # fmt: skip


def is_run(command: Command) -> bool:
    return not any(re.search(pattern, command.text) for pattern in NOT_RUN)


def test_what_is_not_run_is_there():
    """A reason that no command has any more is dropped; and most of README's are run."""
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, command.text) for command in COMMANDS)] == []
    assert sum(is_run(command) for command in COMMANDS if command.page == "README.md") >= 10


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_commands_of_the_pages_do_what_they_say(tmp_path):
    """In one empty folder, in the order of the pages, README first: each ends with 0 (fixpo-doctor may find something)."""
    done = set()
    for command in sorted(filter(is_run, COMMANDS), key=lambda command: command.page != "README.md"):
        words = command.words
        module = words[2] if words[:2] == ["python", "-m"] else PROJECT["scripts"][words[0]].partition(":")[0]
        argv = words[3:] if words[0] == "python" else words[1:]
        short = [] if "--list_envs" in argv else SHORT.get(module.rpartition(".")[2], [])
        if "--env=dmlab_30" in argv:  # as many of each level, thirty in all
            short = [word.replace("envs_per_worker=3", "envs_per_worker=30").replace("size=96", "size=960") for word in short]
        if (line := (module, *argv, *short)) in done:
            continue
        done.add(line)
        run = subprocess.run([sys.executable, "-m", *line], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        allowed = (0, 1) if module == "sf_fixpo.doctor" else (0,)
        assert run.returncode in allowed, f"{command.page}: {' '.join(line)}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    assert len(done) >= 10
