"""Secrets as a program makes them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from nomadfn_agent import wire

from nomadfn import Secret
from nomadfn.exception import InvalidError, UnsupportedError


def values(secret: Secret) -> dict[str, str]:
    return secret._spec().values


def test_a_dictionary_gives_its_values_but_for_none() -> None:
    assert values(Secret.from_dict({"A": "1", "B": None, "C": ""})) == {"A": "1", "C": ""}
    assert values(Secret.from_dict()) == {}


def test_a_name_stands_for_values_that_are_kept_elsewhere() -> None:
    assert Secret.from_name("db", required_keys=["A"])._spec() == wire.SecretSpec(name="db", required_keys=["A"])
    for name in ("nomad:team/db", "consul:team/db"):
        assert Secret.from_name(name)._spec() == wire.SecretSpec(name=name)


def test_a_dotenv_file_is_found_above_and_read_only_when_the_app_is_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    here = Secret.from_dotenv()
    there = Secret.from_dotenv(below / "program.py", filename=".env-dev")
    (tmp_path / ".env").write_text("# a comment\nexport A=1\nB='two words'\nNOTHING\n")
    (below / "program.py").touch()
    (below / ".env-dev").write_text('C="line\\nline"\n')
    assert values(here) == {"A": "1", "B": "two words"}
    assert values(there) == {"C": "line\nline"}


def test_a_dotenv_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"no file \.env-none in .* or above it"):
        values(Secret.from_dotenv(tmp_path, filename=".env-none"))
    with pytest.raises(InvalidError, match="no file or folder"):
        values(Secret.from_dotenv(tmp_path / "gone"))


def test_the_local_environment_is_read_here_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "1")
    assert values(Secret.from_local_environ(["A_KEY"])) == {"A_KEY": "1"}
    with pytest.raises(InvalidError, match="NO_SUCH_KEY is not set"):
        Secret.from_local_environ(["A_KEY", "NO_SUCH_KEY"])
    monkeypatch.setenv("NOMADFN_CONTAINER_ID", "ct-1")
    assert values(Secret.from_local_environ(["NO_SUCH_KEY"])) == {}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Secret.from_dict(["A"]), "needs a dictionary"),  # type: ignore[arg-type]
        (lambda: Secret.from_dict({"A": 1}), "the value of A must be a string, not int"),  # type: ignore[dict-item]
        (lambda: Secret.from_dict({"NOMADFN_X": "1"}), "nomadfn's own"),
        (lambda: Secret.from_name("a b"), "'a b' is not the name of a secret"),
        (lambda: Secret.from_name(None), "None is not the name"),  # type: ignore[arg-type]
        (lambda: Secret(), "is made by Secret.from_name"),
    ],
)
def test_a_wrong_one_is_refused_where_it_is_made(make: Any, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Secret.from_name("db", environment_name="main"),
        lambda: Secret.from_dotenv(client=object()),
        lambda: Secret.objects,
        lambda: Secret.from_name("db").hydrate(),
    ],
)
def test_what_only_modal_has_is_named(make: Any) -> None:
    with pytest.raises(UnsupportedError, match="is not supported by nomadfn"):
        make()


def test_neither_its_words_nor_its_pickle_hold_a_value() -> None:
    secret = Secret.from_dict({"A": "hunter2"})
    assert repr(secret) == "Secret.from_dict([A])"
    assert b"hunter2" not in pickle.dumps(secret)
    assert values(pickle.loads(pickle.dumps(secret))) == {}
