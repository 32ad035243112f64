"""Memory that is given back in small pieces is there for the next ones."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

ROUNDS = 10
PROGRAM = f"""
import resource
from nomadfn_agent.wire.heap import keep_freed

def work():
    return len([bytes(1024) + b"x" for _ in range(6000)])

if {{kept}}:
    keep_freed()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other rules")
def test_memory_that_was_given_back_costs_no_new_pages() -> None:
    def pages(kept: bool) -> int:
        program = PROGRAM.format(kept=kept)
        return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)

    assert pages(kept=True) < pages(kept=False) / 5
