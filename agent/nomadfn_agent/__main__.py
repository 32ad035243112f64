"""`python -m nomadfn_agent --supervisor-fd N`: the supervisor of a machine's containers."""

from __future__ import annotations

import argparse
import sys

from .supervisor import main

parser = argparse.ArgumentParser(prog="nomadfn_agent", description=__doc__)
parser.add_argument("--supervisor-fd", type=int, required=True, help="the inherited socket to the control service")
parser.add_argument("--preload", action="append", default=[], metavar="MODULE", help="import it before the first fork")
arguments = parser.parse_args()
sys.exit(main(arguments.supervisor_fd, arguments.preload))
