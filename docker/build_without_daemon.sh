#!/usr/bin/env bash
# Builds the cpu image from the same Dockerfile where there is no Docker daemon and no image registry, and tries it.
#
#   docker/build_without_daemon.sh [--build_only] [--full_demo] [--keep] [--work_dir=build/docker]
#
# --build_only    do not try the image
# --full_demo     `make demo` in its full length (12 minutes) instead of a short form that cannot learn anything
# --keep          leave the image and what it was made of, for the next time or for a look: several gigabytes
# --work_dir=DIR  where everything goes, image storage included
#
# Debian's buildah and debootstrap make what is needed: a base image of Debian bookworm with its Python 3.11 in place of python:3.11,
# and an image in buildah's storage, by chroot, without a daemon. Root is needed, and PYTHON (python3) to be a Python 3.11 with pip:
# the wheels are fetched on this side, with whatever index pip is set to here, and the build gets only them; so nothing about an
# index or its credentials can be in the image.
set -euo pipefail
cd "$(dirname "$0")/.."

build_only='' full_demo='' keep='' work_dir=build/docker
for arg in "$@"; do
    case "$arg" in
        --build_only) build_only=yes ;;
        --full_demo) full_demo=yes ;;
        --keep) keep=yes ;;
        --work_dir=?*) work_dir="${arg#*=}" ;;
        *)
            echo "build_without_daemon.sh: $arg: must be --build_only, --full_demo, --keep or --work_dir=DIR" >&2
            exit 2
            ;;
    esac
done

python="${PYTHON:-python3}"
faults=()
[ "$(id -u)" = 0 ] || faults+=("root is needed, to make a base system and to change into it")
for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || faults+=("$tool is missing: apt-get install $tool")
done
"$python" -c 'import sys, pip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
    || faults+=("PYTHON=$python: must be a Python 3.11 with pip, as the base image's: its wheels are fetched with it")
if [ "${#faults[@]}" -gt 0 ]; then
    printf 'build_without_daemon.sh: %s\n' "${faults[@]}" >&2
    exit 2
fi

mkdir -p "$work_dir"
work_dir="$(cd "$work_dir" && pwd)"
base=localhost/sf_fixpo_base:bookworm
image=localhost/sf_fixpo:cpu
export BUILDAH_ISOLATION=chroot
# its storage beside the rest: what else this machine has in buildah's usual place stays as it is
buildah=(buildah ${STORAGE_DRIVER:+--storage-driver="$STORAGE_DRIVER"} --root "$work_dir/storage" --runroot "$work_dir/runroot")

clean_up() {
    local status=$?
    "${buildah[@]}" rm --all >/dev/null 2>&1 || true
    if [ -z "$keep" ]; then
        rm -rf "$work_dir"
    fi
    exit "$status"
}
trap clean_up EXIT

step() {
    printf '\n== %s (%d s)\n' "$1" "$SECONDS"
}

make_base() {
    if "${buildah[@]}" inspect --type image "$base" >/dev/null 2>&1; then
        return
    fi
    step "base: Debian bookworm with Python 3.11"
    rm -rf "$work_dir/base"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$work_dir/base" \
        >"$work_dir/debootstrap.log" || { tail -n 5 "$work_dir/debootstrap.log" >&2; return 1; }
    # the security updates beside the archive that debootstrap chose
    sed -n 's|^deb \(.*\)/debian/\{0,1\} bookworm main.*|deb \1/debian-security bookworm-security main|p' \
        "$work_dir/base/etc/apt/sources.list" >"$work_dir/base/etc/apt/sources.list.d/security.list"
    # resolv.conf and hostname are this machine's
    rm -rf "$work_dir/base"/var/{cache/apt,lib/apt/lists,log}/* "$work_dir/base"/etc/{resolv.conf,hostname}
    local container
    container="$("${buildah[@]}" from scratch)"
    "${buildah[@]}" add --quiet "$container" "$work_dir/base" / >/dev/null
    "${buildah[@]}" config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    "${buildah[@]}" commit --quiet --rm "$container" "$base" >/dev/null
    rm -rf "$work_dir/base"
}

fetch_wheels() {
    step "wheels: the versions of constraints.txt"
    local torch
    torch="torch==$(sed -n 's/^torch==//p' constraints.txt)+cpu"
    # to a file, because pip's warnings name the index
    PIP_CONSTRAINT="$PWD/constraints.txt" "$python" -m pip download --quiet --only-binary=:all: --dest "$work_dir/wheelhouse" \
        "$torch" '.[mujoco]' setuptools >"$work_dir/pip.log" 2>&1 \
        || { echo "pip could not fetch the wheels: see $work_dir/pip.log (--keep)" >&2; return 1; }
    printf '[global]\nno-index = true\nfind-links = /run/wheelhouse\n' >"$work_dir/pip.conf"
}

build_image() {
    step "image: target cpu of docker/Dockerfile"
    # vfs copies all files for each layer: 60 GB in the end
    local layers=(--layers)
    [ "${STORAGE_DRIVER:-}" != vfs ] || layers=()
    # docker's format, because the OCI format has no health check
    nice -n 19 "${buildah[@]}" build --format docker "${layers[@]}" --pull-never --target cpu --file docker/Dockerfile \
        --build-arg "BASE=$base" --build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' sf_fixpo/__init__.py)" \
        --build-arg "REVISION=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)" \
        --secret "id=pip_conf,src=$work_dir/pip.conf" --volume "$work_dir/wheelhouse:/run/wheelhouse:ro" \
        --tag "$image" . >"$work_dir/build.log" 2>&1 || { tail -n 30 "$work_dir/build.log" >&2; return 1; }
}

make_base
fetch_wheels
build_image
step "layers, then trying it"
"$python" docker/try_image.py "$image" --buildah="${buildah[*]}" ${build_only:+--layers_only} ${full_demo:+--full_demo}
step 'done'
