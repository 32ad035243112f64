"""The warm parent: it forks containers, passes on what they write, and says how they ended.

One thread, no user code, everything imported that a runner needs: a container is one fork away. It speaks
with the control service over one channel. On one machine that is an inherited socket, and it is the warm
parent's life: at its end all containers are killed; an agent on a cluster (`join`) opens its own, again and
again. While more than HIGH_BYTES wait to be said the containers' pipes are not read, so that a flood of output
stops the one who writes it and costs no memory. What the control service has to say is always read, so the two
cannot wait for each other.
"""

from __future__ import annotations

import gc
import importlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from . import runner
from .channel import Channel, Framing, LengthFraming
from .child import adopt_orphans, run_container
from .claims import Claims
from .output import Pipe, Tail
from .processes import children, container_of, kill
from .summons import Summons
from .wire import (
    Ended,
    ImageSpec,
    Leads,
    Leaving,
    Log,
    Prepare,
    Recall,
    Start,
    Started,
    Stop,
    SupervisorFrame,
    ToSupervisorFrame,
    Withdrawn,
    decode_to_supervisor,
    encode,
    needs_environment,
)
from .wire.heap import keep_freed

if TYPE_CHECKING:
    from .image_parents import ImageParents

HIGH_BYTES = 1024 * 1024
LOW_BYTES = 256 * 1024
LAST_READS = 16
"""Reads of a pipe whose container has ended. What the container wrote is in the pipe by then; more than that
comes only from a process that escaped and still writes."""
FINISH_S = 2.0
"""The longest that the end of the supervisor waits for killed containers and for the control service to read."""
WARM_MODULES = (
    "encodings.cp437",
    "websockets.client",
    "websockets.exceptions",
    "websockets.frames",
    "websockets.uri",
)
LATER_MODULES = ("asyncio", "cloudpickle", f"{__package__}.units")
"""What only some functions need: imported once nothing has happened for IDLE_S, so that no start waits for it."""
IDLE_S = 1.0
HELD_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


