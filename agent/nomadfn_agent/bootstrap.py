"""`nomadfn-agent.pyz` starts here, in any image that has a Python: unpack what is in it, and be the agent.

Compiled modules cannot be imported from an archive, so all of it is unpacked, once a content, into the task's own
folder or the user's cache. Old Pythons must be able to read this file, because it is what tells them so.
"""

import os
import sys


def run(digest: str, python: str, machine: str) -> None:
    """Be the agent of this archive, which was made for this Python ("3.12") and machine ("x86_64")."""
    here, this = ".".join(map(str, sys.version_info[:2])), os.uname().machine
    if (here, this) != (python, machine):
        sys.exit(
            f"nomadfn: this agent is for Python {python} on {machine}, and this is Python {here} on {this}: put "
            f"?python={here}&platform=linux_{this} behind agent_url in the cluster's settings, or use another image"
        )
    sys.path[0] = unpacked(os.path.dirname(os.path.abspath(__file__)), digest)
    try:
        from nomadfn_agent.join import main
    except ImportError as error:
        sys.exit(
            f"nomadfn: this agent does not work here: {error}. If this image has musl instead of glibc, put "
            f"?python={python}&platform=musllinux_1_2_{machine} behind agent_url in the cluster's settings"
        )
    sys.exit(main())


def unpacked(archive: str, digest: str) -> str:
    """The folder with what is in the archive, whole also where several agents make it at once."""
    base = os.environ.get("NOMAD_TASK_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nomadfn"
    )
    target = os.path.join(base, "nomadfn-agent-" + digest)
    if not os.path.isdir(target):
        import shutil
        import tempfile
        import zipfile

        os.makedirs(base, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=base, prefix=".nomadfn-agent-")
        try:
            with zipfile.ZipFile(archive) as file:
                file.extractall(temporary)
            os.chmod(temporary, 0o755)
            os.rename(temporary, target)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if not os.path.isdir(target):
                raise
    return target
