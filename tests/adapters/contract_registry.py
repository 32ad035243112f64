"""What every registry must do. An adapter joins with one entry in `test_registry.py`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nomadfn.ports import Registry

KEYS = st.text("ab/-é𝄞", min_size=1, max_size=5)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class RegistryContract:
    def test_a_key_that_was_never_put_has_no_value(self, registry: Registry) -> None:
        assert registry.get("apps/none") is None
        assert registry.list("") == {}
        registry.delete("apps/none")

    def test_a_value_can_be_replaced_and_deleted(self, registry: Registry) -> None:
        registry.put("apps/thumbs", {"version": 1})
        registry.put("apps/thumbs", {"version": 2})
        assert registry.get("apps/thumbs") == {"version": 2}
        registry.delete("apps/thumbs")
        assert registry.get("apps/thumbs") is None

    def test_changing_what_was_put_or_given_changes_nothing_inside(self, registry: Registry) -> None:
        value = {"list": [1]}
        registry.put("key", value)
        value["list"].append(2)
        given_back = registry.get("key")
        assert given_back == {"list": [1]}
        given_back["list"].append(3)
        assert registry.get("key") == {"list": [1]}

    def test_a_listing_holds_the_keys_under_the_prefix_and_no_other_sorted(self, registry: Registry) -> None:
        for key in ("apps/b", "apps/a", "apps-old/c", "overrides/a/f", "apps"):
            registry.put(key, key)
        assert list(registry.list("apps/")) == ["apps/a", "apps/b"]
        assert list(registry.list("")) == ["apps", "apps-old/c", "apps/a", "apps/b", "overrides/a/f"]

    @pytest.mark.parametrize("value", [float("nan"), object(), {"a": b"bytes"}])
    def test_what_is_not_json_is_refused_and_changes_nothing(self, registry: Registry, value: object) -> None:
        registry.put("key", 1)
        with pytest.raises((TypeError, ValueError)):
            registry.put("key", value)
        assert registry.get("key") == 1

    @settings(
        max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(entries=st.dictionaries(KEYS, VALUES, max_size=5), gone=st.sets(KEYS, max_size=3), prefix=KEYS)
    def test_any_entries_come_back_as_a_dictionary_would_give_them(
        self,
        registry: Registry,
        entries: dict[str, Any],
        gone: set[str],
        prefix: str,
    ) -> None:
        for key in registry.list(""):
            registry.delete(key)
        for key, value in entries.items():
            registry.put(key, value)
        for key in gone:
            registry.delete(key)
            entries.pop(key, None)
        expected = {key: entries[key] for key in sorted(entries)}
        assert list(registry.list("").items()) == list(expected.items())
        assert registry.list(prefix) == {key: value for key, value in expected.items() if key.startswith(prefix)}
        assert all(registry.get(key) == value for key, value in entries.items())

    def test_several_threads_may_use_it_at_once(self, registry: Registry) -> None:
        def fill(name: str) -> None:
            for number in range(25):
                registry.put(f"{name}/{number:02}", number)
                assert len(registry.list(f"{name}/")) == number + 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(fill, "abcd"))
        assert len(registry.list("")) == 100

    def test_everything_is_there_after_a_restart(
        self, registry: Registry, reopen: Callable[[Registry], Registry]
    ) -> None:
        registry.put("apps/thumbs", {"name": "thumbs", "größe": None})
        again = reopen(registry)
        assert again.get("apps/thumbs") == {"name": "thumbs", "größe": None}
        again.close()
