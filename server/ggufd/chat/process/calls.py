"""Interface of the text process: each call is a method of `TextModel` by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ggufd.chat.prompt import ChatPrompt, RenderedChat, TextInfo
from ggufd.engine.messages.sampling import Grammar

CHECK_GRAMMAR = "check_grammar"


class TextCalls(ABC):
    """Calls that a text process answers. `info` is there after `start`."""

    info: TextInfo

    @abstractmethod
    async def start(self) -> TextInfo:
        """Get ready. Raises ModelError when the model cannot be used."""

    @abstractmethod
    async def stop(self) -> None:
        """End; calls under way raise EngineDown."""

    @property
    @abstractmethod
    def is_running(self) -> bool:
        """Whether a process answers now; a call that comes between two waits for the next."""

    @abstractmethod
    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Run a method of `TextModel`. Raises what it raises, InvalidRequest when it crashes or takes too long."""

    async def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        tokens: list[int] = await self._call("encode", text, add_special=add_special, parse_special=parse_special)
        return tokens

    async def encode_inputs(self, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
        tokens: list[list[int]] = await self._call("encode_inputs", list(texts), limit)
        return tokens

    async def encode_pairs(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        tokens: list[list[int]] = await self._call("encode_pairs", query, list(documents))
        return tokens

    async def encode_infill(
        self, prefix: str, suffix: str, files: Sequence[tuple[str, str]] = (), limit: int | None = None
    ) -> list[int]:
        tokens: list[int] = await self._call("encode_infill", prefix, suffix, list(files), limit)
        return tokens

    async def decode(self, tokens: Sequence[int]) -> str:
        text: str = await self._call("decode", list(tokens))
        return text

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        pieces: list[bytes] = await self._call("pieces", list(tokens))
        return pieces

    async def render(self, chat: ChatPrompt) -> RenderedChat:
        rendered: RenderedChat = await self._call("render", chat)
        return rendered

    async def check_grammar(self, grammar: Grammar) -> None:
        """Raises InvalidRequest unless the grammar can be enforced."""
        await self._call(CHECK_GRAMMAR, grammar.kind.value, grammar.text, grammar.frame)

    async def check_json(self, schema: str, text: str) -> None:
        """Raises EngineFailure unless a finished text is what its schema asks for."""
        await self._call("check_json", schema, text)
