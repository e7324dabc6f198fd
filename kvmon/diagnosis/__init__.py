"""State over time into verdicts with evidence: the same code for a live engine and after the fact."""

from __future__ import annotations

from kvmon.diagnosis.catalogue import HEALTHY, VERDICTS
from kvmon.diagnosis.diagnosis import MOST_FINDINGS, Diagnosis
from kvmon.diagnosis.failures import cause_of, causes
from kvmon.diagnosis.finding import Completeness, Confidence, Evidence, Finding
from kvmon.diagnosis.minute import Minute, Refused
from kvmon.diagnosis.verdict import Holds, Verdict

__all__ = [
    "HEALTHY",
    "MOST_FINDINGS",
    "VERDICTS",
    "Completeness",
    "Confidence",
    "Diagnosis",
    "Evidence",
    "Finding",
    "Holds",
    "Minute",
    "Refused",
    "Verdict",
    "cause_of",
    "causes",
]
