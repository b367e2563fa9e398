"""llama-server's answer format: the object of a choice, and the chunks of a stream.

Log-probabilities come in the words of old and new clients at once. Knows nothing of where events come from.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ggufd.api.answer.explain import CacheExplainer
from ggufd.api.answer.generation import FinishedChoice
from ggufd.api.answer.logprobs import TokenTexts, final_entry, native_entry
from ggufd.api.answer.sse import ChunkFormat, event_bytes
from ggufd.api.answer.timings import RunningTimings
from ggufd.api.answer.usage import progress_json, timings_json
from ggufd.api.services.services import Services
from ggufd.engine.messages.events import Finish, FinishReason, Output, Progress, RequestEvent
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import GrammarKind, SamplingParams

_quote = json.encoder.encode_basestring_ascii

_STOP_TYPES: Mapping[FinishReason, str] = {FinishReason.STOP: "eos", FinishReason.LENGTH: "limit"}


class RequestFields(Protocol):
    """Fields of the request that its answer repeats."""

    @property
    def has_bans(self) -> bool: ...
    @property
    def stream(self) -> bool: ...
    @property
    def return_progress(self) -> bool: ...
    @property
    def timings_per_token(self) -> bool: ...


class NativeAnswer:
    """Answer fields of every choice; `requests` and the `prompts` as text, one a prompt."""

    def __init__(
        self,
        services: Services,
        fields: RequestFields,
        requests: Sequence[EngineRequest],
        prompts: Sequence[str],
        explainer: CacheExplainer,
    ) -> None:
        self.requests = requests
        self.has_logprobs = requests[0].n_logprobs is not None
        self.tells_progress = fields.return_progress
        self.times_tokens = fields.timings_per_token
        self.entry = final_entry if requests[0].are_logprobs_final else native_entry
        self._services = services
        self._fields = fields
        self._prompts = prompts
        self._explainer = explainer

    def n_prompt(self, index: int) -> int:
        """Tokens of the prompt that this choice continues."""
        return len(self._request(index).prompt)

    def _request(self, index: int) -> EngineRequest:
        return self.requests[index // self.requests[0].n]

    def end(self, index: int, finish: Finish, text: str) -> dict[str, Any]:
        """The object that ends a choice, with `text` as its content."""
        usage, request = finish.usage, self._request(index)
        ready = self._services.require_ready()
        is_cut = finish.reason is FinishReason.LENGTH and usage.prompt_tokens + usage.completion_tokens >= ready.n_ctx
        return {
            "index": index,
            "content": text,
            "tokens": [],
            "stop": True,
            "model": self._services.config.model_id,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "tokens_cached": usage.cached_tokens,
            "generation_settings": self._settings(request),
            "prompt": self._prompts[index // request.n],
            "has_new_line": "\n" in text,
            "truncated": is_cut or usage.dropped_tokens > 0,
            "stop_type": "word" if finish.stop else _STOP_TYPES.get(finish.reason, "none"),
            "stopping_word": finish.stop or "",
            "timings": timings_json(usage, has_bans=self._fields.has_bans),
            **self._explainer.of(index),
        }

    def _settings(self, request: EngineRequest) -> dict[str, Any]:
        limit = -1 if request.max_tokens is None else request.max_tokens
        return {
            **settings_json(request.sampling),
            "n_predict": limit,
            "max_tokens": limit,
            "stop": list(request.stop),
            "logit_bias": self._biases(request.sampling),
            "stream": self._fields.stream,
            "n_keep": request.n_keep,
            "n_probs": request.n_logprobs or 0,
            "post_sampling_probs": request.are_logprobs_final,
            "banned_strings": list(request.banned_strings),
        }

    def _biases(self, params: SamplingParams) -> list[dict[str, Any]]:
        """Biases of tokens; null is minus infinity, which JSON has no number for."""
        banned = [self._services.text.info.eos_token] if params.ignore_eos else []
        biases = [*params.logit_bias, *((token, None) for token in banned if token is not None)]
        return [{"bias": _finite(bias), "token": token} for token, bias in biases]

    def probabilities(self, choice: FinishedChoice) -> dict[str, Any]:
        """`completion_probabilities` of a whole answer, when they were asked for."""
        if not self.has_logprobs:
            return {}
        texts = TokenTexts()
        return {"completion_probabilities": [self.entry(entry, texts.next(entry.piece)) for entry in choice.logprobs]}


def settings_json(params: SamplingParams) -> dict[str, Any]:
    """Samplers in llama-server's names; a random seed is its largest."""
    grammar = params.grammar
    is_gbnf = grammar is not None and grammar.kind is GrammarKind.GBNF
    names = [field.name for field in dataclasses.fields(params) if field.name not in _OTHERWISE]
    values = {name: getattr(params, name) for name in names}
    return {
        **values,
        "typical_p": params.typ_p,
        "seed": 0xFFFFFFFF if params.seed is None else params.seed,
        "samplers": list(params.samplers),
        "dry_sequence_breakers": list(params.dry_sequence_breakers),
        "grammar": grammar.text if grammar is not None and is_gbnf else "",
    }


