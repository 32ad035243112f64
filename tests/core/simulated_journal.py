"""The journal of a simulated world: durable segments, and what is on its way there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nomadfn.core import records


@dataclass
class Journal:
    """Segments as a real journal keeps them. What is being written when all ends may be there or not."""

    segments: list[bytes] = field(default_factory=list)
    chain: list[bytes] = field(default_factory=list)
    """Every segment that there ever was, no snapshot: what a standby reads."""
    queue: list[tuple[list[records.Record], int] | Iterator[records.Record] | list[bytes]] = field(default_factory=list)
    """Records with the number of the last, the begin of a snapshot, and its end: the bodies."""
    covered: int = 0
    """Segments that the snapshot which is being taken stands for."""
    writing: bool = False
    compacting: bool = False

    def write(self, count: int) -> int:
        """Make the first `count` things of the queue durable; returns the number of the last record in them, or 0."""
        number = 0
        done, self.queue = self.queue[:count], self.queue[count:]
        for one in done:
            if isinstance(one, tuple):
                self.segments.append(records.encode_segment(one[0]))
                self.chain.append(self.segments[-1])
                number = one[1]
            elif isinstance(one, list):
                self.segments[: self.covered] = one
                self.compacting = False
            else:
                self.covered = len(self.segments)
        return number
