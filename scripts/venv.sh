#!/bin/sh
# Make the virtual environment hold a set of pinned, hashed requirements (local or dev) and this project.
# A second run with the same pins finds its stamp and does nothing. It never calls the system's package manager.
set -eu

set_name=$1
venv=${VENV:-.venv}
bin=$venv/bin
cd "$(dirname "$0")/.."

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*"; }
fail() {
  printf 'set-up: %s\n' "$*" >&2
  exit 1
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

python=
for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
  if command -v "$candidate" >/dev/null 2>&1 && is_recent "$candidate"; then
    python=$(command -v "$candidate")
    break
  fi
done
if [ -z "$python" ]; then
  found=$("${PYTHON:-python3}" --version 2>&1) || found="no ${PYTHON:-python3}"
  fail "Python 3.11 or newer is needed, this machine has: $found. PYTHON=/path/to/python names another one."
fi
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python has no venv (on Debian and Ubuntu it is a package of its own: python3-venv). Install it, or name another Python with PYTHON=/path/to/python."

# What the installation follows from. The project itself is an editable install: its code needs no new one.
fingerprint() {
  "$python" -c '
import hashlib, pathlib, sys
digest = hashlib.sha256()
for name in sys.argv[1:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())' "requirements/$1.txt" pyproject.toml scripts/venv.sh
}
is_installed() { [ "$(cat "$venv/.installed-$1" 2>/dev/null)" = "$(fingerprint "$1")" ]; }

if [ -e "$venv" ] && ! { "$bin/python" -m pip --version >/dev/null 2>&1 && is_recent "$bin/python"; }; then
  say "The virtual environment $venv is of no use (moved, too old or without pip): making it anew"
  rm -rf "$venv"
fi
# The set for development holds the one for the local stack.
if is_installed "$set_name" || { [ "$set_name" = local ] && is_installed dev; }; then
  exit 0
fi

if [ ! -e "$venv" ]; then
  say "Making a virtual environment in $venv ($("$python" --version 2>&1))"
  "$python" -m venv "$venv" || fail "the virtual environment could not be made"
fi
count=$(grep -c '^[a-zA-Z0-9].*==' "requirements/$set_name.txt")
say "Installing $count pinned packages (requirements/$set_name.txt) ..."
began=$(date +%s)
"$bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "requirements/$set_name.txt" ||
  fail "the packages could not be installed; what pip says above names the one. The machine must reach a Python package index."
"$bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ||
  fail "the project itself could not be installed"
fingerprint "$set_name" >"$venv/.installed-$set_name"
say "Installed in $(($(date +%s) - began)) s"
