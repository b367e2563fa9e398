"""The page's settings reach every field that a chat request has."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ggufd.api.request.chat.schemas import ChatRequest
from ggufd.api.request.fields import OPENAI_CHAT

FIELDS = Path(__file__).parents[2] / "server" / "ggufd" / "web" / "settings" / "fields.js"

NO_SETTINGS = {
    "messages",
    "model",
    "stream",
    "stream_options",
    "n",
    "logprobs",
    "resumable",
    "deterministic",
    "top_logprobs",
    "explain_cache",
    "report_queue",
    "return_progress",
    "timings_per_token",
    "verbose",
    "continue_final_message",
    "add_generation_prompt",
}
"""Fields that the page sets itself, and reports that it has no place for."""

OTHERWISE = {
    "json_schema": "response_format",
    "structured_outputs": "response_format",
    "dynatemp_low": "dynatemp_range",
    "dynatemp_high": "dynatemp_range",
    "dynamic_temperature": "dynatemp_range",
}
"""Fields that another one of the panel says as well."""


@pytest.fixture(scope="module")
def wire_names() -> set[str]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    program = f"import {{ WIRE_NAMES }} from {json.dumps(FIELDS.as_uri())}; console.log(JSON.stringify(WIRE_NAMES))"
    done = subprocess.run([node, "--input-type=module", "-e", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_every_field_of_a_chat_request_is_reachable(wire_names: set[str]) -> None:
    fields = set(ChatRequest.model_fields) - NO_SETTINGS
    missing = {
        field for field in fields if not wire_names & {field, *OPENAI_CHAT.get(field, ()), OTHERWISE.get(field, field)}
    }
    assert not missing


def test_every_setting_is_a_field_of_a_chat_request(wire_names: set[str]) -> None:
    known = {name for names in OPENAI_CHAT.values() for name in names} | {"lora"}
    assert wire_names <= known
