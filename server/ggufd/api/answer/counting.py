"""Tokens of a conversation without a request to generate: for routes that count them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ggufd.api.images.prompts import RequestImages
from ggufd.api.request.chat.messages import read_messages
from ggufd.api.services.services import Services
from ggufd.chat.images import images_of, with_markers
from ggufd.chat.prompt import ChatPrompt
from ggufd.keys.principal import Principal

ROW = -1
"""What stands for a row of an image in a list of tokens, as in llama-server's."""


async def chat_tokens(services: Services, value: Any, principal: Principal) -> tuple[int, ...]:
    """The tokens of OpenAI's messages in the model's template, those of images too. Raises InvalidRequest."""
    messages = read_messages(value)
    services.require_ready()
    parts = tuple(images_of(messages))
    marked, markers = with_markers(messages, services.image_key)
    rendered = await services.text.render(ChatPrompt(marked, markers=markers))
    if not parts:
        return rendered.tokens
    images = RequestImages(services.images, services.text, principal)
    return (await images.place(rendered.tokens, rendered.images, parts)).tokens


def shown_tokens(tokens: Sequence[int]) -> list[int]:
    """Tokens as a client is told them."""
    return [max(token, ROW) for token in tokens]
