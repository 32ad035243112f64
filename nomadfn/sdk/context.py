"""What a program may ask about where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nomadfn_agent.context import is_container


def is_local() -> bool:
    """True in the program itself, False in a container."""
    return not is_container()


@contextmanager
def enable_output(show_progress: bool = True) -> Iterator[None]:
    """Modal's switch for showing what containers print; nomadfn always shows it, so there is nothing to switch."""
    yield
