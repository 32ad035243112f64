"""The control service of one machine: SQLite, a folder, a lock file, and containers as child processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nomadfn import ports
from nomadfn.adapters.local import LocalCluster
from nomadfn.adapters.warm_parent import WarmParent
from nomadfn.control.local_socket import listen_at
from nomadfn.control.serving import StorageError, bind, bring_back, end, taken, url
from nomadfn.exception import ConflictError, Error, ServiceError

if TYPE_CHECKING:
    from nomadfn.control.service import Service
    from nomadfn.control.settings import Settings

DATA_SOCKET = "data.sock"


async def serve(settings: Settings, parent: WarmParent, tell: Callable[[dict[str, Any]], None], private: bool) -> int:
    from nomadfn.adapters.directory_blobs import link_memory, unlink_memory
    from nomadfn.control.connections import listen

    cluster = LocalCluster(parent, settings.capacity)
    storage = await _open_storage(settings.data_dir, cluster)
    # A private service has no callers but its own program: it is spared what the HTTP API costs at the start.
    http = None if private else bind(settings.host, settings.port, "port")
    ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    service = _build(settings, cluster, storage, http, ended, private)
    try:
        listener = await listen(service, settings.host, settings.data_port)
    except OSError as error:
        raise ConflictError(taken("data_port", settings.host, settings.data_port, error)) from None
    service.address.data_url = url("ws", settings.host, listener.sockets[0].getsockname()[1]) + "/v1/connect"
    local = await _listen_locally(service, settings.data_dir)
    link_memory(storage.blobs.folder)
    service.web.prepare(settings, private=private)
    await service.start()
    record = _announce(settings.data_dir, service, private)
    storage.lease.describe(f"pid {os.getpid()}, {service.address.http_url or 'private'}")
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end, ended, None)
    tell(record)
    api = None if http is None else asyncio.create_task(_serve_api(service, settings, http))
    fault: Exception | None = None
    try:
        fault = await ended
    finally:
        (settings.data_dir / "service.json").unlink(missing_ok=True)
        listener.close()
        if local is not None:
            local.close()
            (settings.data_dir / DATA_SOCKET).unlink(missing_ok=True)
        await service.web.close()
        await service.close("it was told to end" if fault is None else str(fault))
        if api is not None:
            await _close_api(api)
        unlink_memory(storage.blobs.folder, with_content=private)
        storage.registry.close()
        storage.lease.release()
    if fault is not None:
        raise StorageError(f"the control service cannot go on: {fault}") from fault
    return 0


async def _listen_locally(service: Service, folder: Path) -> asyncio.Server | None:
    """The same listener on a Unix socket in the data folder, if one can be there: TCP reaches everything as well."""
    from nomadfn.control.connections import listen

    path = folder.absolute() / DATA_SOCKET
    sock = listen_at(path)
    if sock is None:
        return None
    service.address.data_socket = str(path)
    return await listen(service, sock=sock)


class _Storage(msgspec.Struct, frozen=True):
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
    from nomadfn.adapters.file_secrets import FileSecrets
    from nomadfn.control import tokens
    from nomadfn.control.address import Address
    from nomadfn.control.service import Service
    from nomadfn.core.core import Core

    folder = settings.data_dir
    address = Address(
        http_url="" if http is None else url("http", settings.host, http.getsockname()[1]),
        data_dir=str(folder),
        code_cache=str(folder / "code"),
        target="this machine, by a private control service"
        if private
        else f"this machine, by the control service in {folder}",
        private=private,
    )
    core = Core(
        settings.limits,
        epoch=storage.epoch,
        capacity=cluster.capacity,
        capacity_reason=cluster.capacity_reason,
        shares_ports=True,
    )
    owner = settings.token or tokens.load_or_create(folder / "token")
    good = tokens.Tokens(owner, metrics=settings.metrics_token, web=settings.web_token)
    service = Service(
        core,
        cluster,
        storage.registry,
        storage.blobs,
        good,
        address,
        storage.journal,
        lambda error: end(ended, error),
        FileSecrets(_secrets_folder(settings, private)),
    )
    service.operations.prepare = cluster.prepare
    address.started_at = service.now()
    if not private:
        bring_back(service, storage.journal.replay())
    return service


def _secrets_folder(settings: Settings, private: bool) -> Path:
    """In the user's own folder, also where the service has one that goes with its program."""
    from nomadfn.control.settings import load_settings

    return (load_settings().data_dir if private else settings.data_dir) / "secrets"


def _announce(folder: Path, service: Service, private: bool) -> dict[str, Any]:
    """Write where the service is for the SDK and the CLI; whole or not at all, and for this user alone."""
    from nomadfn.version import __version__

    record = {
        "pid": os.getpid(),
        "http_url": service.address.http_url,
        "data_url": service.address.data_url,
        "data_socket": service.address.data_socket,
        "version": __version__,
        "data_dir": str(folder),
        "capacity": service.cluster.capacity,
        "private": private,
        "web_url": service.web.base_url,
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
    if any(one.spec.is_web for one in service.core.state.functions.values()):
        await service.web.open()
    api = await asyncio.to_thread(_import_api)
    app = api.create_api(service, service.desk, max_body_bytes=settings.max_body_bytes)
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
