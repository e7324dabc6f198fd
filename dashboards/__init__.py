"""Grafana dashboards over kvmon's metrics, as generated JSON."""
