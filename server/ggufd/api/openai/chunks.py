"""Chunk format of the two OpenAI routes: one choice a chunk, pre-encoded around the text, the end in one write.

Knows nothing of where events come from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggufd.api.answer.explain import CacheExplainer
from ggufd.api.answer.logprobs import LegacyLogprobs, TokenTexts, chat_entry
from ggufd.api.answer.reader import AnswerReader
from ggufd.api.answer.sse import DONE, ChunkFormat, Envelope, event_bytes
from ggufd.api.answer.timings import RunningTimings
from ggufd.api.answer.usage import finish_reason, progress_json, timings_json, usage_json
from ggufd.api.openai.echo import Echo
from ggufd.chat.deltas.answer import ContentDelta, Delta, ReasoningDelta, ToolArgumentsDelta, ToolCallBegin
from ggufd.engine.messages.events import Finish, Output, Progress, PromptLogprobs, RequestEvent, TokenLogprob, Usage


class Chunks(ChunkFormat):
    """Chunk format that both routes share. `head` begins every chunk; `total` sequences are awaited, `n` a prompt."""

    def __init__(
        self,
        head: Mapping[str, Any],
        total: int,
        n: int,
        *,
        explainer: CacheExplainer,
        includes_usage: bool,
        has_logprobs: bool,
        has_bans: bool = False,
        tells_progress: bool = True,
        times_tokens: bool = False,
        image_tokens: int = 0,
    ) -> None:
        self.response_id = head["id"]
        self._head = head
        self._total = total
        self._n = n
        self._explainer = explainer
        self._includes_usage = includes_usage
        self._has_logprobs = has_logprobs
        self._has_bans = has_bans
        self._tells_progress = tells_progress
        self._times_tokens = times_tokens
        self._image_tokens = image_tokens
        self._timings: dict[int, RunningTimings] = {}
        self._n_tokens: dict[int, int] = {}
        self._envelopes: dict[int, Envelope] = {}
        self._usages: dict[int, Usage] = {}
        self._prompt_logprobs: dict[int, tuple[TokenLogprob, ...]] = {}

    def feed(self, first: int, event: RequestEvent) -> bytes:
        """The chunks for one event; after the last sequence's end the usage, if wanted, and `[DONE]`."""
        if isinstance(event, PromptLogprobs):
            self._prompt_logprobs[first // self._n] = event.entries
        if isinstance(event, Progress):
            return self._progress(first + event.index, event)
        if not isinstance(event, Output):
            return b""
        index = first + event.index
        envelope = self._envelopes.get(index)
        opening = b""
        if envelope is None:
            envelope = self._envelopes[index] = self._envelope(index)
            opening = self._opening(index)
        if self._times_tokens:
            self._n_tokens[index] = self._n_tokens.get(index, 0) + len(event.tokens)
        data = opening + self._body(index, envelope, event)
        return data if event.finish is None else data + self._end(index, self._told(index, event.finish))

    def _progress(self, index: int, event: Progress) -> bytes:
        timings = self._timings.setdefault(index, RunningTimings()).of_prompt(event)
        if not self._tells_progress:
            return b""
        more = {"timings": timings} if self._times_tokens else {}
        return event_bytes(self._object([]) | {"prompt_progress": progress_json(event), **more})

    def _timing(self, index: int) -> dict[str, Any]:
        """`timings` so far, where each chunk is to have them."""
        if not self._times_tokens:
            return {}
        return {"timings": self._timings.setdefault(index, RunningTimings()).of_text(self._n_tokens[index])}

    def _wrapped(self, index: int, envelope: Envelope, text: str) -> bytes:
        """A chunk with text and nothing else, which is most of a stream."""
        if self._times_tokens:
            return self.chunk(self._choice(index, text), **self._timing(index))
        return envelope.wrap(text)

    def _body(self, index: int, envelope: Envelope, output: Output) -> bytes:
        """The chunks for the text of an output."""
        if self._has_logprobs:
            return self._with_logprobs(index, output)
        return self._wrapped(index, envelope, output.text) if output.text else b""

    def chunk(self, choice: Mapping[str, Any], **more: Any) -> bytes:
        """One chunk with one choice."""
        return event_bytes(self._object([choice]) | more)

    def _object(self, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        nothing_yet = {"usage": None} if self._includes_usage else {}
        return {**self._head, "choices": choices, **nothing_yet}

    def _envelope(self, index: int) -> Envelope:
        return Envelope(self._object([self._choice(index, Envelope.SLOT)]))

    def _end(self, index: int, finish: Finish) -> bytes:
        self._usages[index] = finish.usage
        choice = self._last_choice(index, self._reason(index, finish))
        timings = timings_json(finish.usage, has_bans=self._has_bans)
        data = self.chunk(choice, timings=timings, **self._explainer.of(index))
        return data + self._after_all() if len(self._usages) == self._total else data

    def _told(self, index: int, finish: Finish) -> Finish:
        """The end as the client sees it."""
        return finish

    def _reason(self, index: int, finish: Finish) -> str:
        return finish_reason(finish)

    def _after_all(self) -> bytes:
        if not self._includes_usage:
            return DONE
        usages = [self._usages[index] for index in sorted(self._usages)]
        more = {"usage": self._usage(usages), "timings": timings_json(usages[0], has_bans=self._has_bans)}
        return event_bytes(self._object([]) | more) + DONE

    def _usage(self, usages: Sequence[Usage]) -> dict[str, Any]:
        return usage_json(usages, self._n, has_bans=self._has_bans)

    def _with_logprobs(self, index: int, output: Output) -> bytes:
        """One chunk a token where the tokens' texts make up the text: some clients read the first entry alone."""
        if not output.logprobs:
            return self.chunk(self._choice(index, output.text)) if output.text else b""
        texts = self._texts(index, output.logprobs)
        if "".join(texts) != output.text:
            return self.chunk(self._choice(index, output.text, self._logprobs(index, output.logprobs, texts)))
        parts = zip(output.logprobs, texts, strict=True)
        return b"".join(
            self.chunk(self._choice(index, text, self._logprobs(index, [entry], [text]))) for entry, text in parts
        )

    @abstractmethod
    def _opening(self, index: int) -> bytes:
        """What goes before a choice's first text."""

    @abstractmethod
    def _choice(self, index: int, text: str, logprobs: Any = None) -> dict[str, Any]:
        """A choice with text."""

    @abstractmethod
    def _last_choice(self, index: int, reason: str) -> dict[str, Any]:
        """A choice without text that says why it ended."""

    @abstractmethod
    def _texts(self, index: int, entries: Sequence[TokenLogprob]) -> list[str]:
        """The texts that these tokens complete."""

    @abstractmethod
    def _logprobs(self, index: int, entries: Sequence[TokenLogprob], texts: Sequence[str]) -> Any:
        """The `logprobs` of a choice."""


class ChatChunks(Chunks):
    """`chat.completion.chunk`. `new_reader` makes the reader of a choice, which has this number."""

    def __init__(self, *args: Any, new_reader: Callable[[int], AnswerReader], **options: Any) -> None:
        super().__init__(*args, **options)
        self._new_reader = new_reader
        self._readers: dict[int, AnswerReader] = {}
        self._decoders: dict[int, TokenTexts] = {}

    def _opening(self, index: int) -> bytes:
        self._decoders[index] = TokenTexts()
        self._readers[index] = self._new_reader(index)
        return self.chunk(_delta(index, {"role": "assistant", "content": ""}))

    def _body(self, index: int, envelope: Envelope, output: Output) -> bytes:
        """Text that needs no reading goes the short way, which is most of it."""
        reader = self._readers[index]
        if reader.is_plain:
            return super()._body(index, envelope, output)
        if output.logprobs and not reader.is_over:
            logprobs = self._logprobs(index, output.logprobs, self._texts(index, output.logprobs))
            return self._deltas(index, reader.feed(output), logprobs)
        return b"".join([self._quick(index, envelope, delta) for delta in reader.feed(output)])

    def _quick(self, index: int, envelope: Envelope, delta: Delta) -> bytes:
        """Content goes the short way here too."""
        return (
            self._wrapped(index, envelope, delta.text)
            if isinstance(delta, ContentDelta)
            else self._deltas(index, [delta])
        )

    def _deltas(self, index: int, deltas: Sequence[Delta], logprobs: Any = None) -> bytes:
        """A chunk for each delta; log-probabilities stand in the first, or in one of their own."""
        parts = [delta_json(delta) for delta in deltas] or [{"content": ""}] * (logprobs is not None)
        values = [logprobs, *[None] * len(parts)]
        timing = self._timing(index)
        pairs = zip(parts, values, strict=False)
        return b"".join(self.chunk(_delta(index, part, value), **timing) for part, value in pairs)

    def _reason(self, index: int, finish: Finish) -> str:
        return finish_reason(finish, has_calls=self._readers[index].has_whole_calls)

    def _told(self, index: int, finish: Finish) -> Finish:
        return self._readers[index].ended(finish)

    def _usage(self, usages: Sequence[Usage]) -> dict[str, Any]:
        reasoning_tokens = sum(reader.reasoning_tokens for reader in self._readers.values())
        return usage_json(
            usages,
            self._n,
            reasoning_tokens=reasoning_tokens,
            has_bans=self._has_bans,
            image_tokens=self._image_tokens,
        )

    def _choice(self, index: int, text: str, logprobs: Any = None) -> dict[str, Any]:
        return _delta(index, {"content": text}, logprobs)

    def _last_choice(self, index: int, reason: str) -> dict[str, Any]:
        return _delta(index, {}, None, reason)

    def _texts(self, index: int, entries: Sequence[TokenLogprob]) -> list[str]:
        return [self._decoders[index].next(entry.piece) for entry in entries]

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob], texts: Sequence[str]) -> Any:
        parts = zip(entries, texts, strict=True)
        return {"content": [chat_entry(entry, text) for entry, text in parts], "refusal": None}


