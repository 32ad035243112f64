"""What agents join with where Nomad signs no identities (before 1.7): a token for one job.

A job's token is made from the owner's by a keyed hash, so that every control service of a cluster knows it and none
has to keep it. It stands in the job's own Nomad variable, where the job's users can read it: so that a short owner's
token cannot be found by guessing from it, the key is derived with scrypt.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import hmac

import msgspec

from nomadfn.exception import AuthError

PREFIX = "nf_join_"
SALT = b"nomadfn join tokens 1"


class AgentIdentity(msgspec.Struct, frozen=True):
    """The job whose agent it is, and its allocation, which is empty where the credential holds for all of them."""

    job: str
    alloc: str = ""


class JoinTokens:
    """`token` makes a job's token, `verify` reads it back. The first use takes some 50 ms."""

    def __init__(self, owner_token: str) -> None:
        self._key = functools.cache(lambda: _derive(owner_token))

    def token(self, job: str) -> str:
        name = base64.urlsafe_b64encode(job.encode()).decode().rstrip("=")
        return f"{PREFIX}{name}.{self._mac(job)}"

    def verify(self, bearer: str) -> AgentIdentity:
        """Raises `AuthError`."""
        name, _, mac = bearer.removeprefix(PREFIX).partition(".")
        try:
            job = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            job = ""
        if not bearer.startswith(PREFIX) or not hmac.compare_digest(mac.encode(), self._mac(job).encode()):
            raise AuthError("the agent's join token is wrong; deploy the function again: its job gets a new one")
        return AgentIdentity(job)

    def _mac(self, job: str) -> str:
        return hmac.new(self._key(), job.encode(), hashlib.sha256).hexdigest()


def _derive(owner_token: str) -> bytes:
    return hashlib.scrypt(owner_token.encode(), salt=SALT, n=2**14, r=8, p=1, dklen=32)
