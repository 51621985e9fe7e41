#!/bin/sh
# Make a directory of random passwords for docker-compose.yml (./secrets if none is named); what is there already stays.
set -eu
directory=${1:-./secrets}

# The directory keeps others of this machine out. The files themselves are readable by all because compose hands them to
# the containers as they are, and there each service runs as a user of its own.
mkdir -p "$directory"
chmod 700 "$directory"
for name in postgres_password telemetry_password grafana_reader_password grafana_admin_password; do
  file=$directory/$name
  if [ -e "$file" ]; then
    echo "$file: kept"
    continue
  fi
  # Letters and digits only: Grafana would take a dollar sign for the start of a variable.
  password=$(od -An -N 24 -t x1 /dev/urandom | tr -d ' \n')
  [ "${#password}" -eq 48 ] || { echo "compose-secrets: /dev/urandom cannot be read" >&2; exit 1; }
  (umask 077 && printf '%s\n' "$password" >"$file")
  chmod 444 "$file"
  echo "$file: made"
done
echo "Name it in .env before the first start: SECRETS_DIR=$directory"
