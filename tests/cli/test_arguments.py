from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, Optional

import pytest

from nomadfn.cli.arguments import parse_arguments
from nomadfn.exception import InvalidError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def parsed(function: Callable[..., Any], *words: str) -> dict[str, Any]:
    args, kwargs = parse_arguments(function, "nomadfn run x.py", words)
    assert args == ()
    return kwargs


def refused(capsys: pytest.CaptureFixture[str], function: Callable[..., Any], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(function, "nomadfn run x.py", words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_each_type_is_read_from_its_option() -> None:
    def main(
        text: str,
        size: int,
        ratio: float,
        mode: Literal["fast", "slow"],
        day: datetime,
        colour: Colour,
        old: Optional[int] = None,  # noqa: UP045
        new: int | None = None,
    ) -> None: ...

    words = "--text a --size 3 --ratio 2.5 --mode slow --day 2024-01-02 --colour blue --old 4 --new 5"
    assert parsed(main, *words.split()) == {
        "text": "a",
        "size": 3,
        "ratio": 2.5,
        "mode": "slow",
        "day": datetime(2024, 1, 2),
        "colour": Colour.BLUE,
        "old": 4,
        "new": 5,
    }


@pytest.mark.parametrize("text", ["2024-01-02T03:04:05", "2024-01-02 03:04:05"])
def test_a_datetime_may_have_a_time(text: str) -> None:
    def main(at: datetime) -> None: ...

    assert parsed(main, "--at", text) == {"at": datetime(2024, 1, 2, 3, 4, 5)}


def test_a_bool_is_a_pair_of_flags() -> None:
    def main(dry: bool, loud: bool = True) -> None: ...

    assert parsed(main, "--dry", "--no-loud") == {"dry": True, "loud": False}
    assert parsed(main, "--no-dry")["dry"] is False


def test_underscores_become_dashes_and_no_annotation_is_text() -> None:
    def main(max_size, other=5): ...  # type: ignore[no-untyped-def]

    assert parsed(main, "--max-size", "7") == {"max_size": "7"}
    assert parsed(main, "--max-size", "7", "--other", "8") == {"max_size": "7", "other": "8"}


def test_what_is_not_given_is_left_to_the_function() -> None:
    marker = object()

    def main(size: int = 3, thing: str = marker, when: datetime | None = None) -> None: ...  # type: ignore[assignment]

    assert parsed(main) == {}
    given = parsed(main, "--size", "4")
    assert given == {"size": 4}


def test_annotations_may_be_strings() -> None:
    def main(size: "int", flag: "bool" = False) -> None: ...  # noqa: UP037

    assert parsed(main, "--size", "3", "--flag") == {"size": 3, "flag": True}


def test_star_args_take_the_words_as_they_are() -> None:
    def main(*words: str) -> None: ...

    assert parse_arguments(main, "p", ["--anything", "-x", "goes"]) == (("--anything", "-x", "goes"), {})


def test_help_shows_the_options_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    def main(size: int, name: str = "Ada", loud: bool = False) -> None:
        """Greet somebody."""

    with pytest.raises(SystemExit) as ended:
        parse_arguments(main, "nomadfn run x.py", ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for part in ("nomadfn run x.py", "Greet somebody", "--size", "required", "--name", "Ada", "--loud / --no-loud"):
        assert part in shown


def test_words_that_do_not_fit_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    def main(size: int, mode: Literal["fast", "slow"] = "fast") -> None: ...

    assert "--size" in refused(capsys, main)
    assert "--size" in refused(capsys, main, "--size", "many")
    assert "slow" in refused(capsys, main, "--size", "3", "--mode", "idle")
    assert "--bogus" in refused(capsys, main, "--size", "3", "--bogus", "1")
    assert "stray" in refused(capsys, main, "--size", "3", "stray")


def test_a_signature_that_the_command_line_cannot_give_is_named() -> None:
    def lists(sizes: list[int]) -> None: ...

    def positional(size: int, /) -> None: ...

    def mixed(size: int, *more: int) -> None: ...

    def unresolved(size: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function, part in ((lists, "list[int]"), (positional, "size"), (mixed, "more"), (unresolved, "Missing")):
        with pytest.raises(InvalidError, match=r"nomadfn run x\.py") as caught:
            parse_arguments(function, "nomadfn run x.py", ["--size", "3"])
        assert part in str(caught.value)
