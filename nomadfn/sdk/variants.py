"""What a variant of a function or class changes, and asking the control service for it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import msgspec
from nomadfn_agent import wire

from . import options
from .client import Client
from .partial import check_batching, check_concurrency

if TYPE_CHECKING:
    from .secret import Secret
    from .target import Target

FRESH_S = 600.0
"""The control service keeps an unused variant for far longer."""
ASKED_MAX = 512
"""Variants of one function whose ids this process remembers."""


class VariantSettings(TypedDict, total=False):
    """What `with_options(...)` takes; each as in `FunctionSettings`."""

    gpu: str | list[str] | None
    cpu: float | None
    memory: int | None
    env: Mapping[str, str | None] | None
    secrets: Collection[Secret] | None
    retries: int | options.Retries | None
    timeout: float | None
    min_containers: int | None
    max_containers: int | None
    buffer_containers: int | None
    scaledown_window: float | None
    volumes: Any
    region: Any
    cloud: Any


@dataclass(frozen=True)
class Changes:
    """What one variant has that its base has not."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of a `FunctionSpec`."""
    autoscaler: Mapping[str, Any] = field(default_factory=dict)
    secrets: tuple[Secret, ...] | None = None

    @classmethod
    def of_options(cls, settings: Mapping[str, Any], owner: str) -> Changes:
        """Raises InvalidError, DeprecationError or UnsupportedError."""
        fields, autoscaler = options.check_variant(settings, owner)
        given = settings.get("secrets")
        return cls(fields, autoscaler, None if given is None else options.secrets(given, owner))

    @classmethod
    def of_concurrency(cls, owner: str, max_inputs: int, target_inputs: int | None) -> Changes:
        check_concurrency(owner, max_inputs, target_inputs)
        return cls({"max_inputs": max_inputs, "target_inputs": target_inputs})

    @classmethod
    def of_batching(cls, owner: str, max_batch_size: int, wait_ms: int) -> Changes:
        check_batching(owner, max_batch_size, wait_ms)
        return cls({"max_batch_size": max_batch_size, "batch_wait_ms": wait_ms})

    def over(self, later: Changes) -> Changes:
        """Both; what is said later wins, and variables of `env` are put together."""
        merged = {**self.fields, **later.fields}
        if "env" in self.fields and "env" in later.fields:
            merged["env"] = {**self.fields["env"], **later.fields["env"]}
        secrets = self.secrets if later.secrets is None else later.secrets
        return Changes(merged, {**self.autoscaler, **later.autoscaler}, secrets)

    def __bool__(self) -> bool:
        return bool(self.fields or self.autoscaler or self.secrets is not None)

    def variation(self) -> wire.Variation:
        """As the control service takes it; what secrets hold is read now."""
        fields = dict(self.fields)
        if self.secrets is not None:
            fields["secrets"] = [one._spec() for one in self.secrets]
        return wire.Variation(
            base="",
            autoscaler=dict(self.autoscaler),
            fields=sorted(fields),
            values=wire.FunctionSpec(name="", **fields),
        )


class Asked(NamedTuple):
    """What the control service answered: the id of a variant."""

    client: Client
    base_id: str
    function_id: str
    at: float

    def answers(self, base: Target) -> bool:
        """Whether it still holds."""
        return (self.client, self.base_id) == (base.client, base.function_id) and time.monotonic() < self.at + FRESH_S


async def ask(base: Target, known: dict[bytes, Asked], changes: Changes, arguments: Mapping[str, Any]) -> Asked:
    """The variant of `base`; `known` is what was asked for before. Raises InvalidError and what a secret raises."""
    body = {"arguments": dict(arguments), "variation": msgspec.to_builtins(changes.variation())}
    key = msgspec.msgpack.encode(body)
    asked = known.get(key)
    if asked is None or not asked.answers(base):
        now = time.monotonic()
        answer = await base.client.request("function.variant", {"function_id": base.function_id, **body})
        while len(known) >= ASKED_MAX:
            known.pop(next(iter(known)), None)
        asked = known[key] = Asked(base.client, base.function_id, str(answer["function_id"]), now)
    return asked
