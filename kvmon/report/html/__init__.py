"""The report of an incident as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

from kvmon.report.html.page import render_html

__all__ = ["render_html"]
