"""What a container is given of its function's secrets, and what is said when that cannot be."""

from __future__ import annotations

import asyncio

import pytest
from nomadfn_agent import wire

from nomadfn.control import function_secrets
from nomadfn.control.function_secrets import FunctionSecrets
from nomadfn.exception import ConflictError, NotFoundError, PermissionDeniedError, ServiceError

SPEC = wire.FunctionSpec(
    name="f", env={"LAST": "env"}, secrets=[wire.SecretSpec(name="db", required_keys=["PASSWORD"])]
)
APP = wire.AppSpec(name="app", functions=[SPEC])


class Store:
    """Answers with `values`, after so many `failures`."""

    def __init__(self, values: dict[str, str], failures: int = 0, error: type[Exception] = ServiceError) -> None:
        self.values = values
        self.failures = failures
        self.error = error
        self.reads = 0

    def read(self, name: str) -> dict[str, str]:
        self.reads += 1
        if self.reads <= self.failures:
            raise self.error(f"{name} cannot be read")
        return self.values

    def write(self, name: str, values: dict[str, str], *, replace: bool = False) -> None: ...

    def delete(self, name: str) -> None: ...

    def names(self) -> dict[str, float]:
        return {}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_secrets, "PAUSE_S", 0.001)


def environment(store: Store, spec: wire.FunctionSpec = SPEC) -> dict[str, str]:
    async def ask() -> dict[str, str]:
        return await FunctionSecrets(store).environment(spec)

    return asyncio.run(ask())


def test_a_store_that_is_away_for_a_moment_is_asked_again() -> None:
    store = Store({"PASSWORD": "x", "LAST": "db"}, failures=5)
    assert environment(store) == {"PASSWORD": "x", "LAST": "env"}
    assert store.reads == 6


def test_one_that_stays_away_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_secrets, "PATIENCE_S", 0.02)
    store = Store({}, failures=1_000_000)
    with pytest.raises(ServiceError, match="db cannot be read"):
        environment(store)
    assert store.reads > 1


@pytest.mark.parametrize("error", [NotFoundError, PermissionDeniedError])
def test_a_clear_no_is_not_asked_again(error: type[Exception]) -> None:
    store = Store({}, failures=1, error=error)
    with pytest.raises(error):
        environment(store)
    assert store.reads == 1


def test_a_required_key_that_is_missing_is_told_at_the_deploy_and_at_the_start() -> None:
    async def check(store: Store) -> None:
        await FunctionSecrets(store).check(APP)

    with pytest.raises(NotFoundError, match="db lacks PASSWORD"):
        asyncio.run(check(Store({})))
    with pytest.raises(NotFoundError, match="db lacks PASSWORD"):
        environment(Store({}))
    asyncio.run(check(Store({"PASSWORD": ""})))


def test_what_another_token_has_sealed_is_not_started_without_it() -> None:
    async def check(app: wire.AppSpec) -> None:
        await FunctionSecrets(Store({})).check(app)

    sealed = wire.FunctionSpec(name="f", env={"A": ""}, sealed="gAAAA")
    with pytest.raises(ConflictError, match=r"under another NOMADFN_TOKEN.*deploy it again"):
        environment(Store({}), sealed)
    with pytest.raises(ConflictError, match=r"app, function f.*under another NOMADFN_TOKEN"):
        asyncio.run(check(wire.AppSpec(name="app", functions=[sealed])))
