#!/bin/sh
# Make what is released, into dist/VERSION, and try it: `make release`. The same revision gives the same bytes.
set -eu
cd "$(dirname -- "$0")/.."

bin=.venv/bin
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -n 1)
target=dist/$version
complain() { echo "release: $*" >&2; exit 1; }

[ -z "$(git status --porcelain)" ] || complain "there are changes that are not committed"
[ ! -e "$target" ] || complain "$target is there already: a version is released once; delete it to begin again"
grep -q "^## $version\$" CHANGELOG.md || complain "CHANGELOG.md has no section $version"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

mkdir -p "$target"
trap '[ $? -eq 0 ] || rm -rf "$target"' EXIT
$bin/python -m hatchling build -t wheel -t sdist -d "$target"
$bin/python scripts/sbom.py "$target/openmanager-$version.cdx.json"
cp docs/licences.md "$target/openmanager-$version-licences.md"
cp requirements.lock "$target/openmanager-$version-requirements.lock"
(cd "$target" && sha256sum -- * >../SHA256SUMS.new && mv ../SHA256SUMS.new SHA256SUMS)

# As its user gets it: into an environment of its own, what it needs by the lock, and nothing else.
try=$(mktemp -d)
trap 'code=$?; rm -rf "$try"; [ $code -eq 0 ] || rm -rf "$target"' EXIT
echo "trying the wheel in an environment of its own (about a minute)"
python3 -m venv "$try/environment"
"$try/environment/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
"$try/environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$target"/*.whl
cd "$try"
said=$(environment/bin/openmanager --version)
[ "$said" = "openmanager $version" ] || complain "the wheel says that it is $said"
environment/bin/openmanager up --data-dir "$try/data" --gateway "${RELEASE_GATEWAY:-127.0.0.1:50050}" >"$try/screen" 2>&1 &
mesh=$!
seconds=0
until grep -q "OpenManager is up" "$try/screen"; do
  kill -0 $mesh 2>/dev/null && [ "$seconds" -lt 120 ] || { cat "$try/screen" >&2; kill $mesh || true; wait $mesh || true; complain "the mesh does not start"; }
  seconds=$((seconds + 1))
  sleep 1
done
environment/bin/openmanager --gateway "${RELEASE_GATEWAY:-127.0.0.1:50050}" status
kill $mesh
wait $mesh || complain "the mesh ended with $?"
cd - >/dev/null
cat "$target/SHA256SUMS"
