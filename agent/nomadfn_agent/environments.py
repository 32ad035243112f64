"""The Python environments of images, as folders of this machine: each is made once, by whoever needs it first.

    <root>/im-1a2b…        a virtual environment; whole once the file READY is in it
    <root>/im-1a2b….lock   held alone by who makes or removes it, shared by who uses it

A lock ends with the process that holds it, however that went, so nothing is left behind but a folder without READY,
which the next one makes anew. `build` runs in a process of its own and writes its log to stdout.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata

from .wire import ImageSpec, ImageStep, image_id
from .wire.image import FILES
from .wire.places import environments_folder, find_uv

READY = "nomadfn-ready.json"
BUILD_S = 3600.0
"""The longest that a build may take, the wait for another one of the same image included."""
POLL_S = 0.1
KEPT = 20
"""Environments that stay when others were used later; NOMADFN_ENVIRONMENTS_KEPT changes it."""
CONSTRAINTS = {
    "a2wsgi": (1, 10),
    "cloudpickle": (3, 0),
    "cronsim": (2, 6),
    "h11": (0, 14),
    "msgspec": (0, 19),
    "websockets": (14, 0),
}
"""What the agent needs of the libraries that it shares with the image's own packages."""
COMMANDS = {"pip": "pip install", "uv": "uv pip install", "sync": "uv sync"}
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_LOOK = (
    "import json, sys; from importlib import metadata; d = {x.metadata['Name'].lower(): x.version for x in "
    "metadata.distributions(path=[p for p in sys.path if p.startswith(sys.prefix)]) if x.metadata['Name']}; "
    "print(json.dumps(['.'.join(map(str, sys.version_info[:2])), {k: d[k] for k in sys.argv[1:] if k in d}]))"
)


PIP_VARIABLES = (
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"),
    ("PIP_FIND_LINKS", "UV_FIND_LINKS", "UV_FIND_LINKS"),
    ("PIP_CERT", "SSL_CERT_FILE", "SSL_CERT_FILE"),
)
"""Of pip, of uv, and the name that older and newer versions of uv know."""
HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""They would put other packages before the image's own."""


class BuildError(Exception):
    """The environment cannot be made; the text says why, and its log stands before it."""


