"""Where Consul is comes from the variables that its own command line takes; what is wrong with them is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomadfn.adapters.consul_store import POLICY, ConsulSettings, ConsulStore, ConsulUnreachableError, Shard
from nomadfn.exception import InvalidError


@pytest.mark.parametrize(
    ("env", "address"),
    [
        ({}, "http://127.0.0.1:8500"),
        ({"CONSUL_HTTP_ADDR": "consul.internal:8500"}, "http://consul.internal:8500"),
        ({"CONSUL_HTTP_ADDR": "consul.internal:8501", "CONSUL_HTTP_SSL": "true"}, "https://consul.internal:8501"),
        ({"CONSUL_HTTP_ADDR": "https://consul.internal:8501"}, "https://consul.internal:8501"),
        ({"CONSUL_HTTP_ADDR": "[::1]:8500"}, "http://[::1]:8500"),
    ],
)
def test_the_address_is_read_as_consul_reads_it(env: dict[str, str], address: str) -> None:
    settings = ConsulSettings.from_environment(env)
    assert settings.address == address
    ConsulStore(settings).close()


def test_the_token_comes_from_a_variable_or_a_file_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("from-a-file\n")
    from_file = ConsulSettings.from_environment({"CONSUL_HTTP_TOKEN_FILE": str(file)})
    assert from_file.token == "from-a-file"
    assert "from-a-file" not in repr(from_file)
    assert ConsulSettings.from_environment({"CONSUL_HTTP_TOKEN": "t"}).token == "t"
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "of somebody else")
    store = ConsulStore(from_file)
    assert store._client.prepare_headers() == {"X-Consul-Token": "from-a-file"}
    store.close()
    with pytest.raises(InvalidError, match=r"CONSUL_HTTP_TOKEN_FILE names .*gone.*No such file"):
        ConsulSettings.from_environment({"CONSUL_HTTP_TOKEN_FILE": str(tmp_path / "gone")})


def test_the_files_of_tls_are_those_of_the_variables() -> None:
    names = {"CONSUL_CACERT": "ca.pem", "CONSUL_CLIENT_CERT": "c.pem", "CONSUL_CLIENT_KEY": "k.pem"}
    settings = ConsulSettings.from_environment({**names, "CONSUL_HTTP_SSL_VERIFY": "false"})
    assert (settings.ca_file, settings.cert_file, settings.key_file, settings.verify) == (*names.values(), False)


@pytest.mark.parametrize("address", ["unix:///var/run/consul.sock", "http://", "http://host:port", "ftp://host:1"])
def test_an_address_that_cannot_be_used_is_named_with_the_variable(address: str) -> None:
    with pytest.raises(InvalidError, match="CONSUL_HTTP_ADDR"):
        ConsulStore(ConsulSettings(address))


def test_a_consul_that_is_not_there_is_said_in_one_line() -> None:
    store = ConsulStore(ConsulSettings("http://127.0.0.1:1"))
    with pytest.raises(
        ConsulUnreachableError,
        match=r"^Consul at http://127\.0\.0\.1:1 did not answer \(.*Connection refused\); check that it runs",
    ):
        store.get("key")
    store.close()


@pytest.mark.parametrize("name", ["", "Prod", "a.b", "a/b", "-a", "a-", "x" * 64, "a b"])
def test_a_cluster_has_a_name_that_makes_readable_keys(name: str) -> None:
    with pytest.raises(InvalidError, match="cannot name a cluster"):
        Shard(name)


def test_the_policy_of_the_documentation_is_the_one_that_the_tests_run_with() -> None:
    page = Path(__file__).parents[2] / "docs" / "cluster.md"
    assert f"\n{POLICY}```" in page.read_text()
