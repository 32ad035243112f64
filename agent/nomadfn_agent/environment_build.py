"""How an environment is built: the commands of uv, or of venv and pip, one step of the recipe after the other."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence

from .environments import BUILD_S, HIDDEN, READY, BuildError, python_of, say
from .lent_packages import CONSTRAINTS, least, libraries_of, own_minor, version_of
from .wire import ImageSpec, ImageStep
from .wire.image import FILES
from .wire.places import find_uv

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


def make(image: ImageSpec, path: str, lock: int, until: float) -> None:
    """Make the environment `path`, which is locked, with its log on stdout. Raises `BuildError`."""
    began, id = time.monotonic(), os.path.basename(path)
    uv = find_uv()
    say(f"Building image {id} (Python {image.python or own_minor()}, with {'uv' if uv else 'venv and pip'})")
    if not uv:
        say("uv is not on this machine, which is much faster: pip install uv, or 'nomadfn[images]'")
    shutil.rmtree(path, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path), prefix=".build-") as folder:
            run = Run(folder, uv, path, lock, until)
            run.make_environment(image)
            for number, step in enumerate(image.steps):
                run.install(number, step)
            found = run.look(image)
            if found != own_minor():
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


class Run:
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
        python = interpreter_for(image, self._uv)
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
            file.writelines(f"{name}>={least(name)}\n" for name in CONSTRAINTS)
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
        wanted = _minor(image.python) or own_minor()
        if minor != wanted:
            raise BuildError(f"the environment has Python {minor}, and the image asks for {wanted}")
        for name, version in versions.items():
            needed = CONSTRAINTS[name]
            if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < needed:
                raise BuildError(
                    f"the image has {name} {version}, and nomadfn, which runs in the same process, needs "
                    f"{name}>={least(name)}: allow a newer one"
                )
        return str(minor)

    def install_libraries(self, target: str) -> None:
        """The agent's libraries for a Python that is not this one; whole or not at all."""
        if os.path.isdir(target):
            return
        if not self._uv:
            raise BuildError("an image with another Python than nomadfn's needs uv on this machine: pip install uv")
        folder = os.path.join(self._folder, "libraries")
        wanted = [f"{name}=={version_of(name)}" for name in CONSTRAINTS]
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
                needs |= {name for name in CONSTRAINTS if f"{name}>={least(name)}" in line}
        timer.cancel()
        if time.monotonic() >= self._until:
            raise BuildError(f"{what} was not done within {BUILD_S / 60:.0f} minutes")
        if process.returncode != 0:
            named = ", ".join(f"{name}>={least(name)}" for name in sorted(needs))
            own = f"; nomadfn, which runs in the same process, needs {named}" if named else ""
            raise BuildError(f"{what} ended with exit code {process.returncode}{own}{help}")


def _as_uv_has_it(environ: dict[str, str]) -> dict[str, str]:
    """uv reads none of pip's variables; where it has none of its own, those say where packages are."""
    for pip, uv, former in PIP_VARIABLES:
        if environ.get(pip) and not (environ.get(uv) or environ.get(former)):
            environ[former] = environ[pip]
    return environ


def interpreter_for(image: ImageSpec, uv: str) -> str:
    """The Python to make an environment with: this one where it fits, else the program's, or one that is found."""
    version = image.python
    if version in ("", own_minor(), own_version()):
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
    own = own_minor()
    if version in ("", own):
        return ""
    return f": install Python {version} on this machine, or leave python_version out, which takes the program's own"


def own_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
