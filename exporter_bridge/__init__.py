"""Pages in, records and series out: scrapes dcgm-exporters, publishes to Kafka, re-exposes to Prometheus."""
