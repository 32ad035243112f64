"""What a container has sent stays with it until its leader is heard later: a silent one may have lost it."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
from nomadfn_agent import loop
from nomadfn_agent.claims import Claims
from nomadfn_agent.wire import OK, Attach, Deliver, Drain, Outputs, decode_from_runner, encode
from nomadfn_agent.wire.link import LinkClosed


class Clock:
    """The loop's time, moved by what comes over its links."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


class ScriptedLink:
    """Gives each message after its time, then closes."""

    def __init__(self, clock: Clock, *script: tuple[float, Any]) -> None:
        self._clock = clock
        self._script = list(script)
        self.sent: list[Any] = []
        self._end, _ = os.pipe()

    def receive(self, timeout_s: float | None) -> list[bytes]:
        if timeout_s == 0:
            return []
        if not self._script:
            raise LinkClosed("the leader is gone")
        after_s, frame = self._script.pop(0)
        self._clock.now += after_s
        if frame is None:
            raise LinkClosed("the leader is gone")
        return [encode(frame)]

    def send(self, data: bytes) -> None:
        self.sent.append(decode_from_runner(data))

    def fileno(self) -> int:
        return self._end

    def abandon(self) -> None:
        pass


def deliver(number: int) -> Deliver:
    return Deliver("fc-1", [number], [number], [b"p"], [0])


@pytest.mark.parametrize(
    ("script", "again"),
    [
        pytest.param([(0, deliver(1)), (1, deliver(2)), (60, None)], [1, 2], id="silent ever since"),
        pytest.param([(0, deliver(1)), (60, deliver(2)), (60, None)], [2], id="heard long after the first"),
    ],
)
def test_the_next_leader_is_given_what_the_last_one_may_have_lost(
    monkeypatch: pytest.MonkeyPatch, script: list[tuple[float, Any]], again: list[int]
) -> None:
    clock = Clock()
    shown = SimpleNamespace(monotonic=clock.monotonic, perf_counter_ns=time.perf_counter_ns, sleep=time.sleep)
    monkeypatch.setattr(loop, "time", shown)
    first, second = ScriptedLink(clock, *script), ScriptedLink(clock, (0, Drain()))
    served: Any = loop.Loop(
        first, Claims(), lambda *item: (OK, b"result"), lambda delivery: None, lambda: None, lambda: second, "digest"
    )
    served.serve()
    attach, *rest = second.sent
    assert isinstance(attach, Attach)
    assert attach.deliveries == again
    assert [one.deliveries for one in rest if isinstance(one, Outputs)] == [again]
