#!/bin/sh
# Makes /venv with everything that pyproject.toml asks for, in the versions of constraints.txt, and nothing of the project's own code:
# a layer of an image that changes only where one of these two files does.
#
#   install_requirements.sh [+cpu]       the local version of PyTorch's build; without it, the default build, for CUDA
#
# EXTRAS: of pyproject.toml, separated by commas; may be empty.
set -eu

torch="torch==$(sed -n 's/^torch==//p' constraints.txt)${1:-}"
# by environment, because it also holds for what pip needs to build a package
PIP_CONSTRAINT="$(pwd)/constraints.txt"
export PIP_CONSTRAINT

python3 -m venv /venv
if ! /venv/bin/pip install "$torch" ".${EXTRAS:+[$EXTRAS]}"; then
    echo "install_requirements.sh: pip could not install $torch and the requirements of pyproject.toml (its message is above)." >&2
    if [ "${1:-}" = +cpu ]; then
        echo "PyTorch's CPU build is not on the default index: --build-arg PIP_EXTRA_INDEX_URL=... with the address that" >&2
        echo "pytorch.org shows for Linux, Pip, CPU; or --secret id=pip_conf,src=pip.conf with an index of your own." >&2
    fi
    exit 1
fi
/venv/bin/pip uninstall --quiet --yes sf_fixpo
/venv/bin/pip check
rm -rf build ./*.egg-info
