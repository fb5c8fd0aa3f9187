"""Faults on a whole mesh under load, from a seed, and proof of what became of every sample that was acknowledged.

`make chaos` runs it. A load of its own writes and reads through the gateway and keeps a journal of what it was told; a
driver kills, stops and crashes processes of the mesh meanwhile; at the end a checker reads everything back and compares.
"""
