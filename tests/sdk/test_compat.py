"""The table of Modal's API is true of the code, and its page is made from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import nomadfn
from nomadfn.exception import DeprecationError, UnsupportedError
from nomadfn.sdk import compat

PAGE = Path(__file__).resolve().parents[2] / "docs/modal-compatibility.md"
TABLE = list(compat.features())


def of(status: str, *, owner: str = "") -> list[str]:
    """Names of one status, settings left out; with `owner`, its attributes."""
    names = [one.name for one in TABLE if one.status == status and "(" not in one.name]
    return [name for name in names if (name.startswith(f"{owner}.") if owner else "." not in name)]


def test_no_name_stands_there_twice() -> None:
    assert [name for name, count in Counter(one.name for one in TABLE).items() if count > 1] == []


@pytest.mark.parametrize("name", of(compat.SUPPORTED))
def test_what_is_supported_is_there(name: str) -> None:
    if name != "Obj":
        getattr(nomadfn, name)


@pytest.mark.parametrize(
    "name",
    [
        name
        for owner in ("App", "Function", "FunctionCall", "Cls", "Image", "Dict", "Queue", "Secret")
        for name in of(compat.SUPPORTED, owner=owner)
    ],
)
def test_what_is_supported_of_a_class_is_there(name: str) -> None:
    owner, attribute = name.split(".")[:2]
    found = nomadfn.App("table") if owner == "App" else getattr(nomadfn, owner)
    assert attribute in dir(found) or attribute in getattr(found, "__annotations__", {}), name


@pytest.mark.parametrize("name", of(compat.UNSUPPORTED))
def test_what_is_unsupported_raises_the_words_of_the_table(name: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        getattr(nomadfn, name)
    assert next(one.note for one in TABLE if one.name == name) in str(caught.value)


@pytest.mark.parametrize(
    "one", [one for one in TABLE if one.name.startswith("App.function(")], ids=lambda one: one.name
)
def test_a_setting_is_refused_or_taken_as_the_table_says(one: compat.Feature) -> None:
    setting = one.name.removeprefix("App.function(").removesuffix("=)")

    def define() -> None:
        def f() -> None: ...

        nomadfn.App("table").function(**{setting: object()})(f)  # type: ignore[misc]

    if one.status == compat.UNSUPPORTED:
        with pytest.raises(UnsupportedError):
            define()
    elif one.status == compat.RENAMED:
        with pytest.raises(DeprecationError):
            define()
    else:
        with pytest.raises(nomadfn.Error) as caught:
            define()  # whatever it takes, it is not just any object
        assert not isinstance(caught.value, UnsupportedError) or one.status == compat.IGNORED


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == compat.markdown(), "python -m nomadfn.sdk.compat > docs/modal-compatibility.md"


@pytest.mark.parametrize(
    ("use", "status"),
    [
        ("App.function(gpu=)", compat.SUPPORTED),
        ("App.cls(gpu=)", compat.SUPPORTED),
        ("App.function(keep_warm=)", compat.RENAMED),
        ("App.cls(volumes=)", compat.UNSUPPORTED),
        ("App.function(colour=)", compat.UNKNOWN),
        ("Function.map(order_outputs=)", compat.SUPPORTED),
        ("Function.from_name(environment_name=)", compat.UNSUPPORTED),
        ("Volume.commit", compat.UNSUPPORTED),
        ("exception.TimeoutError", compat.SUPPORTED),
        ("Function.autoscaler.update", compat.SUPPORTED),
        ("Function.fly", compat.UNKNOWN),
        ("fly", compat.UNKNOWN),
    ],
)
def test_a_use_is_found_by_itself_or_by_what_it_belongs_to(use: str, status: str) -> None:
    assert compat.Table().find(use).status == status
