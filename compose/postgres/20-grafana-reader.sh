#!/bin/bash
# The login that Grafana's data source uses: it may read what telemetry_reader may, and nothing else.
# PostgreSQL's image runs this once, on an empty data directory, after 10-telemetry.sh.
set -euo pipefail
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set password `cat "$GRAFANA_READER_PASSWORD_FILE"`
CREATE ROLE grafana_reader LOGIN PASSWORD :'password' IN ROLE telemetry_reader CONNECTION LIMIT 20;
ALTER ROLE grafana_reader SET default_transaction_read_only = on;
ALTER ROLE grafana_reader SET statement_timeout = '30s';
SQL
