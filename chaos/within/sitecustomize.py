"""Run by every Python process of a mesh under chaos at its start, for this folder is on their path."""

from chaos import inside

inside.prepare()
