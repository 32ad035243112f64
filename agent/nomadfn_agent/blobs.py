"""Where a container finds large bytes: in the folder that it shares with its control service.

Where there is no such folder, code comes over HTTP; large arguments and results cannot travel at all.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from .wire import INLINE_PAYLOAD_BYTES
from .wire.payload import blob_path, digest_of

FETCH_S = 60.0
MISSING = (
    f"over the {INLINE_PAYLOAD_BYTES:,} bytes that travel without a blob store, and this container shares none with "
    f"its control service: set blobs= of the cluster to a folder that all of them see, or pass a path or a URL instead"
)
"""What stands behind "the result of f has n bytes, "."""


def is_shared(folder: str) -> bool:
    """Whether the control service's blob folder is here, too."""
    return folder != "" and os.path.isdir(folder)


def read_code(folder: str, digest: str) -> bytes:
    """A code archive or a pickled function by its digest. Raises OSError, or ValueError where it is damaged."""
    if is_shared(folder):
        with open(blob_path(folder, digest), "rb") as file:
            data = file.read()
    else:
        data = _fetch(digest)
    if digest_of(data) != digest:
        raise ValueError("it is damaged: deploy or run the program again")
    return data


def _fetch(name: str) -> bytes:
    """Ask the control service, with the container's token. Raises OSError."""
    import http.client  # Most containers never need it.

    url = urlsplit(os.environ.get("NOMADFN_HTTP_URL", ""))
    if not url.hostname:
        raise OSError("the blob folder of the control service is not here, and it has no HTTP address")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname, url.port, timeout=FETCH_S)
    try:
        headers = {"Authorization": f"Bearer {os.environ['NOMADFN_TOKEN']}"}
        connection.request("GET", f"{url.path.rstrip('/')}/v1/blobs/{name}", headers=headers)
        response = connection.getresponse()
        data = response.read()
    except http.client.HTTPException as error:
        raise OSError(f"the control service broke off: {error!r}") from error
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise OSError(f"the control service says {response.status}: {data[:300].decode(errors='replace')}")
    return data
