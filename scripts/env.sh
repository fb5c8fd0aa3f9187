#!/bin/sh
# Write .env for docker compose into the current folder: .env.example with a fresh secret behind every empty name.
# An existing .env is never touched; exit code 1 when it lacks something.
set -euC
umask 077

example=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)/.env.example
target=.env

if [ -e "$target" ] || [ -L "$target" ]; then
  missing=
  for name in $(sed -n 's/^\([A-Z][A-Z0-9_]*\)=.*/\1/p' "$example"); do
    grep -q "^$name=." "$target" || missing="$missing $name"
  done
  if [ -n "$missing" ]; then
    echo "$target is there already and is kept, but it has no value for:$missing (see .env.example)" >&2
    exit 1
  fi
  echo "$target is there already and is kept. Next: docker compose up --build --detach --wait"
  exit 0
fi

secret() {
  drawn=$(od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n')
  [ "${#drawn}" -eq 64 ] || { echo "cannot read 32 random bytes from /dev/urandom" >&2; return 1; }
  printf '%s' "$drawn"
}

# Hexadecimal, because the values become parts of URLs. Written only once all are drawn.
text=$(
  while IFS= read -r line; do
    case $line in
      [A-Z]*=) value=$(secret) || exit 1; printf '%s%s\n' "$line" "$value" ;;
      *) printf '%s\n' "$line" ;;
    esac
  done <"$example"
)
printf '%s\n' "$text" >"$target"

cat <<'END'
.env is written, with fresh secrets that only you can read. Next:

  docker compose up --build --detach --wait          start everything
  docker compose cp gateway:/etc/openmanager/tls/ca.pem ca.pem
  docker compose cp metadata:/var/lib/openmanager/metadata/admin-invitation invitation
  openmanager --tls-ca ca.pem login --invitation-file invitation     become the administrator
  openmanager --tls-ca ca.pem status                 see how it is
  http://127.0.0.1:3030                              Grafana: user admin, password GRAFANA_PASSWORD of .env
END
