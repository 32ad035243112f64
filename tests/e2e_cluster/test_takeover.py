"""A standby takes over in good order."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from cluster_world import ClusterWorld
from prometheus_client.parser import text_string_to_metric_families
from world import eventually

from nomadfn.adapters.consul_lease import TTL_S

pytestmark = [pytest.mark.consul, pytest.mark.timeout(300)]

PROGRAM = """
    import os, sys, time
    import nomadfn

    app = nomadfn.App("marks")

    @app.function(max_containers=3, scaledown_window=30)
    def mark(n, folder, seconds):
        # One file a run: what runs twice is seen.
        os.close(os.open(f"{folder}/{n}-{os.getpid()}-{time.monotonic_ns()}", os.O_CREAT | os.O_EXCL))
        time.sleep(seconds)
        return n * 2
"""
MAP = """
    import sys
    import nomadfn

    folder, count = sys.argv[1], int(sys.argv[2])
    mark = nomadfn.Function.from_name("marks", "mark")
    done = []
    for result in mark.map(range(count), kwargs={"folder": folder, "seconds": 0.02}):
        done.append(result)
        if len(done) == count // 3:
            print("third", flush=True)
    assert done == [2 * n for n in range(count)], done
    print("all", flush=True)
"""
STEADY = """
    import os, sys, time
    import nomadfn

    folder = sys.argv[1]
    mark = nomadfn.Function.from_name("marks", "mark")
    mark.remote(-1, folder, 0)
    print("going", flush=True)
    longest, calls = 0.0, 0
    while not os.path.exists(f"{folder}/../enough"):
        start = time.monotonic()
        mark.remote(calls, folder, 0)
        longest, calls = max(longest, time.monotonic() - start), calls + 1
    print(f"{longest:.3f}", calls, flush=True)
"""


@pytest.fixture
def deployed(any_world: ClusterWorld) -> ClusterWorld:
    """A leader, a standby, and a function with a container that is warm."""
    any_world.start_control()
    any_world.led()
    any_world.start_control()
    eventually(lambda: "standing by" in any_world.controls[1].out, any_world.controls[1])
    for name, source in (("marks.py", PROGRAM), ("mapped.py", MAP), ("steady.py", STEADY)):
        any_world.write(name, source)
    any_world.nomadfn("deploy", "marks.py", timeout_s=120).ok()
    return any_world


def runs(folder: Path) -> dict[int, int]:
    """How often each input has run."""
    found: dict[int, int] = {}
    for one in folder.iterdir():
        number = int(one.name.rpartition("-")[0].rpartition("-")[0])
        found[number] = found.get(number, 0) + 1
    return found


def test_a_leader_that_is_told_to_end_hands_over_at_once(deployed: ClusterWorld, tmp_path: Path) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    program = deployed.start("python", "mapped.py", folder, 600)
    program.says("third")
    leading, before = deployed.leading(), deployed.led()
    leading.process.send_signal(signal.SIGTERM)
    eventually(lambda: (found := deployed.leader()) is not None and found != before, "another leader")
    assert leading.wait().code == 0, leading
    program.wait(40).ok()
    assert {n: count for n, count in runs(folder).items() if count > 1} == {}


def test_a_caller_waits_for_no_session_to_run_out_when_a_leader_is_told_to_end(
    deployed: ClusterWorld, tmp_path: Path
) -> None:
    folder = tmp_path / "marks"
    folder.mkdir()
    program = deployed.start("python", "steady.py", folder)
    program.says("going")
    leading, before = deployed.leading(), deployed.led()
    leading.process.send_signal(signal.SIGTERM)
    assert leading.wait().code == 0, leading
    eventually(lambda: (found := deployed.leader()) is not None and found != before, "another leader")
    (tmp_path / "enough").touch()
    longest_s, calls = program.wait(40).ok().out.split()[-2:]
    print(f"the longest of {calls} calls took {longest_s} s")
    assert float(longest_s) < TTL_S


def test_metrics_and_health_tell_who_leads_and_who_stands_by(deployed: ClusterWorld) -> None:
    leading = deployed.led().http_url
    standing = next(words for words in deployed.controls[1].out.split() if words.startswith("http")).rstrip(";")
    roles = [deployed.execute("curl", "-sf", f"{url}/healthz").ok().json for url in (leading, standing)]
    assert [(one["status"], one["role"]) for one in roles] == [("ok", "leader"), ("ok", "standby")]
    owner = f"Authorization: Bearer {deployed.env['NOMADFN_TOKEN']}"
    pages = [deployed.execute("curl", "-sf", "-H", owner, f"{url}/metrics").ok().out for url in (leading, standing)]
    found = [{one.name: one.samples for one in text_string_to_metric_families(page)} for page in pages]
    assert [one["nomadfn_leader"][0].value for one in found] == [1, 0]
    assert found[0]["nomadfn_epoch"][0].value >= 1
    assert "nomadfn_epoch" not in found[1]
    for url in (leading, standing):
        assert deployed.execute("curl", "-s", f"{url}/metrics").ok().json["error"]["kind"] == "AuthError"
