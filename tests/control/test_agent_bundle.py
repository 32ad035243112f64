"""`nomadfn-agent.pyz`: whole by itself, the same bytes each time, and clear words where there is none."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from nomadfn_agent import bootstrap, lent_packages
from starlette.applications import Starlette
from starlette.types import Message
from tiny_packages import write_wheel

from nomadfn.control import agent_bundle, api
from nomadfn.control.agent_bundle import FILES, LIBRARIES, MAX_BUNDLES, Bundle, Bundles, Target, build
from nomadfn.exception import ConflictError, NotFoundError, ServiceError

HERE = Target.here()
OTHER_PYTHON = "3.99"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundles().get()


def run(data: bytes, folder: Path) -> subprocess.CompletedProcess[str]:
    """Start a bundle without Nomad's variables, in a Python without packages: it says so and ends."""
    path = folder / "nomadfn-agent.pyz"
    path.write_bytes(data)
    environment = {"NOMAD_TASK_DIR": str(folder)}
    command = [sys.executable, "-I", "-S", str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def contents(bundle: Bundle) -> dict[str, bytes]:
    data = zipfile.ZipFile(io.BytesIO(bundle.data)).read(FILES)
    with tempfile.TemporaryDirectory() as folder:
        bootstrap.write_all(data, folder)
        paths = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_equal_content_gives_equal_bytes(bundle: Bundle) -> None:
    assert build(HERE).digest == bundle.digest == hashlib.sha256(bundle.data).hexdigest()


def test_all_that_a_program_imports_of_nomadfn_is_in_it(bundle: Bundle, tmp_path: Path) -> None:
    """In a Python without packages, and what is imported only when it is used as well."""
    code = """
import ast, importlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root))
program = [*sorted((root / "nomadfn").rglob("*.py")), root / "nomadfn_agent/wire/__init__.py"]
for path in program:
    if "cli" not in path.parts and path.name != "__main__.py":
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        importlib.import_module(name)
for path in (root / "nomadfn").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "nomadfn.core":
            for one in node.names:
                importlib.import_module(f"nomadfn.core.{one.name}")
import cronsim
"""
    for name, data in contents(bundle).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-I", "-S", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_bundle_is_small_and_made_once() -> None:
    bundles = Bundles()
    first = bundles.get()
    assert bundles.get(HERE.python, f"{HERE.libc}_{HERE.machine}") is first
    assert len(first.data) < 2_500_000


def test_all_that_a_program_may_import_is_in_it(bundle: Bundle, tmp_path: Path) -> None:
    done = run(bundle.data, tmp_path)
    assert done.returncode == 2
    assert "NOMAD_JOB_ID" in done.stderr
    [folder] = tmp_path.glob("nomadfn-agent-*/")
    check = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "import nomadfn, nomadfn_agent.runner, nomadfn_agent.join, nomadfn.sdk.app, nomadfn.sdk.maps, websockets.sync\n"
        "names = [getattr(nomadfn, name) for name in nomadfn.__all__]\n"
        "assert all(one.__file__.startswith(sys.path[0]) for one in (nomadfn, nomadfn_agent, websockets))\n"
        "from nomadfn_agent.alias import install_modal_alias; install_modal_alias(); import modal; modal.App('x')\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_unpacked_agent_makes_environments_and_lends_itself_to_their_python(bundle: Bundle, tmp_path: Path) -> None:
    run(bundle.data, tmp_path)
    [folder] = tmp_path.glob("nomadfn-agent-*/")
    write_wheel(tmp_path / "wheels", "tiny", "1.0")
    make = (
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        "from nomadfn_agent import environments, image_parents, lent_packages\n"
        "from nomadfn_agent.wire import ImageSpec, ImageStep, image_id\n"
        f"arguments = ['tiny==1.0', '--no-index', '--find-links={tmp_path / 'wheels'}']\n"
        "image = ImageSpec(steps=[ImageStep(tool='pip', arguments=arguments)])\n"
        "assert environments.build(image) == 0\n"
        "path, lock = environments.use(image_id(image))\n"
        "print(path, *lent_packages.import_folders(path), sep='\\n')\n"
    )
    env = {"NOMADFN_ENVIRONMENTS": str(tmp_path / "environments"), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [sys.executable, "-I", "-S", "-c", make]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    path, own, libraries = done.stdout.splitlines()[-3:]
    check = (
        f"import sys; sys.path.insert(0, {own!r}); sys.path.append({libraries!r})\n"
        "import nomadfn, nomadfn_agent.runner, nomadfn.sdk.app, websockets.client, cloudpickle, tiny\n"
        "print(nomadfn.__file__, websockets.__file__, tiny.__file__, sep='\\n')\n"
    )
    done = subprocess.run([f"{path}/bin/python", "-I", "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    places = [str(Path(one).parent) for one in done.stdout.splitlines()]
    assert places[:2] == [f"{own}/nomadfn", f"{libraries}/websockets"]
    assert places[2].startswith(path)


def test_containers_of_images_find_the_same_libraries_as_all_others() -> None:
    assert tuple(lent_packages.CONSTRAINTS) == LIBRARIES


def test_what_is_unpacked_is_compiled_already_and_used_again(bundle: Bundle, tmp_path: Path) -> None:
    run(bundle.data, tmp_path)
    [folder] = tmp_path.glob("nomadfn-agent-*/")
    source = folder / "nomadfn_agent" / "supervisor.py"
    assert list((source.parent / "__pycache__").glob("supervisor.*.pyc"))
    unpacked_at = source.stat().st_mtime_ns
    run(bundle.data, tmp_path)
    assert source.stat().st_mtime_ns == unpacked_at
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([folder.name, "nomadfn-agent.pyz"])


def test_the_control_services_own_parts_are_not_in_it(bundle: Bundle) -> None:
    names = contents(bundle)
    assert "nomadfn/sdk/app.py" in names
    assert not [name for name in names if name.startswith(("nomadfn/control", "nomadfn/cli", "nomadfn/adapters"))]


@pytest.mark.parametrize("python", ["3.10", "2.7", "4.0", "3", "3.12; rm", "../3.12"])
def test_a_python_that_is_none_of_ours_is_not_found(python: str) -> None:
    with pytest.raises(NotFoundError, match=r"3\.11 and newer"):
        Bundles().get(python)


@pytest.mark.parametrize("name", ["win_amd64", "macosx_14_0_arm64", "linux", "linux_x86_64/..", "manylinux_x86_64"])
def test_a_platform_that_is_none_of_ours_is_not_found(name: str) -> None:
    with pytest.raises(NotFoundError, match="write linux_x86_64"):
        Bundles().get("", name)


def test_platforms_have_the_names_that_pip_gives_them() -> None:
    assert Target.parse("3.12", "manylinux_2_28_aarch64") == Target("3.12", "linux", "aarch64")
    assert Target.parse("3.12", "manylinux2014_x86_64") == Target("3.12", "linux", "x86_64")
    assert Target.parse("3.12", "musllinux_1_2_x86_64") == Target("3.12", "musllinux", "x86_64")
    assert Target.parse("", "") == HERE


def test_where_pip_gives_nothing_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ConflictError) as told:
        Bundles().get(OTHER_PYTHON)
    for words in (f"Python {OTHER_PYTHON}", "PIP_INDEX_URL", f"Python {HERE.python}", "agent_args"):
        assert words in str(told.value)


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of our own, with wheels for a Python that does not exist."""
    tag = f"cp{OTHER_PYTHON.replace('.', '')}-cp{OTHER_PYTHON.replace('.', '')}-manylinux_2_17_{platform.machine()}"
    folder = tmp_path / "wheels"
    folder.mkdir()
    for library in LIBRARIES:
        version = metadata.version(library)
        info = f"{library}-{version}.dist-info"
        files = {
            f"{library}/__init__.py": f"NAME = {library!r}\n",
            f"{library}/_fast.so": "compiled",
            f"{library}/notes.txt": "not needed",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {library}\nVersion: {version}\n",
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {tag}\n",
        }
        rows = [f"{name},sha256={_digest(text)},{len(text)}" for name, text in files.items()]
        files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
        with zipfile.ZipFile(folder / f"{library}-{version}-{tag}.whl", "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


@pytest.mark.usefixtures("wheelhouse")
def test_for_another_python_the_libraries_come_from_pip_and_the_bundle_starts_only_there(tmp_path: Path) -> None:
    made = Bundles().get(OTHER_PYTHON)
    files = contents(made)
    assert files["msgspec/__init__.py"] == b"NAME = 'msgspec'\n"
    assert files["websockets/_fast.so"] == b"compiled"
    assert not [name for name in files if name.endswith((".txt", ".pyc", "METADATA"))]
    done = run(made.data, tmp_path)
    assert done.returncode == 1
    machine = os.uname().machine
    assert f"this agent is for Python {OTHER_PYTHON} on {machine}, and this is Python {HERE.python}" in done.stderr
    assert f"?python={HERE.python}&platform=linux_{machine}" in done.stderr


async def get(path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request to the route by itself."""
    app = Starlette(routes=[api.agent_bundle_route()])
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    where, _, query = path.partition("?")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": where,
        "raw_path": where.encode(),
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
    }
    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(one.get("body", b"") for one in sent[1:])


@pytest.fixture
def made_already(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """Bundles are there at once; which were made stands in the list."""
    made: list[Target] = []

    def build(target: Target) -> Bundle:
        made.append(target)
        if target.python == OTHER_PYTHON:
            raise ConflictError("it cannot be made here")
        return bundle

    monkeypatch.setattr(agent_bundle, "build", build)
    return made


def test_it_is_offered_with_its_digest_and_not_sent_twice(bundle: Bundle, made_already: list[Target]) -> None:
    status, headers, body = asyncio.run(get(api.BUNDLE_PATH))
    assert (status, hashlib.sha256(body).hexdigest()) == (200, bundle.digest)
    assert headers["etag"] == f'"{bundle.digest}"'
    status, headers, body = asyncio.run(get(api.BUNDLE_PATH, if_none_match=headers["etag"]))
    assert (status, body) == (304, b"")


@pytest.mark.parametrize(("query", "status"), [("python=3.9", 404), (f"python={OTHER_PYTHON}", 409)])
def test_why_there_is_none_is_said_over_http(made_already: list[Target], query: str, status: int) -> None:
    found, _, body = asyncio.run(get(f"{api.BUNDLE_PATH}?{query}"))
    assert found == status
    assert set(json.loads(body)["error"]) == {"kind", "message"}


def test_many_who_ask_at_once_get_the_same_and_it_is_made_once(bundle: Bundle, made_already: list[Target]) -> None:
    async def ask() -> None:
        bundles = Bundles()
        assert await asyncio.gather(*(bundles.offer("3.12") for _ in range(20))) == [bundle] * 20
        with pytest.raises(ConflictError):
            await bundles.offer(OTHER_PYTHON)
        assert await bundles.offer("3.12") is bundle

    asyncio.run(ask())
    assert [target.python for target in made_already] == ["3.12", OTHER_PYTHON]


def test_more_pythons_than_anybody_needs_are_not_made_at_once(
    made_already: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_build = threading.Event()
    build = agent_bundle.build
    monkeypatch.setattr(agent_bundle, "build", lambda target: may_build.wait(30) and build(target))

    async def ask() -> None:
        bundles = Bundles()
        asked = [asyncio.ensure_future(bundles.offer(f"3.{minor}")) for minor in range(20, 20 + MAX_BUNDLES)]
        await asyncio.sleep(0)
        with pytest.raises(ServiceError, match="ask again"):
            await bundles.offer("3.50")
        may_build.set()
        await asyncio.gather(*asked)

    asyncio.run(ask())
