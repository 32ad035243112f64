"""`nomadfn-agent.pyz`: all that an image needs beside Python to run functions.

In it are the agent, the parts of nomadfn that programs import, and the few libraries of both. For the Python and
platform that this control service itself runs on, all of it is taken from here and compiled ahead; for others pip
fetches the libraries' wheels, at the versions that are here. Equal content gives equal bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import platform as platforms
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nomadfn_agent import wire

from nomadfn import version
from nomadfn.exception import ConflictError, NotFoundError, ServiceError

LIBRARIES = ("a2wsgi", "cloudpickle", "cronsim", "h11", "msgspec", "websockets")
LEFT_OUT = ("adapters", "cli", "control", "core")
"""Parts of nomadfn that no program imports, but for KEPT."""
KEPT = tuple(f"core/{name}.py" for name in ("__init__", "calendar", "environment", "gpus", "variants"))
OLDEST_PYTHON = (3, 11)
SUFFIXES = (".py", ".so")
FILES = "files"
"""The member of the archive with all files in it."""
DIGEST_LENGTH = 16
PIP_TIMEOUT_S = 180.0
COMPILE_TIMEOUT_S = 180.0
MAX_BUNDLES = 8
GLIBC_TAGS = ("manylinux_2_17", "manylinux2014", "manylinux_2_28")
MUSL_TAGS = ("musllinux_1_1", "musllinux_1_2")


@dataclass(frozen=True, slots=True)
class Target:
    """For what a bundle is: a Python's minor version, and a platform by its C library and machine."""

    python: str
    libc: str
    """`linux` for glibc, `musllinux`."""
    machine: str

    @classmethod
    def here(cls) -> Target:
        libc = "musllinux" if "musl" in str(sysconfig.get_config_var("SOABI")) else sys.platform
        return cls(f"{sys.version_info.major}.{sys.version_info.minor}", libc, platforms.machine())

    @classmethod
    def parse(cls, python: str, platform: str) -> Target:
        """From what stands in an address; what is left empty is as it is here. Raises `NotFoundError`."""
        here = cls.here()
        python = python or here.python
        match = re.fullmatch(r"3\.(\d{1,2})", python)
        if match is None or (3, int(match[1])) < OLDEST_PYTHON:
            raise NotFoundError(f"there is no agent for Python {python[:20]!r}; it runs on 3.11 and newer: python=3.12")
        if not platform:
            # Containers run on Linux, wherever this control service does.
            known = here.libc.endswith("linux")
            platform = f"{here.libc}_{here.machine}" if known else f"linux_{here.machine.replace('arm64', 'aarch64')}"
        match = re.fullmatch(r"(linux|manylinux(?:\d{4}|_\d+_\d+)|musllinux(?:_\d+_\d+)?)_([a-z0-9_]{3,12})", platform)
        if match is None:
            raise NotFoundError(
                f"there is no agent for the platform {platform[:40]!r}; write linux_x86_64, linux_aarch64, or "
                f"musllinux_1_2_x86_64 for images with musl"
            )
        return cls(python, "musllinux" if match[1].startswith("musl") else "linux", match[2])

    def __str__(self) -> str:
        return f"Python {self.python} on {self.libc}_{self.machine}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """The bytes of one `nomadfn-agent.pyz`. `digest` is their sha256."""

    data: bytes
    digest: str


class Bundles:
    """Every bundle that was asked for, made once each, one after the other."""

    def __init__(self) -> None:
        self._made: dict[Target, Bundle] = {}
        self._lock = threading.Lock()
        self._waiting: dict[Target, asyncio.Future[Bundle]] = {}

    def get(self, python: str = "", platform: str = "") -> Bundle:
        """The bundle for a Python ("3.12") and a platform ("linux_x86_64"); those of this process where empty. Blocks.

        Raises `NotFoundError` for what nomadfn does not run on, and `ConflictError` where it cannot be made here.
        """
        target = Target.parse(python, platform)
        with self._lock:
            if target not in self._made:
                made = build(target)
                if len(self._made) == MAX_BUNDLES:
                    del self._made[next(iter(self._made))]
                self._made[target] = made
            return self._made[target]

    async def offer(self, python: str = "", platform: str = "") -> Bundle:
        """The same without blocking. Raises `ServiceError`, too, while many others are being made."""
        target = Target.parse(python, platform)
        if (made := self._made.get(target)) is not None:
            return made
        if target not in self._waiting:
            if len(self._waiting) == MAX_BUNDLES:
                raise ServiceError("agents for several other Pythons are being put together; ask again in a minute")
            self._waiting[target] = self._start(target)
        return await asyncio.shield(self._waiting[target])

    def _start(self, target: Target) -> asyncio.Future[Bundle]:
        """Make it on a thread that nothing waits for when this process ends."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Bundle] = loop.create_future()

        def tell(made: Bundle | Exception) -> None:
            del self._waiting[target]
            if isinstance(made, Exception):
                future.set_exception(made)
                future.exception()  # Read it: whoever asked may have hung up.
            else:
                future.set_result(made)

        def work() -> None:
            made: Bundle | Exception
            try:
                made = self.get(target.python, f"{target.libc}_{target.machine}")
            except Exception as error:
                made = error
            with contextlib.suppress(RuntimeError):  # The loop has ended.
                loop.call_soon_threadsafe(tell, made)

        threading.Thread(target=work, name="agent bundle", daemon=True).start()
        return future


