"""`up`, `down`, `control`, `status`, `version`: the control service that stays, here or on a cluster."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import subprocess

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.02
LOG_TAIL_LINES = 12


def register(cli: typer.Typer) -> None:
    for command in (up, down, control, status, version):
        cli.command(help=command.__doc__)(command)


def up(
    host: str = typer.Option(None, help="Address to serve on; 127.0.0.1 by default."),
    port: int = typer.Option(None, help="Port of the HTTP API; a free one by default."),
    data_port: int = typer.Option(None, help="Port of the websocket listener; a free one by default."),
    web_host: str = typer.Option(None, help="Address to serve web functions on; 127.0.0.1 by default."),
    web_port: int = typer.Option(None, help="Port of web functions; the one before, or a free one, by default."),
    capacity: int = typer.Option(None, help="Containers that may run at once; one a core by default."),
    insecure_plaintext: bool = typer.Option(False, help="Serve on an address that others reach, without TLS."),
    nomad: bool = typer.Option(False, "--nomad", help="Insist on a cluster: never start one on this machine."),
    as_json: bool = typer.Option(False, "--json", help="Print where it serves as JSON."),
) -> None:
    """Start the control service in the background. Returns once it serves; it stays until `nomadfn down`.

    With a cluster's profile it becomes a Nomad job there: one instance leads, the others stand by.
    """
    from nomadfn.cli import output, remote
    from nomadfn.profiles import load_profile
    from nomadfn.sdk.service import data_folder, find_running

    profile = remote.cluster_profile("up --nomad") if nomad else load_profile()
    if not profile.is_local:
        from nomadfn.cli import cluster

        cluster.up(profile, insecure_plaintext, as_json)
        return
    folder = data_folder()
    flags = {"host": host, "port": port, "data_port": data_port, "capacity": capacity}
    flags |= {"web_host": web_host, "web_port": web_port}
    flags["insecure_plaintext"] = insecure_plaintext or None
    _check_settings(flags)
    is_new = find_running(folder) is None
    record = _start(folder, flags) if is_new else _read_record(folder)
    if as_json:
        output.print_json(record)
        return
    how = "is up" if is_new else "was up already"
    print(f"The control service {how}: {record['http_url']} (pid {record['pid']}, {_capacity(record)})")
    print(f"Web functions are served at {record['web_url']}")
    print(f"Its state and its log are in {record['data_dir']}")
    if not is_new and any(value is not None for value in flags.values()):
        output.note("It goes on with the settings that it has; for others, `nomadfn down` first.")


def down(
    everything: bool = typer.Option(False, "--all", help="On a cluster: end the functions' Nomad jobs, too."),
) -> None:
    """Stop the control service. Returns once it has ended; spawned inputs are kept for the next `nomadfn up`."""
    from nomadfn.cli.api_client import ApiClient
    from nomadfn.exception import Error
    from nomadfn.profiles import load_profile
    from nomadfn.sdk.service import data_folder, find_running

    profile = load_profile()
    if not profile.is_local:
        from nomadfn.cli import cluster

        cluster.down(profile, everything)
        return
    folder = data_folder()
    found = find_running(folder)
    if found is None:
        _tidy_up(folder)
        return
    pid = int(_read_record(folder)["pid"])
    try:
        left = ApiClient(found.http_url, found.token).ask("GET", "/v1/status")
    except Error:
        # It answers nobody any more, or not this token; the lock still says that it is ours to stop.
        _require_lock_holder(folder, pid)
        left = {}
    _stop(pid, folder)
    print(f"The control service has ended (pid {pid}).")
    if left.get("pending") or left.get("running"):
        waiting = f"{left.get('pending', 0):,} inputs waited and {left.get('running', 0):,} ran"
        print(f"{waiting}; spawned ones are kept in {folder} and go on with the next `nomadfn up`.")


def control(
    host: str = typer.Option(None, help="Address to serve on; 127.0.0.1 by default."),
    port: int = typer.Option(None, help="Port of the HTTP API; a free one by default."),
    data_port: int = typer.Option(None, help="Port of the websocket listener; a free one by default."),
    web_host: str = typer.Option(None, help="Address to serve web functions on; 127.0.0.1 by default."),
    web_port: int = typer.Option(None, help="Port of web functions; the one before, or a free one, by default."),
    capacity: int = typer.Option(None, help="Containers that may run at once; one a core by default."),
    insecure_plaintext: bool = typer.Option(False, help="Serve on an address that others reach, without TLS."),
) -> None:
    """Run the control service in the foreground. Ctrl-C ends it.

    With a cluster's profile it stands by until it leads, and hands over when it is told to end.
    """
    from nomadfn.profiles import load_profile
    from nomadfn.sdk.service import data_folder

    flags = {"host": host, "port": port, "data_port": data_port, "capacity": capacity}
    flags |= {"web_host": web_host, "web_port": web_port}
    flags["insecure_plaintext"] = insecure_plaintext or None
    from nomadfn.control.main import main

    profile = load_profile()
    if not profile.is_local:
        code = main([f"--profile={profile.name}", *_flags(flags)])
        if code:
            raise typer.Exit(code)  # it has said why
        return
    _check_settings(flags)
    folder = _make_folder(data_folder())
    ready, ready_writer = os.pipe()
    threading.Thread(target=_say_where, args=(ready,), name="ready", daemon=True).start()
    if main([*_arguments(folder, flags), "--ready-fd", str(ready_writer)]) != 0:
        raise typer.Exit(3)  # it has said why


def _say_where(ready: int) -> None:
    """Print where the service is once it serves."""
    with os.fdopen(ready) as lines:
        record = json.loads(lines.readline() or "{}")
    if "http_url" in record:
        print(f"Serving at {record['http_url']} with {_capacity(record)}; Ctrl-C ends it", file=sys.stderr, flush=True)


def status(as_json: bool = typer.Option(False, "--json", help="Print all of it as JSON.")) -> None:
    """Show where the control service runs and how busy it is."""
    from nomadfn.cli import output
    from nomadfn.cli.api_client import connect

    content = connect().ask("GET", "/v1/status")
    if as_json:
        output.print_json(content)
        return
    print(f"{content['http_url']}  nomadfn {content['version']}, pid {content['pid']}", end=", ")
    print(f"up for {output.duration(content['uptime_s'])}")
    print(f"data        {content['data_dir']} (journal {content['journal_bytes'] / 1e6:,.1f} MB)")
    print(f"web         {content['web_url'] or 'not served'}")
    print(f"containers  {content['containers']:,}; the most is {content['capacity_reason']}")
    print(f"apps        {content['apps']}, with {output.plural(content['functions'], 'function')}")
    print(f"inputs      {content['pending']:,} pending, {content['running']:,} running")


def version() -> None:
    """Print the version."""
    print_version()


def print_version() -> None:
    from nomadfn.version import __version__

    print(f"nomadfn {__version__}")


def _check_settings(flags: dict[str, Any]) -> None:
    """Refuse wrong settings here, where the message can be seen. The service reads them again for itself."""
    from nomadfn.control.settings import load_settings
    from nomadfn.sdk.service import data_folder

    load_settings({**flags, "data_dir": data_folder()})


def _make_folder(folder: Path) -> Path:
    from nomadfn.exception import ServiceError

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ServiceError(
            f"the data folder {folder} cannot be made ({error.strerror}); set NOMADFN_DATA_DIR to another one"
        ) from None
    return folder


def _arguments(folder: Path, flags: dict[str, Any]) -> list[str]:
    """The command line of `python -m nomadfn.control`."""
    return ["--data-dir", str(folder.absolute()), *_flags(flags)]


def _flags(flags: dict[str, Any]) -> list[str]:
    arguments = []
    for name, value in flags.items():
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            arguments += [flag] if value is True else [flag, str(value)]
    return arguments


def _environ() -> dict[str, str]:
    """The service's environment: it reads the same nomadfn.toml, wherever it works."""
    config = Path(os.environ.get("NOMADFN_CONFIG") or "nomadfn.toml").expanduser().absolute()
    return {**os.environ, "NOMADFN_CONFIG": str(config)} if config.exists() else dict(os.environ)


