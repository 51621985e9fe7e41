"""Grafana: provisioning, dashboards as committed JSON, the generator of that JSON, and pushing it elsewhere."""
