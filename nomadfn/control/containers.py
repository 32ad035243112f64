"""The containers as the control service sees them: the cluster's events, the runners' frames, start and end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from nomadfn_agent import wire
from nomadfn_agent.wire import payload

from nomadfn import ports
from nomadfn.core import effects, environment
from nomadfn.core.model import App, Container, Function
from nomadfn.exception import Error, ServiceError

if TYPE_CHECKING:
    from nomadfn.control.connections import Connection
    from nomadfn.control.service import Service

DRAIN_PATIENCE_S = 1.0
"""How long a container that is to end may take to do so by itself, before it is told by a signal."""
ADOPT_S = 10.0
"""How long the runner of a container that an earlier leader has left may take to come."""
LAST_FRAMES_S = 1.0
"""How long the last frames of a container that has ended are waited for."""


class Runner(msgspec.Struct):
    """What the service knows of a container beside the core."""

    container: Container
    connection: Connection | None = None
    ended: ports.ContainerEnded | None = None
    bound: bool = False
    """It has been told which function it is."""
    label: tuple[str, str, int] = ("", "", -1)
    """App, function and index, for its log lines."""
    timers: list[asyncio.TimerHandle] = msgspec.field(default_factory=list)


class Containers:
    """Every container that the core has asked for, until the cluster says that it is gone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._core = service.core
        self._runners: dict[str, Runner] = {}
        self._placed: dict[str, str] = {}
        """App id → the name that the cluster knows it by."""

    def start(self, container: Container) -> None:
        function = container.function
        app = self._core.state.apps.get(function.app)
        token = self._admit(container)
        env = {
            "NOMADFN_DATA_URL": self._service.address.data_url,
            "NOMADFN_DATA_SOCKET": self._service.address.data_socket,
            "NOMADFN_HTTP_URL": self._service.address.http_url,
            "NOMADFN_TOKEN": token,
            "NOMADFN_CONTAINER_ID": container.id,
            "NOMADFN_APP_ID": function.app,
            "NOMADFN_APP_NAME": app.name if app is not None else "",
            "NOMADFN_MAX_PAYLOAD_BYTES": str(self._core.state.limits.payload_bytes),
        }
        if function.decisions:
            self._service.cluster.note(function.id, function.decisions[-1][2])
        needs = None if app is None else needs_of(app, function)
        if needs is not None:
            self._placed[function.app] = needs.app
        placement = ports.Placement(container.id, function.id, container.index, env, needs, function.spec.image)
        self._service.cluster.start(placement)

    def _admit(self, container: Container) -> str:
        """Expect the container's runner; returns its token."""
        function = container.function
        self._runners[container.id] = Runner(container, label=(function.app, function.spec.name, container.index))
        return self._service.tokens.issue(container.id, function.app)

    def forget_app(self, app: str) -> None:
        if (placed := self._placed.pop(app, None)) is not None:
            self._service.cluster.retire(placed)

    def forget_function(self, app: str, name: str) -> None:
        if (placed := self._placed.get(app)) is not None:
            self._service.cluster.retire(placed, name)

    @property
    def awaited(self) -> int:
        """Containers of an earlier leader whose runner is not here yet."""
        return sum(one.container.adopted for one in self._runners.values())

    def unacknowledged(self) -> list[Connection]:
        """Runners whose outputs have come since they were told last what they need not keep."""
        links = [one.connection for one in self._runners.values() if one.connection is not None]
        return [one for one in links if one.outputs > one.acknowledged]

    def leave(self, why: str) -> None:
        """Let all runners go; they look for the next leader."""
        for runner in list(self._runners.values()):
            for timer in runner.timers:
                timer.cancel()
            if runner.connection is not None:
                runner.connection.close(why)

    def welcome(self, connection: Connection, again: bool) -> bool:
        runner = self._runners.get(connection.id)
        if runner is None or runner.connection is not None or connection.identity.container != connection.id:
            return False
        runner.connection = connection
        function = runner.container.function
        app = self._core.state.apps.get(function.app)
        if app is None:
            return False
        if again:
            self._bind(runner, connection, app, {})  # It has its environment.
        elif environment.named(function.spec) or function.spec.sealed:
            self._service.keep(self._bind_with_secrets(runner, connection, app))
        else:
            self._bind(runner, connection, app, environment.merge(function.spec, {}))
        return True

    async def _bind_with_secrets(self, runner: Runner, connection: Connection, app: App) -> None:
        """Read what the function names, and tell the container, or else whoever waits why it cannot start."""
        function = runner.container.function
        try:
            env, spec = {}, None
            while spec is not function.spec:  # Another version may be deployed meanwhile.
                spec = function.spec
                env = await self._service.secrets.environment(spec)
        except Error as error:
            self._core.container_start_failed(self._service.now(), runner.container.id, str(error))
            self._service.poke()
            return
        if not connection.closed:
            self._bind(runner, connection, app, env)

    def _bind(self, runner: Runner, connection: Connection, app: App, env: dict[str, str]) -> None:
        function = runner.container.function
        runner.container.revision = function.revision
        runner.bound = True
        connection.send(
            wire.Bind(
                function=function.id,
                spec=environment.without_values(function.spec),
                code=app.code,
                app=function.app,
                app_name=app.name,
                index=runner.container.index,
                blobs=self._service.blobs.folder,
                code_cache=self._service.address.code_cache,
                env=env,
                blobs_mark=self._service.blobs.mark,
                http_url=self._service.address.http_url,
            )
        )

    def on_frame(self, connection: Connection, frame: wire.RunnerFrame) -> None:
        now = self._service.now()
        match frame:
            case wire.Outputs():
                connection.outputs += 1
                self._core.outputs(
                    now,
                    connection.id,
                    frame.deliveries,
                    frame.statuses,
                    frame.payloads,
                    frame.run_ns,
                    frame.stuck_ns,
                )
            case wire.Ready():
                self._core.container_ready(now, connection.id, frame.slots)
            case wire.Part():
                self._core.parts(connection.id, frame.delivery, frame.number, frame.statuses, frame.payloads)
            case wire.Fed():
                self._core.fed(connection.id, frame.delivery, frame.number)
            case wire.Returned():
                self._core.returned(now, connection.id, frame.deliveries)
            case wire.Attach():
                self._on_attach(connection, frame)
            case wire.StartFailed():
                raised = payload.decode_raised(frame.payload)
                text, kept = raised.traceback or raised.text, frame.payload if frame.entering else b""
                self._core.container_start_failed(now, connection.id, text, kept)
            case wire.Hello():
                connection.close()
        self._service.poke()

    def _on_attach(self, connection: Connection, frame: wire.Attach) -> None:
        """It goes on with what it has. One with old code gets nothing more."""
        now = self._service.now()
        self._core.container_attached(now, connection.id, frame.slots, frame.deliveries, frame.calls, frame.indexes)
        container = self._core.container(connection.id)
        app = None if container is None else self._core.state.apps.get(container.app)
        if container is not None and (app is None or app.code.digest != frame.code):
            self._core.container_leaving(now, connection.id, "another revision was deployed")

    def send(self, container: str, frame: wire.ToRunnerFrame) -> None:
        runner = self._runners.get(container)
        if runner is not None and runner.connection is not None:
            runner.connection.send(frame)

    def stop(self, effect: effects.StopContainer) -> None:
        runner = self._runners.get(effect.container)
        if runner is None:
            return
        self._service.cluster.note(runner.container.function.id, effect.reason)
        if effect.grace_s == 0 or runner.connection is None or not runner.bound:
            self._service.cluster.stop(effect.container, effect.grace_s)
            return
        runner.connection.send(wire.Drain())
        rest_s = max(0.0, effect.grace_s - DRAIN_PATIENCE_S)
        stop = self._service.loop.call_later(DRAIN_PATIENCE_S, self._service.cluster.stop, effect.container, rest_s)
        runner.timers.append(stop)

    def on_cluster_event(self, event: ports.ClusterEvent) -> None:
        if self._service.closing:
            return  # that a container ends now is no loss
        match event:
            case ports.ContainerStarted():
                if (container := self._core.container(event.container)) is not None:
                    container.pid = event.pid
            case ports.EnvironmentOutput():
                self._on_environment_output(event)
            case ports.ContainerPreparing():
                self._core.container_preparing(event.container, event.what)
            case ports.ContainerOutput():
                self._on_output(event)
            case ports.ContainerEnded():
                self._on_ended(event)
            case ports.ContainerWithdrawn():
                self._on_withdrawn(event)
            case ports.ContainerLeaving():
                self._core.container_leaving(self._service.now(), event.container, event.what)
                self._service.poke()
            case ports.ContainerFound():
                self._on_found(event)
            case ports.PlacementBlocked():
                self._core.placement_blocked(event.function, event.why)
                self._service.poke()
            case ports.ClusterLost():
                self._service.on_fatal(ServiceError(f"containers cannot be run any more: {event.what}"))

    def _on_found(self, event: ports.ContainerFound) -> None:
        """An earlier leader has left it: it goes on where its function is still there, else it ends."""
        now = self._service.now()
        container = self._core.container_found(now, event.container, event.app, event.function, event.index)
        if container is None:
            self._service.cluster.stop(event.container, DRAIN_PATIENCE_S)
            return
        self._placed[container.app] = event.app
        self._admit(container)
        timer = self._service.loop.call_later(ADOPT_S, self._give_up, container)
        self._runners[container.id].timers.append(timer)
        self._service.poke()

    def recall(self, effect: effects.Recall) -> None:
        """Ask for what is not started. Where several inputs run at once, the runner itself knows which those are."""
        container = self._core.container(effect.container)
        if container is not None and container.counts_slots:
            self.send(effect.container, wire.Withdraw(effect.deliveries))
        elif effect.deliveries:
            self._service.cluster.recall(effect.container, max(effect.deliveries))

    def _on_withdrawn(self, event: ports.ContainerWithdrawn) -> None:
        now, container = self._service.now(), self._core.container(event.container)
        if container is None:
            return
        columns = zip(event.deliveries, event.statuses, event.payloads, strict=True)
        fresh = [one for one in columns if one[0] in container.held]
        if fresh:
            deliveries, statuses, payloads = map(list, zip(*fresh, strict=True))
            stuck_ns = int(1e9 * (now - container.progress))  # It was before this, and is as stuck as it was.
            self._core.outputs(now, container.id, deliveries, statuses, payloads, event.run_ns, max(0, stuck_ns))
        given_back = [one for one in container.held if event.after < one <= event.up_to]
        self._core.returned(now, container.id, given_back)
        self._service.poke()

    def _give_up(self, container: Container) -> None:
        if container.adopted:
            self._service.cluster.stop(container.id, 0.0)

    def _on_ended(self, event: ports.ContainerEnded) -> None:
        """Its last frames may still be on their way: the loss counts once its connection has ended, too."""
        runner = self._runners.get(event.container)
        if runner is None:
            return
        runner.ended = event
        if runner.connection is None or runner.connection.closed:
            self._lost(event.container)
        else:
            runner.timers.append(self._service.loop.call_later(LAST_FRAMES_S, self._lost, event.container))

    def on_disconnect(self, connection: Connection) -> None:
        runner = self._runners.get(connection.id)
        if runner is None or runner.connection is not connection:
            return
        if runner.ended is not None:
            self._lost(connection.id)
        else:
            # Its end is on its way, with how it came about. Should there be none, it is ended: it is of no use now.
            stop = self._service.cluster.stop
            runner.timers.append(self._service.loop.call_later(DRAIN_PATIENCE_S, stop, connection.id, DRAIN_PATIENCE_S))

    def _lost(self, id: str) -> None:
        runner = self._runners.pop(id, None)
        if runner is None or runner.ended is None:
            return
        for timer in runner.timers:
            timer.cancel()
        if runner.connection is not None:
            runner.connection.close()
        self._service.tokens.revoke(id)
        for session in [one.id for one in self._core.state.sessions.values() if one.parent == id]:
            self._core.end_session(self._service.now(), session)
        self._core.container_lost(self._service.now(), id, runner.ended.what, runner.ended.tail)
        self._service.poke()

    def _on_environment_output(self, event: ports.EnvironmentOutput) -> None:
        function = self._core.state.functions.get(event.function)
        if function is not None:
            self._service.watchers.publish(wire.Log("", 0, event.text, function.app, function.spec.name, -1))

    def _on_output(self, event: ports.ContainerOutput) -> None:
        runner = self._runners.get(event.container)
        if runner is not None:
            app, function, index = runner.label
            self._service.watchers.publish(wire.Log(event.container, event.stream, event.text, app, function, index))


def needs_of(app: App, function: Function) -> ports.Needs:
    return needs_for(app.name if app.deployed else app.id, function.spec)


def needs_for(app: str, spec: wire.FunctionSpec) -> ports.Needs:
    """What the cluster must know to place containers of a function: nothing that changes while its spec does not."""
    return ports.Needs(
        app=app,
        function=spec.name,
        cpu_cores=spec.cpu,
        memory_mib=spec.memory_mib,
        gpu=tuple(spec.gpu),
        image=spec.image.registry if spec.image is not None else "",
        max_containers=spec.autoscaler.max_containers,
    )
