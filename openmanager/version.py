"""The version of the program, read from the installed distribution."""

from importlib import metadata

VERSION = metadata.version("openmanager")
