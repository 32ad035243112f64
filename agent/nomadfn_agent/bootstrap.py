"""`nomadfn-agent.pyz` starts here, in any image that has a Python: unpack what is in it, and be the agent.

Compiled modules cannot be imported from an archive, so all of it is unpacked, once a content, into the task's own
folder or the user's cache. It is one member of the archive, because a container's first input waits for this: lines
of size and name, an empty line, and the contents one after the other. Old Pythons must be able to read this file,
because it is what tells them so.
"""

import gc
import os
import sys
import time
from typing import Callable  # noqa: UP035 - as old Pythons know it

UNUSED_S = 30 * 86_400


def run(read: Callable[[], bytes], digest: str, python: str, machine: str) -> None:
    """Be the agent of this archive, made for this Python ("3.12") and machine ("x86_64"); `read` gives its files."""
    here, this = ".".join(map(str, sys.version_info[:2])), os.uname().machine
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(f"nomadfn: this is Python {here}, and functions need 3.11 or newer: use another image")
    if (here, this) != (python, machine):
        sys.exit(
            f"nomadfn: this agent is for Python {python} on {machine}, and this is Python {here} on {this}: put "
            f"?python={here}&platform=linux_{this} behind agent_url in the cluster's settings, or use another image"
        )
    sys.path[0] = unpacked(read, digest)
    serve(python, machine)


def serve(python: str, machine: str) -> None:
    """Be the agent whose modules `sys.path` begins with."""
    gc.disable()  # Imports make hardly any garbage, and a first input waits for them. Containers turn it on again.
    try:
        from nomadfn_agent.join import main
    except ImportError as error:
        sys.exit(
            f"nomadfn: this agent does not work here: {error}. If this image has musl instead of glibc, put "
            f"?python={python}&platform=musllinux_1_2_{machine} behind agent_url in the cluster's settings"
        )
    sys.exit(main())


def unpacked(read: Callable[[], bytes], digest: str) -> str:
    """The folder with what is in the archive, whole also where several agents make it at once.

    It is the one that the job's start has chosen, where there is one.
    """
    base, target = os.path.split(os.environ.pop("NOMADFN_AGENT_FOLDER", ""))
    if target:
        forget_old(base, target)
        return _made(base, target, read)
    base = os.environ.get("NOMAD_TASK_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nomadfn"
    )
    return _made(base, "nomadfn-agent-" + digest, read)


def _made(base: str, name: str, read: Callable[[], bytes]) -> str:
    target = os.path.join(base, name)
    if not os.path.isdir(target):
        temporary = os.path.join(base, f".nomadfn-agent-{os.getpid()}-{os.urandom(4).hex()}")
        os.makedirs(temporary)
        try:
            write_all(read(), temporary)
            os.rename(temporary, target)
        except OSError:
            import shutil

            shutil.rmtree(temporary, ignore_errors=True)
            if not os.path.isdir(target):
                raise
    return target


def forget_old(base: str, target: str) -> None:
    """Remove what earlier versions have left beside `target`, unless it was used in the last month."""
    for name in os.listdir(base):
        path = os.path.join(base, name)
        if name.startswith("agent-") and name != target and os.stat(path).st_mtime < time.time() - UNUSED_S:
            import shutil

            shutil.rmtree(path, ignore_errors=True)


def write_all(data: bytes, folder: str) -> None:
    """Put each of the files under `folder`."""
    index, _, _ = data.partition(b"\n\n")
    start = len(index) + 2
    made = set()
    for line in index.decode().split("\n"):
        size, _, name = line.partition(" ")
        path = os.path.join(folder, name)
        end = start + int(size)
        if os.path.dirname(path) not in made:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            made.add(os.path.dirname(path))
        with open(path, "wb", buffering=0) as file:
            file.write(memoryview(data)[start:end])
        start = end
