"""Other collectors on the same pages into the same Kafka; `python -m benchmarks.peers` builds, configures, compares."""
