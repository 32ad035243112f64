"""Values of `env=` and of secrets, as they stand in the registry: sealed where others may read that.

A cluster's registry is a part of Consul, which whoever looks after Consul can read. There the values are encrypted
(Fernet: AES and an HMAC) with a key that comes of the owner's token, so each control service with that token can
read them, and after a takeover the next one does. On one machine the registry lies beside the token itself, and for
their owner alone: nothing is gained there, and nothing is sealed.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import msgspec
from nomadfn_agent import wire

from nomadfn.core import environment

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

OTHER_TOKEN = (
    "was deployed under another NOMADFN_TOKEN, and its values of env= and secrets cannot be read; deploy it again"
)


class _Values(msgspec.Struct):
    env: dict[str, str]
    secrets: list[wire.SecretSpec]
    image: wire.ImageSpec | None = None


class Seal:
    """`key` is 32 bytes; without one everything stays as it is."""

    def __init__(self, key: bytes = b"") -> None:
        self._fernet: Fernet | None = None
        if key:
            from cryptography.fernet import Fernet

            self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def close(self, app: wire.AppSpec) -> wire.AppSpec:
        """The app without readable values."""
        if self._fernet is None:
            return app
        return msgspec.structs.replace(app, functions=[self._close(one, self._fernet) for one in app.functions])

    def open(self, app: wire.AppSpec) -> wire.AppSpec:
        """The app with its values. Functions that another key has sealed stay so."""
        if self._fernet is None:
            return app
        return msgspec.structs.replace(app, functions=[self._open(one, self._fernet) for one in app.functions])

    def _close(self, spec: wire.FunctionSpec, fernet: Fernet) -> wire.FunctionSpec:
        if spec.sealed or not environment.has_values(spec):
            return spec
        sealed = fernet.encrypt(msgspec.json.encode(_Values(spec.env, spec.secrets, spec.image))).decode()
        return msgspec.structs.replace(environment.without_values(spec), sealed=sealed)

    def _open(self, spec: wire.FunctionSpec, fernet: Fernet) -> wire.FunctionSpec:
        from cryptography.fernet import InvalidToken

        if not spec.sealed:
            return spec
        try:
            values = msgspec.json.decode(fernet.decrypt(spec.sealed), type=_Values)
        except InvalidToken:
            return spec
        image = values.image or spec.image
        return msgspec.structs.replace(spec, env=values.env, secrets=values.secrets, image=image, sealed="")
