"""The whole stack on one machine without Docker: real Kafka, real PostgreSQL, our own processes, supervised."""
