"""The one door: OTLP and frames in, hot state, status and every other service out."""
