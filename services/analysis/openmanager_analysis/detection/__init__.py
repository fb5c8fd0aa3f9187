"""Online anomaly detection over many series: docs/analysis.md has the method."""

from openmanager_analysis.detection.decision import THRESHOLD
from openmanager_analysis.detection.detector import Detector, Scores, Tuning

__all__ = ["THRESHOLD", "Detector", "Scores", "Tuning"]