def build(target: Target) -> Bundle:
    """Put one bundle together. Raises `ConflictError`."""
    with tempfile.TemporaryDirectory(prefix="nomadfn-bundle-") as name:
        stage = Path(name, "stage")
        stage.mkdir()
        if target == Target.here():
            _copy(_library_files(), stage)
            _compile(stage, "-b")
            for path in stage.rglob("*.py"):
                path.unlink()  # Half as many files to unpack; ours stay, because tracebacks tell of them.
            _copy(_own_files(), stage)
            _compile(stage)
        else:
            _unpack_wheels(target, stage)
            _copy(_own_files(), stage)
        return _pack(target, stage)


def _own_files() -> Iterator[tuple[Path, str]]:
    """Source files of nomadfn and the agent, with their names in the bundle."""
    agent = Path(wire.__path__[0]).parent
    for folder in (Path(version.__file__).parent, agent):
        for path in folder.rglob("*.py"):
            name = path.relative_to(folder).as_posix()
            if folder == agent or name.partition("/")[0] not in LEFT_OUT or name in KEPT:
                yield path, f"{folder.name}/{name}"


def _library_files() -> Iterator[tuple[Path, str]]:
    for library in LIBRARIES:
        for file in metadata.distribution(library).files or ():
            if file.suffix in SUFFIXES and ".." not in file.parts:
                yield Path(str(file.locate())), file.as_posix()


def _copy(files: Iterator[tuple[Path, str]], stage: Path) -> None:
    for path, name in files:
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _compile(stage: Path, *more: str) -> None:
    """An agent that starts in a fresh container would compile everything at each start."""
    options = ["-q", *more, "--invalidation-mode", "unchecked-hash", "-s", str(stage), str(stage)]
    # A process of its own: what bytes come out depends on what else the compiling one has in memory.
    command = [sys.executable, "-I", "-m", "compileall", *options]
    subprocess.run(command, check=False, timeout=COMPILE_TIMEOUT_S, stdout=subprocess.DEVNULL)


def _unpack_wheels(target: Target, stage: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="nomadfn-wheels-") as folder:
        _download(target, folder)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(stage, [name for name in archive.namelist() if name.endswith(SUFFIXES)])


def _download(target: Target, folder: str) -> None:
    tags = MUSL_TAGS if target.libc == "musllinux" else GLIBC_TAGS
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={target.python}"]
    command += [f"--platform={tag}_{target.machine}" for tag in tags]
    wanted = [f"{library}=={metadata.version(library)}" for library in LIBRARIES]
    try:
        done = subprocess.run(
            [*command, f"--dest={folder}", *wanted], capture_output=True, text=True, timeout=PIP_TIMEOUT_S
        )
        why = "" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        why = f"nothing came within {PIP_TIMEOUT_S:.0f} s"
    if why:
        raise ConflictError(
            f"the agent for {target} cannot be made here, on {Target.here()}: pip gives no {', '.join(wanted)} for it "
            f"({why}); let the control service reach a package index (PIP_INDEX_URL), or use an image with Python "
            f'{Target.here().python}, or one with nomadfn installed and agent_args = ["-m", "nomadfn_agent"]'
        )


def _pack(target: Target, stage: Path) -> Bundle:
    """An archive of `nomadfn_agent.bootstrap` and the files that it unpacks."""
    files = {path.relative_to(stage).as_posix(): path.read_bytes() for path in stage.rglob("*") if path.is_file()}
    names = sorted(files)
    index = "\n".join(f"{len(files[name])} {name}" for name in names)
    content = b"".join((index.encode(), b"\n\n", *(files[name] for name in names)))
    folder = hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
    start = files["nomadfn_agent/bootstrap.py"].decode()
    start += f"\n\nrun(lambda: __loader__.get_data({FILES!r}), {folder!r}, {target.python!r}, {target.machine!r})\n"
    buffer = io.BytesIO(b"#!/usr/bin/env python3\n")
    buffer.seek(0, os.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, data in (("__main__.py", start.encode()), (FILES, content)):
            entry = zipfile.ZipInfo(name)  # Its date is the same for all, the oldest that an archive can hold.
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)
    made = buffer.getvalue()
    return Bundle(made, hashlib.sha256(made).hexdigest())
