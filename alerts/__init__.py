"""Prometheus rules for kvmon's metrics: recording rules, alerts, and a runbook for each alert."""
