"""Which source travels, and how functions are found in it."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nomadfn.exception import InvalidError, NotFoundError, SerializationError
from nomadfn.sdk import code, loader

PROGRAM = "import nomadfn\napp = nomadfn.App('p')\n@app.function()\ndef f():\n    return 1\n"


@pytest.fixture(autouse=True)
def clean_modules() -> Iterator[None]:
    """Forget what the tests' programs have put into this process."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith(("nomadfn", "cloudpickle")):
            del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def load(folder: Path, name: str, files: dict[str, str]) -> ModuleType:
    write(folder, files)
    return loader.load(folder / name)


def packed(module: ModuleType) -> list[str]:
    data, _ = code.pack([module.__name__], as_modal=False)
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    return [name for name in names if not is_of_the_tests(name)]


def is_of_the_tests(place: str) -> bool:
    """Whether it travels only because this process has imported it: modules of the tests and what they test."""
    top = sys.modules.get(place.partition("/")[0].removesuffix(".py"))
    file = getattr(top, "__file__", None)
    return file is not None and Path(file).is_relative_to(Path(__file__).parents[2])


def test_the_file_its_siblings_and_packages_travel_and_what_is_hidden_or_built_does_not(tmp_path: Path) -> None:
    module = load(
        tmp_path,
        "prog_a.py",
        {
            "prog_a.py": PROGRAM,
            "helper_a.py": "",
            "pkg_a/__init__.py": "",
            "pkg_a/deep/more.py": "",
            "pkg_a/table.json": "{}",
            "pkg_a/__pycache__/x.pyc": "",
            "pkg_a/.hidden/x.py": "",
            "plain/x.py": "",
            "notes.txt": "",
            ".venv/pyvenv.cfg": "",
            ".venv/lib/x.py": "",
            "node_modules/x/__init__.py": "",
        },
    )
    assert packed(module) == [
        "helper_a.py",
        "pkg_a/__init__.py",
        "pkg_a/deep/more.py",
        "pkg_a/table.json",
        "prog_a.py",
    ]


def test_a_folder_without_init_travels_when_the_program_names_it(tmp_path: Path) -> None:
    module = load(
        tmp_path,
        "prog_b.py",
        {"prog_b.py": PROGRAM + "def later():\n    from space_b.inner import x\n", "space_b/inner.py": "import side_b"}
        | {"side_b/mod.py": "", "other_b/mod.py": ""},
    )
    assert packed(module) == ["prog_b.py", "side_b/mod.py", "space_b/inner.py"]


def test_a_local_module_from_elsewhere_travels_once_it_is_imported(tmp_path: Path) -> None:
    write(
        tmp_path / "lib", {"far_c.py": "", "far_package_c/__init__.py": "", "far_package_c/part.py": "", "not_c.py": ""}
    )
    sys.path.append(str(tmp_path / "lib"))
    module = load(tmp_path / "app", "prog_c.py", {"prog_c.py": "import far_c, far_package_c\n" + PROGRAM})
    assert packed(module) == ["far_c.py", "far_package_c/__init__.py", "far_package_c/part.py", "prog_c.py"]


def test_of_a_huge_folder_only_what_is_used_travels(tmp_path: Path) -> None:
    files = {f"script_{n}.py": "" for n in range(code.MAX_SIBLINGS + 50)}
    module = load(tmp_path, "prog_d.py", files | {"prog_d.py": "import used_d\n" + PROGRAM, "used_d.py": ""})
    assert packed(module) == ["prog_d.py", "used_d.py"]


def test_a_large_package_that_the_program_does_not_use_stays_behind(tmp_path: Path) -> None:
    big = {f"big_e/part_{n}.py": "" for n in range(code.MAX_FILES)} | {"big_e/__init__.py": ""}
    module = load(tmp_path, "prog_e.py", big | {"prog_e.py": PROGRAM})
    assert packed(module) == ["prog_e.py"]


def test_a_program_that_is_too_large_names_what_is(tmp_path: Path) -> None:
    files = {f"big_f/part_{n}.py": "" for n in range(code.MAX_FILES)} | {"big_f/__init__.py": ""}
    module = load(tmp_path, "prog_f.py", files | {"prog_f.py": "import big_f\n" + PROGRAM})
    with pytest.raises(InvalidError, match=r"over the limit of 2,000 files.*big_f \(2001 files"):
        packed(module)


