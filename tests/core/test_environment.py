"""What a function's environment is made of, and that no error holds a value of it."""

from __future__ import annotations

import pytest
from nomadfn_agent import wire

from nomadfn.core import environment
from nomadfn.exception import InvalidError, NotFoundError

DB = wire.SecretSpec(name="db", required_keys=["PASSWORD"])


def test_what_comes_later_wins_and_env_is_the_last() -> None:
    spec = wire.FunctionSpec(
        name="f",
        env={"A": "env"},
        secrets=[wire.SecretSpec(values={"A": "1", "B": "1", "C": "1"}), DB, wire.SecretSpec(values={"C": "3"})],
    )
    merged = environment.merge(spec, {"db": {"A": "2", "B": "2", "C": "2"}})
    assert merged == {"A": "env", "B": "2", "C": "3"}


@pytest.mark.parametrize(
    "entries", [{"": "hunter2"}, {"A=B": "hunter2"}, {"A\0": "hunter2"}, {"A": "hunter2\0"}, {"A": "hunter2\ud800"}]
)
def test_what_can_be_no_variable_is_refused_without_its_value(entries: dict[str, str]) -> None:
    with pytest.raises(InvalidError, match="the secret db") as caught:
        environment.check(entries, "the secret db")
    assert "hunter2" not in str(caught.value)


def test_any_other_text_is_taken_as_it_is() -> None:
    entries = {'a"b${c} %{d}\n': "'\"\\\n\r\t${HOME} %{if} {{x}} $$ é 🎈", "EMPTY": ""}
    assert environment.check(entries, "env=") == entries


def test_a_variable_of_nomadfn_itself_is_refused() -> None:
    with pytest.raises(InvalidError, match="NOMADFN_TOKEN; names that begin with NOMADFN_"):
        environment.check({"NOMADFN_TOKEN": "x"}, "env=")


def test_a_key_that_is_required_and_missing_is_named_with_those_that_are_there() -> None:
    with pytest.raises(NotFoundError, match="the secret db lacks PASSWORD, which are required; it has HOST, USER"):
        environment.has_keys(DB, {"USER": "u", "HOST": "h"})
    environment.has_keys(DB, {"PASSWORD": ""})


def test_a_spec_is_shown_with_names_and_without_values() -> None:
    spec = wire.FunctionSpec(name="f", env={"A": "x"}, secrets=[DB, wire.SecretSpec(values={"B": "y"})], sealed="z")
    shown = environment.without_values(spec)
    assert (shown.env, shown.sealed) == ({"A": ""}, "")
    assert shown.secrets == [DB, wire.SecretSpec(values={"B": ""})]
