"""What a container has sent stays with it until its leader has acknowledged it: it may have lost it."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
from nomadfn_agent import kept, loop
from nomadfn_agent.claims import Claims
from nomadfn_agent.wire import OK, Ack, Attach, Deliver, Drain, Outputs, decode_from_runner, encode
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
        pytest.param([(0, deliver(1)), (60, deliver(2)), (60, None)], [1, 2], id="nothing acknowledged"),
        pytest.param([(0, deliver(1)), (1, Ack(1)), (60, deliver(2)), (60, None)], [2], id="the first acknowledged"),
        pytest.param([(0, deliver(1)), (1, Ack(1)), (1, deliver(2)), (1, None)], [1, 2], id="all of it a moment ago"),
        pytest.param([(0, deliver(1)), (1, deliver(2)), (1, Ack(2)), (60, None)], [], id="everything acknowledged"),
    ],
)
def test_the_next_leader_is_given_what_the_last_one_may_have_lost(
    monkeypatch: pytest.MonkeyPatch, script: list[tuple[float, Any]], again: list[int]
) -> None:
    _, second = serve(monkeypatch, [script, [(0, Drain())]])
    attach, *rest = second.sent
    assert isinstance(attach, Attach)
    assert attach.deliveries == again
    assert [one.deliveries for one in rest if isinstance(one, Outputs)] == ([again] if again else [])


def test_what_was_given_again_is_acknowledged_as_the_first_frame_of_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = (60, None)
    scripts = [[(0, deliver(1)), (1, deliver(2)), lost], [(0, deliver(3)), (1, Ack(1)), lost], [(0, Drain())]]
    third = serve(monkeypatch, scripts)[-1]
    assert third.sent[0].deliveries == [3]


def test_what_is_kept_for_a_silent_leader_is_bounded() -> None:
    box = kept.Kept()
    for number in range(1, 200):
        box.add([((number, "fc-1", number, b"", 0), OK, bytes(1024 * 1024), 0)])
    left = [one[0][0] for one in box.start_again()]
    assert left == list(range(200 - len(left), 200))
    assert 10 <= len(left) <= kept.KEEP_BYTES // 1024 // 1024


def serve(monkeypatch: pytest.MonkeyPatch, scripts: list[list[tuple[float, Any]]]) -> list[ScriptedLink]:
    """A loop that goes from leader to leader; returns its links."""
    clock = Clock()
    shown = SimpleNamespace(monotonic=clock.monotonic, perf_counter_ns=time.perf_counter_ns, sleep=time.sleep)
    monkeypatch.setattr(loop, "time", shown)
    monkeypatch.setattr(kept, "time", shown)
    links = [ScriptedLink(clock, *script) for script in scripts]
    others = iter(links[1:])
    served: Any = loop.Loop(
        links[0],
        Claims(),
        lambda *item: (OK, b"result"),
        lambda delivery: None,
        lambda: None,
        others.__next__,
        "digest",
    )
    served.serve()
    return links
