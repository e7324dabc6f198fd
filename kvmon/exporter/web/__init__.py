"""The manners of the exporter's HTTP side: where it listens, whom it lets in, how long it waits, how a page looks.

`server` and `app` beside this package put the parts together. Nothing here knows metrics.
"""
