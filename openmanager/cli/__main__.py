"""Run as `python -m openmanager.cli`."""

import sys

from openmanager.cli.main import main

sys.exit(main())
