"""`python -m nomadfn_agent`: the agent of a Nomad allocation, or with `--supervisor-fd N` a machine's warm parent."""

from __future__ import annotations

import argparse
import gc
import sys

gc.disable()  # Imports make hardly any garbage, and a first input waits for them. Containers turn it on again.
parser = argparse.ArgumentParser(prog="nomadfn_agent", description=__doc__)
parser.add_argument("--supervisor-fd", type=int, help="the inherited socket to the control service")
parser.add_argument("--preload", action="append", default=[], metavar="MODULE", help="import it before the first fork")
parser.add_argument("--outlives-leaders", action="store_true", help="be the warm parent of an image, of an agent")
arguments = parser.parse_args()
if arguments.supervisor_fd is None:
    from .join import main as join

    sys.exit(join())
else:
    from .supervisor import main

    sys.exit(main(arguments.supervisor_fd, arguments.preload, arguments.outlives_leaders))
