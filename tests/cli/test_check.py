"""`nomadfn check`: what a program uses of Modal's API, without running it."""

from __future__ import annotations

from cli_harness import Cli

PROGRAM = """
import modal
import helper

raise SystemExit("this must not run")

app = modal.App("a")
volume = modal.Volume.from_name("v", create_if_missing=True)

@app.function(cpu=2, keep_warm=1)
def f(x):
    volume.commit()
    return x
"""
HELPER = "from modal import Sandbox\n"


def test_it_tells_each_line_that_is_not_supported_and_what_to_do(cli: Cli) -> None:
    cli.write("program.py", PROGRAM)
    cli.write("helper.py", HELPER)
    done = cli.run("check", "program.py")
    assert done.returncode == 3, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert set(lines) == {"program.py:8", "program.py:10", "program.py:12", "helper.py:1"}
    assert "use min_containers" in lines["program.py:10"]
    assert "Volume" in lines["program.py:8"]
    assert "unsupported" in lines["helper.py:1"]
    assert "this must not run" not in done.stdout + done.stderr


def test_a_program_that_keeps_to_what_is_there_is_good(cli: Cli) -> None:
    cli.write("program.py", "import modal\napp = modal.App('a')\n\n@app.function(cpu=2)\ndef f(x): ...\n")
    done = cli.run("check", "program.py")
    assert (done.returncode, done.stdout) == (0, "")
    assert "3 names of Modal's API: 3 supported" in done.stderr
    rows = cli.json("check", "--json", "program.py")
    assert [(row["line"], row["name"]) for row in rows] == [(2, "App"), (4, "App.function"), (4, "App.function(cpu=)")]


def test_what_cannot_be_read_is_said(cli: Cli) -> None:
    cli.write("broken.py", "def f(:\n")
    done = cli.run("check", "broken.py")
    assert done.returncode == 3
    assert "broken.py is no Python that can be read" in done.stderr
    missing = cli.run("check", "missing.py")
    assert missing.returncode == 3
    assert "there is no file missing.py" in missing.stderr