def test_the_same_program_gives_the_same_digest(tmp_path: Path) -> None:
    first = load(tmp_path, "prog_g.py", {"prog_g.py": PROGRAM})
    data, ref = code.pack([first.__name__], as_modal=False)
    (tmp_path / "prog_g.py").touch()
    assert code.pack([first.__name__], as_modal=False) == (data, ref)
    assert (ref.main_module, ref.origin) == ("prog_g", str(tmp_path))
    (tmp_path / "prog_g.py").write_text(PROGRAM + "x = 1\n")
    assert code.pack([first.__name__], as_modal=False)[1].digest != ref.digest


@pytest.mark.parametrize(
    ("file", "name"),
    [("my-app.py", "my-app"), ("my.app.py", "my_app"), ("test.py", "test_"), ("queue.py", "queue_"), ("2nd.py", "2nd")],
)
def test_a_file_of_any_name_is_found_under_one_that_can_be_imported(tmp_path: Path, file: str, name: str) -> None:
    module = load(tmp_path, file, {file: PROGRAM})
    assert module.__name__ == name
    assert packed(module) == [f"{name}.py"]
    assert loader.load(tmp_path / file) is module


def test_a_module_in_a_package_travels_with_all_of_it(tmp_path: Path) -> None:
    write(tmp_path, {"pack_h/__init__.py": "", "pack_h/mod.py": "from . import part\n" + PROGRAM, "pack_h/part.py": ""})
    sys.path.insert(0, str(tmp_path))
    module = loader.load("pack_h.mod")
    data, ref = code.pack([module.__name__], as_modal=True)
    assert zipfile.ZipFile(io.BytesIO(data)).namelist()[:1] != []
    assert packed(module) == ["pack_h/__init__.py", "pack_h/mod.py", "pack_h/part.py"]
    assert (ref.main_module, ref.origin, ref.as_modal) == ("pack_h.mod", str(tmp_path), True)


def test_functions_that_no_module_gives_travel_by_value() -> None:
    def inner() -> None: ...

    assert code.origin_of(inner, serialized=False).module == ""
    assert code.origin_of(write, serialized=False).module == __name__
    assert code.origin_of(write, serialized=True).module == ""
    namespace: dict[str, Any] = {"__name__": "nowhere"}
    exec("def typed(): pass", namespace)
    assert code.origin_of(namespace["typed"], serialized=False).module == ""


def test_a_function_that_cannot_be_pickled_names_itself_and_the_culprit() -> None:
    lock = threading.Lock()

    def locked() -> bool:
        return lock.locked()

    with pytest.raises(SerializationError, match=r"function locked.*it uses 'lock'"):
        code.pickle_function(locked, "locked")
    ballast = b"x" * (17 << 20)

    def heavy() -> int:
        return len(ballast)

    with pytest.raises(InvalidError, match=r"function heavy has 17,8.*over the limit"):
        code.pickle_function(heavy, "heavy")


def test_the_app_of_a_program_is_found_or_asked_for(tmp_path: Path) -> None:
    one = load(tmp_path, "prog_i.py", {"prog_i.py": PROGRAM})
    assert loader.find_app(one).name == "p"
    assert loader.find_app(one, "app") is loader.find_app(one, "p")
    with pytest.raises(NotFoundError, match="no app called 'q'; its apps: 'p'"):
        loader.find_app(one, "q")
    two = load(tmp_path, "prog_j.py", {"prog_j.py": PROGRAM + PROGRAM.replace("app", "bpp").replace("'p'", "'b'")})
    with pytest.raises(InvalidError, match="several apps, 'p', 'b'"):
        loader.find_app(two)
    none = load(tmp_path, "prog_k.py", {"prog_k.py": "import nomadfn\n"})
    with pytest.raises(InvalidError, match="has no app"):
        loader.find_app(none)


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        loader.load(tmp_path / "missing.py")
    with pytest.raises(NotFoundError, match="no module no_such_module"):
        loader.load("no_such_module.part")
    with pytest.raises(InvalidError, match="no Python program"):
        loader.load(tmp_path)
    write(tmp_path, {"broken_l.py": "def f(:\n"})
    with pytest.raises(SyntaxError):
        loader.load(tmp_path / "broken_l.py")


def test_a_program_that_imports_modal_is_loaded_as_one_of_nomadfn(tmp_path: Path) -> None:
    write(tmp_path, {"prog_m.py": "import modal, modal.exception\nfrom modal.exception import InvalidError\n"})
    program = (
        "from nomadfn.sdk import loader; import nomadfn\n"
        f"m = loader.load({str(tmp_path / 'prog_m.py')!r}, as_modal=True)\n"
        "print(m.modal is nomadfn, m.InvalidError is nomadfn.exception.InvalidError)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "True True"
