"""After the fact: what a recording or a capture says about what went wrong."""

from __future__ import annotations

from kvmon.replay.findings import Refusal, StreamDiagnosis, diagnose_path

__all__ = ["Refusal", "StreamDiagnosis", "diagnose_path"]
