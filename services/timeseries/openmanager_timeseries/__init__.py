"""History: the log of frames, and what is read from it."""
