"""Run as `python -m openmanager.cli`."""

from openmanager.cli.main import main

main()
