"""The pages are true: links lead somewhere, programs run, transcripts come out as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "terraform").rglob("README.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (\w+\.py)\n")


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(page.read_text()) if kind == language]


def commands(transcript: str) -> Iterator[tuple[str, str]]:
    """Each command of a transcript with the output that stands behind it."""
    for part in re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def matches(expected: str, printed: str) -> bool:
    """Whether they are the same, but for what containers print, which comes when it comes: any order, any container."""
    return same_otherwise(expected, printed) and container_lines(expected) <= container_lines(printed)


def container_lines(text: str) -> set[str]:
    return set(re.findall(r"^[\w@]+#\d+ │ (.*)$", text, re.MULTILINE))


def same_otherwise(expected: str, printed: str) -> bool:
    """Whether the other lines are the same; `...` stands for any text in a line, alone for any number of lines."""
    expected, printed = (re.sub(r"^[\w@]+#\d+ │ .*\n", "", text, flags=re.MULTILINE) for text in (expected, printed))
    lines = [re.escape(line).replace(r"\.\.\.", ".*") + r"\n" for line in expected.splitlines()]
    pattern = "".join(r"(?:.*\n)*" if line == r".*\n" else line for line in lines)
    return re.fullmatch(pattern, printed) is not None


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_something_that_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_programs_of_a_page_run_as_its_transcripts_say(page: Path, tmp_path: Path) -> None:
    for program in blocks(page, "python"):
        name = FILE_NAME.match(program)
        assert name, f"a program of {page.name} does not say its file's name in its first line:\n{program}"
        (tmp_path / name[1]).write_text(program)
    # Unbuffered, one print of two values is several writes, and a container's line may come in between.
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("NOMADFN_") and name != "PYTHONUNBUFFERED"
    }
    env |= {
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "NOMADFN_DATA_DIR": str(tmp_path / "data"),
    }

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    try:
        for transcript in blocks(page, "console"):
            for command, expected in commands(transcript):
                done = run(command)
                assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
                assert matches(expected, done.stderr + done.stdout), f"{command}\n{done.stderr}{done.stdout}"
    finally:
        run("nomadfn down")
