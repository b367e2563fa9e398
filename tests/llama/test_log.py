"""llama.cpp's log in pieces becomes lines."""

from __future__ import annotations

import logging

from ggufd.llama.log import LogCapture


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
