"""The claims that a runner and its supervisor share: real processes, nobody waits for anybody."""

from __future__ import annotations

import os
import random
import struct
import sys
import time
from pathlib import Path

import pytest
from nomadfn_agent.claims import ROOM_BYTES, Claims

INPUTS = 60_000
NUMBER = struct.Struct("=Q")


def runner_of(claims: Claims, seed: int, ran_path: Path) -> int:
    """Fork a runner that claims deliveries 1 to INPUTS as fast as it can; returns its pid.

    It leaves an output of each, and writes at its end into `ran_path` which ones were its own.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        pause = random.Random(seed)
        ran = bytearray()
        for delivery in range(1, INPUTS + 1):
            if claims.claim(delivery):
                ran += NUMBER.pack(delivery)
                if not claims.put(delivery, 0, NUMBER.pack(delivery) * 5, 7) or pause.random() < 0.01:
                    claims.clear()
            elif not claims.is_withdrawn(delivery):
                os._exit(2)
            if pause.random() < 0.0005:
                time.sleep(0)
        ran_path.write_bytes(ran)
        status = 0
    finally:
        os._exit(status)


@pytest.mark.parametrize("seed", range(4))
def test_each_input_is_claimed_or_withdrawn_and_never_both(seed: int, tmp_path: Path) -> None:
    claims = Claims()
    pid = runner_of(claims, seed, tmp_path / "ran")
    draw = random.Random(-seed)
    withdrawn: set[int] = set()
    shown: set[int] = set()
    after, recalls = 0, 0
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        found = claims.withdraw(min(INPUTS, max(1, after + draw.randrange(-50, 200))))
        if found is None:
            continue
        assert found.after >= after, "a claim was taken back"
        after, recalls = found.after, recalls + 1
        withdrawn.update(range(found.after + 1, found.up_to + 1))
        shown.update(found.deliveries)
        assert found.payloads == [NUMBER.pack(one) * 5 for one in found.deliveries]
        assert set(found.statuses) <= {0}
        assert found.run_ns == 7 * len(found.deliveries)
        if draw.random() < 0.1:
            time.sleep(draw.random() / 1000)
    assert ended[1] == 0
    claims.close()
    ran = [one for (one,) in NUMBER.iter_unpack((tmp_path / "ran").read_bytes())]
    assert len(ran) == len(set(ran))
    assert not set(ran) & withdrawn, "given to another, and started here"
    assert set(ran) | withdrawn == set(range(1, INPUTS + 1)), "neither started here nor given to another"
    assert shown <= set(ran)
    assert recalls > 100


def test_outputs_are_shown_from_the_next_claim_on_and_until_they_are_sent() -> None:
    claims = Claims()
    assert claims.claim(1)
    assert claims.put(1, 0, b"one", 10)
    assert claims.put(2, 1, b"", 20)
    assert claims.claim(3)
    found = claims.withdraw(2)
    assert found == (3, 2, [1, 2], [0, 1], [b"one", b""], 30)
    claims.clear()
    assert claims.withdraw(2) == (3, 2, [], [], [], 0)
    claims.close()


def test_there_is_an_end_to_the_room_for_outputs() -> None:
    claims = Claims()
    assert not claims.put(1, 0, b"x" * ROOM_BYTES, 0)
    assert claims.put(1, 0, b"x" * (ROOM_BYTES // 2), 0)
    assert not claims.put(2, 0, b"x" * (ROOM_BYTES // 2), 0)
    claims.clear()
    assert claims.put(2, 0, b"x" * (ROOM_BYTES // 2), 0)
    claims.close()


def test_what_user_code_writes_into_the_shared_memory_does_not_hurt_the_supervisor() -> None:
    for seed in range(40):
        claims = Claims()
        claims._memory[:] = random.Random(seed).randbytes(len(claims._memory))
        found = claims.withdraw(5)
        assert found is not None
        assert len(found.deliveries) == len(found.statuses) == len(found.payloads)
        claims.close()


def test_without_shared_semaphores_nothing_is_withdrawn_and_all_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "_multiprocessing", None)
        claims = Claims()
    assert claims.claim(1)
    assert claims.withdraw(9) is None
    assert claims.claim(2)
    claims.close()
