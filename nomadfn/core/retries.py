"""When a failed input runs again: the delays of a retry policy, and nothing else."""

from __future__ import annotations

from nomadfn_agent.wire import RetryPolicy


def may_retry(policy: RetryPolicy, failures: int) -> bool:
    """Whether an input that has now failed `failures` times (1 after its first attempt) gets another attempt."""
    return failures <= policy.max_retries


def delay_s(policy: RetryPolicy, retry: int) -> float:
    """Seconds between a failure and the `retry`-th retry; 1 is the first one."""
    if retry < 1:
        raise ValueError(f"retries are counted from 1, not {retry}")
    if policy.initial_delay_s <= 0:
        return 0.0
    try:
        delay = policy.initial_delay_s * policy.backoff_coefficient ** (retry - 1)
    except OverflowError:
        return policy.max_delay_s
    return min(delay, policy.max_delay_s)
