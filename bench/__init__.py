"""Measurements: every figure a ratio to a peer or a limit in the same run, the median of interleaved pairs."""
