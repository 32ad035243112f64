"""Start one control service: pick the adapters, take the lease, replay the journal, serve, end.

The warm parent is started first of all, so that it imports while this process does. The websocket listener
comes next; the HTTP API, which takes longer to import, is there a moment later behind a port that is open
from the start.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomadfn import ports
from nomadfn.adapters.local import LocalCluster, WarmParent
from nomadfn.exception import ConflictError, Error, InvalidError, ServiceError

if TYPE_CHECKING:
    from nomadfn.control.service import Service
    from nomadfn.control.settings import Settings

EXIT_USAGE, EXIT_CONFLICT, EXIT_STORAGE, EXIT_OTHER = 2, 3, 4, 1


class StorageError(ServiceError):
    """The journal or the registry cannot be used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a control service until it is told to end; returns the exit code of the process."""
    flags = _parse(arguments)
    ready = _Ready(flags.pop("ready_fd"))
    lifeline = flags.pop("lifeline_fd")
    private = flags.pop("private")
    try:
        parent = WarmParent.launch()
        from nomadfn.control.settings import load_settings

        settings = load_settings(flags)
        # After the warm parent: what user functions write is theirs to decide.
        os.umask(0o077)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        return _run(settings, parent, ready, lifeline, private)
    except BaseException as error:
        return ready.fail(error)


def _parse(arguments: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m nomadfn.control", description="Run a control service.")
    parser.add_argument("--data-dir", help="folder of everything that lasts")
    parser.add_argument("--private", action="store_true", help="serve one program and end with it")
    parser.add_argument("--host")
    parser.add_argument("--port", help="of the HTTP API; 0 takes a free one")
    parser.add_argument("--data-port", help="of the websocket listener; 0 takes a free one")
    parser.add_argument("--capacity", help="containers that may run at once")
    parser.add_argument("--insecure-plaintext", action="store_true", default=None)
    parser.add_argument("--lifeline-fd", type=int, help="end when this file reaches its end")
    parser.add_argument("--ready-fd", type=int, help="write one line of JSON here once serving")
    return vars(parser.parse_args(arguments))


class _Ready:
    """Where the parent waits to hear that the service serves, or why it does not."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def tell(self, record: dict[str, Any]) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                os.write(fd, json.dumps(record).encode() + b"\n")
            except OSError:
                pass
            os.close(fd)

    def fail(self, error: BaseException) -> int:
        """Say what went wrong in one line; the traceback only for a fault of nomadfn itself."""
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return 0 if isinstance(error, KeyboardInterrupt) else int(error.code or 0)
        kind = type(error).__name__ if isinstance(error, Error) else "ServiceError"
        if isinstance(error, StorageError):
            kind = "ServiceError"
        self.tell({"error": str(error) or repr(error), "kind": kind})
        with contextlib.suppress(OSError):  # the log may lie on a disk that is full
            print(f"Error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, InvalidError):
            return EXIT_USAGE
        if isinstance(error, ConflictError):
            return EXIT_CONFLICT
        if isinstance(error, StorageError):
            return EXIT_STORAGE
        if not isinstance(error, Error | OSError):
            raise error
        return EXIT_OTHER


def _run(settings: Settings, parent: WarmParent, ready: _Ready, lifeline: int | None, private: bool) -> int:
    import uvloop

    # A million waiting inputs are no garbage: looking at all of them often would cost more than it gives back.
    gc.set_threshold(50_000, 20, 100)
    if lifeline is not None:
        _end_with(lifeline, settings.data_dir if private else None)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, parent, ready, private))


def _end_with(lifeline: int, folder: Path | None) -> None:
    """Whoever holds the other end is gone when this reads the end: then this process goes, too, and its `folder`.

    SIGTERM lets the loop end in order; should the loop be stuck, the process ends all the same, and its warm
    parent, which reads a socket of its own, ends every container.
    """
    orphaned = threading.Event()

    def remove_folder() -> None:
        if folder is not None and orphaned.is_set():
            shutil.rmtree(folder, ignore_errors=True)

    def wait() -> None:
        try:
            while os.read(lifeline, 1):
                pass
        except OSError:
            pass
        orphaned.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(15)
        os._exit(EXIT_OTHER)

    atexit.register(remove_folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the loop takes it over
    threading.Thread(target=wait, name="lifeline", daemon=True).start()


async def _serve(settings: Settings, parent: WarmParent, ready: _Ready, private: bool) -> int:
    from nomadfn.control.connections import listen

    cluster = LocalCluster(parent, settings.capacity)
    storage = await _open_storage(settings.data_dir, cluster)
    # A private service has no callers but its own program: it is spared what the HTTP API costs at the start.
    http = None if private else _bind(settings.host, settings.port, "port")
    ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    service = _build(settings, cluster, storage, http, ended, private)
    try:
        listener = await listen(service, settings.host, settings.data_port)
    except OSError as error:
        raise ConflictError(_taken("data_port", settings.host, settings.data_port, error)) from None
    service.address.data_url = _url("ws", settings.host, listener.sockets[0].getsockname()[1]) + "/v1/connect"
    await service.start()
    record = _announce(settings.data_dir, service, private)
    storage.lease.describe(f"pid {os.getpid()}, {service.address.http_url or 'private'}")
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _end, ended, None)
    ready.tell(record)
    api = None if http is None else asyncio.create_task(_serve_api(service, settings, http))
    fault: Exception | None = None
    try:
        fault = await ended
    finally:
        (settings.data_dir / "service.json").unlink(missing_ok=True)
        listener.close()
        await service.close("it was told to end" if fault is None else str(fault))
        if api is not None:
            await _close_api(api)
        storage.registry.close()
        storage.lease.release()
    if fault is not None:
        raise StorageError(f"the control service cannot go on: {fault}") from fault
    return 0


