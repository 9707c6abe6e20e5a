"""What builds and runs the images: linted, in agreement with the rest, and (slow) built and tried."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser

from sf_fixpo import __version__

REPO = Path(__file__).resolve().parents[2]
DOCKER = REPO / "docker"
SHELL_SCRIPTS = sorted([*DOCKER.glob("*.sh"), DOCKER / "bin" / "fixpo"])
HEALTH = DOCKER / "bin" / "fixpo-health"
TOOLS = Path(sys.executable).parent  # linters are installed beside the interpreter, which need not be on PATH


def run(*command: object, timeout: float = 60, **options) -> subprocess.CompletedProcess[str]:
    """Runs a command; its output is text."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, **options)


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> dict[str, list[tuple[str, str]]]:
    """Instructions of the Dockerfile by stage; those before the first one under the empty name."""
    parser = DockerfileParser(path=str(tmp_path_factory.mktemp("parsed")))  # it writes where it reads
    parser.content = (DOCKER / "Dockerfile").read_text()
    found, name = {"": []}, ""
    for entry in parser.structure:
        if entry["instruction"] == "FROM":
            name = entry["value"].rpartition(" AS ")[2]
            found[name] = []
        if entry["instruction"] != "COMMENT":
            found[name].append((entry["instruction"], " ".join(entry["value"].split())))
    return found


# ---- style and schemas


def test_hadolint_finds_nothing_in_the_dockerfile():
    done = run(TOOLS / "hadolint", DOCKER / "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = run(TOOLS / "shellcheck", script)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK), f"{script} is not executable"


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_follow_the_compose_specification(name):
    done = run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / name)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the Dockerfile agrees with the rest of the repository


def test_base_images_are_pinned_to_an_exact_release(stages):
    defaults = dict(value.partition("=")[::2] for instruction, value in stages[""] if instruction == "ARG")
    for name in ("BASE", "CUDA_BASE"):
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-\S+", defaults[name]), f"{name}={defaults[name]}"
    for stage, instructions in stages.items():
        base = dict(instructions).get("FROM", "scratch").split()[0]
        assert base == "scratch" or base.startswith("${"), f"stage {stage}: FROM {base} has no ARG"


def test_the_cuda_base_is_the_cuda_that_the_pinned_pytorch_is_built_for(stages):
    # torch 2.13.0 on the default index: cuda-toolkit==13.0.3; a new pin of torch needs a look at its metadata, and this line
    built_for = {"2.13.0": "13.0"}
    torch = re.search(r"^torch==(\S+)$", (REPO / "constraints.txt").read_text(), re.MULTILINE)
    cuda = next(value for instruction, value in stages[""] if value.startswith("CUDA_BASE="))
    assert torch is not None
    assert f"nvidia/cuda:{built_for[torch[1]]}." in cuda


def test_every_python_package_comes_from_constraints_txt(stages):
    """No stage names a version itself, and each pip that resolves anything does it under the constraints."""
    for name, instructions in stages.items():
        for instruction, value in instructions:
            assert not re.search(r"[a-z]==\d", value), f"stage {name}: {value}"
            if instruction == "RUN" and re.search(r"pip (install|wheel)", value):
                assert "PIP_CONSTRAINT=" in value or "--no-index" in value, f"stage {name}: {value}"
    script = (DOCKER / "install_requirements.sh").read_text()
    assert 'PIP_CONSTRAINT="$(pwd)/constraints.txt"' in script
    assert 'torch="torch==$(sed -n ' in script


def test_version_label_is_the_packages_version(stages):
    for target in ("cpu", "cuda"):
        assert ("ARG", f"VERSION={__version__}") in stages[target]


def test_requirements_come_before_the_code(stages):
    """A change of the code must not install PyTorch again: the stages that do see no more of it than its version."""
    for stage in ("cpu-requirements", "cuda-requirements"):
        copied = " ".join(value for instruction, value in stages[stage] if instruction == "COPY")
        sources = set(re.findall(r"[\w./]+", copied)) - {".", "./", "sf_fixpo/"}
        assert sources == {
            *("docker/install_requirements.sh", "setup.py", "pyproject.toml", "constraints.txt"),
            "sf_fixpo/__init__.py",
        }
    commands = [value for instruction, value in stages["cpu"] if instruction in ("COPY", "RUN")]
    assert ["/venv /venv" in value for value in commands] == [False, True, False, False]


