#!/bin/sh
# Remove a stack's data directory, unless a stack runs on it, and the caches of the tools.
set -eu
data=$1
cd "$(dirname "$0")/.."
if [ -e "$data/lock" ]; then
  "${PYTHON:-python3}" - "$data/lock" <<'PYTHON' || exit 1
import fcntl
import sys

with open(sys.argv[1]) as lock:
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"clean: {sys.argv[1]} is held by process {lock.read().strip()}: end that stack first")
PYTHON
fi
if [ -e "$data" ] && [ ! -e "$data/lock" ]; then
  echo "clean: $data was not made by \`gpu-telemetry up\` (it has no lock file): left alone" >&2
  exit 1
fi
rm -rf "$data" .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