@dataclass(frozen=True, slots=True)
class _Storage:
    """What lies in the data folder, opened under the lease."""

    lease: ports.Lease
    epoch: int
    journal: ports.Journal
    registry: ports.Registry
    blobs: ports.Blobs


async def _open_storage(folder: Path, cluster: LocalCluster) -> _Storage:
    from nomadfn.adapters.directory_blobs import DirectoryBlobs
    from nomadfn.adapters.lockfile import FileLease
    from nomadfn.adapters.sqlite_journal import SqliteJournal
    from nomadfn.adapters.sqlite_registry import SqliteRegistry

    try:
        lease = FileLease(str(folder / "control.lock"))
        epoch = lease.acquire()
        (folder / "code").mkdir(exist_ok=True)
        journal = SqliteJournal(str(folder / "journal.db"))
        registry = SqliteRegistry(str(folder / "registry.db"))
        return _Storage(lease, epoch, journal, registry, DirectoryBlobs(str(folder / "blobs")))
    except ports.LeaseHeldError as error:
        await cluster.close()
        raise ConflictError(str(error)) from None
    except (ports.JournalError, ServiceError, OSError) as error:
        await cluster.close()
        raise _storage_error(folder, error) from None


def _storage_error(folder: Path, error: Exception) -> StorageError:
    if not isinstance(error, OSError):
        return StorageError(str(error))
    what = error.strerror or error
    return StorageError(f"the data folder {folder} cannot be used ({what}); make room there, or see who owns it")


def _build(
    settings: Settings,
    cluster: LocalCluster,
    storage: _Storage,
    http: socket.socket | None,
    ended: asyncio.Future[Exception | None],
    private: bool,
) -> Service:
    """The service over its adapters, with everything that was accepted before a restart."""
    from nomadfn.control import tokens
    from nomadfn.control.service import Address, Service
    from nomadfn.core.core import Core

    folder = settings.data_dir
    address = Address(
        http_url="" if http is None else _url("http", settings.host, http.getsockname()[1]),
        data_dir=str(folder),
        code_cache=str(folder / "code"),
        blobs=storage.blobs.folder,
        target="this machine, by a private control service"
        if private
        else f"this machine, by the control service in {folder}",
        private=private,
    )
    core = Core(
        settings.limits, epoch=storage.epoch, capacity=cluster.capacity, capacity_reason=cluster.capacity_reason
    )
    good = tokens.Tokens(settings.token or tokens.load_or_create(folder / "token"))
    service = Service(
        core,
        cluster,
        storage.registry,
        storage.blobs,
        good,
        address,
        storage.journal,
        lambda error: _end(ended, error),
    )
    address.started_at = service.now()
    if not private:
        _bring_back(service, storage.journal)
    return service


def _end(ended: asyncio.Future[Exception | None], error: Exception | None) -> None:
    if not ended.done():
        ended.set_result(error)


def _bring_back(service: Service, journal: ports.Journal) -> None:
    """Everything that was accepted before: the apps of the registry, then the calls of the journal."""
    from nomadfn.core import records

    started = time.monotonic()
    service.operations.restore()
    segments = 0
    try:
        for _, body in journal.replay():
            service.core.replay(records.decode_segment(body))
            segments += 1
    except ports.JournalError as error:
        raise StorageError(str(error)) from None
    service.core.end_replay(service.now())
    if segments:
        count = len(service.core.state.calls)
        service.log(f"{count:,} calls brought back from {segments:,} segments in {time.monotonic() - started:.1f} s")


def _bind(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConflictError(_taken(setting, host, port, error)) from None
    listener.setblocking(False)
    return listener


def _taken(setting: str, host: str, port: int, error: OSError) -> str:
    return (
        f"{host}:{port} cannot be listened on: {error.strerror or error}; another program may hold it: "
        f"choose another one with the setting {setting}, or 0 for a free one"
    )


def _url(scheme: str, host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{scheme}://{shown}:{port}"


def _announce(folder: Path, service: Service, private: bool) -> dict[str, Any]:
    """Write where the service is for the SDK and the CLI; whole or not at all, and for this user alone."""
    from nomadfn.version import __version__

    record = {
        "pid": os.getpid(),
        "http_url": service.address.http_url,
        "data_url": service.address.data_url,
        "version": __version__,
        "data_dir": str(folder),
        "capacity": service.cluster.capacity,
        "private": private,
        "started_at": service.address.started_at,
    }
    temporary = folder / f".service.json.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(record))
        temporary.replace(folder / "service.json")
    except OSError as error:
        raise _storage_error(folder, error) from None
    return record


async def _serve_api(service: Service, settings: Settings, listener: socket.socket) -> Any:
    """The HTTP API; its import happens on a thread, so that inputs already flow meanwhile."""
    api = await asyncio.to_thread(_import_api)
    app = api.create_api(service, blobs=service.address.blobs, max_body_bytes=settings.max_body_bytes)
    return await api.serve_api(app, listener)


def _import_api() -> Any:
    from nomadfn.control import api

    return api


async def _close_api(task: asyncio.Task[Any]) -> None:
    try:
        server = await asyncio.wait_for(task, 10.0)
        await server.close()
    except (TimeoutError, asyncio.CancelledError, OSError, Error):
        task.cancel()