def delta_json(delta: Delta) -> dict[str, Any]:
    """OpenAI's `delta`. A call's id, type and name come once: clients join whatever strings they are sent."""
    match delta:
        case ContentDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text}
        case ToolCallBegin(call, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": call, "id": call_id, "type": "function", "function": function}]}
        case ToolArgumentsDelta(call, text):
            return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}


def _delta(index: int, delta: Mapping[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


class CompletionChunks(Chunks):
    """`text_completion`, streamed. `echoes` are the prompts to be repeated, one for each prompt or none."""

    def __init__(self, *args: Any, echoes: Sequence[Echo] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self._echoes = echoes
        self._legacy: dict[int, LegacyLogprobs] = {}

    def _opening(self, index: int) -> bytes:
        legacy = self._legacy[index] = LegacyLogprobs()
        if not self._echoes:
            return b""
        prompt = index // self._n
        echo = self._echoes[prompt]
        logprobs = None
        if self._has_logprobs:
            logprobs = echo.logprobs(legacy, self._prompt_logprobs.get(prompt, ()))
        return self.chunk(self._choice(index, echo.text, logprobs))

    def _choice(self, index: int, text: str, logprobs: Any = None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def _last_choice(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}

    def _texts(self, index: int, entries: Sequence[TokenLogprob]) -> list[str]:
        return self._legacy[index].texts(entries)

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob], texts: Sequence[str]) -> Any:
        return self._legacy[index].add(entries, texts)
