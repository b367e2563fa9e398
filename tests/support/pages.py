"""README and the pages of docs/, taken apart: blocks of code, spans of code, links, headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: in which language, and what."""

    language: str
    text: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The text of each fenced block in that language."""
    found = [Block(*match.groups()) for match in _FENCE.finditer(page.read_text("utf-8"))]
    return [block.text for block in found if block.language == language]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def spans(page: Path) -> list[str]:
    """What stands between single backticks, in prose and tables."""
    return [span.replace("\\|", "|") for span in _SPAN.findall(prose(page))]


def links(page: Path) -> list[str]:
    """Targets of links and images, code left out."""
    return _LINK.findall(_SPAN.sub("", prose(page)))


def anchors(page: Path) -> list[str]:
    """Of every heading, as GitHub makes them."""
    titles = (re.sub(r"[`*]", "", title).lower() for title in _HEADING.findall(prose(page)))
    return [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles]


def commands(page: Path) -> Iterator[str]:
    """What is typed at the prompts of console blocks, continued lines put together."""
    for text in blocks(page, "console"):
        joined = text.replace("\\\n", " ")
        yield from (line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ "))


def ggufd_calls(command: str) -> Iterator[list[str]]:
    """The arguments of each `ggufd` in a command line, `ggufd` itself left out."""
    words = shlex.split(command, comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        call, words = words[:end], words[end + 1 :]
        if call and Path(call[0]).name == "ggufd":
            yield call[1:]