def test_cpu_and_cuda_images_run_alike(stages):
    def described(target: str) -> list[tuple[str, str]]:
        kept = [entry for entry in stages[target] if entry[0] not in ("FROM", "RUN")]
        return [entry for entry in kept if "NVIDIA_" not in entry[1]]

    assert described("cuda") == [(kind, value.replace("cpu-", "cuda-")) for kind, value in described("cpu")]
    settings = dict(described("cpu"))
    assert settings["USER"] != "0"
    assert settings["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(settings["ENTRYPOINT"]) == ["tini", "--", "fixpo"]
    assert {"OMP_NUM_THREADS=1", "WANDB_MODE=offline"} <= set(settings["ENV"].split())


def test_no_secret_is_an_argument_or_a_variable_of_the_image(stages):
    for name, instructions in stages.items():
        for instruction, value in instructions:
            if instruction in ("ARG", "ENV"):
                assert not re.search(r"TOKEN|KEY|SECRET|PASSW", value, re.IGNORECASE), f"stage {name}: {instruction} {value}"


def test_the_build_context_has_the_code_and_nothing_private(tmp_path):
    """Docker's own rules for .dockerignore, on a tree with what people leave lying about."""
    private = (
        ".git/config .env run.env docker/run.env docker/example.env train_dir/a/config.json wandb/run/x sf_fixpo/.env id.pem "
    )
    private += (
        "envs/private.key sf_fixpo/__pycache__/a.pyc tests/test_x.py .venv/bin/python build/docker/pip.conf docker/README.md"
    )
    wanted = (
        "setup.py pyproject.toml constraints.txt README.md LICENSE sf_fixpo/train.py envs/dmlab/stand_in/wad.py launcher/job.py "
    )
    wanted += "docker/bin/fixpo docker/bin/fixpo-health docker/install_dmlab.sh docker/dmlab_smoke.py "
    wanted += "docker/install_requirements.sh"
    for name in [*private.split(), *wanted.split()]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    patterns = [line for line in (REPO / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    taken = {name for name in exclude_paths(str(tmp_path), patterns) if (tmp_path / name).is_file()}
    # the library adds the Dockerfile itself, as Docker does
    assert taken - {"Dockerfile"} == set(wanted.split())


def test_what_the_dockerfile_copies_is_in_the_build_context(stages):
    patterns = [line for line in (REPO / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    taken = exclude_paths(str(REPO), patterns)
    for name, instructions in stages.items():
        for instruction, value in instructions:
            words = [word for word in value.split() if not word.startswith("--")]
            sources = (
                words[:-1] if instruction == "COPY" and "--from=" not in value else re.findall(r"source=(docker[^,\s]+)", value)
            )
            for source in sources:
                assert source in taken, f"stage {name}: {source} is not in the build context"


def test_compose_services():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert set(services) == {"train", "tensorboard", "evaluate"}
    assert services["train"]["stop_grace_period"] == "45s"
    assert services["tensorboard"]["ports"] == ["127.0.0.1:6006:6006"]
    build = services["train"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()


def test_example_of_settings_has_no_key_in_it():
    values = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (DOCKER / "example.env").read_text(), re.MULTILINE))
    assert set(values) == {"WANDB_MODE", "WANDB_API_KEY", "HF_TOKEN", "WANDB_API_KEY_FILE", "FIXPO_HEALTH_MINUTES"}
    assert not values["WANDB_API_KEY"] + values["HF_TOKEN"]


# ---- the image


def test_build_script_names_all_that_is_wrong(tmp_path):
    done = run(DOCKER / "build_without_daemon.sh", "--fast")
    assert (done.returncode, "--fast: must be --build_only, --full_demo, --keep or --work_dir=DIR" in done.stderr) == (2, True)
    done = run(
        DOCKER / "build_without_daemon.sh", f"--work_dir={tmp_path / 'w'}", env={"PATH": "/usr/bin:/bin", "PYTHON": "none"}
    )
    assert done.returncode == 2
    assert "PYTHON=none: must be a Python 3.11 with pip" in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_cpu_image_is_built_and_does_what_it_should(tmp_path):
    """Needs root, buildah, debootstrap and a package index; about 15 minutes and 10 GB of disk."""
    needed = shutil.which("buildah") and shutil.which("debootstrap") and os.getuid() == 0
    assert needed, "this test needs root, and apt-get install buildah debootstrap"
    env = {**os.environ, "PYTHON": sys.executable}
    done = run(DOCKER / "build_without_daemon.sh", f"--work_dir={tmp_path / 'work'}", timeout=3500, env=env)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "SIGTERM: exit status 75" in done.stdout
    assert not (tmp_path / "work").exists(), "it cleans up"


def test_try_image_finds_what_pip_is_set_to(monkeypatch, tmp_path):
    """The look for index settings in an image would pass on nothing found: here it must find."""
    spec = importlib.util.spec_from_file_location("try_image", DOCKER / "try_image.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pip.conf").write_text(
        "[global]\nextra-index-url = https://user:word@index.example/simple\nfind-links = /wheels\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    settings = module.index_settings()
    assert any("index.example" in word for word in settings)
    assert "/wheels" in settings
    image = types.SimpleNamespace(raw="{}", root=tmp_path)
    for name in ("etc", "root", "home", "venv"):
        (tmp_path / name).mkdir()
    assert module.leaks(image, settings) == []
    (tmp_path / "etc" / "pip.conf").write_text((tmp_path / "pip.conf").read_text())
    assert len(module.leaks(image, settings)) >= 2
