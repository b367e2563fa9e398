"""Any JSON object on any generating route is an answer or a refusal in the error shape, never a 500."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufd.api.anthropic.schemas import MESSAGES as ANTHROPIC
from ggufd.api.openai.responses.schemas import RESPONSES
from ggufd.api.request.fields import KOBOLD, LLAMACPP, OLLAMA, OPENAI_CHAT, OPENAI_COMPLETION, SHARED, Aliases
from tests.support.fakes.api_client import Api, error_of, running
from tests.support.fakes.fake_engine import FakeEngine, FakeText
from tests.support.fakes.fake_images import FakeImages, url_of

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2, 0.5, "", "a", "root", "-1", 2**31, 2**63, 1e308])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text("ab1", max_size=3), children, max_size=2),
    max_leaves=6,
)

ROLES = st.sampled_from(["user", "assistant", "system", "tool", "nobody"])
URL = VALUES | st.sampled_from([url_of("red"), url_of("!"), "red"])
IMAGE_TYPES = st.sampled_from(["image_url", "input_image", "image"])
SOURCE = st.fixed_dictionaries(
    {"type": st.sampled_from(["base64", "url", "file", "text", "content"])},
    optional={"data": URL, "url": URL, "media_type": VALUES | st.just("image/png")},
)
IMAGE = st.fixed_dictionaries(
    {"type": IMAGE_TYPES},
    optional={
        "image_url": URL | st.fixed_dictionaries({"url": URL}, optional={"detail": VALUES}),
        "source": VALUES | SOURCE,
        "file_id": VALUES,
    },
)
CONTENT = st.text("ab <|>\n", max_size=10) | st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "x"])}, optional={"text": VALUES}) | IMAGE, max_size=2
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": ROLES, "content": CONTENT | VALUES},
        optional={"image_url": URL, "images": st.lists(URL, max_size=2) | VALUES},
    ),
    max_size=3,
)
PROMPT = (
    st.text("ab", max_size=5)
    | VALUES
    | st.fixed_dictionaries(
        {"prompt_string": st.sampled_from(["<__media__>", "a<__media__>b<__media__>", "a"]) | VALUES},
        optional={"multimodal_data": st.lists(URL, max_size=2) | VALUES},
    )
)
IMAGES = st.lists(URL, max_size=2) | VALUES
IMAGE_DATA = st.lists(st.fixed_dictionaries({"id": VALUES}, optional={"data": URL}), max_size=2) | VALUES


ITEMS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "item_reference"])},
        optional={
            "role": ROLES,
            "content": CONTENT | VALUES,
            "id": VALUES,
            "call_id": st.sampled_from(["a", "b"]),
            "name": st.sampled_from(["f", ""]),
            "arguments": st.sampled_from(["{}", "{", "[]"]),
            "output": CONTENT | VALUES,
            "summary": VALUES,
        },
    ),
    max_size=3,
)


BLOCKS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking", "document", "image"])},
        optional={
            "text": VALUES,
            "id": st.sampled_from(["a", "b"]),
            "name": st.sampled_from(["f", ""]),
            "input": VALUES,
            "tool_use_id": st.sampled_from(["a", "b"]),
            "content": CONTENT | VALUES,
            "thinking": VALUES,
            "source": VALUES | SOURCE,
        },
    ),
    max_size=3,
)
ANTHROPIC_MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": BLOCKS | CONTENT | VALUES}), max_size=3)


SCHEMA = VALUES | st.fixed_dictionaries(
    {"type": st.just("object")},
    optional={
        "properties": VALUES | st.dictionaries(st.just("a"), VALUES | st.just({"type": "string"}), max_size=1),
        "required": VALUES | st.just(["a"]),
    },
)
FUNCTION = st.fixed_dictionaries(
    {"name": st.just("f") | VALUES},
    optional={"description": VALUES, "strict": VALUES, "parameters": SCHEMA, "input_schema": SCHEMA},
)
TOOLS = st.lists(
    st.builds(
        lambda inner, flat: {"type": "function", "function": inner, **(flat if isinstance(flat, dict) else {})},
        FUNCTION | VALUES,
        FUNCTION | VALUES,
    ),
    max_size=2,
)
"""Of each API's form: a function inside, or a name and a schema beside the type."""


