"""`python -m nomadfn.control`."""

import atexit
import gc
import os
import sys

gc.disable()  # Imports make hardly any garbage, and somebody waits for them; `main` turns it on again.

from nomadfn.control.main import main  # noqa: E402

code = main()
# Everything has been closed. The interpreter would still take each object apart, and whoever ends the service waits.
atexit._run_exitfuncs()
for stream in (sys.stdout, sys.stderr):
    try:
        stream.flush()
    except OSError:
        pass
os._exit(code)