def _start(folder: Path, flags: dict[str, Any]) -> dict[str, Any]:
    """Start the service as a process of its own, and return what it says once it serves."""
    import subprocess

    from nomadfn.exception import ServiceError

    _make_folder(folder)
    command = [sys.executable, "-P", "-m", "nomadfn.control", *_arguments(folder, flags)]
    ready, ready_writer = os.pipe()
    try:
        with open(folder / "control.log", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            process = subprocess.Popen(
                [*command, "--ready-fd", str(ready_writer)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=_environ(),
                pass_fds=(ready_writer,),
                start_new_session=True,
            )
    except OSError as error:
        os.close(ready)
        raise ServiceError(f"the control service cannot be started in {folder}: {error}") from None
    finally:
        os.close(ready_writer)
    try:
        return _await_ready(process, ready, folder)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        os.close(ready)


def _await_ready(process: subprocess.Popen[bytes], ready: int, folder: Path) -> dict[str, Any]:
    import select

    from nomadfn import exception

    deadline = time.monotonic() + START_TIMEOUT_S
    line = b""
    while not line.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([ready], [], [], left_s)[0]:
            raise exception.ServiceError(
                f"the control service did not serve within {START_TIMEOUT_S:g} s and was stopped{_log_tail(folder)}"
            )
        chunk = os.read(ready, 65536)
        if not chunk:
            raise exception.ServiceError(
                f"the control service ended while it started (exit code {process.wait()}){_log_tail(folder)}"
            )
        line += chunk
    record: dict[str, Any] = json.loads(line)
    if "error" in record:
        process.wait()
        kind = getattr(exception, str(record.get("kind")), exception.ServiceError)
        raise kind(record["error"])
    return record


def _log_tail(folder: Path) -> str:
    try:
        lines = (folder / "control.log").read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        lines = []
    return "".join(f"\n  {line}" for line in [f"; the last lines of {folder / 'control.log'}:", *lines])


def _read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "service.json").read_text())
    return record


