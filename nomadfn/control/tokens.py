"""Who may do what: one token of the owner, and one a container that lasts as long as it does.

Tokens are 256 random bits behind `nf_`. Only their sha256 is kept here, and it is compared in constant time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

import msgspec

from nomadfn.exception import AuthError, ConflictError, PermissionDeniedError

SALT = b"nomadfn container tokens"


class Identity(msgspec.Struct, frozen=True):
    """Who holds a token: the owner (`container` empty), or one container, for its own app only."""

    container: str = ""
    app: str = ""

    def require_owner(self) -> None:
        if self.container:
            raise PermissionDeniedError(
                "a container may call and scale functions of its own app and use Dicts and Queues, and nothing else"
            )

    def require_app(self, app: str) -> None:
        if self.container and app != self.app:
            raise PermissionDeniedError(
                "a container may only use functions of its own app; call the other app from your own program, "
                "or put both functions into one app"
            )


class Tokens:
    """The tokens that are good now. `derived` are the same at every control service with the same owner's token.

    `metrics` is good for reading `/metrics` and nothing else, `web` for web functions that want a token.
    """

    def __init__(self, owner: str, *, derived: bool = False, metrics: str = "", web: str = "") -> None:
        self._owner = _digest(owner)
        self._web = _digest(web) if web else b""
        self._metrics = _digest(metrics) if metrics else b""
        # Derived slowly: containers see their tokens, and shall not be able to guess the owner's from one.
        self._key = hashlib.scrypt(owner.encode(), salt=SALT, n=2**14, r=8, p=1, dklen=32) if derived else b""
        self._containers: dict[bytes, Identity] = {}
        self._by_container: dict[str, bytes] = {}

    def issue(self, container: str, app: str) -> str:
        token = self._derive(container, app) if self._key else make_token()
        digest = _digest(token)
        self._containers[digest] = Identity(container, app)
        self._by_container[container] = digest
        return token

    def _derive(self, container: str, app: str) -> str:
        mac = hmac.new(self._key, f"container {container} of {app}".encode(), hashlib.sha256)
        return "nf_" + base64.urlsafe_b64encode(mac.digest()).decode().rstrip("=")

    def derive_key(self, purpose: str) -> bytes:
        """32 bytes that every control service with the same owner's token has, and nobody else; `derived` only."""
        assert self._key
        return hmac.digest(self._key, f"key for {purpose}".encode(), hashlib.sha256)

    def revoke(self, container: str) -> None:
        digest = self._by_container.pop(container, None)
        if digest is not None:
            del self._containers[digest]

    def require_scraper(self, bearer: str | None) -> None:
        """Raises `AuthError` or `PermissionDeniedError` for who may not read `/metrics`."""
        if not (bearer and self._metrics and hmac.compare_digest(_digest(bearer), self._metrics)):
            self.identify(bearer).require_owner()

    def require_web(self, token: str, app: str) -> None:
        """For web functions of `app` that want a token. Raises `AuthError` or `PermissionDeniedError`."""
        if not (token and self._web and hmac.compare_digest(_digest(token), self._web)):
            self.identify(token).require_app(app)

    def identify(self, bearer: str | None) -> Identity:
        """Raises `AuthError` when there is no token, or a wrong one."""
        if not bearer:
            raise AuthError("no token was given; set NOMADFN_TOKEN, or send the header Authorization: Bearer nf_…")
        digest = _digest(bearer)
        if hmac.compare_digest(digest, self._owner):
            return Identity()
        found = self._containers.get(digest)
        if found is None:
            raise AuthError("the token is wrong, or is no longer good; see the file `token` in the data folder")
        return found


def make_token() -> str:
    return "nf_" + secrets.token_urlsafe(32)


def load_or_create(path: Path) -> str:
    """The owner's token from its file, which is made with mode 0600 when it is missing."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = path.read_text().strip()
        if not token.startswith("nf_"):
            raise ConflictError(f"{path} holds no token; remove it and a new one is made") from None
        return token
    token = make_token()
    with os.fdopen(handle, "w") as file:
        file.write(token + "\n")
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
