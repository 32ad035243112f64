"""Whose agent it is that joins: the identity that Nomad (1.7 or newer) has signed for its allocation.

An identity is a JWT with the audience `nomadfn`. Nomad's public keys are fetched when they are needed, kept, and
fetched anew for a key that is not among them (Nomad rotates them), yet not more often than each FETCH_PAUSE_S.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import jwt

from nomadfn.control.join_tokens import AgentIdentity
from nomadfn.exception import AuthError, ServiceError

AUDIENCE = "nomadfn"
ALGORITHMS = ("RS256", "EdDSA")
LEEWAY_S = 30.0
"""How far the clocks of Nomad's servers and this one may be apart."""
FETCH_PAUSE_S = 5.0
CLAIMS = ("aud", "exp", "nomad_namespace", "nomad_job_id", "nomad_allocation_id")


class WorkloadIdentities:
    """`fetch_keys` gets Nomad's key set (`/.well-known/jwks.json`); it may block, and so may `verify`."""

    def __init__(self, fetch_keys: Callable[[], dict[str, Any]], namespace: str = "default") -> None:
        self._fetch_keys = fetch_keys
        self._namespace = namespace
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._lock = threading.Lock()

    def verify(self, bearer: str) -> AgentIdentity:
        """Raises `AuthError` for what is no identity for nomadfn, or `ServiceError` where Nomad gives no keys."""
        try:
            kid = jwt.get_unverified_header(bearer).get("kid", "")
            key = self._key(str(kid))
            claims: dict[str, Any] = jwt.decode(
                bearer,
                key,
                algorithms=[name for name in ALGORITHMS if name == key.algorithm_name],
                audience=AUDIENCE,
                leeway=LEEWAY_S,
                options={"require": list(CLAIMS)},
            )
        except jwt.PyJWTError as error:
            raise AuthError(
                f"the agent's workload identity is not accepted: {error}; it needs the audience {AUDIENCE}, and the "
                f"clocks of Nomad's servers and this one must agree"
            ) from None
        if claims["nomad_namespace"] != self._namespace:
            raise AuthError(
                f"the agent's job is in the Nomad namespace {claims['nomad_namespace']}, and not in {self._namespace}"
            )
        return AgentIdentity(str(claims["nomad_job_id"]), str(claims["nomad_allocation_id"]))

    def _key(self, kid: str) -> jwt.PyJWK:
        with self._lock:
            if kid not in self._keys and time.monotonic() - self._fetched_at > FETCH_PAUSE_S:
                self._keys = self._fetch()
                self._fetched_at = time.monotonic()
            if kid not in self._keys:
                raise AuthError(f"the agent's workload identity is signed with a key {kid!r} that Nomad does not have")
            return self._keys[kid]

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        found = self._fetch_keys()
        try:
            return {str(key.key_id): key for key in jwt.PyJWKSet.from_dict(found).keys}
        except (jwt.PyJWTError, KeyError, TypeError) as error:
            raise ServiceError(f"Nomad's key set cannot be read: {error!r}") from None
