"""`nomadfn simulate`, as somebody with a log of arrivals uses it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TRACE = "\n".join(
    [
        json.dumps({"function": "embed", "max_containers": 2, "scaledown_window_s": 5}),
        *(json.dumps({"at": number / 10, "function": "embed", "run_s": 0.3}) for number in range(50)),
    ]
)


def simulate(*words: str, text: str = TRACE) -> subprocess.CompletedProcess[str]:
    program = "import sys; from nomadfn.cli.main import main; sys.argv[0] = 'nomadfn'; main()"
    command = [sys.executable, "-c", program, "simulate", *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=100)


def test_a_trace_from_stdin_gives_a_table_with_the_oracle_below_each_function() -> None:
    done = simulate("-")
    assert done.returncode == 0, done.stderr
    head, function, oracle = done.stdout.splitlines()
    assert head.split()[:4] == ["function", "inputs", "failed", "p50"]
    assert function.split()[:3] == ["embed", "50", "0"]
    assert oracle.split()[0] == "oracle"


def test_settings_can_be_tried_out(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text(TRACE)

    def p95(*words: str) -> float:
        done = simulate(str(tmp_path / "trace.jsonl"), "--json", *words)
        assert done.returncode == 0, done.stderr
        return float(json.loads(done.stdout)["functions"]["embed"]["latency_s"]["p95"])

    assert p95("--max-containers", "8", "--min-containers", "8") < p95() / 3


def test_what_is_wrong_with_a_trace_is_said_in_one_line() -> None:
    done = simulate("-", text='{"at": "now", "function": "f"}')
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith('Error: -, line 1: "at" must be a number')
    done = simulate("nowhere.jsonl")
    assert done.returncode == 3
    assert "nowhere.jsonl cannot be read" in done.stderr
