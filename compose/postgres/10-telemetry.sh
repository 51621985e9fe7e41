#!/bin/bash
# The owner of the database and, made by it, the schema: our services connect as `telemetry`, which is no superuser.
# PostgreSQL's image runs this once, on an empty data directory. CREATEROLE is for the schema's own telemetry_reader.
set -euo pipefail
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set password `cat "$TELEMETRY_PASSWORD_FILE"`
CREATE ROLE telemetry LOGIN CREATEROLE PASSWORD :'password';
ALTER DATABASE :"DBNAME" OWNER TO telemetry;
SQL
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username telemetry --dbname "$POSTGRES_DB" --file "$INIT_SQL"
