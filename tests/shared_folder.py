"""A blob folder as its control service, programs and containers on one machine see it."""

from __future__ import annotations

from pathlib import Path

from nomadfn_agent.wire.store import BlobStore, Place

from nomadfn.adapters.directory_blobs import DirectoryBlobs


class SharedFolder(BlobStore):
    def __init__(self, folder: Path | str) -> None:
        blobs = DirectoryBlobs(str(folder))
        self.place = Place(blobs.folder, blobs.mark)
        super().__init__(lambda: self.place)
