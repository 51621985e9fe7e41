"""The ground that the services stand on: records, fields, settings, Kafka, the database, logs and the clock."""