def _finite(bias: float | None) -> float | None:
    return None if bias is None or math.isinf(bias) else bias


_OTHERWISE = frozenset({"typ_p", "seed", "samplers", "dry_sequence_breakers", "grammar", "logit_bias"})


class _StreamedChoice:
    """Streamed part of one choice."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.has_new_line = False
        self.waiting: list[int] = []
        self.texts = TokenTexts()
        self.timings = RunningTimings()


class NativeChunks(ChunkFormat):
    """Stream format: `stop` is false in all events but the last of each choice, which has no text."""

    def __init__(self, answer: NativeAnswer) -> None:
        self._answer = answer
        self._states: dict[int, _StreamedChoice] = {}

    def feed(self, first: int, event: RequestEvent) -> bytes:
        """The chunks for one event."""
        if isinstance(event, Progress):
            return self._progress(first + event.index, event)
        if not isinstance(event, Output):
            return b""
        index = first + event.index
        state = self._states.setdefault(index, _StreamedChoice())
        data = (
            self._with_logprobs(index, state, event) if self._answer.has_logprobs else self._text(index, state, event)
        )
        return data if event.finish is None else data + self._end(index, state, event.finish)

    def _progress(self, index: int, event: Progress) -> bytes:
        timings = self._states.setdefault(index, _StreamedChoice()).timings.of_prompt(event)
        if not self._answer.tells_progress:
            return b""
        chunk = {"index": index, "content": "", "tokens": [], "stop": False, "prompt_progress": progress_json(event)}
        return event_bytes(chunk | ({"timings": timings} if self._answer.times_tokens else {}))

    def _text(self, index: int, state: _StreamedChoice, event: Output) -> bytes:
        """Tokens without text yet wait for the next chunk."""
        state.waiting += event.tokens
        if not event.text:
            return b""
        tokens, state.waiting = state.waiting, []
        return self._chunk(index, state, event.text, tokens)

    def _chunk(self, index: int, state: _StreamedChoice, text: str, tokens: Sequence[int], more: str = "") -> bytes:
        state.n_tokens += len(tokens)
        state.has_new_line |= "\n" in text
        if self._answer.times_tokens:
            more += f',"timings":{json.dumps(state.timings.of_text(state.n_tokens))}'
        # By hand: this runs for every token of every stream.
        return (
            f'data: {{"index":{index},"content":{_quote(text)},"tokens":[{",".join(map(str, tokens))}],"stop":false,'
            f'"tokens_predicted":{state.n_tokens},"tokens_evaluated":{self._answer.n_prompt(index)}{more}}}\n\n'
        ).encode("ascii")

    def _with_logprobs(self, index: int, state: _StreamedChoice, event: Output) -> bytes:
        """One chunk a token where the tokens' texts make up the text: some clients read the first entry alone."""
        entries = event.logprobs
        if not entries:
            return self._text(index, state, event)
        texts = [state.texts.next(entry.piece) for entry in entries]
        shown = [self._answer.entry(entry, text) for entry, text in zip(entries, texts, strict=True)]
        if "".join(texts) != event.text:
            return self._chunk(index, state, event.text, event.tokens, _probabilities(shown))
        parts = zip(texts, event.tokens, shown, strict=True)
        return b"".join(self._chunk(index, state, text, [token], _probabilities([item])) for text, token, item in parts)

    def _end(self, index: int, state: _StreamedChoice, finish: Finish) -> bytes:
        return event_bytes(
            self._answer.end(index, finish, "") | {"tokens": state.waiting, "has_new_line": state.has_new_line}
        )


def _probabilities(shown: Sequence[Mapping[str, Any]]) -> str:
    return ',"completion_probabilities":' + json.dumps(shown, allow_nan=False, separators=(",", ":"))
