"""The database schema as numbered SQL files; `gpu_telemetry.schema` applies them."""
