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
missing="$(find "$package" -name '*.so*' -type f -exec ldd {} + | grep 'not found' | sort -u || true)"
if [ -n "$missing" ]; then
    echo "install_dmlab.sh: shared libraries that this wheel needs and the image has not (renderers that you do not use need none):" >&2
    echo "$missing" >&2
fi