class Container:
    """One container that runs: its process, what it writes, and when it is to be killed."""

    def __init__(self, name: str, pid: int, pipes: list[Pipe], claims: Claims, summons: Summons | None) -> None:
        self.name = name
        self.pid = pid
        self.pipes = pipes
        self.claims = claims
        self.summons = summons
        self.tail = Tail()
        self.kill_at: float | None = None

    def signal_all(self, number: int) -> None:
        """Signal the container's whole process group."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


class Supervisor:
    """Serves a control service until it is told to end. Once a connection is lost, `_on_lost` says what follows."""

    outlives_leaders = False
    """Its containers go on with the next control service, to which it has to call them."""

    def __init__(self, preload: Sequence[str] = ()) -> None:
        self._preload = preload
        """What a warm parent imports, for those of images."""
        self._images: ImageParents | None = None
        """From the first container on that has an image with an environment of its own."""
        self._channel = Channel()
        self._paused = False
        self._ending = False
        self._containers: dict[int, Container] = {}
        self._pids: dict[str, int] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        for handle in (self._wake_read, self._wake_write):
            os.set_blocking(handle, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._on_wake)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in HELD_SIGNALS:
            signal.signal(number, self._on_end_signal)

    def connect(self, control: socket.socket, framing: Framing) -> None:
        """Speak over this socket from now on."""
        self._channel.open(control, framing)
        self._selector.register(control, selectors.EVENT_READ, self._on_control)
        self._write()

    def serve(self) -> None:
        """Run until something says that it is over; nothing of ours is left then."""
        later = list(LATER_MODULES)
        while not self._ending:
            due_s = self._next_due_s()
            ready = self._selector.select(min(IDLE_S, due_s or IDLE_S) if later else due_s)
            if later and not ready and due_s is None:
                importlib.import_module(later.pop(0))
                freeze()
            for key, events in ready:
                if self._selector.get_map().get(key.fd) is key:  # What came before it has not closed it.
                    key.data(events)
            self._on_due()
        self._finish()

    def _on_control(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write()
        if events & selectors.EVENT_READ and self._channel.socket is not None:
            try:
                messages = self._channel.read()
            except OSError as error:
                self._on_lost(error)
                return
            for message in messages:
                self._take(decode_to_supervisor(message))
            if self._channel.socket is not None:
                self._write()  # An answer to a ping may be owed.

    def _take(self, frame: ToSupervisorFrame) -> None:
        match frame:
            case Start(container, env):
                if frame.image is None or not self._start_in_image(frame):
                    self._start(container, env)
            case Stop(container, grace_s):
                if self._images is None or not self._images.stop(frame):
                    self._stop(container, grace_s)
            case Recall(container, up_to):
                if self._images is None or not self._images.recall(frame):
                    self._recall(container, up_to)
            case Prepare(image):
                self._prepare(image)
            case Leads(data_url):
                self._summon(data_url)

    def _summon(self, data_url: str) -> None:
        """Another control service leads: the runners are told, and those of images by their warm parents."""
        for container in self._containers.values():
            if container.summons is not None:
                container.summons.call(data_url)
        if self._images is not None:
            self._images.tell_all(Leads(data_url))

    def _start_in_image(self, frame: Start) -> bool:
        """Whether the container's image has an environment of its own; it starts in that."""
        assert frame.image is not None
        if (images := self._images_for(frame.image)) is not None:
            images.start(frame)
        return images is not None

    def _prepare(self, image: ImageSpec) -> None:
        if (images := self._images_for(image)) is not None:
            images.prepare(image)

    def _images_for(self, image: ImageSpec) -> ImageParents | None:
        """Who looks after the warm parent of this image; None where it needs none of its own."""
        if not needs_environment(image):
            return None
        if self._images is None:
            from .image_parents import ImageParents

            fork = self._fork
            more = [f"--preload={name}" for name in self._preload]
            more += ["--outlives-leaders"] if self.outlives_leaders else []
            self._images = ImageParents(self._selector, self._pass_on, lambda main, to: fork(main, {}, to), more)
        return self._images

    @property
    def _names(self) -> set[str]:
        """Every container that is there, or is about to be."""
        return set(self._pids) | (self._images.containers if self._images is not None else set())

    def _on_lost(self, error: OSError) -> None:
        """Nothing more comes from the control service; it may still listen."""
        self._ending = True

    def _disconnect(self) -> None:
        if self._channel.socket is not None:
            self._selector.unregister(self._channel.socket)
            self._channel.close()

    def _start(self, name: str, env: dict[str, str]) -> None:
        if name in self._pids:
            return
        claims = Claims()
        handles: list[int] = []
        summons: Summons | None = None
        try:
            if self.outlives_leaders:
                summons = Summons()
            handles += os.pipe()
            handles += os.pipe()
            out_read, out_write, err_read, err_write = handles
            inbox = None if summons is None else summons.inbox
            kept = frozenset(() if inbox is None else (inbox,))
            pid = self._fork(partial(runner.main, claims, inbox), env, (out_write, err_write), kept)
        except OSError as error:
            for handle in handles:
                os.close(handle)
            if summons is not None:
                summons.forked()
                summons.close()
            self._send(Ended(name, 1, f"nomadfn: the container could not be started: {error}"))
            return
        os.close(out_write)
        os.close(err_write)
        if summons is not None:
            summons.forked()
        container = Container(name, pid, [Pipe(out_read, 1), Pipe(err_read, 2)], claims, summons)
        self._containers[pid] = container
        self._pids[name] = pid
        self._send(Started(name, pid))
        if not self._paused:
            self._listen(container)

    def _fork(
        self,
        main: Callable[[], int],
        env: dict[str, str],
        streams: tuple[int, int],
        kept: frozenset[int] = frozenset(),
    ) -> int:
        """A child, in a process group of its own, that runs `main` and has nothing else of this. Raises OSError.

        `streams` are its stdout and stderr, `kept` the files that it has beside them.
        """
        parent = os.getpid()
        # A signal that finds the child before it is on its own feet waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                self._selector.close()
                self._channel.close()
                for other in self._containers.values():
                    other.claims.close()
                run_container(main, env, streams, parent, kept)
            os.setpgid(pid, pid)  # The child does so too: whoever comes first, a signal to the group finds it.
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)

    def _stop(self, name: str, grace_s: float) -> None:
        container = self._containers.get(self._pids.get(name, 0))
        if container is None:
            return
        container.signal_all(signal.SIGTERM if grace_s > 0 else signal.SIGKILL)
        if grace_s > 0:
            kill_at = time.monotonic() + grace_s
            container.kill_at = kill_at if container.kill_at is None else min(kill_at, container.kill_at)

    def _recall(self, name: str, up_to: int) -> None:
        """Withdraw what the runner has not claimed. In the midst of a claim it is left to the next recall."""
        container = self._containers.get(self._pids.get(name, 0))
        if container is not None and (found := container.claims.withdraw(up_to)) is not None:
            self._send(Withdrawn(name, *found))

    def _next_due_s(self) -> float | None:
        """How long the loop may wait for events."""
        times = [one.kill_at for one in self._containers.values() if one.kill_at is not None]
        due_s = max(0.0, min(times) - time.monotonic()) if times else None
        idle_s = None if self._images is None else self._images.next_due_s()
        return due_s if idle_s is None else idle_s if due_s is None else min(due_s, idle_s)

    def _on_due(self) -> None:
        """After each turn of the loop: what has its time."""
        now = time.monotonic()
        for container in self._containers.values():
            if container.kill_at is not None and container.kill_at <= now:
                container.kill_at = None
                container.signal_all(signal.SIGKILL)
        if self._images is not None:
            self._images.on_due()

    def _on_wake(self, events: int) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        self._reap()

    def _on_end_signal(self, *_: Any) -> None:
        self._ending = True

    def _reap(self) -> None:
        """Take note of every process that has ended: containers, and orphans that came to us."""
        ended = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            container = self._containers.pop(pid, None)
            if container is not None:
                del self._pids[container.name]
                self._bury(container, os.waitstatus_to_exitcode(status))
            elif self._images is not None:
                self._images.on_exit(pid, os.waitstatus_to_exitcode(status))
            ended = True
        if ended:
            self._kill_orphans()

    def _bury(self, container: Container, exit_code: int) -> None:
        """End what the container has left behind, pass on its last words, and say that it is gone."""
        container.signal_all(signal.SIGKILL)
        for pipe in container.pipes:
            self._forget(pipe)
            for _ in range(LAST_READS):
                text, more = pipe.read()
                self._log(container, pipe, text)
                if not more:
                    break
            self._log(container, pipe, pipe.close())
        self._send(Ended(container.name, exit_code, container.tail.lines()))
        container.claims.close()
        if container.summons is not None:
            container.summons.close()

    def _kill_orphans(self) -> None:
        """Kill adopted processes whose container is gone; a daemon of a living container stays."""
        names = self._names
        for pid in children():
            if pid in self._containers:
                continue
            name = container_of(pid)
            if name and name not in names:
                kill(pid)

    def _listen(self, container: Container) -> None:
        for pipe in container.pipes:
            if pipe.open:
                self._selector.register(pipe.handle, selectors.EVENT_READ, self._reader(container, pipe))

    def _reader(self, container: Container, pipe: Pipe) -> Callable[[int], None]:
        def on_output(events: int) -> None:
            text, _ = pipe.read()
            if not pipe.open:
                self._selector.unregister(pipe.handle)
            self._log(container, pipe, text)

        return on_output

    def _forget(self, pipe: Pipe) -> None:
        if pipe.open and pipe.handle in self._selector.get_map():
            self._selector.unregister(pipe.handle)

    def _log(self, container: Container, pipe: Pipe, text: str) -> None:
        if text:
            container.tail.add(text)
            self._send(Log(container.name, pipe.stream, text))

    def _send(self, frame: SupervisorFrame | Leaving) -> None:
        self._pass_on(encode(frame))

    def _pass_on(self, message: bytes) -> None:
        self._channel.put(message)
        if len(self._channel.waiting) == 1:
            self._write()
        else:
            self._pause_or_resume()

    def _write(self) -> None:
        """Send what the socket takes, and pause or go on with the pipes by what is left."""
        channel = self._channel
        if channel.socket is not None:
            try:
                channel.write()
            except OSError as error:
                self._disconnect()
                self._on_lost(error)
            else:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.wants_write else 0)
                if self._selector.get_key(channel.socket).events != wanted:
                    self._selector.modify(channel.socket, wanted, self._on_control)
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        if not self._paused and self._channel.waiting_bytes > HIGH_BYTES:
            self._paused = True
            for container in self._containers.values():
                for pipe in container.pipes:
                    self._forget(pipe)
            if self._images is not None:
                self._images.pause(True)
        elif self._paused and self._channel.waiting_bytes < LOW_BYTES:
            self._paused = False
            for container in self._containers.values():
                self._listen(container)
            if self._images is not None:
                self._images.pause(False)

    def _finish(self) -> None:
        """Kill everything, wait until it is gone, and hand over what there still is to say."""
        deadline = time.monotonic() + FINISH_S
        while time.monotonic() < deadline:
            for container in list(self._containers.values()):
                container.signal_all(signal.SIGKILL)
            for pid in children():
                kill(pid)
            self._reap()
            self._write()
            told = self._channel.socket is None or not self._channel.waiting
            if told and not self._containers and not children():
                break
            time.sleep(0.002)


def main(handle: int, preload: Sequence[str], outlives_leaders: bool = False) -> int:
    """Serve the control service behind the inherited socket `handle`. Returns the exit code.

    The modules of `preload` are imported first: what the control service knows that user code will want.
    """
    control = socket.socket(fileno=handle)
    control.set_inheritable(False)
    adopt_orphans()
    warm_up(preload)
    supervisor = Supervisor(preload)
    supervisor.outlives_leaders = outlives_leaders
    supervisor.connect(control, LengthFraming())
    freeze()
    supervisor.serve()
    return 0


def freeze() -> None:
    """What is there now is shared with every container and is no garbage.

    The little of it that is garbage stays: to look for it would take longer than any import, while an input waits.
    """
    gc.disable()
    gc.freeze()


def warm_up(preload: Sequence[str]) -> None:
    """Have everything imported, and done once, that a runner would otherwise do after its fork."""
    for name in (*WARM_MODULES, *preload):
        importlib.import_module(name)
    keep_freed()
    "warm".encode("idna")  # As a host name is, on its way to a connection.
