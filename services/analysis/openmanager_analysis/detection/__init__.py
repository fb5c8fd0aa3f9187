"""Online anomaly detection over many series: docs/analysis.md has the method."""

from openmanager_analysis.detection.detector import THRESHOLD, Detector, Scores, Tuning

__all__ = ["THRESHOLD", "Detector", "Scores", "Tuning"]
