#!/bin/sh
# Prepare docker compose in the current folder: `secrets`, a folder that only its owner enters, with a fresh secret in
# every file, and .env, what may be chosen. Nothing that is there is ever touched; exit code 1 when something is missing.
set -euC
umask 077

example=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)/.env.example
env=.env
folder=secrets
drawn="postgres_password redis_password influxdb_password influxdb_token grafana_password grafana_reader_password
  mesh_key identity_key audit_key"
derived="database_url redis_url"

is_there() { [ -e "$1" ] || [ -L "$1" ]; }

complain() { echo "$1" >&2; failed=1; }

draw() {
  bytes=$(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')
  [ "${#bytes}" -eq 64 ] || { echo "cannot read 32 random bytes from /dev/urandom" >&2; return 1; }
  printf '%s' "$bytes"
}

# What the .env of an earlier version holds under a secret's name, which the stores' volumes know already; else a new one.
find_or_draw() {
  variable=$(printf '%s' "$1" | tr '[:lower:]' '[:upper:]')
  kept=
  ! [ -f "$env" ] || kept=$(sed -n "s/^$variable=//p" "$env")
  case $kept in
    '') draw ;;
    *[!A-Za-z0-9._~-]*) echo "$variable of $env is not a word of letters, digits, . _ ~ and -: change it" >&2; return 1 ;;
    *) printf '%s' "$kept" ;;
  esac
}

# Written only once all are found. The files may be read by everybody, for in a container somebody else reads them than
# who runs this; the folder lets nobody through.
make_secrets() {
  for name in $drawn; do
    value=$(find_or_draw "$name") || exit 1
    eval "$name=\$value"
  done
  database_url="postgresql://openmanager:$postgres_password@postgres:5432/openmanager"
  redis_url="redis://:$redis_password@redis:6379/0"
  mkdir "$folder"
  for name in $drawn $derived; do
    eval "printf '%s' \"\$$name\"" >"$folder/$name"
    chmod 0444 "$folder/$name"
  done
}

failed=0
if is_there "$folder"; then
  for name in $drawn $derived; do
    [ -s "$folder/$name" ] || complain "$folder is there already and is kept, but $folder/$name is missing or empty"
  done
else
  make_secrets
  echo "$folder is written; only you can enter it."
fi

if ! is_there "$env"; then
  cat "$example" >"$env"
  echo "$env is written."
else
  for name in $(sed -n 's/^\([A-Z][A-Z0-9_]*\)=.*/\1/p' "$example"); do
    grep -q "^$name=." "$env" ||
      complain "$env is there already and is kept, but lacks a line: $(grep "^$name=" "$example")"
  done
  for name in $drawn; do
    variable=$(printf '%s' "$name" | tr '[:lower:]' '[:upper:]')
    ! grep -q "^$variable=." "$env" ||
      echo "$variable of $env is not read any more, but $folder/$name is: delete that line of $env."
  done
fi
[ "$failed" -eq 0 ] || exit 1

cat <<'END'
Next:

  docker compose up --build --detach --wait          start everything
  docker compose cp gateway:/etc/openmanager/tls/ca.pem ca.pem
  docker compose cp metadata:/var/lib/openmanager/metadata/admin-invitation invitation
  openmanager --tls-ca ca.pem login --invitation-file invitation     become the administrator
  openmanager --tls-ca ca.pem status                 see how it is
  http://127.0.0.1:3030                              Grafana: user admin, password in secrets/grafana_password
END
