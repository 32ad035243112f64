"""Secrets in files, in Nomad variables and in Consul keys."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from consul_server import running_consul
from contract_secrets import VALUES, SecretsContract
from nomad_worlds import NomadWorld

from nomadfn.adapters.cluster_secrets import FOLDER, ClusterSecrets
from nomadfn.adapters.consul_store import ConsulStore
from nomadfn.adapters.file_secrets import FileSecrets
from nomadfn.adapters.nomad_api import NomadApi
from nomadfn.exception import InvalidError, NotFoundError, PermissionDeniedError
from nomadfn.ports import Secrets


class TestFiles(SecretsContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Secrets:
        return FileSecrets(tmp_path / "secrets")

    def test_only_their_owner_may_read_them(self, store: Secrets, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            store.write("db", VALUES)
        finally:
            os.umask(before)
        folder = tmp_path / "secrets"
        assert [folder.stat().st_mode & 0o777, (folder / "db.json").stat().st_mode & 0o777] == [0o700, 0o600]
        assert os.listdir(folder) == ["db.json"]

    def test_one_of_a_cluster_is_refused(self, store: Secrets) -> None:
        with pytest.raises(InvalidError, match="one of a cluster"):
            store.read("nomad:team/db")

    @pytest.mark.parametrize("content", ["hunter2", '["hunter2"]', '{"A": ["hunter2"]}'])
    def test_a_damaged_one_is_told_without_what_is_in_it(self, store: Secrets, tmp_path: Path, content: str) -> None:
        store.write("db", VALUES)
        (tmp_path / "secrets" / "db.json").write_text(content)
        with pytest.raises(InvalidError, match="db") as caught:
            store.read("db")
        assert "hunter2" not in str(caught.value)


class TestNomadVariables(SecretsContract):
    @pytest.fixture
    def store(self, world: NomadWorld) -> Iterator[Secrets]:
        api = NomadApi(world.nomad.address)
        yield ClusterSecrets(api, ConsulStore.__new__(ConsulStore))
        if world.double is not None:
            world.double.state.forbidden.clear()
        for one in (*api.variables(FOLDER), *api.variables("team/")):
            api.delete_variable(one["Path"])
        api.close()

    def test_any_variable_of_the_namespace_can_be_named(self, store: Secrets, world: NomadWorld) -> None:
        world.api.put_variable("team/db", {"A": "1"})
        assert store.read("nomad:team/db") == {"A": "1"}
        assert store.names() == {}
        with pytest.raises(NotFoundError, match="nomad var put -namespace=default team/none"):
            store.read("nomad:team/none")

    def test_nomads_own_variables_are_out_of_reach(self, store: Secrets) -> None:
        for path in (
            "",
            "nomad/jobs/nomadfn-control",
            "nomad/jobs",
            "/nomad/jobs/x",
            "a//b",
            "a b",
            "a?b=c",
            "a/../nomad/jobs",
            "x" * 129,
        ):
            with pytest.raises(InvalidError, match="no path of a Nomad variable"):
                store.read(f"nomad:{path}")

    def test_what_the_token_may_not_do_is_told_with_what_to_run(self, store: Secrets, world: NomadWorld) -> None:
        if world.double is None:
            pytest.skip("this Nomad has no ACLs")
        store.write("db", VALUES)
        world.double.state.forbidden.append(FOLDER)
        command = f"nomad var put -namespace=default {FOLDER}db USER=… PASSWORD=… EMPTY=…"
        with pytest.raises(PermissionDeniedError, match=command) as caught:
            store.write("db", VALUES, replace=True)
        assert "ada" not in str(caught.value)
        with pytest.raises(PermissionDeniedError, match=f"read on variables {FOLDER}db"):
            store.read("db")
        with pytest.raises(PermissionDeniedError, match=f"read on variables {FOLDER}db"):
            store.delete("db")


@pytest.mark.consul
def test_a_key_of_consul_holds_one_json_object_of_strings(tmp_path: Path) -> None:
    with running_consul(tmp_path) as consul:
        store = consul.store(token=consul.make_token('key_prefix "team/" { policy = "read" }'))
        secrets = ClusterSecrets(NomadApi.__new__(NomadApi), store)
        client = consul.client()
        try:
            client.kv.put("team/db", json.dumps(VALUES))
            assert secrets.read("consul:team/db") == VALUES
            for wrong in ("hunter2", '["hunter2"]', '{"A": ["hunter2"]}'):
                client.kv.put("team/db", wrong)
                with pytest.raises(InvalidError, match="consul:team/db") as caught:
                    secrets.read("consul:team/db")
                assert "hunter2" not in str(caught.value)
            with pytest.raises(NotFoundError, match="consul kv put team/none @FILE"):
                secrets.read("consul:team/none")
            for path in ("", "nomadfn/prod/apps/x", "team/../nomadfn/x", "../kv/nomadfn/x", "./nomadfn/x", "/a", "a?b"):
                with pytest.raises(InvalidError, match="not below nomadfn/"):
                    secrets.read(f"consul:{path}")
            client.kv.put("team/v1.2/.db", "{}")
            assert secrets.read("consul:team/v1.2/.db") == {}
            with pytest.raises(PermissionDeniedError, match="other/db"):
                secrets.read("consul:other/db")
        finally:
            client.http.session.close()
            store.close()
