"""The sources of the dashboards and what builds them: YAML, kvmon's components for grafana-dashboard-builder, checks.

`python -m dashboards.source` writes `dashboards/*.json`. None of this is in the wheel: the JSON is.
"""
