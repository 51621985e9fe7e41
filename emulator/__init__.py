"""A fleet of emulated dcgm-exporters with physics, jobs and faults."""
