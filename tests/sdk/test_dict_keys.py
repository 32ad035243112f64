"""The bytes that stand for the keys of a Dict: one form for each value, whoever makes it."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomadfn.exception import DeserializationError, InvalidError, SerializationError, UnsupportedError
from nomadfn.sdk.dict_keys import decode, encode
from nomadfn.sdk.dicts import Dict

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=8,
)


def typed(key: Any) -> Any:
    """A key with its types: 1, 1.0 and True are different keys, as they are on Modal."""
    return (tuple, *map(typed, key)) if isinstance(key, tuple) else (type(key), key)


@given(PLAIN)
def test_a_key_comes_back_as_it_was(key: Any) -> None:
    assert typed(decode(encode(key), "it")) == typed(key)


@given(PLAIN, PLAIN)
def test_keys_are_the_same_bytes_exactly_where_they_are_equal(one: Any, other: Any) -> None:
    assert (encode(one) == encode(other)) == (typed(one) == typed(other))


def test_a_key_has_the_same_bytes_in_another_process_and_however_it_was_made() -> None:
    shared = "".join(["ab", "cd"])
    assert encode((shared, shared)) == encode(("abcd", "".join("abcd")))
    program = "from nomadfn.sdk.dict_keys import encode; print(encode(('abcd', 1, b'x', None, 2.5)).hex())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == encode((shared, 1, b"x", None, 2.5)).hex()


@pytest.mark.parametrize("key", [date(2027, 1, 15), frozenset((1,)), 2**200, -(2**70), (1, date(2027, 1, 15))])
def test_other_keys_are_pickled(key: Any) -> None:
    assert encode(key) == encode(key)
    assert decode(encode(key), "it") == key


def test_what_cannot_be_a_key_is_refused() -> None:
    with pytest.raises(SerializationError, match="a generator cannot be a key of a Dict"):
        encode(one for one in ())
    with pytest.raises(DeserializationError, match="a key of the Dict cannot be read here"):
        decode(b"p" + b"no pickle", "the Dict")


@pytest.mark.parametrize("name", ["", "has space", "has/slash", "a" * 65, 5])
def test_a_wrong_name_is_refused_at_once(name: Any) -> None:
    with pytest.raises(InvalidError, match="Dict name"):
        Dict.from_name(name)


def test_what_cannot_be_done_is_refused_by_name() -> None:
    with pytest.raises(InvalidError, match=r"a Dict is made by Dict.from_name"):
        Dict()
    with pytest.raises(UnsupportedError, match=r"Dict.from_name\(environment_name=...\) is not supported"):
        Dict.from_name("a", environment_name="dev")
    with pytest.raises(InvalidError, match="begin with 'di-'"):
        Dict.from_id("qu-1")
    one: Any = Dict.from_name("a")
    with pytest.raises(UnsupportedError, match=r"Dict.setdefault is not supported"):
        one.setdefault("x", 1)
    with pytest.raises(AttributeError):
        _ = one.surely_not
    assert repr(one) == "Dict.from_name('a')"
