"""The warm parents of images: a supervisor has one for each environment that its containers run in.

The first container of an image has its environment made, in a process of its own whose log goes where the
container's output goes. Then that environment's Python is started as a supervisor beneath this one, which forks the
containers; what it says is passed on as it comes. Without containers it ends after IDLE_S.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from . import environments, lent_packages
from .channel import Channel, LengthFraming
from .output import Pipe, Tail
from .wire import (
    Ended,
    ImageSpec,
    Leads,
    Log,
    Preparing,
    Recall,
    Start,
    Stop,
    SupervisorFrame,
    decode_from_supervisor,
    encode,
    image_id,
)

KILLED = ": it was killed, most likely because it took more memory than memory= gives the function"
IDLE_S = 300.0
"""How long a warm parent without containers stays."""
FIRST_PAUSE_S = 10.0
LAST_PAUSE_S = 300.0
"""A build that has failed is not tried again before this, twice as long after each one."""
NOTICE = 0
LAST_LINES = 12
"""Of a build's log, which was shown while it ran, so many stand in the error."""
_START = (
    "import sys; own, libraries = sys.argv[1:3]; del sys.argv[1:3]; sys.path.insert(0, own); "
    "sys.path.append(libraries); import nomadfn_agent.__main__"
)

Fork = Callable[[Callable[[], int], tuple[int, int]], int]


@dataclass(eq=False)
class Image:
    """One environment: what waits for it, and its warm parent once it is there."""

    spec: ImageSpec
    id: str
    waiting: dict[str, Start] = field(default_factory=dict)
    builder: int = 0
    """Process id of the build."""
    dropped: bool = False
    """The build was ended, because nobody waits for it any more."""
    pipe: Pipe | None = None
    """What the build, or the warm parent, writes."""
    tail: Tail = field(default_factory=Tail)
    pid: int = 0
    """Process id of the warm parent."""
    channel: Channel = field(default_factory=Channel)
    containers: set[str] = field(default_factory=set)
    idle_since: float = 0.0
    serves: bool = False
    """Whether this warm parent has started a container."""
    failures: int = 0
    failed_until: float = 0.0
    failure: tuple[str, str] = ("", "")


