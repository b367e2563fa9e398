"""What the pages for those who move in say of requests: what is refused, what is not read, what a header names."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakes.api_client import running

HELLO = {"messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("path", "body", "ignored"),
    [
        ("/completion", {"prompt": "a", "id_slot": 1}, "id_slot"),
        (
            "/v1/chat/completions",
            {**HELLO, "mode": "chat", "character": "x", "instruction_template": "y"},
            "mode, character, instruction_template",
        ),
        ("/api/chat", {**HELLO, "stream": False, "keep_alive": "5m", "options": {"num_ctx": 5}}, None),
    ],
)
async def test_what_is_not_done_is_named(path: str, body: dict[str, Any], ignored: str | None) -> None:
    async with running() as api:
        response = await api.post(path, body)
        assert response.status_code == 200
        assert response.headers.get("x-ggufd-ignored") == ignored


async def test_images_of_ollamas_clients_are_refused() -> None:
    body = {"messages": [{"role": "user", "content": "a", "images": ["aGk="]}], "stream": False}
    async with running() as api:
        error = await api.refused("/api/chat", body)
    assert (error["param"], error["code"]) == ("messages[0].images[0]", "unsupported")
    assert "--mmproj" in error["message"]


@pytest.mark.parametrize("path", ["/api/tags", "/api/ps", "/api/version", "/api/extra/perf", "/v1/internal/model/info"])
async def test_routes_that_clients_look_for_answer(path: str) -> None:
    async with running() as api:
        assert (await api.http.get(path)).status_code == 200
