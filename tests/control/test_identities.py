"""Who may join: identities that Nomad signs, and tokens for one job."""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

from nomadfn.control import identities
from nomadfn.control.identities import WorkloadIdentities
from nomadfn.control.join_tokens import AgentIdentity, JoinTokens
from nomadfn.exception import AuthError, ServiceError

RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
ED_KEY = ed25519.Ed25519PrivateKey.generate()


class Nomad:
    """What signs identities, and offers its public keys."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"one": RSA_KEY}
        self.fetches = 0

    def fetch_keys(self) -> dict[str, Any]:
        self.fetches += 1
        found = []
        for kid, key in self.keys.items():
            is_rsa = isinstance(key, rsa.RSAPrivateKey)
            kind = RSAAlgorithm if is_rsa else OKPAlgorithm
            alg = "RS256" if is_rsa else "EdDSA"
            found.append({**json.loads(kind.to_jwk(key.public_key())), "kid": kid, "alg": alg, "use": "sig"})
        return {"keys": found}

    def sign(self, key: Any = RSA_KEY, kid: str = "one", **changes: Any) -> str:
        now = int(time.time())
        claims = {
            "aud": "nomadfn",
            "exp": now + 3600,
            "iat": now,
            "nbf": now,
            "nomad_namespace": "default",
            "nomad_job_id": "nomadfn-fn-shop-f-1",
            "nomad_allocation_id": "1111",
            "nomad_task": "agent",
        } | changes
        present = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(present, key, "RS256" if isinstance(key, rsa.RSAPrivateKey) else "EdDSA", {"kid": kid})


@pytest.fixture
def nomad() -> Nomad:
    return Nomad()


def test_an_identity_names_its_job_and_allocation_and_keys_are_fetched_once(nomad: Nomad) -> None:
    verifier = WorkloadIdentities(nomad.fetch_keys)
    for _ in range(3):
        assert verifier.verify(nomad.sign()) == AgentIdentity("nomadfn-fn-shop-f-1", "1111")
    assert verifier.verify(nomad.sign(aud=["other", "nomadfn"])).alloc == "1111"
    assert nomad.fetches == 1


def test_a_key_that_came_later_is_fetched_yet_not_at_each_try(nomad: Nomad, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = WorkloadIdentities(nomad.fetch_keys)
    verifier.verify(nomad.sign())
    nomad.keys["two"] = ED_KEY
    for _ in range(3):
        with pytest.raises(AuthError, match="'two' that Nomad does not have"):
            verifier.verify(nomad.sign(ED_KEY, "two"))
    assert nomad.fetches == 1
    monkeypatch.setattr(identities, "FETCH_PAUSE_S", 0.0)
    assert verifier.verify(nomad.sign(ED_KEY, "two")).alloc == "1111"
    assert nomad.fetches == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"aud": "vault.io"}, "Audience"),
        ({"aud": None}, "aud"),
        ({"exp": int(time.time()) - 3600}, "expired"),
        ({"exp": None}, "exp"),
        ({"nbf": int(time.time()) + 3600}, "not yet valid"),
        ({"nomad_namespace": "other"}, "namespace other"),
        ({"nomad_allocation_id": None}, "nomad_allocation_id"),
    ],
)
def test_an_identity_for_others_or_another_time_is_refused(nomad: Nomad, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(AuthError, match=why):
        WorkloadIdentities(nomad.fetch_keys).verify(nomad.sign(**changes))


def test_a_forged_identity_is_refused(nomad: Nomad) -> None:
    verifier = WorkloadIdentities(nomad.fetch_keys)
    signed, claims, _ = nomad.sign().split(".")
    unsigned = jwt.encode(jwt.decode(nomad.sign(), options={"verify_signature": False}), "", "none", {"kid": "one"})
    public = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = encoded(b'{"alg": "HS256", "kid": "one"}')
    symmetric = f"{header}.{claims}"
    by_public_key = f"{symmetric}.{encoded(hmac.digest(public, symmetric.encode(), 'sha256'))}"
    for forged in (nomad.sign(OTHER_KEY), f"{signed}.{claims}.", unsigned, by_public_key, "a.b.c", "..", ""):
        with pytest.raises(AuthError):
            verifier.verify(forged)


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_a_key_set_that_is_none_is_told(nomad: Nomad) -> None:
    with pytest.raises(ServiceError, match="cannot be read"):
        WorkloadIdentities(lambda: {"keys": "none"}).verify(nomad.sign())


def test_a_join_token_is_good_for_its_job_at_every_control_service_of_the_same_owner() -> None:
    one, other = JoinTokens("nf_" + "a" * 20), JoinTokens("nf_" + "a" * 20)
    for job in ("nomadfn-fn-shop-f-1", "ünï…/ code"):
        assert other.verify(one.token(job)) == AgentIdentity(job)
    assert one.token("a").startswith("nf_")


def test_a_join_token_of_another_job_or_owner_is_refused() -> None:
    tokens = JoinTokens("nf_" + "a" * 20)
    name, _, mac = tokens.token("job-a").partition(".")
    forged = (
        tokens.token("job-b").partition(".")[0] + "." + mac,
        JoinTokens("nf_" + "b" * 20).token("job-a"),
        f"{name}.{mac[:-1]}",
        f"{name}.",
        name,
        "nf_join_!.!",
        "",
    )
    for one in forged:
        with pytest.raises(AuthError, match="join token is wrong"):
            tokens.verify(one)
