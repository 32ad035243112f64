from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nomadfn_agent.wire import RetryPolicy

from nomadfn.core import retries

policies = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 10),
    backoff_coefficient=st.floats(1, 10),
    initial_delay_s=st.floats(0, 60),
    max_delay_s=st.floats(0, 60),
)


def test_delays_grow_by_the_coefficient_up_to_the_maximum() -> None:
    policy = RetryPolicy(max_retries=9, backoff_coefficient=2.0, initial_delay_s=1.0, max_delay_s=60.0)
    assert [retries.delay_s(policy, n) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_plain_number_of_retries_waits_the_same_each_time() -> None:
    assert [retries.delay_s(RetryPolicy(max_retries=3), n) for n in (1, 2, 3)] == [1, 1, 1]


def test_an_input_has_one_attempt_more_than_retries() -> None:
    policy = RetryPolicy(max_retries=2)
    assert [retries.may_retry(policy, failures) for failures in (1, 2, 3)] == [True, True, False]
    assert not retries.may_retry(RetryPolicy(), 1)


@given(policies, st.integers(1, 100_000))
def test_a_delay_is_never_negative_never_over_the_maximum_and_never_shrinks(policy: RetryPolicy, retry: int) -> None:
    delay = retries.delay_s(policy, retry)
    assert 0 <= delay <= max(policy.max_delay_s, 0)
    assert retries.delay_s(policy, retry + 1) >= delay


def test_there_is_no_retry_before_the_first() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        retries.delay_s(RetryPolicy(), 0)
