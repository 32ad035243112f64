"""Asking the profile's control service for what HTTP does not offer: operations over the SDK's own connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nomadfn.exception import InvalidError
from nomadfn.profiles import Profile, load_profile

if TYPE_CHECKING:
    from nomadfn.sdk.app import App
    from nomadfn.sdk.service import ServiceHandle

TIMEOUT_S = 60.0


def cluster_profile(command: str) -> Profile:
    """The profile, which has to be a cluster's. Raises `InvalidError`."""
    profile = load_profile()
    if profile.is_local:
        raise InvalidError(
            f"{command} speaks to a cluster, and the profile is this machine; name one of nomadfn.toml with --profile "
            "or NOMADFN_PROFILE"
        )
    return profile


def request(handle: ServiceHandle, operation: str, body: dict[str, Any], timeout_s: float = TIMEOUT_S) -> Any:
    """One operation of the control service. Raises what it answers, or ServiceError."""
    from nomadfn.sdk.blocking import run_sync
    from nomadfn.sdk.client import Client

    client = Client(handle)
    try:
        return run_sync(client.request(operation, body, timeout_s))
    finally:
        client.close()


def spec_of(app: App, name: str | None = None) -> dict[str, Any]:
    """What the cluster must know of an app: its functions, without their code."""
    import msgspec
    from nomadfn_agent import wire

    from nomadfn.sdk.app import to_builtins

    parts = [*app.registered_functions.values(), *(one._function for one in app.registered_classes.values())]
    specs = [
        msgspec.structs.replace(one.spec, image=one.image._spec(f"function {one.name}") if one.image else None)
        for one in parts
        if one.spec is not None
    ]
    built: dict[str, Any] = to_builtins(wire.AppSpec(name=name or app.name, functions=specs))
    return built
