"""Packages that tests make themselves, so that an environment is built without any network."""

from __future__ import annotations

import textwrap
import zipfile
from pathlib import Path

OFFLINE = "--no-index"


def write_wheel(folder: Path, name: str, version: str, source: str = "") -> Path:
    """A wheel with one module, which says its version and has `source` beside that."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n{textwrap.dedent(source)}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{one},,\n" for one in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for place, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(place, content)
    return path


BACKEND = """
    import os, pathlib, sys, time
    sys.path.insert(0, {tests!r})

    def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
        from tiny_packages import write_wheel

        folder = pathlib.Path({folder!r})
        os.close(os.open(folder / f"begun-{{time.monotonic_ns()}}", os.O_CREAT | os.O_EXCL))
        deadline = time.monotonic() + 100
        while not (folder / "gate").exists():
            assert time.monotonic() < deadline, "nobody has opened the gate"
            time.sleep(0.02)
        return write_wheel(pathlib.Path(wheel_directory), "slow", "1.0").name
"""


def write_slow_project(folder: Path) -> Path:
    """A project whose wheel is built only once the file `gate` is in its folder; `begun-…` there says that it waits."""
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "slow"\nversion = "1.0"\n'
    )
    (folder / "backend.py").write_text(
        textwrap.dedent(BACKEND).format(tests=str(Path(__file__).parent), folder=str(folder))
    )
    return folder


def begun(folder: Path) -> int:
    """How often a build of the slow project has begun."""
    return len(list(folder.glob("begun-*")))
