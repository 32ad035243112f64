"""`python -m nomadfn.control`."""

import sys

from nomadfn.control.main import main

sys.exit(main())
