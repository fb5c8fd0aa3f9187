#!/bin/sh
# Build the image by buildah (a Debian package), which needs no engine but root: `image.sh build`, behind `make image`.
# `image.sh test`, behind `make image-test`, runs every program below its root, in a network of its own.
#
# BASE_IMAGE and RESTIC_IMAGE are what it is built on. `BASE_IMAGE=debian` makes a base of Debian's own packages by
# debootstrap, for where no registry of images can be reached. BUILD_OPTIONS goes to buildah as it is.
set -eu
cd "$(dirname -- "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -n 1)
revision=$(git describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null || echo unknown)
folder=${IMAGE_FOLDER:-$PWD/build/image}
debian=localhost/openmanager-debian:bookworm

for program in buildah unshare; do
  command -v "$program" >/dev/null || { echo "there is no $program here (a Debian package)" >&2; exit 3; }
done
[ "$(id -u)" -eq 0 ] || { echo "only root can make an image without an engine" >&2; exit 3; }
mkdir -p "$folder"

buildah() { command buildah --root "$folder/storage" --runroot "$folder/run" --storage-driver vfs "$@"; }

make_debian() {
  [ -z "$(buildah images --quiet --filter "reference=$debian")" ] || return 0
  debootstrap --variant=minbase --include=ca-certificates,python-is-python3,python3-pip,python3-venv,restic \
    bookworm "$folder/debian" >"$folder/debootstrap.log"
  made=$(buildah from scratch)
  buildah add --quiet "$made" "$folder/debian" / >/dev/null
  buildah commit --rm --quiet "$made" "$debian" >/dev/null
  rm -r "$folder/debian"
}

build() {
  if [ "${BASE_IMAGE:-}" = debian ]; then
    make_debian
    BASE_IMAGE=$debian RESTIC_IMAGE=$debian
  fi
  set -- --build-arg "REVISION=$revision" ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} \
    ${RESTIC_IMAGE:+--build-arg "RESTIC_IMAGE=$RESTIC_IMAGE"}
  # The format of Docker, for that of OCI has no health check. A time of its own would make every build another one.
  # shellcheck disable=SC2086  (options are words)
  buildah bud --isolation=chroot --format docker --timestamp "$(git log -1 --format=%ct 2>/dev/null || echo 0)" \
    "$@" ${BUILD_OPTIONS:-} --tag "openmanager:$version" --tag openmanager:local .
  buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}' "localhost/openmanager:$version"
}

run_test() {
  place=$(mktemp -d)
  made=$(buildah from --pull-never "openmanager:$version")
  trap 'buildah rm "$made" >/dev/null; rm -r "$place"' EXIT
  ln -s "$(buildah mount "$made")" "$place/root"
  buildah inspect --type image "openmanager:$version" >"$place/config.json"
  TEST_IMAGE=$place unshare --net sh -c 'ip link set lo up && exec "$@"' sh \
    .venv/bin/python -m pytest -q --capture=no tests/deploy/test_image_mesh.py
}

case ${1:-} in
  build) build ;;
  test) run_test ;;
  *) echo "usage: image.sh build|test" >&2; exit 2 ;;
esac
