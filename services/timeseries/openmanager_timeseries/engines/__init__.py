"""Engines: stores of raw history beside our blocks."""
