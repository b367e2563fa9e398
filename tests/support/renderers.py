"""Renderers of chat templates, each made once: finding out what a template can do renders it a dozen times."""

from __future__ import annotations

import functools

from ggufd.chat.rendering.renderer import ChatRenderer
from ggufd.chat.rendering.template import Template


@functools.lru_cache(maxsize=128)
def renderer_of(source: str) -> ChatRenderer:
    """The renderer of a template with the usual tokens; rendering changes nothing of it."""
    return ChatRenderer(Template(source), {"bos_token": "<s>", "eos_token": "</s>"})
