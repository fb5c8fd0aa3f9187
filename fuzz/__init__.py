"""Hostile input on every method of the suite, from a seed: nothing may fail in a way that is not documented, or leak."""
