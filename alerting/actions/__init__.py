"""What was decided, carried out: notices to the log and a webhook, and the migration of a workload."""
