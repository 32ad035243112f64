"""Values in the registry of a cluster: unreadable, but for a control service with the same owner's token."""

from __future__ import annotations

import msgspec
from nomadfn_agent import wire

from nomadfn.adapters.memory import MemoryRegistry
from nomadfn.control.history import History
from nomadfn.control.sealing import Seal
from nomadfn.control.tokens import Tokens

APP = wire.AppSpec(
    name="app",
    functions=[
        wire.FunctionSpec(
            name="f",
            env={"A": "hunter2 ${x}\n"},
            secrets=[wire.SecretSpec(values={"B": "hunter2"}), wire.SecretSpec(name="db", required_keys=["C"])],
        ),
        wire.FunctionSpec(
            name="image",
            image=wire.ImageSpec(
                python="3.12",
                steps=[
                    wire.ImageStep(
                        tool="pip",
                        arguments=["six", "--index-url", "https://me:hunter2@host/simple"],
                        files={"r.txt": "--extra-index-url https://hunter2@other/simple\n"},
                        env={"TOKEN": "hunter2"},
                    )
                ],
            ),
        ),
        wire.FunctionSpec(name="plain", image=wire.ImageSpec(python="3.12")),
    ],
)


def seal(owner: str) -> Seal:
    return Seal(Tokens(owner, derived=True).derive_key("values"))


def test_a_sealed_app_says_names_and_no_values_and_comes_back_whole() -> None:
    closed = seal("nf_one").close(APP)
    text = msgspec.json.encode(closed).decode()
    assert "hunter2" not in text
    assert '"env":{"A":""}' in text
    assert '"name":"db"' in text
    assert seal("nf_one").open(closed) == APP


def test_under_another_token_it_stays_sealed_and_is_not_sealed_again() -> None:
    closed = seal("nf_one").close(APP)
    other = seal("nf_other").open(closed)
    assert other == closed
    assert seal("nf_other").close(other) == closed


def test_without_a_key_nothing_changes() -> None:
    assert Seal().close(APP) == APP
    assert Seal().open(APP) == APP


def test_versions_are_kept_sealed_and_come_back_whole() -> None:
    registry = MemoryRegistry()
    history = History(registry, seal("nf_one"))
    history.record(1, APP, 0.0)
    assert "hunter2" not in str(registry.list(""))
    assert history.spec("app", 1) == APP
