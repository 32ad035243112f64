"""A control service of a cluster: Consul's lease, journal and registry, a blob store, and Nomad's containers.

It stands by until it has the lease, and then leads until it loses it. What it loses the lease by makes it end, with
an exit code of its own: started again, it stands by. Told to end, it hands over at once; containers run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from nomadfn_agent import wire

from nomadfn import ports
from nomadfn.adapters import consul_discovery
from nomadfn.adapters.cluster_secrets import ClusterSecrets
from nomadfn.adapters.consul_blobs import ConsulBlobs
from nomadfn.adapters.consul_journal import ConsulJournal
from nomadfn.adapters.consul_journal_tail import ConsulJournalTail
from nomadfn.adapters.consul_lease import ConsulLease
from nomadfn.adapters.consul_registry import ConsulRegistry
from nomadfn.adapters.consul_store import ConsulSettings, ConsulStore, Shard
from nomadfn.adapters.directory_blobs import DirectoryBlobs
from nomadfn.adapters.fsspec_blobs import FsspecBlobs, shown
from nomadfn.adapters.jobspec import JobSettings
from nomadfn.adapters.nomad_agents import door, fetch_keys
from nomadfn.adapters.nomad_api import NomadAddress, NomadApi
from nomadfn.adapters.nomad_cluster import NomadCluster
from nomadfn.control import api
from nomadfn.control.acknowledging import acknowledge_outputs
from nomadfn.control.address import Address
from nomadfn.control.connections import listen
from nomadfn.control.containers import needs_for
from nomadfn.control.durable import Pace
from nomadfn.control.following import Following, replay
from nomadfn.control.identities import WorkloadIdentities
from nomadfn.control.jobs import Jobs
from nomadfn.control.join_tokens import JoinTokens
from nomadfn.control.leadership import STAND_BY, await_lease, in_thread
from nomadfn.control.overrides import PREFIX
from nomadfn.control.sealing import Seal
from nomadfn.control.service import Service
from nomadfn.control.serving import SteppedDownError, StorageError, bind, end, taken, url
from nomadfn.control.settings import Settings, load_settings
from nomadfn.control.standby import Front
from nomadfn.control.tokens import Identity, Tokens
from nomadfn.control.web_front import WebFront
from nomadfn.core.core import Core
from nomadfn.core.limits import Limits
from nomadfn.exception import ConflictError, InvalidError, ServiceError
from nomadfn.profiles import Profile

IDENTITIES_SINCE = (1, 7, 0)
"""The first Nomad that signs workload identities for others than Vault and Consul."""
KNOWN_URLS = 8
"""Addresses of control services that agents are told at most."""
DELIVERIES_PER_EPOCH = 1 << 40
PACE = Pace(compact_from_segments=1000)
"""Of a journal whose bodies lie in a blob store: Consul holds up to 800 bytes for each segment."""
SPAWN_BYTES = 48 * 1024 * 1024
"""`limits.spawn_bytes` where there is no blob store."""
ROOM = (4, 3)
"""Such a journal may hold so much of that: what is of no more use has its place, too, until a compaction. At the
default that is 64 MiB."""
SEGMENT_BYTES = 1024 * 1024
RETENTION_S = 3600.0
"""`limits.retention_s` where there is no blob store."""

BLOB_KINDS = ("payloads", "journal")

Ended = asyncio.Future[Exception | None]


async def serve(profile: Profile, settings: Settings, tell: Callable[[dict[str, Any]], None]) -> int:
    """Stand by, lead, and end. Returns the exit code, or raises what it ended by."""
    if not settings.token:
        raise InvalidError(f"a control service of {profile} needs the token of its owner: set NOMADFN_TOKEN")
    ended: Ended = asyncio.get_running_loop().create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end, ended, None)
    http = bind(settings.host, settings.port, "port")
    http_url = url("http", settings.host, http.getsockname()[1])
    tokens = Tokens(settings.token, derived=True, metrics=settings.metrics_token, web=settings.web_token)
    web = WebFront.bound(settings, settings.web_port)
    front = Front(tokens)
    server = await api.serve_api(front, http)
    await web.start()
    member = _Member(profile, settings, tokens, http_url, front, web, ended)
    try:
        await member.open_blobs()
        await member.register()
        tell({"http_url": http_url, "target": str(profile)})
        fault = await member.serve()
    finally:
        await web.close()
        await server.close()
        await member.close()
    if fault is not None:
        raise fault
    return 0


class _Member:
    """One instance among the control services of a cluster."""

    def __init__(
        self,
        profile: Profile,
        settings: Settings,
        tokens: Tokens,
        http_url: str,
        front: Front,
        web: WebFront,
        ended: Ended,
    ) -> None:
        self._profile = profile
        self._settings = settings
        self._limits, self._pace, self._max_bytes = journal_bounds(settings.limits, bool(profile.blobs))
        self._tokens = tokens
        self._http_url = http_url
        self._front = front
        self._web = web
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._store = ConsulStore(consul_settings(profile))
        self._shard = Shard(profile.cluster, profile.shard)
        self._lease = ConsulLease(self._store, self._shard, on_lost=self._on_lost)
        self._entry = ""
        self._blobs: tuple[ports.Blobs, ports.Blobs] | None = None
        """For payloads and code, and for the journal; None where there is no blob store."""
        self._following: Following
        """It starts when there is somebody else who leads."""

    def _log(self, text: str) -> None:
        print(f"nomadfn control, {self._shard}: {text}", flush=True)

    def _on_lost(self, reason: str) -> None:
        """Called on a thread of the lease."""
        self._soon(end, self._ended, SteppedDownError(f"stepping down: {reason}"))

    def _soon(self, call: Callable[..., None], *args: Any) -> None:
        """From another thread: do it on the loop."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *args)

    def _on_fatal(self, error: Exception) -> None:
        if isinstance(error, ports.FencedError):
            error = SteppedDownError(f"stepping down: {error}")
        elif not isinstance(error, StorageError):
            error = StorageError(f"the control service cannot go on: {error}")
        end(self._ended, error)

    async def open_blobs(self) -> None:
        """Long before they are needed: a standby that takes over shall not wait for libraries and connections."""
        if self._profile.blobs:
            payloads, bodies = [await in_thread(partial(open_blobs, self._profile, kind)) for kind in BLOB_KINDS]
            self._blobs = payloads, bodies
        tail = ConsulJournalTail(self._store, self._shard, self._bodies)
        self._following = Following(tail, self._limits, self._log)
        self._front.segment = lambda: self._following.segment

    @property
    def _bodies(self) -> ports.Blobs | None:
        return None if self._blobs is None else self._blobs[1]

    async def register(self) -> None:
        """Announce this instance in Consul, unless Nomad does that."""
        if "NOMAD_ALLOC_ID" not in os.environ:
            call = partial(consul_discovery.register, self._store, self._shard, self._http_url, "")
            self._entry = await in_thread(call)

    async def close(self) -> None:
        if self._entry:
            try:
                await in_thread(self._store.deregister_service, self._entry)
            except ServiceError as error:
                self._log(f"its entry stays in Consul until its health check fails: {error}")
        self._store.close()

    async def serve(self) -> Exception | None:
        """Stand by and lead. Returns what it ended by, None when it was told to."""
        standing = asyncio.ensure_future(
            await_lease(self._lease, self._settings.token, self._http_url, self._on_leader, self._log)
        )
        await asyncio.wait((standing, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if self._ended.done():
            standing.cancel()
            await in_thread(self._following.stop)
            await in_thread(self._lease.release)
            return self._ended.result()
        try:
            self._front.know({})
            return await self._lead(standing.result())
        finally:
            await in_thread(self._lease.release)

    def _on_leader(self, leader: Any | None) -> None:
        known = self._front.leader
        self._front.know(
            {} if leader is None else {"http_url": leader.http_url, "data_url": leader.data_url, "epoch": leader.epoch}
        )
        if leader is not None:
            self._following.start()
        if leader is not None and self._front.leader != known:
            self._log(f"standing by at {self._http_url}; {leader.http_url or leader} leads, epoch {leader.epoch}")

    async def _lead(self, epoch: int) -> Exception | None:
        # Both at once: while nobody leads, everybody waits.
        (journal, core), reached = await asyncio.gather(in_thread(self._open_journal), self._open_cluster())
        cluster, nomad, job, identities = reached
        core.lead(
            epoch=epoch,
            capacity=cluster.capacity,
            capacity_reason=cluster.capacity_reason,
            first_delivery=epoch * DELIVERIES_PER_EPOCH + 1,
        )
        registry = ConsulRegistry(self._store, self._shard, self._lease.hold)
        service = self._build(core, cluster, registry, ClusterSecrets(nomad, self._store), journal)
        listener = await self._listen(service)
        service.agents.open(door(cluster), identities.verify)
        Jobs(nomad, job, cluster).add_to(service.operations)
        self._know_standbys(service)
        await service.start(lambda: cluster.rejoining)
        service.keep(acknowledge_outputs(service, self._lease.is_held))
        on_overrides = service.operations.overrides.take
        registry.watch(PREFIX, lambda entries: self._soon(on_overrides, entries), on_fault=self._log)
        app = api.create_api(service, service.desk, max_body_bytes=self._settings.max_body_bytes)
        service.web.adopt(self._settings, self._web)
        await service.web.open()
        self._front.lead(app, service.leader())
        announce = partial(self._lease.announce, http_url=self._http_url, data_url=service.address.data_url)
        await in_thread(announce)
        self._log(f"leads at {self._http_url}, epoch {epoch}")
        fault = await self._ended
        self._log("hands over; its containers run on" if fault is None else str(fault))
        listener.close()
        if fault is None:
            await service.web.leave()
        await service.leave(self._lease.release)
        await cluster.leave()
        await in_thread(registry.close)
        return fault

    def _know_standbys(self, service: Service) -> None:
        """Agents are told where the next leader may be."""
        urls = [self._http_url, *self._profile.control_urls]
        service.agents.look_at(urls)

        async def stand_by(body: dict[str, Any], identity: Identity, session: str) -> Any:
            identity.require_owner()
            url = str(body["http_url"])
            known = [self._http_url, url, *self._profile.control_urls, *urls[1:]]
            urls[:] = list(dict.fromkeys(known))[:KNOWN_URLS]
            service.agents.look_at(urls)
            self._log(f"{url} stands by; agents know it")
            return {}

        service.operations.add(STAND_BY, stand_by)

    async def _open_cluster(self) -> tuple[NomadCluster, NomadApi, JobSettings, JoinTokens | _Identities]:
        nomad, job, identities = await in_thread(self._reach_nomad)
        cluster = NomadCluster(nomad, job, identities.token if isinstance(identities, JoinTokens) else None)
        cluster.still_leads = self._lease.is_held
        await cluster.find()
        return cluster, nomad, job, identities

    def _reach_nomad(self) -> tuple[NomadApi, JobSettings, JoinTokens | _Identities]:
        """Nomad's API, what every job has, and who may join. Blocks."""
        address = nomad_address(self._profile, self._settings)
        nomad = NomadApi(address)
        job = job_settings(self._profile, self._settings, nomad, self._http_url)
        if job.workload_identity:
            return nomad, job, _Identities(address)
        return nomad, job, JoinTokens(self._settings.token)

    def _open_journal(self) -> tuple[ConsulJournal, Core]:
        """The journal, and a core with everything in it: what was read standing by, and the rest. Blocks."""
        began = time.monotonic()
        core, position = self._following.stop()
        try:
            journal = ConsulJournal(
                self._store,
                self._lease.hold,
                blobs=self._bodies,
                max_bytes=self._max_bytes,
                on_delay=self._on_delay,
            )
            since = None if position is None else journal.carry(position)
            if since is None:
                core = Core(self._limits)
            count = replay(core, journal.replay(since))
        except ports.FencedError as error:
            raise SteppedDownError(f"stepping down: {error}") from None
        except (ports.JournalError, OSError) as error:
            raise StorageError(str(error)) from None
        known = f"the journal up to segment {since.number:,}" if since is not None else "nothing"
        self._log(
            f"it knew {known}, and has read {count:,} segments in {time.monotonic() - began:.2f} s: "
            f"{len(core.state.calls):,} calls"
        )
        return journal, core

    def _build(
        self,
        core: Core,
        cluster: NomadCluster,
        registry: ConsulRegistry,
        secrets: ports.Secrets,
        journal: ConsulJournal,
    ) -> Service:
        """The service with everything that was accepted before."""
        payloads = ConsulBlobs(self._store, self._lease.hold) if self._blobs is None else self._blobs[0]
        address = Address(
            http_url=self._http_url,
            data_dir=f"Consul at {self._store.address}, {self._shard.prefix}"
            + (f", and {shown(self._profile.blobs)}" if self._profile.blobs else ""),
            target=str(self._profile),
        )
        seal = Seal(self._tokens.derive_key("values in the registry"))
        service = Service(
            core, cluster, registry, payloads, self._tokens, address, journal, self._on_fatal, secrets, seal, self._pace
        )
        address.started_at = service.now()
        service.operations.restore()
        core.end_replay(service.now())
        return service

    def _on_delay(self, why: str) -> None:
        self._log(f"spawns wait until they are durable: {why}" if why else "Consul answers again")

    async def _listen(self, service: Service) -> asyncio.Server:
        host, port = self._settings.host, self._settings.data_port
        try:
            listener = await listen(service, host, port)
        except OSError as error:
            raise ConflictError(taken("data_port", host, port, error)) from None
        service.address.data_url = url("ws", host, listener.sockets[0].getsockname()[1]) + "/v1/connect"
        return listener


class _Identities(WorkloadIdentities):
    """Agents that Nomad has signed for."""

    def __init__(self, address: NomadAddress) -> None:
        super().__init__(partial(fetch_keys, address), address.namespace)


def open_blobs(profile: Profile, kind: str) -> ports.Blobs:
    """The profile's blob store, opened and tried. Blocks; raises `InvalidError` or `ServiceError`."""
    where = f"{profile.blobs.rstrip('/')}/{profile.cluster}/{profile.shard}/{kind}"
    if not is_address(where):
        return DirectoryBlobs(os.path.expanduser(where.removeprefix("file://")))
    found = FsspecBlobs(where)
    found.check()
    return found


def is_address(blobs: str) -> bool:
    """Whether that is more than a folder."""
    return "://" in blobs and not blobs.startswith("file://")


def journal_bounds(limits: Limits, has_blobs: bool) -> tuple[Limits, Pace, int | None]:
    """The limits in force, the pace of the journal, and how much it may hold, by where its bodies lie.

    Without a blob store that is Consul itself, each of whose servers has all of it in memory; a value has to fit
    into a frame then.
    """
    if has_blobs:
        return limits, PACE, None
    spawn_bytes = limits.spawn_bytes or SPAWN_BYTES
    bounded = replace(
        limits,
        spawn_bytes=spawn_bytes,
        payload_bytes=min(limits.payload_bytes, wire.INLINE_PAYLOAD_BYTES),
        dict_bytes=min(limits.dict_bytes, spawn_bytes // 4),
        retention_s=min(limits.retention_s, RETENTION_S),
    )
    room_bytes = spawn_bytes * ROOM[0] // ROOM[1]
    return (
        bounded,
        Pace(segment_bytes=SEGMENT_BYTES, compact_from_bytes=spawn_bytes // 4, room_bytes=room_bytes),
        room_bytes,
    )


def consul_settings(profile: Profile) -> ConsulSettings:
    """Consul's address by the profile, the rest as the `consul` command reads it."""
    chosen = {"CONSUL_HTTP_ADDR": profile.consul} if profile.consul else {}
    return ConsulSettings.from_environment({**os.environ, **chosen})


def nomad_address(profile: Profile, settings: Settings) -> NomadAddress:
    """Nomad's address, namespace and region by the profile, the rest as the `nomad` command reads it."""
    chosen = {"NOMAD_ADDR": profile.nomad} if profile.nomad else {}
    address = NomadAddress.from_environ({**os.environ, **chosen})
    return replace(
        address,
        namespace=settings.job.get("namespace", address.namespace),
        region=settings.job.get("region", address.region),
    )


def job_settings(profile: Profile, settings: Settings, nomad: NomadApi, http_url: str = "") -> JobSettings:
    """What every function's job has. Asks Nomad for its version, unless the profile says how agents join; blocks."""
    chosen = dict(settings.job)
    chosen.setdefault("namespace", nomad.address.namespace)
    if nomad.address.region:
        chosen.setdefault("region", nomad.address.region)
    if "workload_identity" not in chosen:
        chosen["workload_identity"] = nomad.version() >= IDENTITIES_SINCE
    known = (http_url, *profile.control_urls) if http_url else profile.control_urls
    control_urls = tuple(dict.fromkeys(known))
    return JobSettings(cluster=profile.cluster, control_urls=control_urls, **chosen)


def render_alone(profile: Profile, spec: dict[str, Any]) -> dict[str, Any]:
    """The jobs of an app's functions as far as the profile tells, without a control service. Blocks."""
    settings = load_settings(profile=profile)
    nomad = NomadApi(nomad_address(profile, settings))
    try:
        jobs = Jobs(nomad, job_settings(profile, settings, nomad))
        app = msgspec.convert(spec, wire.AppSpec)
        return {one.name: jobs.render(needs_for(app.name, one)) for one in app.functions}
    finally:
        nomad.close()
