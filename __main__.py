"""`python -m exhubert`."""

import sys

from exhubert.cli import entry_point

sys.exit(entry_point())
