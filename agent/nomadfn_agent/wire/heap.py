"""What malloc does with memory that is given back."""

from __future__ import annotations

LARGEST_BYTES = 8 * 1024 * 1024


def keep_freed() -> None:
    """Have malloc keep some memory for the next frames, instead of getting new pages for each of them.

    The C library of most systems does so by itself once the program has given back a large block: it then takes blocks
    up to that size from its heap, of which it keeps twice as much (mallopt(3), M_MMAP_THRESHOLD). So here is one, that
    nobody has written to. Elsewhere this does nothing.
    """
    bytes(LARGEST_BYTES)
