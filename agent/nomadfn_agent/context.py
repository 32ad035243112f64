"""What user code may ask about the input that it runs for."""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar


class InputCancellation(BaseException):
    """Stands in for `nomadfn.exception.InputCancellation` where the program has not imported nomadfn."""


class Terminated(BaseException):
    """The container was told by a signal to end; raised on the main thread, so that what must come last still comes."""


running: ContextVar[tuple[str, int] | None] = ContextVar("nomadfn_input", default=None)
"""Call and index of the input that runs in this context; a thread that user code starts has none."""


def current_input_id() -> str | None:
    """Id of the input that runs here (`in-…`), or None outside of one."""
    now = running.get()
    return None if now is None else f"in-{now[0].removeprefix('fc-')}-{now[1]}"


def current_function_call_id() -> str | None:
    """Id of the call that the input belongs to (`fc-…`), or None outside of one."""
    now = running.get()
    return None if now is None else now[0]


def control_urls() -> list[str]:
    """Where the control services of this container's cluster are, as its agent knows it now; empty on one machine."""
    try:
        with open(os.environ.get("NOMADFN_CONTROL_FILE", "")) as file:
            return file.read().split()
    except OSError:
        return os.environ.get("NOMADFN_CONTROL_URLS", "").split()


def is_container() -> bool:
    """Whether this process is a container, or was started by one."""
    return "NOMADFN_CONTAINER_ID" in os.environ


def cancellation_type() -> type[BaseException]:
    """The class that a cancelled function sees, the one that it can name in an `except`."""
    module = sys.modules.get("nomadfn.exception")
    found = getattr(module, "InputCancellation", InputCancellation)
    return found if isinstance(found, type) and issubclass(found, BaseException) else InputCancellation
