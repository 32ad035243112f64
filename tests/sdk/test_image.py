"""`Image` as a program writes it: an immutable recipe, and everything of Modal's that needs more than that refused."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec
import pytest
from nomadfn_agent import wire

import nomadfn
from nomadfn import App, Image
from nomadfn.core import environment
from nomadfn.exception import InvalidError, UnsupportedError
from nomadfn.sdk import code, image_refusals

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def spec_of(image: Image) -> wire.ImageSpec:
    return image._spec("function f")


def arguments_of(image: Image) -> list[str]:
    return spec_of(image).steps[-1].arguments


def test_each_method_gives_a_new_image_and_leaves_the_old_one_as_it_was() -> None:
    base = Image.debian_slim()
    more = base.pip_install("numpy", ["scipy", "six"]).env({"A": "1"}).workdir("/srv").workdir("app")
    assert (spec_of(base).steps, spec_of(base).workdir, base._variables_spec()) == ([], "", [])
    assert arguments_of(more) == ["numpy", "scipy", "six"]
    assert spec_of(more).workdir == "/srv/app"
    assert more._variables_spec() == [wire.SecretSpec(values={"A": "1"}, of_image=True)]
    assert spec_of(more).python == HERE


def test_options_become_those_of_the_installer() -> None:
    image = Image.debian_slim().uv_pip_install(
        "torch==2.7.1",
        index_url="https://a/simple",
        extra_index_url="https://b/simple",
        find_links="https://c/wheels",
        pre=True,
        extra_options="--no-build-isolation --no-deps",
    )
    assert arguments_of(image) == [
        *("torch==2.7.1", "--find-links", "https://c/wheels", "--index-url", "https://a/simple"),
        *("--extra-index-url", "https://b/simple", "--pre", "--no-build-isolation", "--no-deps"),
    ]
    assert spec_of(image).steps[0].tool == "uv"
    assert spec_of(Image.debian_slim().pip_install("six")).steps[0].tool == "pip"


def test_the_content_of_a_requirements_file_is_part_of_the_recipe(tmp_path: Path) -> None:
    listed = tmp_path / "requirements.txt"
    listed.write_text("six==1.16.0\n")
    images = [Image.debian_slim().pip_install_from_requirements(str(listed))]
    images.append(Image.debian_slim().uv_pip_install(requirements=[str(listed)]))
    ids = [wire.image_id(spec_of(one)) for one in images]
    step = spec_of(images[0]).steps[0]
    assert (step.arguments, step.files) == (
        ["-r", "{files}/0-requirements.txt"],
        {"0-requirements.txt": "six==1.16.0\n"},
    )
    listed.write_text("six==1.15.0\n")
    assert not {wire.image_id(spec_of(one)) for one in images} & set(ids)


def test_the_dependencies_of_a_project_are_read_from_its_file(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["b", "a>=2"]\noptional-dependencies = {x = ["c"], y = ["d"]}\n')
    image = Image.debian_slim().pip_install_from_pyproject(str(project), ["x"])
    assert arguments_of(image) == ["a>=2", "b", "c"]
    with pytest.raises(InvalidError, match=r"no optional dependencies 'z'; there are x, y"):
        spec_of(Image.debian_slim().pip_install_from_pyproject(str(project), ["z"]))
    project.write_text("[tool.poetry]\n")
    with pytest.raises(InvalidError, match=r"no \[project\] dependencies"):
        spec_of(image)


def test_a_uv_project_travels_as_its_two_files(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    image = Image.debian_slim().uv_sync(str(tmp_path), groups=["g"], extras=["e"])
    assert spec_of(image).steps[0].files == {"pyproject.toml": "[project]\n"}
    (tmp_path / "uv.lock").write_text("version = 1\n")
    step = spec_of(image).steps[0]
    assert (step.tool, step.arguments) == ("sync", ["--group=g", "--extra=e", "--frozen"])
    assert step.files["uv.lock"] == "version = 1\n"


def test_variables_hold_for_the_steps_that_follow() -> None:
    image = Image.debian_slim().pip_install("a").env({"A": "1"}).pip_install("b", env={"B": "2", "C": None})
    assert [step.env for step in spec_of(image).steps] == [{}, {"A": "1", "B": "2"}]


def test_a_forced_build_is_a_recipe_of_its_own_and_the_same_for_all_functions_of_a_run() -> None:
    images = [Image.debian_slim().pip_install("six", force_build=True) for _ in range(2)]
    assert wire.image_id(spec_of(images[0])) == wire.image_id(spec_of(images[0]))
    assert wire.image_id(spec_of(images[0])) != wire.image_id(spec_of(images[1]))


def test_an_app_gives_its_image_to_the_functions_without_one() -> None:
    own = Image.debian_slim().env({"WHOSE": "function", "ORDER": "image"})
    app = App("images", image=Image.debian_slim().env({"WHOSE": "app"}))

    @app.function()
    def first() -> None: ...

    @app.function(image=own, secrets=[nomadfn.Secret.from_dict({"ORDER": "secret"})])
    def second() -> None: ...

    specs = [one._complete("m", one.name, "") for one in (first, second)]
    assert [environment.merge(one, {}).get("WHOSE") for one in specs] == ["app", "function"]
    assert environment.merge(specs[1], {})["ORDER"] == "secret"
    assert [one.image for one in specs] == [spec_of(own)] * 2


def test_another_python_than_the_programs_is_refused_with_the_way_out() -> None:
    other = "3.12" if HERE != "3.12" else "3.13"
    with pytest.raises(InvalidError, match=rf"function f: its image has Python {other}.*run the program with Python"):
        spec_of(Image.debian_slim(python_version=other))
    assert spec_of(Image.debian_slim(HERE)).python == HERE


def bad() -> Any:
    slim: Any = Image.debian_slim
    return [
        (lambda: slim(3.12), "as text, such as '3.12'"),
        (lambda: slim("3.9"), "3.11 and newer"),
        (lambda: slim().pip_install("--upgrade"), "extra_options="),
        (lambda: slim().pip_install(7), "7 is no package"),
        (lambda: slim().pip_install("a", index_url=7), "index_url=7"),
        (lambda: slim().pip_install("a", extra_options="'"), "is no command line"),
        (lambda: slim().uv_pip_install(requirements="r.txt"), "a list of files"),
        (lambda: slim().pip_install_from_requirements("/nowhere/r.txt"), "there is no file /nowhere/r.txt"),
        (lambda: slim().uv_sync("/nowhere"), "there is no file /nowhere/pyproject.toml"),
        (lambda: slim().env({"A": 1}), "must be a string"),
        (lambda: slim().env("A=1"), "a dictionary"),
        (lambda: slim().workdir(""), "the path of a folder"),
        (lambda: slim().add_local_python_source(7), "names of modules"),
        (lambda: slim().pipe(lambda image: None), "has to return an image"),
        (lambda: Image.pip_install("numpy"), "an image is made first"),  # type: ignore[arg-type]
        (lambda: Image.from_registry(""), "the name of an image"),
        (lambda: Image(), "made by Image.debian_slim"),
        (lambda: App("x").function(image="python:3.12")(bad), "image= takes an Image"),  # type: ignore[arg-type]
        (lambda: App("x", image="python:3.12"), "image= takes an Image"),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("number", range(len(bad())))
def test_what_is_wrong_is_refused_where_it_is_written(number: int) -> None:
    call, words = bad()[number]
    with pytest.raises(InvalidError) as raised:
        call()
    assert words in str(raised.value)


@pytest.mark.parametrize("name", sorted(image_refusals.ON_IMAGE))
def test_what_needs_more_than_a_python_environment_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"Image.{name} is not supported by nomadfn; "):
        getattr(Image.debian_slim(), name)


@pytest.mark.parametrize("name", sorted(image_refusals.ON_CLASS))
def test_what_another_base_would_need_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"Image.{name} is not supported by nomadfn; "):
        getattr(Image, name)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Image.debian_slim().pip_install("a", secrets=[nomadfn.Secret.from_dict({"A": "1"})]), "secrets="),
        (lambda: Image.debian_slim().uv_pip_install("a", uv_version="0.4"), "uv_version="),
        (lambda: Image.from_registry("ubuntu:22.04", add_python="3.12"), "add_python="),
        (lambda: Image.from_registry("a", setup_dockerfile_commands=["RUN x"]), "setup_dockerfile_commands="),
        (lambda: Image.debian_slim().add_local_python_source("x", ignore=["*.md"]), "ignore="),
    ],
)
def test_a_setting_that_is_not_there_is_refused_and_its_empty_value_is_not(call: Any, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        call()
    Image.debian_slim().pip_install("a", secrets=[], gpu="H100", env={}).add_local_python_source("x", copy=True)


def test_failed_imports_are_kept_for_containers_of_this_very_image() -> None:
    image = Image.debian_slim()
    with image.imports():
        import no_such_module  # noqa: F401
    assert [str(error) for error in image.import_errors] == ["No module named 'no_such_module'"]
    assert image.pip_install("six").import_errors == []
    with warnings.catch_warnings(record=True) as caught, image.imports():
        warnings.simplefilter("always")
        raise ValueError("not an import")
    assert "not an import" in str(caught[0].message)


def test_an_image_that_a_pickled_function_holds_travels_without_its_recipe() -> None:
    image = Image.debian_slim().pip_install("six")
    assert spec_of(cloudpickle.loads(cloudpickle.dumps(image))).steps == []


def test_the_recipe_is_shown_without_variables_and_credentials() -> None:
    image = Image.debian_slim().pip_install("a", index_url="https://me:hunter2@host/simple", env={"TOKEN": "hunter2"})
    spec = wire.FunctionSpec(name="f", image=spec_of(image))
    assert environment.has_values(spec)
    shown = environment.without_values(spec)
    assert "hunter2" not in msgspec.json.encode(shown).decode()
    assert shown.image is not None
    assert shown.image.steps[0].arguments[-1] == "https://***@host/simple"
    assert not environment.has_values(wire.FunctionSpec(name="f", image=spec_of(Image.debian_slim().pip_install("a"))))


def test_a_module_that_is_named_travels_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "site-packages"
    (library / "named_package" / "part").mkdir(parents=True)
    (library / "named_package" / "__init__.py").write_text("")
    (library / "named_package" / "part" / "__init__.py").write_text("")
    (library / "named_module.py").write_text("")
    monkeypatch.syspath_prepend(str(library))
    assert set(code.find_source("named_package.part")) == {
        "named_package/__init__.py",
        "named_package/part/__init__.py",
    }
    assert code.find_source("named_module") == {"named_module.py": library / "named_module.py"}
    data, ref = code.pack([], ["named_module"], as_modal=False)
    assert data
    assert (bool(ref.digest), ref.main_module) == (True, "")
    for name in ("no_such_module", "sys"):
        with pytest.raises(InvalidError, match=f"no module '{name}' with source"):
            code.find_source(name)
