"""What every test stands on: signals as a terminal gives them."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Processes that tests start inherit what is ignored, and a suite that was put into the background ignores Ctrl-C.

    With a handler here, which a new program does not inherit, they all begin with the default.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