class ImageParents:
    """Those of one supervisor, which lends its selector and its `fork`.

    `pass_on` tells the control service; `arguments` are for each warm parent.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        pass_on: Callable[[bytes], None],
        fork: Fork,
        arguments: Sequence[str],
    ) -> None:
        self._selector = selector
        self._pass_on = pass_on
        self._fork = fork
        self._arguments = arguments
        self._images: dict[str, Image] = {}
        self._of: dict[str, Image] = {}
        """The image of each container, also while it waits."""
        self._paused = False

    @property
    def containers(self) -> set[str]:
        return set(self._of)

    def start(self, frame: Start) -> None:
        """Start a container of an image, once its environment is there."""
        assert frame.image is not None
        name, id = frame.container, image_id(frame.image)
        if name in self._of:
            return
        image = self._images.setdefault(id, Image(frame.image, id))
        self._of[name] = image
        if image.channel.socket is not None:
            self._hand_over(image, frame)
            return
        if time.monotonic() < image.failed_until:
            self._end(name, *image.failure)
            return
        image.waiting[name] = frame
        if not (image.builder or image.pid):
            self._begin(image)
        if name in image.waiting:
            self._send(Preparing(name, f"its image {id} is being built"))

    def prepare(self, spec: ImageSpec) -> None:
        """Have the environment made and its warm parent started, for the first container to find both there."""
        id = image_id(spec)
        image = self._images.setdefault(id, Image(spec, id))
        if not (image.builder or image.pid or time.monotonic() < image.failed_until):
            self._begin(image)

    def stop(self, frame: Stop) -> bool:
        """Whether that is a container of an image; it is told to end."""
        image = self._of.get(frame.container)
        if image is None:
            return False
        if frame.container not in image.waiting:
            self._tell(image, frame)
            return True
        del image.waiting[frame.container]
        self._end(frame.container, "it was stopped while its image was built", "")
        if not image.waiting and image.builder:
            image.dropped = True
            _signal_group(image.builder, signal.SIGKILL)
        return True

    def recall(self, frame: Recall) -> bool:
        image = self._of.get(frame.container)
        if image is not None and frame.container not in image.waiting:
            self._tell(image, frame)
        return image is not None

    def tell_all(self, frame: Leads) -> None:
        for image in self._images.values():
            self._tell(image, frame)

    def _begin(self, image: Image) -> None:
        """Use the environment that is there, or have it made."""
        try:
            found = environments.use(image.id)
            if found is None:
                self._build(image)
            else:
                self._launch(image, *found)
        except (environments.BuildError, OSError) as error:
            self._fail(image, f"its image {image.id} cannot be used here: {error}")

    def _build(self, image: Image) -> None:
        read, write = os.pipe()
        image.tail = Tail()
        try:
            image.builder = self._fork(partial(environments.build, image.spec), (write, write))
        except OSError:
            os.close(read)
            raise
        finally:
            os.close(write)
        self._listen(image, read)

    def _listen(self, image: Image, handle: int) -> None:
        self._close_pipe(image)
        image.pipe = Pipe(handle, NOTICE)
        self._selector.register(handle, selectors.EVENT_READ, lambda _: self._on_output(image))

    def _on_output(self, image: Image) -> bool:
        """Pass on what the build says; what a warm parent says is for who looks after this machine."""
        assert image.pipe is not None
        text, more = image.pipe.read()
        if not image.pipe.open:
            self._selector.unregister(image.pipe.handle)
        image.tail.add(text)
        if text and image.pid:
            sys.stderr.write(text)
            sys.stderr.flush()
        elif text:
            self._send(Log(next(iter(image.waiting), image.id), NOTICE, text))
        return more

    def _close_pipe(self, image: Image) -> None:
        if image.pipe is not None and image.pipe.open:
            self._selector.unregister(image.pipe.handle)
            image.pipe.close()
        image.pipe = None

    def on_exit(self, pid: int, exit_code: int) -> None:
        """A process has ended that is none of the supervisor's containers."""
        for image in self._images.values():
            if pid == image.builder:
                while image.pipe is not None and image.pipe.open and self._on_output(image):
                    pass
                self._close_pipe(image)
                image.builder = 0
                self._on_built(image, exit_code)
                return
            if pid == image.pid:
                self._drain(image)
                self._on_parent_gone(image, exit_code)
                return

    def _on_built(self, image: Image, exit_code: int) -> None:
        dropped, image.dropped = image.dropped, False
        if exit_code != 0 and not dropped:
            why = KILLED if exit_code == -signal.SIGKILL else ""
            self._fail(image, f"its image {image.id} could not be built{why}")
        if image.waiting or exit_code == 0:
            self._begin(image)  # Should somebody have removed it since, it is made again.
        self._forget_old()

    def _launch(self, image: Image, path: str, lock: int) -> None:
        """Start the warm parent. The lock that keeps the environment there goes along, and ends with it."""
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        try:
            with theirs:
                image.pid = _spawn(path, self._arguments, theirs.fileno(), lock, write)
        except BaseException:
            ours.close()
            os.close(read)
            raise
        finally:
            os.close(write)
            os.close(lock)
        image.tail, image.serves, image.idle_since = Tail(), False, time.monotonic()
        self._listen(image, read)
        image.channel.open(ours, LengthFraming())
        self._attend(image)
        waiting, image.waiting = image.waiting, {}
        for frame in waiting.values():
            self._hand_over(image, frame)

    def _hand_over(self, image: Image, frame: Start) -> None:
        image.containers.add(frame.container)
        self._tell(image, Start(frame.container, frame.env))

    def _tell(self, image: Image, frame: Start | Stop | Recall | Leads) -> None:
        if image.channel.socket is not None:
            image.channel.put(encode(frame))
            self._write(image)

    def _write(self, image: Image) -> None:
        if image.channel.socket is not None:
            try:
                image.channel.write()
            except OSError:
                return  # Its end is on its way.
            self._attend(image)

    def _attend(self, image: Image) -> None:
        """Have the selector tell what is wanted of the warm parent's socket now."""
        channel = image.channel
        if channel.socket is None:
            return
        wanted = (0 if self._paused else selectors.EVENT_READ) | (selectors.EVENT_WRITE if channel.wants_write else 0)
        known = channel.socket in self._selector.get_map()
        if not wanted:
            if known:
                self._selector.unregister(channel.socket)
        elif known:
            self._selector.modify(channel.socket, wanted, partial(self._on_events, image))
        else:
            self._selector.register(channel.socket, wanted, partial(self._on_events, image))

    def _on_events(self, image: Image, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write(image)
        if events & selectors.EVENT_READ:
            self._read(image)

    def _read(self, image: Image) -> bool:
        """Pass on what the warm parent says; False once there is nothing more."""
        if image.channel.socket is None:
            return False
        try:
            messages = image.channel.read()
        except OSError:
            self._hang_up(image)  # How it ended is told once the system says so.
            return False
        for message in messages:
            frame = decode_from_supervisor(message)
            if isinstance(frame, Ended):
                self._of.pop(frame.container, None)
                image.containers.discard(frame.container)
                if not image.containers:
                    image.idle_since = time.monotonic()
            else:
                image.serves, image.failures = True, 0
            self._pass_on(message)
        return bool(messages)

    def _drain(self, image: Image) -> None:
        while self._read(image):
            pass
        while image.pipe is not None and image.pipe.open and self._on_output(image):
            pass

    def _hang_up(self, image: Image) -> None:
        sock = image.channel.socket
        if sock is not None:
            if sock in self._selector.get_map():
                self._selector.unregister(sock)
            image.channel.close()

    def _on_parent_gone(self, image: Image, exit_code: int) -> None:
        self._hang_up(image)
        self._close_pipe(image)
        image.pid, image.channel = 0, Channel()
        lost, image.containers = image.containers, set()
        if lost:
            how = f"exit code {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"
            what = f"the process that containers of its image {image.id} are forked from ended ({how})"
            if not image.serves:
                self._note_failure(image, what)
            for name in sorted(lost):
                self._end(name, what, image.tail.lines())
        if image.waiting:
            self._begin(image)
        self._forget_old()

    def _forget_old(self) -> None:
        """Images that nobody has and whose last build has not just failed."""
        now = time.monotonic()
        for id, one in list(self._images.items()):
            if not (one.pid or one.builder or one.waiting or one.containers or one.failed_until > now):
                del self._images[id]

    def _fail(self, image: Image, what: str) -> None:
        self._note_failure(image, what)
        waiting, image.waiting = image.waiting, {}
        for name in waiting:
            self._end(name, *image.failure)

    def _note_failure(self, image: Image, what: str) -> None:
        pause_s = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0**image.failures)
        image.failures += 1
        image.failed_until = time.monotonic() + pause_s
        image.failure = what, "\n".join(image.tail.lines().splitlines()[-LAST_LINES:])

    def _end(self, name: str, what: str, tail: str) -> None:
        self._of.pop(name, None)
        self._send(Ended(name, 1, tail, what))

    def pause(self, paused: bool) -> None:
        """Whether to read nothing from warm parents: the control service is behind."""
        self._paused = paused
        for image in self._images.values():
            self._attend(image)

    def next_due_s(self) -> float | None:
        """How long until a warm parent has been idle for too long."""
        idle = [one.idle_since for one in self._images.values() if one.pid and not one.containers and not one.waiting]
        return max(0.0, min(idle) + IDLE_S - time.monotonic()) if idle else None

    def on_due(self) -> None:
        now = time.monotonic()
        for image in self._images.values():
            if image.pid and not (image.containers or image.waiting) and image.idle_since + IDLE_S <= now:
                self._hang_up(image)  # It reads the end, and ends.

    def _send(self, frame: SupervisorFrame) -> None:
        self._pass_on(encode(frame))


def _spawn(path: str, arguments: Sequence[str], control: int, lock: int, output: int) -> int:
    """The process id of a new warm parent with the environment's Python."""
    python = environments.python_of(path)
    own, libraries = lent_packages.import_folders(path)
    environ: dict[str, str] = {name: value for name, value in os.environ.items() if name not in environments.HIDDEN}
    environ["VIRTUAL_ENV"] = path
    environ["PATH"] = os.pathsep.join((os.path.join(path, "bin"), os.environ.get("PATH", os.defpath)))
    command = [python, "-P", "-c", _START, own, libraries, "--supervisor-fd", str(control)]
    process = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environ,
        pass_fds=(control, lock),
        process_group=0,
    )
    process.returncode = 0  # The supervisor learns how it ends.
    return process.pid


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
