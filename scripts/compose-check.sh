#!/usr/bin/env bash
# Bring the compose stack up where there is an engine, try what docs/compose.md promises, and take it away again.
#   COMPOSE="docker-compose"        the program; `docker compose` if not set
#   COMPOSE_CHECK_FILES="a.yml b.yml" further files, to stand in for images that cannot be had for instance
#   COMPOSE_CHECK_OFFSET=10000      how far the ports are moved, so that it runs beside a stack that is in use
# It is a project of its own: nothing of another stack is touched. Needs bash, curl and an image registry.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra compose <<<"${COMPOSE:-docker compose}"
offset=${COMPOSE_CHECK_OFFSET:-10000}
project=gpu-telemetry-check
work=$(mktemp -d)
began=$SECONDS
failures=0

export GRAFANA_PORT=$((3000 + offset)) API_PORT=$((8080 + offset)) PROMETHEUS_PORT=$((9090 + offset))
export KAFKA_HOST_PORT=$((9092 + offset)) POSTGRES_PORT=$((5432 + offset)) BRIDGE_PORT=$((9500 + offset))
export EMULATOR_PORT=$((9400 + offset)) EMULATOR_NODES=4
api=http://127.0.0.1:$API_PORT prometheus=http://127.0.0.1:$PROMETHEUS_PORT grafana=http://127.0.0.1:$GRAFANA_PORT
# Secrets of its own, and nothing of an .env that lies here.
scripts/compose-secrets.sh "$work/secrets" >/dev/null
export SECRETS_DIR=$work/secrets
: >"$work/env"

files=(-f docker-compose.yml)
further=()
for file in ${COMPOSE_CHECK_FILES:-}; do further+=(-f "$file"); done

