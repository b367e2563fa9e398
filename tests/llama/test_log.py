"""llama.cpp's log in pieces becomes lines."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ggufd.errors import ModelError
from ggufd.llama.log import LogCapture, problems_only
from ggufd.llama.model.model import GgufModel


def captured(*pieces: tuple[int, bytes]) -> list[tuple[int, str]]:
    lines: list[tuple[int, str]] = []
    capture = LogCapture(lambda level, line: lines.append((level, line)))
    for level, text in pieces:
        capture._receive(level, text, None)
    return lines


def test_levels_are_those_of_logging() -> None:
    lines = captured((1, b"a\n"), (2, b"b\n"), (3, b"c\n"), (4, b"d\n"), (0, b"e\n"))
    levels = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.INFO]
    assert lines == list(zip(levels, "abcde", strict=True))


def test_pieces_are_joined_at_the_level_of_the_first() -> None:
    assert captured((3, b"one "), (5, b"two "), (5, b"three\nfour"), (5, b"\n")) == [
        (logging.WARNING, "one two three"),
        (logging.WARNING, "four"),
    ]


def test_dots_of_progress_and_empty_lines_are_left_out() -> None:
    assert captured((2, b"."), (5, b"...\n"), (2, b"\n")) == []


def test_bytes_that_are_no_text_do_not_stop_it() -> None:
    assert captured((2, b"a\xff\n")) == [(logging.INFO, "a�")]


def test_problems_can_be_all_that_is_printed(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with problems_only():
        GgufModel(str(tiny_model)).close()
        assert "general.architecture" not in capfd.readouterr().err
        with pytest.raises(ModelError):
            GgufModel(str(tmp_path / "absent.gguf"))
    assert "failed to open" in capfd.readouterr().err


def test_what_follows_is_printed_as_before(
    tiny_model: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    # The binding prints by this logger's level, which a quiet `Llama` raises for the whole process.
    caplog.set_level(logging.DEBUG, logger="llama-cpp-python")
    with problems_only():
        pass
    GgufModel(str(tiny_model)).close()
    assert "general.architecture" in capfd.readouterr().err
