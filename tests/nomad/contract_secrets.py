"""What every store of secrets does. `store` is an empty one."""

from __future__ import annotations

import pytest

from nomadfn.exception import AlreadyExistsError, InvalidError, NotFoundError
from nomadfn.ports import Secrets

VALUES = {"USER": "ada", "PASSWORD": "'\"\\\n${x} %{y} {{z}} é", "EMPTY": ""}


class SecretsContract:
    def test_what_is_written_is_read_as_it_was(self, store: Secrets) -> None:
        store.write("db", VALUES)
        assert store.read("db") == VALUES
        assert list(store.names()) == ["db"]
        assert store.names()["db"] > 1_500_000_000

    def test_a_name_is_taken_once_unless_it_is_replaced(self, store: Secrets) -> None:
        store.write("db", VALUES)
        with pytest.raises(AlreadyExistsError, match="db already") as caught:
            store.write("db", {"A": "1"})
        assert "ada" not in str(caught.value)
        assert store.read("db") == VALUES
        store.write("db", {"A": "1"}, replace=True)
        assert store.read("db") == {"A": "1"}

    def test_one_that_is_not_there_is_told_with_how_to_make_it(self, store: Secrets) -> None:
        assert store.names() == {}
        for call in (store.read, store.delete):
            with pytest.raises(NotFoundError, match="nomadfn secret create db KEY=-"):
                call("db")

    def test_a_deleted_one_is_gone(self, store: Secrets) -> None:
        store.write("db", VALUES)
        store.delete("db")
        assert store.names() == {}
        with pytest.raises(NotFoundError):
            store.read("db")

    def test_no_name_leads_elsewhere(self, store: Secrets) -> None:
        for name in ("", "a/b", "../a", "a.b", "a b", "x" * 65, "vault:a"):
            with pytest.raises(InvalidError):
                store.write(name, VALUES)
            with pytest.raises(InvalidError):
                store.read(name)