dc() { "${compose[@]}" --env-file "$work/env" -p "$project" "${files[@]}" ${further[@]+"${further[@]}"} "$@"; }
say() { printf '%4d s  %s\n' $((SECONDS - began)) "$*"; }
ok() { say "ok     $*"; }
wrong() { say "WRONG  $*"; failures=$((failures + 1)); }
check() { # what is checked, then a command
  local what=$1
  shift
  if "$@" >"$work/out" 2>&1; then ok "$what"; else
    wrong "$what"
    sed 's/^/          /' "$work/out" | tail -20
  fi
}
within() { # seconds, then a command that is to succeed in that time
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 1
  done
}
containers() { docker ps "$@" --quiet --filter "label=com.docker.compose.project=$project"; }
of_service() { containers --filter "label=com.docker.compose.service=$1"; }
left() {
  containers --all
  docker network ls --quiet --filter "label=com.docker.compose.project=$project"
  docker volume ls --quiet --filter "label=com.docker.compose.project=$project"
  # A volume without a name that an image asked for has no label: one that was not there before is ours.
  docker volume ls --quiet | grep -E '^[0-9a-f]{64}$' | sort | comm -13 "$work/volumes" -
}
clean_up() {
  local status=$?
  trap - EXIT
  if [ "$status" -ne 0 ] || [ "$failures" -ne 0 ]; then dc logs --tail 30 || true; fi
  dc down -v --remove-orphans >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
# grep reads to the end, so that what it reads from is not cut off: no -q.
has() { grep -F -- "$1" >/dev/null; }
fetched_has() { curl -fsS "$1" 2>&1 | has "$2"; }

healthy() { # every container that stays is healthy, and setup ended well
  local id state
  for id in $(containers --all); do
    state=$(docker inspect --format '{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}exit {{.State.ExitCode}}{{end}}' "$id")
    case $state in
      "running healthy" | "exited exit 0") ;;
      *) docker inspect --format "{{.Name}}: $state" "$id" && return 1 ;;
    esac
  done
}
all_up() { # every one of N targets that Prometheus knows of a job is up
  local count
  count=$(curl -fsS "$prometheus/api/v1/query" --data-urlencode "query=sum(up{job=\"$1\"}) == count(up{job=\"$1\"})")
  grep -F ",\"$2\"]" <<<"$count" >/dev/null
}
grafana_asks() { # the uid of a data source, a query's JSON, what the answer is to hold
  curl -fsS "$grafana/api/ds/query" -H 'Content-Type: application/json' \
    -d "{\"from\":\"now-1h\",\"to\":\"now\",\"queries\":[{\"refId\":\"A\",\"datasource\":{\"uid\":\"$1\"},$2}]}" | has "$3"
}
sql() { dc exec -T postgres psql -U telemetry -d gpu_telemetry -tAc "$1"; }
sql_says() { [ "$(sql "$1")" = "$2" ]; }
rows_grow() { [ "$(sql "SELECT count(*) FROM gpu_metrics")" -gt "$1" ]; }
confined() { # no root, no capability, no writable root
  local service status
  for service in emulator exporter-bridge alert-engine api; do
    status=$(dc exec -T "$service" cat /proc/self/status)
    grep -E '^Uid:\s10001\s10001' <<<"$status" >/dev/null || { echo "$service: its user"; return 1; }
    grep -E '^CapBnd:\s0+$' <<<"$status" >/dev/null || { echo "$service: its capabilities"; return 1; }
    grep -E '^NoNewPrivs:\s1' <<<"$status" >/dev/null || { echo "$service: new privileges"; return 1; }
  done
  for service in emulator exporter-bridge alert-engine api postgres prometheus grafana; do
    if dc exec -T "$service" sh -c 'touch /probe /etc/probe' 2>/dev/null; then echo "$service: writes"; return 1; fi
  done
}
no_password_shows() { # in an environment, a command line or a log
  local secret id
  for secret in "$work"/secrets/*; do
    for id in $(containers --all); do
      ! docker inspect "$id" | grep -F -f "$secret" || return 1
      ! docker logs "$id" 2>&1 | grep -F -f "$secret" || return 1
    done
  done
}
only_loopback() {
  local published
  published=$(docker inspect --format '{{range $port, $at := .NetworkSettings.Ports}}{{range $at}}{{.HostIp}} {{end}}{{end}}' $(containers))
  ! tr ' ' '\n' <<<"$published" | grep -v -E '^(127\.0\.0\.1)?$'
}

docker version --format 'engine {{.Server.Version}}' || { echo "compose-check: no engine answers" >&2; exit 1; }
"${compose[@]}" version | sed -n 1p
docker volume ls --quiet | grep -E '^[0-9a-f]{64}$' | sort >"$work/volumes" || true
[ -z "$(left)" ] || dc down -v --remove-orphans >/dev/null 2>&1

dc build >"$work/build" 2>&1 || { tail -30 "$work/build"; exit 1; }
docker image inspect --format 'image {{index .RepoTags 0}}: {{.Size}} bytes' "${GPU_TELEMETRY_IMAGE:-gpu-telemetry:0.1.0}"
check "the first start needs no second try" dc up -d
check "everything is healthy" within 90 healthy
check "every published port is on loopback" only_loopback
check "the services have no root, no capability and no writable root" confined

check "the topics are listed as typed" bash -c "$(declare -f dc has); $(declare -p compose work project files further)
  dc exec -T kafka kafka-topics --bootstrap-server localhost:9093 --list | has gpu-telemetry.dlq"
check "the console consumer reads as typed" bash -c "$(declare -f dc has); $(declare -p compose work project files further)
  dc exec -T kafka kafka-console-consumer --bootstrap-server localhost:9093 --topic gpu-telemetry --from-beginning --max-messages 1 --timeout-ms 60000 | has '\"kind\":'"
check "the tables are listed as typed" bash -c "$(declare -f dc has); $(declare -p compose work project files further)
  dc exec -T postgres psql -U telemetry -d gpu_telemetry -c '\dt' | has gpu_metrics"
check "the API lists all nodes" within 60 fetched_has "$api/api/v1/nodes" '"node_id":"node-4"'
check "the API has metrics" within 60 fetched_has "$api/api/v1/nodes/node-1/metrics?limit=10" '"temperature_celsius"'
for job in bridge gpu-fleet alert-engine api prometheus; do
  check "Prometheus scrapes $job" within 90 all_up "$job" 1
done
check "Prometheus has loaded the rules" fetched_has "$prometheus/api/v1/rules" '"type":"recording"'
check "Grafana lets anybody look at the dashboards" fetched_has "$grafana/api/search?type=dash-db" '"uid":"gpu-fleet"'
check "Grafana's home is the fleet" fetched_has "$grafana/api/dashboards/home" '"Fleet"'
check "Grafana refuses changes" bash -c "! curl -fsS -X POST $grafana/api/folders -H 'Content-Type: application/json' -d '{\"title\":\"x\"}'"
check "Grafana reads PostgreSQL as one who may only read" grafana_asks gpu-telemetry-postgresql \
  '"format":"table","rawSql":"SELECT current_user AS who FROM gpu_metrics LIMIT 1"' grafana_reader
check "Grafana reads Prometheus" grafana_asks gpu-telemetry-prometheus '"instant":true,"expr":"count(DCGM_FI_DEV_GPU_TEMP)"' '"values"'
check "no password shows" no_password_shows

check "a fault is put in" dc exec -T emulator gpu-telemetry emulate fault overheat --node node-1 --gpu 2
check "its alert moves the workload away" within 150 sql_says \
  "SELECT count(*) FROM alert_actions WHERE action_type = 'migrate_workload' AND status = 'succeeded'" 1
check "the fault is taken out" dc exec -T emulator gpu-telemetry emulate fault overheat --node node-1 --gpu 2 --clear

check "three alert engines start" dc up -d --scale alert-engine=3
check "they are healthy" within 90 healthy
check "Prometheus finds all three" within 90 all_up alert-engine 3
check "each has a name of its own" bash -c "[ \$(docker inspect --format '{{.Config.Hostname}}' $(of_service alert-engine | tr '\n' ' ') | sort -u | wc -l) -eq 3 ]"
check "one is enough again" dc up -d --scale alert-engine=1

before=$(sql "SELECT count(*) FROM gpu_metrics")
check "the stack goes down" dc down
check "and leaves its volumes only" test "$(left | wc -l)" -eq 4
check "it comes back with what it had" dc up -d
check "it is healthy again" within 90 healthy
check "new rows join the old" within 60 rows_grow "$before"
check "the ledger balances" dc exec -T alert-engine gpu-telemetry doctor --bridge http://exporter-bridge:9500 --api http://api:8080
check "down -v goes through" dc down -v
check "and leaves nothing" test -z "$(left)"

mkdir "$work/targets"
printf '%s\n' '- targets: ["gpu-host-01.invalid:9400"]' >"$work/targets/targets.yml"
export TARGETS_DIR=$work/targets
files+=(-f docker-compose.exporters.yml)
check "it starts for real exporters" dc up -d
check "that is healthy" within 90 healthy
check "without an emulator" test -z "$(of_service emulator)"
check "it scrapes what the file names" within 90 fetched_has "$api/api/v1/nodes" '"node_id":"gpu-host-01.invalid"'
check "down -v leaves nothing of that" bash -c "$(declare -f dc left containers); $(declare -p compose work project files further)
  dc down -v && [ -z \"\$(left)\" ]"

[ "$failures" -eq 0 ] || { say "$failures of the checks went wrong" && exit 1; }
say "all is as docs/compose.md says"