def root() -> str:
    """The folder of all environments, made where it is not there yet."""
    places = [environments_folder()]
    task = os.environ.get("NOMAD_TASK_DIR")
    if task and not os.environ.get("NOMADFN_ENVIRONMENTS"):
        places.append(os.path.join(task, "environments"))
    for place in places:
        try:
            os.makedirs(place, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
        except OSError:
            pass
    raise BuildError(
        f"the folder for environments, {places[0]}, cannot be written to; name another one in NOMADFN_ENVIRONMENTS"
    )


def python_of(path: str) -> str:
    return os.path.join(path, "bin", "python")


def use(id: str) -> tuple[str, int] | None:
    """The environment's folder and a lock that keeps it there, for as long as that is open; None if it is to be made.

    Raises `BuildError`.
    """
    path = os.path.join(root(), id)
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if _is_ready(path) and _is_same(lock, f"{path}.lock"):
            os.utime(lock)
            return path, lock
    except BlockingIOError:
        pass
    os.close(lock)
    return None


def build(image: ImageSpec) -> int:
    """Make the environment unless it is there; returns the exit code of this process."""
    until = time.monotonic() + BUILD_S
    id = image_id(image)
    try:
        path = os.path.join(root(), id)
        with _alone(path, id, until) as lock:
            if not _is_ready(path):
                _make(image, id, path, lock, until)
        clean(os.path.dirname(path), id)
    except (BuildError, OSError) as error:
        say(str(error))
        return 1
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def _make(image: ImageSpec, id: str, path: str, lock: int, until: float) -> None:
    """Raises `BuildError`."""
    began = time.monotonic()
    uv = find_uv()
    say(f"Building image {id} (Python {image.python or _own_minor()}, with {'uv' if uv else 'venv and pip'})")
    if not uv:
        say("uv is not on this machine, which is much faster: pip install uv, or 'nomadfn[images]'")
    shutil.rmtree(path, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path), prefix=".build-") as folder:
            run = _Run(folder, uv, path, lock, until)
            run.make_environment(image)
            for number, step in enumerate(image.steps):
                run.install(number, step)
            found = run.look(image)
            if found != _own_minor():
                run.install_libraries(libraries_of(found))
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    with open(os.path.join(path, READY + ".new"), "w") as file:
        json.dump({"id": id, "python": found}, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(file.name, os.path.join(path, READY))
    say(f"Built image {id} in {time.monotonic() - began:.1f} s")


class _Run:
    """The commands of one build, one after the other."""

    def __init__(self, folder: str, uv: str, path: str, lock: int, until: float) -> None:
        self._folder = folder
        self._uv = uv
        self._path = path
        self._lock = lock
        """Goes along to each command: one that outlives this process still holds it."""
        self._until = until
        self._environ = {
            name: value
            for name, value in os.environ.items()
            if name not in HIDDEN and not (name.startswith("NOMADFN_") and "TOKEN" in name)
        }

    def make_environment(self, image: ImageSpec) -> None:
        python = _interpreter(image, self._uv)
        site = ["--system-site-packages"] if image.registry else []
        if self._uv:
            command = [self._uv, "venv", "--quiet", "--no-project", *site, "--python", python]
        else:
            command = [python, "-m", "venv", *site]
        self._run("making the environment", [*command, self._path], {}, _no_python_help(image.python))

    def install(self, number: int, step: ImageStep) -> None:
        folder = os.path.join(self._folder, str(number))
        os.mkdir(folder)
        for name, content in step.files.items():
            with open(os.path.join(folder, name), "w") as file:
                file.write(content)
        arguments = [one.replace(FILES, folder) for one in step.arguments]
        what = _CREDENTIALS.sub("***", " ".join((COMMANDS[step.tool], *step.arguments)).replace(FILES + "/", ""))
        say(f"=> {what}")
        if step.tool == "sync":
            self._sync(what, folder, arguments, step.env)
        else:
            self._install(what, step.tool, arguments, step.env)

    def _sync(self, what: str, folder: str, arguments: list[str], env: Mapping[str, str]) -> None:
        if not self._uv:
            raise BuildError("uv_sync needs uv on this machine: pip install uv")
        command = [self._uv, "sync", "--project", folder, "--no-install-workspace", "--inexact"]
        self._run(what, [*command, *arguments], {"UV_PROJECT_ENVIRONMENT": self._path, **env})

    def _install(self, what: str, tool: str, arguments: list[str], env: Mapping[str, str]) -> None:
        needs = os.path.join(self._folder, "constraints.txt")
        with open(needs, "w") as file:
            file.writelines(f"{name}>={_least(name)}\n" for name in CONSTRAINTS)
        python = python_of(self._path)
        if self._uv:
            command = [self._uv, "pip", "install", "--python", python, "--constraint", needs]
            if tool == "pip" and "--extra-index-url" in arguments:
                command += ["--index-strategy", "unsafe-best-match"]  # As pip chooses among several.
        else:
            command = [python, "-m", "pip", "install", "--progress-bar=off", "--constraint", needs]
        self._run(what, [*command, *arguments], env)

    def look(self, image: ImageSpec) -> str:
        """That it is what was asked for; returns its minor version of Python."""
        command = [python_of(self._path), "-I", "-c", _LOOK, *CONSTRAINTS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60.0)
        if done.returncode != 0:
            raise BuildError(f"the environment's Python does not run: {done.stderr.strip()[-2000:]}")
        minor, versions = json.loads(done.stdout)
        wanted = _minor(image.python) or _own_minor()
        if minor != wanted:
            raise BuildError(f"the environment has Python {minor}, and the image asks for {wanted}")
        for name, version in versions.items():
            needed = CONSTRAINTS[name]
            if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < needed:
                raise BuildError(
                    f"the image has {name} {version}, and nomadfn, which runs in the same process, needs "
                    f"{name}>={_least(name)}: allow a newer one"
                )
        return str(minor)

    def install_libraries(self, target: str) -> None:
        """The agent's libraries for a Python that is not this one; whole or not at all."""
        if os.path.isdir(target):
            return
        if not self._uv:
            raise BuildError("an image with another Python than nomadfn's needs uv on this machine: pip install uv")
        folder = os.path.join(self._folder, "libraries")
        wanted = [f"{name}=={_version_of(name)}" for name in CONSTRAINTS]
        command = [self._uv, "pip", "install", "--quiet", "--python", python_of(self._path), "--target", folder]
        self._run("installing nomadfn's own libraries", [*command, *wanted], {})
        with contextlib.suppress(OSError):  # Somebody else has just made it.
            os.rename(folder, target)

    def _run(self, what: str, command: Sequence[str], env: Mapping[str, str], help: str = "") -> None:
        """Run it, with its output as it comes. Raises `BuildError`."""
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_as_uv_has_it({**self._environ, **env}),
                cwd=self._folder,
                pass_fds=(self._lock,),
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise BuildError(f"{what} could not be started: {error}") from None
        timer = threading.Timer(max(1.0, self._until - time.monotonic()), process.kill)
        timer.start()
        needs: set[str] = set()
        with process:
            for line in process.stdout or ():
                say(line.rstrip("\n"))
                needs |= {name for name in CONSTRAINTS if f"{name}>={_least(name)}" in line}
        timer.cancel()
        if time.monotonic() >= self._until:
            raise BuildError(f"{what} was not done within {BUILD_S / 60:.0f} minutes")
        if process.returncode != 0:
            named = ", ".join(f"{name}>={_least(name)}" for name in sorted(needs))
            own = f"; nomadfn, which runs in the same process, needs {named}" if named else ""
            raise BuildError(f"{what} ended with exit code {process.returncode}{own}{help}")


def _as_uv_has_it(environ: dict[str, str]) -> dict[str, str]:
    """uv reads none of pip's variables; where it has none of its own, those say where packages are."""
    for pip, uv, former in PIP_VARIABLES:
        if environ.get(pip) and not (environ.get(uv) or environ.get(former)):
            environ[former] = environ[pip]
    return environ


def _least(name: str) -> str:
    return ".".join(map(str, CONSTRAINTS[name]))


def import_folders(path: str) -> tuple[str, str]:
    """What the Python of the environment finds nomadfn in: before the image's packages, and behind them.

    Before: the agent and nomadfn, which have to be of this version. Behind: their libraries, so that the image's own
    versions of those come first. Both hold links to where this process has them. Raises `BuildError`.
    """
    with open(os.path.join(path, READY)) as file:
        minor = json.load(file)["python"]
    own = _linked("own", ("nomadfn_agent", "nomadfn"))
    if minor == _own_minor():
        return own, _linked("libraries", tuple(CONSTRAINTS))
    return own, libraries_of(minor)


def libraries_of(minor: str) -> str:
    """The folder of the agent's libraries for another minor version of Python."""
    versions = "-".join(_version_of(name) for name in CONSTRAINTS)
    digest = hashlib.sha256(versions.encode()).hexdigest()[:16]
    return os.path.join(root(), f"libraries-{minor}-{os.uname().machine}-{digest}")


def _version_of(name: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return str(getattr(importlib.import_module(name), "__version__"))  # noqa: B009 - websockets makes it at the look


def _linked(kind: str, names: Sequence[str]) -> str:
    """A folder with a link to each of these packages; whole or not there."""
    places = {}
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            places[name] = os.path.abspath(next(iter(spec.submodule_search_locations)))
    digest = hashlib.sha256("\0".join(places.values()).encode()).hexdigest()[:16]
    target = os.path.join(root(), f"{kind}-{digest}")
    if not os.path.isdir(target):
        temporary = tempfile.mkdtemp(dir=root(), prefix=".links-")
        os.chmod(temporary, 0o755)
        for name, place in places.items():
            os.symlink(place, os.path.join(temporary, name))
        try:
            os.rename(temporary, target)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if not os.path.isdir(target):
                raise
    return target


def _interpreter(image: ImageSpec, uv: str) -> str:
    """The Python to make an environment with: this one where it fits, else the program's, or one that is found."""
    version = image.python
    if version in ("", _own_minor(), _own_version()):
        base = getattr(sys, "_base_executable", "") or sys.executable
        return base if os.access(base, os.X_OK) else sys.executable
    if image.interpreter and _has_version(image.interpreter, version):
        return image.interpreter
    if uv:
        return version
    found = shutil.which(f"python{_minor(version)}")
    if found is None:
        raise BuildError(f"there is no python{_minor(version)} on PATH{_no_python_help(version)}")
    return found


def _has_version(python: str, version: str) -> bool:
    program = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
    try:
        done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, timeout=30.0)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return f"{done.stdout.strip()}.".startswith(f"{version}.")


def _no_python_help(version: str) -> str:
    own = _own_minor()
    if version in ("", own):
        return ""
    return f": install Python {version} on this machine, or leave python_version out, which takes the program's own"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _own_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _own_minor() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _is_ready(path: str) -> bool:
    """Whole, and its interpreter is still on this machine."""
    return os.path.exists(os.path.join(path, READY)) and os.access(python_of(path), os.X_OK)


def _is_same(handle: int, path: str) -> bool:
    """Whether the open lock is still the one that stands there."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _alone(path: str, id: str, until: float) -> Iterator[int]:
    """Nobody else makes or removes the environment inside this; gives the lock. Raises `BuildError`."""
    name, told = f"{path}.lock", False
    while True:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(lock, name):
                break
        except BlockingIOError:
            if _is_ready(path):  # Others use it already.
                try:
                    yield lock
                finally:
                    os.close(lock)
                return
            if not told:
                told = True
                say(f"Waiting for image {id}, which another process builds")
        os.close(lock)
        if time.monotonic() > until:
            raise BuildError(f"another process has built image {id} for {BUILD_S / 60:.0f} minutes")
        time.sleep(POLL_S)
    try:
        yield lock
    finally:
        os.close(lock)


def clean(folder: str, spared: str = "") -> None:
    """Remove environments that nobody uses beyond those that were used last, and what killed builds have left."""
    _sweep(folder)
    with contextlib.suppress(ValueError):
        kept = int(os.environ.get("NOMADFN_ENVIRONMENTS_KEPT", KEPT))
        found = []
        for entry in os.scandir(folder):
            if entry.name.startswith("im-") and entry.name.endswith(".lock"):
                with contextlib.suppress(FileNotFoundError):
                    found.append((entry.stat().st_mtime, entry.name.removesuffix(".lock")))
        for _, id in sorted(found, reverse=True)[max(1, kept) :]:
            if id != spared:
                _remove(folder, id)


def _sweep(folder: str) -> None:
    """Links to what is gone, and the working folders of builds that were killed long ago."""
    old = time.time() - 2 * BUILD_S
    for entry in list(os.scandir(folder)):
        with contextlib.suppress(OSError):
            stale = entry.name.startswith((".build-", ".links-")) and entry.stat().st_mtime < old
            if entry.name.startswith(("own-", "libraries-")):
                inside = [os.path.join(entry.path, name) for name in os.listdir(entry.path)]
                stale = any(os.path.islink(one) and not os.path.exists(one) for one in inside)
            if stale:
                shutil.rmtree(entry.path, ignore_errors=True)


def _remove(folder: str, id: str) -> None:
    path = os.path.join(folder, id)
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_same(lock, f"{path}.lock"):
            shutil.rmtree(path, ignore_errors=True)
            os.unlink(f"{path}.lock")
    except OSError:
        pass  # Somebody uses it.
    finally:
        os.close(lock)
