"""The sidecar: follows recordings, folds them, and serves what the catalogue names to Prometheus.

Invariant: it reads what an engine wrote and never touches the engine. Nothing here defines a number; `kvmon.state`
does.
"""
