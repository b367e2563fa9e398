"""A conversation as Claude Code holds it, by Anthropic's client against the real server: only news is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.support.programs.live_server import live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

VALUES = ("fa690", "36ee5", "0aaa9", "1c8b4", "defa0")
RULES = "\n".join(f"{n}. Read file number {n} before you change it, and say what you found." for n in range(1, 40))
SYSTEM = "You are Claude Code, Anthropic's official CLI for Claude."
TOOLS: list[Any] = [
    {
        "name": name,
        "description": f"{name}s a file.",
        "input_schema": {"type": "object", "properties": {"file": {"type": "string"}}, "required": ["file"]},
    }
    for name in ("Read", "Edit", "Write")
]


def system_of(turn: int) -> list[Any]:
    """Claude Code's system blocks: the header's values are new in each request."""
    version = f"2.1.177.{VALUES[-turn][:3]}"
    header = f"x-anthropic-billing-header: cc_version={version}; cc_entrypoint=cli; cch={VALUES[turn]};"
    return [{"type": "text", "text": text} for text in (header, SYSTEM, RULES)]


def talk(url: str) -> Iterator[tuple[Any, str | None]]:
    """Five turns: each one's usage, and what its response says was repaired."""
    messages: list[Any] = []
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        for turn in range(5):
            messages.append({"role": "user", "content": f"Question {turn}: what does the file main{turn}.c do?"})
            raw = client.messages.with_raw_response.create(
                model="claude-opus-4-8", max_tokens=12, system=system_of(turn), tools=TOOLS, messages=messages
            )
            message = raw.parse()
            messages.append({"role": "assistant", "content": [block.model_dump() for block in message.content]})
            yield message.usage, raw.headers.get("x-ggufd-repairs")


def test_five_turns_compute_their_new_message_only() -> None:
    with live_server("--ctx-size", "4096", "--temp", "0") as server:
        turns = list(talk(server.url))
    first, *later = [usage for usage, _ in turns]
    assert first.input_tokens > 800
    for usage in later:
        assert usage.cache_read_input_tokens > 800
        # The new question with its frame, and the last answer's end as the template writes it.
        assert usage.input_tokens < 64
    assert {repairs.split(", ")[0] for _, repairs in turns if repairs} == {"billing_header"}
    assert all(repairs for _, repairs in turns)


@pytest.mark.long
def test_without_the_repair_each_turn_computes_everything() -> None:
    with live_server("--ctx-size", "4096", "--temp", "0", "--cache-repairs", "") as server:
        turns = list(talk(server.url))
    assert all("billing_header" not in (repairs or "") for _, repairs in turns)
    assert all(usage.input_tokens > 800 for usage, _ in turns)