def _capacity(record: dict[str, Any]) -> str:
    return f"room for {record['capacity']} container{'' if record['capacity'] == 1 else 's'}"


def _tidy_up(folder: Path) -> None:
    """What `down` does when no service answers: a service that was killed leaves its record behind."""
    record = folder / "service.json"
    if not record.exists():
        print("No control service is running.")
        return
    holder = _lock_holder(folder)
    if holder is not None:
        _stop(holder, folder)
        print(f"The control service did not answer; it has been stopped (pid {holder}).")
    else:
        record.unlink(missing_ok=True)
        print("No control service is running: the last one was killed. What it had acknowledged is kept.")


def _lock_holder(folder: Path) -> int | None:
    """The process that holds the folder's lock, as the operating system and the lock file say."""
    import fcntl

    try:
        with open(folder / "control.lock", "r+b") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = json.loads(lock.readline()).get("pid")
                return pid if isinstance(pid, int) else None
    except (OSError, ValueError):
        pass
    return None


def _require_lock_holder(folder: Path, pid: int) -> None:
    from nomadfn.exception import ConflictError

    if _lock_holder(folder) != pid:
        raise ConflictError(
            f"process {pid} answers as the control service of {folder}, but does not hold its lock; "
            "look at it with `ps`, and end it by hand"
        )


def _stop(pid: int, folder: Path) -> None:
    """Ask the service to end, and wait until its lock is free."""
    import signal

    from nomadfn.exception import PermissionDeniedError, ServiceError

    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError:
        raise PermissionDeniedError(f"the control service (pid {pid}) belongs to another user; ask them") from None
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _is_alive(pid):
        if time.monotonic() > deadline:
            raise ServiceError(
                f"the control service (pid {pid}) has not ended within {STOP_TIMEOUT_S:g} s; "
                f"`kill -9 {pid}` loses nothing that was acknowledged{_log_tail(folder)}"
            )
        time.sleep(POLL_S)


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return not Path("/proc/self").exists()
    return state not in "ZX"