def bodies(aliases: Aliases, **required: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that look like requests: mostly known names, with values of every kind."""
    names = sorted({name for names in aliases.values() for name in names} | {"tools", "response_format", "model"})
    anything = st.dictionaries(st.sampled_from(names), VALUES, max_size=5)
    known = st.fixed_dictionaries(required, optional={"tools": TOOLS})
    return st.builds(lambda known, some: {**known, **some}, known, anything)


CASES = {
    "/v1/completions": bodies(OPENAI_COMPLETION, prompt=st.text("ab", max_size=5) | VALUES),
    "/v1/chat/completions": bodies(OPENAI_CHAT, messages=MESSAGES | VALUES),
    "/v1/responses": bodies(RESPONSES | {name: (name,) for name in SHARED}, input=ITEMS | VALUES),
    "/v1/messages": bodies(
        ANTHROPIC | {name: (name,) for name in SHARED},
        messages=ANTHROPIC_MESSAGES | VALUES,
        max_tokens=st.integers(1, 5) | VALUES,
    ),
    "/completion": bodies(LLAMACPP, prompt=PROMPT | st.just("[img-1]"), image_data=IMAGE_DATA),
    "/api/v1/generate": bodies(KOBOLD, prompt=st.text("ab", max_size=5) | VALUES, images=IMAGES),
    "/api/generate": bodies(OLLAMA, prompt=st.text("ab", max_size=5) | VALUES, options=VALUES, images=IMAGES),
    "/api/chat": bodies(OLLAMA, messages=MESSAGES | VALUES),
    "/infill": bodies(LLAMACPP, input_prefix=st.text("ab", max_size=5) | VALUES, input_suffix=st.just("") | VALUES),
    "/v1/chat/completions/input_tokens": bodies(OPENAI_CHAT, messages=MESSAGES | VALUES),
    "/v1/embeddings": st.fixed_dictionaries(
        {"input": st.text("ab", max_size=20) | VALUES},
        optional={
            "encoding_format": VALUES | st.just("base64"),
            "dimensions": VALUES,
            "truncate": VALUES,
            "lora": VALUES | st.lists(st.fixed_dictionaries({"id": VALUES, "scale": VALUES}), max_size=2),
            "model": VALUES,
        },
    ),
    "/embedding": st.fixed_dictionaries(
        {"content": st.text("ab", max_size=5) | VALUES}, optional={"embd_normalize": VALUES}
    ),
    "/api/embed": st.fixed_dictionaries({"input": st.text("ab", max_size=20) | VALUES}, optional={"truncate": VALUES}),
    "/api/embeddings": st.fixed_dictionaries({"prompt": VALUES}),
    "/v1/rerank": st.fixed_dictionaries(
        {"query": st.just("a") | VALUES, "documents": st.lists(VALUES | st.just("a"), max_size=3) | VALUES},
        optional={"top_n": VALUES, "texts": VALUES, "return_documents": VALUES},
    ),
    "/tokenize": st.fixed_dictionaries({"content": PROMPT}, optional={"add_special": VALUES, "with_pieces": VALUES}),
    "/detokenize": st.fixed_dictionaries({"tokens": VALUES | st.lists(st.integers(-1, 300), max_size=4)}),
}


def _error(response: httpx.Response) -> Any:
    if response.url.path == "/v1/messages":
        assert set(response.json()) == {"type", "error"}
        return response.json()["error"]
    return error_of(response, response.status_code)


async def check(api: Api, path: str, body: Any) -> None:
    response = await api.post(path, body)
    if response.status_code != 200:
        assert response.status_code in (400, 404), response.text
        error = _error(response)
        assert error["message"].isascii()
        assert len(error["message"]) < 500
    assert api.engine.open == set()


@pytest.mark.parametrize("n_examples", [30, pytest.param(150, marks=pytest.mark.long)])
@pytest.mark.parametrize("path", CASES)
def test_no_json_object_makes_a_500(path: str, n_examples: int) -> None:
    """One application for all of them: to build it takes longer than to answer."""
    engine = FakeEngine(["ab"], pooling="rank" if path == "/v1/rerank" else "mean")
    with asyncio.Runner() as runner:
        app = running(engine, FakeText(has_infill=True), images=FakeImages())
        api = runner.run(app.__aenter__())

        @settings(max_examples=n_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(body=CASES[path])
        def try_all(body: Any) -> None:
            runner.run(check(api, path, body))

        try_all()
        runner.run(app.__aexit__(None, None, None))
