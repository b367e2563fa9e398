"""Whether a model is asked to think, where nobody says anything of it: as llama-server's templates are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ggufd.chat.prompt import ChatPrompt
from tests.support.models.vocabularies import SOURCE_VARIABLE, templates
from tests.support.renderers import renderer_of

OPENS = {
    "Bielik-11B-v3.0-Instruct": "<think>\n",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "<|CHATBOT_TOKEN|>",
    "Qwen-QwQ-32B": "<think>\n",
    "Qwen-Qwen3-0.6B": "<|im_start|>assistant\n",
    "Reka-Edge": "<think>\n",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "<think>\n",
    "deepseek-ai-DeepSeek-V3.1": "<think>",
    "deepseek-ai-DeepSeek-V4": "<think>",
    "google-gemma-4-31B-it": "<|turn>model\n",
    "openbmb-MiniCPM5-1B": "<think>\n",
    "poolside-Laguna-XS.2": "<think>",
}
"""How the prompt ends where the model is to think first. It opens its thoughts itself where there is no tag."""


def rendered(source: str, **template_kwargs: Any) -> str:
    chat = ChatPrompt(({"role": "user", "content": "Hi"},), template_kwargs=template_kwargs)
    return renderer_of(source).render(chat)[0]


def real_templates() -> list[Any]:
    found = [path for path in templates() if "enable_thinking" in path.read_text("utf-8")]
    if not found:
        return [pytest.param(None, marks=pytest.mark.skip(f"{SOURCE_VARIABLE} names no sources of llama.cpp"))]
    return [pytest.param(path, id=path.stem) for path in found]


@pytest.mark.parametrize("path", real_templates())
def test_a_real_template_is_asked_for_thoughts_unless_somebody_says_otherwise(path: Path) -> None:
    source = path.read_text("utf-8")
    asked = rendered(source)
    assert asked == rendered(source, enable_thinking=True)
    assert asked.endswith(OPENS.get(path.stem, ""))
    assert not asked.endswith(("</think>", "<|END_THINKING|>"))


@pytest.mark.parametrize("path", real_templates())
def test_a_real_template_takes_no_for_an_answer(path: Path) -> None:
    source = path.read_text("utf-8")
    is_indifferent = path.stem == "NVIDIA-Nemotron-Nano-v2"
    assert (rendered(source, enable_thinking=False) == rendered(source)) == is_indifferent


@pytest.mark.parametrize(
    ("template_kwargs", "expected"),
    [
        ({}, "enabled"),
        ({"enable_thinking": True}, "enabled thinking"),
        ({"enable_thinking": False}, ""),
        ({"enable_thinking": None}, ""),
        ({"thinking": True}, "thinking"),
        ({"thinking": False}, ""),
        ({"enable_thinking": True, "thinking": False}, "enabled"),
        ({"reasoning_effort": "high"}, "enabled"),
    ],
    ids=str,
)
def test_who_says_anything_under_either_name_is_obeyed(template_kwargs: Mapping[str, Any], expected: str) -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ ' enabled' if enable_thinking }}"
        "{{ ' thinking' if thinking is defined and thinking }}"
    )
    assert rendered(source, **template_kwargs) == f"Hi {expected}".rstrip()
