#!/bin/sh
# Print the Secrets that deploy/k8s refers to, of what stands in the current folder: `secrets`, as `make env` writes it, and
# `certs`, as `openmanager certs` does. What has no file there is left out; exit code 1 when one of several is missing.
set -eu

print() {
  name=$1
  shift
  there=0 missing=
  for pair; do
    if [ -s "${pair#*=}" ]; then there=1; else missing="$missing ${pair#*=}"; fi
  done
  [ "$there" = 1 ] || return 0
  [ -z "$missing" ] || { echo "the Secret $name also needs:$missing" >&2; exit 1; }
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: openmanager}\ndata:\n' "$name"
  for pair; do printf '  %s: %s\n' "${pair%%=*}" "$(base64 <"${pair#*=}" | tr -d '\n')"; done
}

print mesh-key mesh_key=secrets/mesh_key
print metadata database_url=secrets/database_url identity_key=secrets/identity_key audit_key=secrets/audit_key
print cache redis_url=secrets/redis_url
print postgres postgres_password=secrets/postgres_password
print redis redis_password=secrets/redis_password
print influxdb influxdb_password=secrets/influxdb_password influxdb_token=secrets/influxdb_token
print backup backup_password=secrets/backup_password s3_access_key=secrets/s3_access_key s3_secret_key=secrets/s3_secret_key
for folder in certs/*/; do
  name=$(basename "$folder")
  [ "$name" = ca ] ||
    print "$name-tls" "ca.crt=${folder}ca.pem" "tls.crt=${folder}certificate.pem" "tls.key=${folder}key.pem"
done
