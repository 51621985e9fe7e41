#!/bin/sh
# What the tests need that pip cannot bring: Prometheus with promtool, a browser with its driver, and compose.
# As root, on a machine with apt, what is missing is installed; else it is named, and the tests go on without.
set -eu

missing=
want() { # a program, and Debian's package of it
  command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
want prometheus prometheus
want promtool prometheus
want chromium chromium
want chromedriver chromium-driver
# Either generation of compose reads the files; no engine is needed.
docker compose version >/dev/null 2>&1 || want docker-compose docker-compose
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
[ -n "${missing% }" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "Not installed, and tests that need them are skipped (Debian's names): $missing" >&2
  exit 0
fi

echo "Installing with apt what the tests need: $missing"
policy=/usr/sbin/policy-rc.d
made_policy=no
if [ ! -e "$policy" ]; then
  # Debian starts a service when it is installed; the tests start their own on ports of their own.
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  made_policy=yes
fi
restore() { [ "$made_policy" = no ] || rm -f "$policy"; }
trap restore EXIT
trap 'exit 130' INT TERM

export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing >/dev/null; }; then
  echo "apt could not install $missing; tests that need them are skipped, or fail where CI=true" >&2
  exit 0
fi
# Nor at the next boot.
case $missing in
  *prometheus*) ! command -v systemctl >/dev/null 2>&1 || systemctl disable --quiet prometheus.service || true ;;
esac
