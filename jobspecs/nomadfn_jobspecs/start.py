"""What a task of a function's job runs first: find nomadfn's agent on this node, or fetch it, and be it.

An artifact would be fetched by a process of Nomad's own, and unpacked, at each start. Here the control service is asked
whether what an earlier start has left is still right. Old Pythons must be able to read this; what makes it short are
the job specs that hold it.
"""

import os
import socket
import sys
import time

PATIENCE_S = 60


def cache() -> str:
    """A folder that nobody else can write to, if there is one, for all starts on this node."""
    base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nomadfn")
    try:
        os.makedirs(base, 0o700, exist_ok=True)
        found = os.lstat(base)
        if found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(base, os.W_OK):
            return base
    except OSError:
        pass
    return os.environ["NOMAD_TASK_DIR"]


def ask(url: str, tags: str) -> tuple[int, str, bytes]:
    """Status, tag and content of what is there, unless it has one of these tags."""
    if url.startswith("https:"):
        import urllib.error
        import urllib.request

        request = urllib.request.Request(url, headers={"If-None-Match": tags})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.headers["ETag"], answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["ETag"], error.read()
    place, _, path = url[len("http://") :].partition("/")
    host, _, port = place.rpartition(":") if place.rpartition("]")[2].count(":") else (place, "", "80")
    with socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S) as link:
        link.sendall(f"GET /{path} HTTP/1.0\r\nHost: {place}\r\nIf-None-Match: {tags}\r\n\r\n".encode())
        head, _, content = b"".join(iter(lambda: link.recv(1 << 20), b"")).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    if len(content) < int(fields.get("content-length", 0)):
        raise OSError("the answer was cut off")
    return int(lines[0].split()[1]), fields.get("etag", ""), content


def main() -> None:
    if sys.path[0] == "":
        del sys.path[0]
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    base, mine = cache(), f"agent-{python}-"
    tags = ", ".join(f'"{name[len(mine) :]}"' for name in os.listdir(base) if name.startswith(mine))
    give_up_at, why = time.time() + PATIENCE_S, "NOMADFN_CONTROL_URLS is empty"
    while time.time() < give_up_at:
        for url in os.environ["NOMADFN_CONTROL_URLS"].split():
            try:
                status, tag, content = ask(url.rstrip("/") + os.environ["NOMADFN_AGENT"], tags)
            except (OSError, ValueError, IndexError) as error:
                why = f"{url}: {error}"
                continue
            folder = os.path.join(base, mine + tag.strip('"'))
            if status == 304:
                sys.path.insert(0, folder)
                os.utime(folder)  # Those that nobody has used for long are removed.
                from nomadfn_agent.bootstrap import serve

                serve(python, os.uname().machine)
            if status == 200:
                archive = os.path.join(os.environ["NOMAD_TASK_DIR"], "nomadfn-agent.pyz")
                with open(archive, "wb") as file:
                    file.write(content)
                os.environ["NOMADFN_AGENT_FOLDER"] = folder
                import runpy

                runpy.run_path(archive, run_name="__main__")
            why = f"{url}: " + content.decode(errors="replace")[:500]
        time.sleep(0.25)
    sys.exit(f"nomadfn: no control service gives this task its agent: {why}")


main()
