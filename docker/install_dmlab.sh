#!/bin/sh
# Installs the one wheel of DeepMind Lab in a folder, and says which shared libraries its engine would miss.
#
#   install_dmlab.sh FOLDER
set -eu

set -- "$1"/*.whl
if [ "$#" -ne 1 ] || [ ! -f "$1" ]; then
    echo "install_dmlab.sh: there must be one wheel of DeepMind Lab, found: $*" >&2
    echo "Give its folder: docker build --target dmlab --build-context dmlab_wheel=FOLDER ..." >&2
    exit 1
fi
/venv/bin/pip install --no-cache-dir --no-deps --no-index "$1"

package="$(/venv/bin/python -c 'import importlib.util as u; print(u.find_spec("deepmind_lab").submodule_search_locations[0])')"
# upstream's loader needs the modules imp (gone from Python 3.12) and pkg_resources (gone from setuptools 82)
if grep -qE '^import (imp|pkg_resources)$' "$package/__init__.py"; then
    cat > "$package/__init__.py" <<'LOADER'
"""Loads deepmind_lab.so in place of this module, as upstream's loader does, with what today's Python has for it."""

import importlib.machinery
import importlib.util
import pathlib
import sys

_loader = importlib.machinery.ExtensionFileLoader(__name__, str(pathlib.Path(__file__).with_name("deepmind_lab.so")))
_module = importlib.util.module_from_spec(importlib.util.spec_from_loader(__name__, _loader))
sys.modules[__name__] = _module
_loader.exec_module(_module)
LOADER
    /venv/bin/python -m compileall -q "$package/__init__.py"
fi

missing="$(find "$package" -name '*.so*' -type f -exec ldd {} + | grep 'not found' | sort -u || true)"
if [ -n "$missing" ]; then
    echo "install_dmlab.sh: shared libraries that this wheel needs and the image has not (renderers that you do not use need none):" >&2
    echo "$missing" >&2
fi
