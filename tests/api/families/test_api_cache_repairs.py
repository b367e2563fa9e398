"""Cache repairs on the chat routes: what the template gets, and what the response's header says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakes.api_client import running

HEADER = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=sdk-cli; cch=36ee5;"
USER = {"role": "user", "content": "hi"}
PARTS = [{"type": "text", "text": HEADER}, {"type": "text", "text": "Be brief."}]

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages", {"system": f"{HEADER}\nBe brief.", "messages": [USER], "max_tokens": 5}),
    ("/v1/messages", {"system": PARTS, "messages": [USER], "max_tokens": 5}),
    ("/v1/messages", {"messages": [{"role": "system", "content": PARTS}, USER], "max_tokens": 5}),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": f"{HEADER}\nBe brief."}, USER]}),
    ("/v1/chat/completions", {"messages": [{"role": "developer", "content": PARTS}, USER]}),
    ("/v1/responses", {"instructions": f"{HEADER}Be brief.", "input": "hi"}),
]


def text_of(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


@pytest.mark.parametrize(("path", "body"), CALLS)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_billing_header_does_not_reach_the_template(path: str, body: dict[str, Any], stream: bool) -> None:
    async with running() as api:
        response = await api.post(path, {**body, "stream": stream})
        assert response.status_code == 200, response.text
        assert response.headers["x-ggufd-repairs"] == "billing_header"
        assert text_of(api.text.chats[-1].messages[0]["content"]) == "Be brief."


@pytest.mark.parametrize(("path", "body"), CALLS)
async def test_it_does_where_the_rule_is_switched_off(path: str, body: dict[str, Any]) -> None:
    async with running(cache_repairs=()) as api:
        response = await api.post(path, body)
        assert "x-ggufd-repairs" not in response.headers
        assert text_of(api.text.chats[-1].messages[0]["content"]).startswith(HEADER)


async def test_counted_tokens_and_the_shown_template_are_of_the_repaired_prompt() -> None:
    async with running() as api:
        path, body = CALLS[0]
        counted = await api.ok(f"{path}/count_tokens", **{k: v for k, v in body.items() if k != "max_tokens"})
        shown = await api.ok("/apply-template", messages=CALLS[3][1]["messages"])
    assert counted["input_tokens"] == shown["n_tokens"] == len("system: Be brief.\nuser: hi\nassistant: ")
    assert shown["repairs"] == ["billing_header"]
    assert HEADER not in shown["prompt"]
