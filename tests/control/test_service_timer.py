"""A timer of the service never goes off before what it is for is due."""

from __future__ import annotations

import pytest

from nomadfn.control.service import _in_whole_ms


@pytest.mark.parametrize("delay_s", [-1.0, 0.0, 0.0004, 0.001, 0.0104, 0.0106, 0.25])
def test_a_delay_is_whole_milliseconds_and_no_shorter(delay_s: float) -> None:
    found = _in_whole_ms(delay_s)
    assert max(delay_s, 0.001) <= found + 1e-9 < max(delay_s, 0.001) + 0.001 + 1e-6
    assert found * 1000 == pytest.approx(round(found * 1000))
