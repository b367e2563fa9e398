"""An engine and a text process without a model, that hold the API to the contract of the real ones.

The vocabulary is bytes: token 0 to 255 is that byte, 256 is BOS, 257 is EOS. Answers are given; a step is one token of
every sequence. What the contract forbids is an AssertionError.
"""

from __future__ import annotations

import array
import asyncio
import codecs
import enum
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ggufd.chat.answers.answer_planner import AnswerPlanner
from ggufd.chat.content import text_of
from ggufd.chat.deltas.thinking import Thinking
from ggufd.chat.images import ImageMarkers, marker_of
from ggufd.chat.prompt import ChatPrompt, ImagePlace, RenderedChat, TextInfo
from ggufd.engine.messages.events import (
    Admitted,
    CacheReport,
    Embedding,
    Finish,
    FinishReason,
    Output,
    Progress,
    PromptLogprobs,
    Queued,
    RequestEvent,
    TokenLogprob,
    Turn,
    Usage,
)
from ggufd.engine.messages.images import row_tokens
from ggufd.engine.messages.provenance import FileDigest, Provenance
from ggufd.engine.messages.reports import (
    ChatsSaved,
    EmbeddingInfo,
    LimitUse,
    LiveState,
    ModelInfo,
    QueueEntry,
    QueueState,
    Ready,
    SlotDone,
    SlotState,
    Stats,
    StepRecord,
    Steps,
    UseElsewhere,
)
from ggufd.engine.messages.requests import ActOnSlot, AdoptChat, EmbedRequest, EngineRequest, SlotAction
from ggufd.engine.messages.sampling import Grammar, GrammarKind, ReasoningBudget
from ggufd.errors import EngineDown, EngineFailure, GgufdError, InvalidRequest, Unavailable, Unsupported
from ggufd.keys.principal import Principal
from ggufd.llama.params import Pooling

BOS, EOS, N_VOCAB = 256, 257, 258


class FakeState(enum.Enum):
    LOADING = "loading"
    READY = "ready"
    SLEEPING = "sleeping"
    WAKING = "waking"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


PROVENANCE = Provenance(
    model=(FileDigest("fake.gguf", 4000, "d1"),),
    adapters=(),
    control_vectors=(),
    build="b1",
    libraries="d2",
    cpu="CPU : FAKE = 1",
    devices=(),
    settings=(("n_ctx", 512), ("n_threads", 1)),
)


def make_ready(n_ctx: int = 512, *, pooling: Pooling = "mean", writes: bool = True) -> Ready:
    """What an engine of four slots says of itself. It makes vectors of up to 16 tokens."""
    model = ModelInfo(
        "fake", "fake.gguf", "fake", "fake", "F32", 1000, 4000, N_VOCAB, 2048, 8, 2, None, "<s>", "</s>", {}
    )
    return Ready(
        model=model,
        n_ctx=n_ctx,
        n_slots=4,
        n_batch=512,
        n_threads=1,
        n_gpu_layers=0,
        devices=(),
        flash_attn=False,
        flash_attn_why="",
        reuse="any",
        memory_bytes=4000,
        buffers=(),
        build="b1",
        embedding=EmbeddingInfo(pooling, 4, 16, is_asked_for=pooling == "rank"),
        fingerprint="of the fake",
        provenance=PROVENANCE,
        writes=writes,
    )


def piece(token: int) -> bytes:
    """The bytes of a token."""
    return {BOS: b"<s>", EOS: b"</s>"}.get(token) or bytes([token])


class FakeEngine:
    """Answers sequence `i` with `answers[i % len(answers)]`.

    `gate` holds every request back until it is set, and `hold_after` closes it after so many steps of one; `turns` are
    told one after the other to those who ask. `late_refusal` is what the engine says to those that wait to be placed.
    `error` ends streams after `error_after` steps; `refusal` refuses requests after the first `n_accepted`.
    """

    def __init__(
        self,
        answers: Sequence[str | bytes] = ("Hello world",),
        n_ctx: int = 512,
        *,
        pooling: Pooling = "mean",
        writes: bool = True,
    ) -> None:
        self.answers = [answer.encode() if isinstance(answer, str) else answer for answer in answers]
        self.state = FakeState.READY
        self.trouble = ""
        self.first_id = 1000
        self.ready: Ready | None = make_ready(n_ctx, pooling=pooling, writes=writes)
        self.gate = asyncio.Event()
        self.gate.set()
        self.hold_after: int | None = None
        self.step_s = 0.0
        self.n_steps = 0
        self.error: Exception | None = None
        self.error_after = 0
        self.refusal: GgufdError | None = None
        self.late_refusal: GgufdError | None = None
        self.turns: list[Turn] = []
        self.queue: tuple[QueueEntry, ...] = ()
        self.n_accepted = 0
        self.cached_tokens = 0
        self.rewinds = 0
        self.dropped_tokens = 0
        self.records: tuple[StepRecord, ...] = ()
        self.cache = CacheReport()
        self.n_kept = 5
        self.n_unsaved = 0
        self.adopted: list[AdoptChat] = []
        self.slot_commands: list[ActOnSlot] = []
        self.requests: list[EngineRequest] = []
        self.embeds: list[EmbedRequest] = []
        self.aborted: list[int] = []
        self.charged: list[tuple[str, float]] = []
        self.limits_used: list[LimitUse] = []
        self.limits_elsewhere: list[UseElsewhere] = []
        self.finished: list[tuple[int, int]] = []
        self.open: set[int] = set()
        self.streams: dict[int, FakeStream | FakeVectors] = {}
        self.live: LiveState | None = None
        self.live_error: GgufdError | None = None
        self.watchers: list[Callable[[enum.Enum], None]] = []

    def go_on(self) -> None:
        """Open the gate for good."""
        self.hold_after = None
        self.gate.set()

    @property
    def is_full(self) -> bool:
        return self.refusal is not None and len(self.requests) >= self.n_accepted

    @property
    def n_waiting(self) -> int:
        return 0 if self.gate.is_set() else len(self.open)

    @property
    def n_running(self) -> int:
        return len(self.open) - self.n_waiting

    @property
    def reports(self) -> FakeEngine:
        return self

    @property
    def intake(self) -> FakeEngine:
        return self

    def new_request_id(self) -> int:
        return len(self.requests) + len(self.embeds) + self.first_id

    def submit(self, request: EngineRequest | EmbedRequest) -> FakeStream | FakeVectors:
        if self.ready is None:
            raise EngineDown("loading")
        if self.refusal is not None and len(self.requests) >= self.n_accepted:
            raise self.refusal
        self.open.add(id(request))
        if isinstance(request, EmbedRequest):
            _check_embed(request, self.ready)
            self.embeds.append(request)
            vectors = self.streams[request.request_id] = FakeVectors(self, request)
            return vectors
        _check(request, self.ready)
        self.requests.append(request)
        stream = self.streams[request.request_id] = FakeStream(self, request)
        return stream

    async def queue_state(self) -> QueueState:
        return QueueState(self.queue)

    async def live_state(self) -> LiveState:
        if self.live_error is not None:
            raise self.live_error
        return self.live or LiveState(await self.stats(), (), self.queue)

    def charge_elsewhere(self, costs: Sequence[tuple[str, float]]) -> None:
        self.charged.extend(costs)

    def limit_use(self) -> list[LimitUse]:
        return self.limits_used

    def count_elsewhere(self, uses: Sequence[UseElsewhere]) -> None:
        self.limits_elsewhere = list(uses)

    def find(self, request_id: int) -> FakeStream | FakeVectors | None:
        return self.streams.get(request_id)

    def watch(self, tell: Callable[[enum.Enum], None]) -> None:
        self.watchers.append(tell)

    def enter(self, state: FakeState) -> None:
        """Be in that state, and say so."""
        self.state = state
        for tell in self.watchers:
            tell(state)

    def pause(self) -> None:
        self.enter(FakeState.DRAINING)

    def resume(self) -> None:
        self.enter(FakeState.READY)

    def sleep(self) -> None:
        if self.open:
            raise Unavailable("requests are under way")
        self.enter(FakeState.SLEEPING)

    async def stats(self) -> Stats:
        slots = (SlotState(0, None, self.n_kept, self.n_kept), SlotState(1, 1000, 9, 7))
        return Stats(self.n_waiting, self.n_running, 0, 0, 0, 0, 0.0, 0.0, slots)

    async def steps(self) -> Steps:
        return Steps(self.records)

    async def save_chats(self) -> ChatsSaved:
        self.n_unsaved = max(0, self.n_unsaved - 1)
        return ChatsSaved(self.n_unsaved)

    def adopt_chat(self, chat: AdoptChat) -> None:
        self.adopted.append(chat)

    async def act_on_slot(self, command: ActOnSlot) -> SlotDone:
        assert self.ready is not None
        assert 0 <= command.slot < self.ready.n_slots
        if command.slot == 1:
            raise Unavailable("slot 1 is in use")
        if command.action is not SlotAction.ERASE:
            assert Path(command.path).is_absolute()
            assert command.mark
            self.slot_commands.append(command)
            return SlotDone(command.slot, self.n_kept, 100)
        n_erased, self.n_kept = self.n_kept, 0
        return SlotDone(command.slot, n_erased)


def _check(request: EngineRequest, ready: Ready | None) -> None:
    assert request.prompt, "an empty prompt"
    assert isinstance(request.prompt, tuple)
    rows = [token for span in request.images for token in row_tokens(span.rows.digest, span.rows.n_rows)]
    assert [token for token in request.prompt if token < 0] == rows, "rows that are of no image"
    assert all(request.prompt[span.start] == row_tokens(span.rows.digest, 1)[0] for span in request.images)
    assert all(span.rows.path for span in request.images), "an image that was not encoded"
    assert all(type(token) is int and token < N_VOCAB for token in request.prompt), "a token out of the vocabulary"
    assert ready is None or len(request.prompt) < ready.n_ctx, "a prompt that does not fit"
    assert request.n >= 1
    assert request.max_tokens is None or request.max_tokens >= 1
    assert all(request.stop), "an empty stop string"
    assert all(0 <= token < N_VOCAB for token, _ in request.sampling.logit_bias), "a bias out of the vocabulary"


def _check_embed(request: EmbedRequest, ready: Ready) -> None:
    assert request.inputs, "nothing to embed"
    for tokens in request.inputs:
        assert isinstance(tokens, tuple)
        assert 0 < len(tokens) <= ready.embedding.n_ctx, "an input that does not fit"
        assert all(type(token) is int and 0 <= token < N_VOCAB for token in tokens), "a token out of the vocabulary"
    assert request.dimensions is None or 0 < request.dimensions <= ready.embedding.width


@dataclass
class FakeVectors:
    """The events of one request for vectors, an input each time.

    A vector is the number of tokens, the first token, 3 and 4, cut and brought to the length 1 as asked for; a score is
    the number of tokens.
    """

    engine: FakeEngine
    request: EmbedRequest
    n_told: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: GgufdError | None = None

    @property
    def principal(self) -> Principal:
        return self.request.principal

    async def __aenter__(self) -> FakeVectors:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.abort()
        self.engine.open.discard(id(self.request))

    def abort(self) -> None:
        if self.n_told < self.request.n and not self.ended.is_set():
            self.engine.aborted.append(self.request.request_id)
        self.ended.set()

    def refuse(self, error: GgufdError) -> None:
        self.refusal = error
        self.abort()

    async def take(self) -> list[RequestEvent]:
        waits = [asyncio.create_task(event.wait()) for event in (self.engine.gate, self.ended)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if error := self.refusal or self.engine.error:
            raise error
        if self.ended.is_set() or self.n_told == self.request.n:
            return []
        # The last first: nothing may rest on the order.
        index = self.request.n - 1 - self.n_told
        self.n_told += 1
        return [self._embedding(index)]

    def _embedding(self, index: int) -> Embedding:
        assert self.engine.ready is not None
        tokens, pooling = self.request.inputs[index], self.engine.ready.embedding.pooling
        if pooling == "rank":
            rows = [[float(len(tokens))]]
        else:
            n_vectors = len(tokens) if pooling == "none" else 1
            rows = [[len(tokens), token, 3.0, 4.0] for token in tokens[:n_vectors]]
            rows = [row[: self.request.dimensions] for row in rows]
        if self.request.norm == 2 and pooling != "rank":
            rows = [[number / math.hypot(*row) for number in row] for row in rows]
        data = array.array("f", [number for row in rows for number in row]).tobytes()
        return Embedding(self.request.request_id, index, data, len(rows[0]), len(tokens))


@dataclass
class _Sequence:
    """What one sequence will say, a step at a time."""

    steps: list[tuple[str, int]]
    reason: FinishReason
    stop: str | None
    position: int = 0
    is_finished: bool = False


@dataclass
class FakeStream:
    """The events of one request."""

    engine: FakeEngine
    request: EngineRequest
    n_steps: int = 0
    is_entered: bool = False
    is_placed: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: GgufdError | None = None
    sequences: list[_Sequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        answers = self.engine.answers
        self.sequences = [self._plan(answers[index % len(answers)]) for index in range(self.request.n)]

    def _plan(self, answer: bytes) -> _Sequence:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        steps = [(decoder.decode(bytes([token])), token) for token in answer]
        text, stop = "".join(text for text, _ in steps), None
        found = [(text.find(stop), stop) for stop in self.request.stop if stop in text]
        if found:
            cut, stop = min(found)
            kept, length = [], 0
            for part, token in steps:
                if length + len(part) > cut:
                    break
                kept.append((part, token))
                length += len(part)
            steps = kept
        limit = self.request.max_tokens
        if limit is not None and len(steps) > limit:
            return _Sequence(steps[:limit], FinishReason.LENGTH, None)
        return _Sequence(steps, FinishReason.STOP, stop)

    @property
    def principal(self) -> Principal:
        return self.request.principal

    async def __aenter__(self) -> FakeStream:
        self.is_entered = True
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.abort()
        self.engine.open.discard(id(self.request))

    def abort(self) -> None:
        if not self.is_done:
            self.engine.aborted.append(self.request.request_id)
        self.ended.set()

    def refuse(self, error: GgufdError) -> None:
        self.refusal = error
        self.abort()

    def finish(self, index: int) -> None:
        sequence = self.sequences[index]
        if not sequence.is_finished:
            self.engine.finished.append((self.request.request_id, index))
            sequence.steps = sequence.steps[: sequence.position]
            sequence.reason, sequence.stop = FinishReason.STOP, None

    @property
    def is_done(self) -> bool:
        return self.ended.is_set() or all(sequence.is_finished for sequence in self.sequences)

    async def placed(self) -> None:
        self.is_placed = True
        if self.engine.late_refusal is not None:
            raise self.engine.late_refusal

    async def take(self) -> list[RequestEvent]:
        assert self.is_entered, "read outside of its context"
        assert self.request.timeout_s is None or self.is_placed, "nobody waited for the engine's refusal"
        if self.request.report_queue and self.engine.turns:
            return [Queued(self.request.request_id, self.engine.turns.pop(0))]
        if self.n_steps == self.engine.hold_after:
            self.engine.gate.clear()
        if not self.engine.gate.is_set():
            await self._released()
        await asyncio.sleep(self.engine.step_s)
        if self.refusal is not None:
            raise self.refusal
        if self.is_done:
            return []
        if self.engine.error is not None and self.n_steps >= self.engine.error_after:
            raise self.engine.error
        self.n_steps += 1
        self.engine.n_steps += 1
        opening: list[RequestEvent] = []
        if self.n_steps == 1:
            opening = self._opening()
        open_sequences = [index for index, sequence in enumerate(self.sequences) if not sequence.is_finished]
        return opening + [self._step(index) for index in open_sequences]

    async def _released(self) -> None:
        """Until the gate opens or the request is aborted."""
        waits = [asyncio.create_task(event.wait()) for event in (self.engine.gate, self.ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _opening(self) -> list[RequestEvent]:
        request = self.request
        events: list[RequestEvent] = [
            Admitted(request.request_id, index, self.engine.cached_tokens) for index in range(request.n)
        ]
        if request.return_progress:
            total, cached = len(request.prompt), self.engine.cached_tokens
            events.append(Progress(request.request_id, 0, total, cached, total, 0.02))
        if request.prompt_logprobs:
            entries = tuple(_logprob(token, -1.0, request.n_logprobs or 0) for token in request.prompt[1:])
            events.append(PromptLogprobs(request.request_id, 0, entries))
        return events

    def _step(self, index: int) -> Output:
        sequence, request = self.sequences[index], self.request
        last = sequence.position + 1 >= len(sequence.steps)
        text, tokens, logprobs = "", (), ()
        if sequence.position < len(sequence.steps):
            text, token = sequence.steps[sequence.position]
            tokens = (token,)
            if request.n_logprobs is not None:
                logprobs = (_logprob(token, -0.5 * (index + 1), request.n_logprobs),)
        sequence.position += 1
        finish = None
        if last:
            sequence.is_finished = True
            usage = Usage(
                len(request.prompt),
                len(sequence.steps),
                self.engine.cached_tokens,
                0.01,
                0.02,
                0.1,
                self.engine.rewinds,
                cache=self.engine.cache if request.explain_cache else None,
                dropped_tokens=self.engine.dropped_tokens,
            )
            is_own_end = sequence.reason is FinishReason.STOP and sequence.stop is None
            has_end = is_own_end and request.n_logprobs is not None
            end = _logprob(EOS, -0.25, request.n_logprobs or 0) if has_end else None
            finish = Finish(sequence.reason, usage, sequence.stop, end)
        return Output(request.request_id, index, text, tokens, logprobs, finish)


def _reasoning_limit(thinking: Thinking | None) -> ReasoningBudget | None:
    if thinking is None:
        return None
    return ReasoningBudget(thinking.opening, thinking.closing, tuple(thinking.closing.encode()))


def _prepare_schema(schema: str) -> str:
    if "nonsense" in schema:
        raise InvalidRequest("no such type", param="grammar")
    return schema


def _logprob(token: int, logprob: float, n: int) -> TokenLogprob:
    others = [(other, piece(other), logprob - 1 - place) for place, other in enumerate(range(97, 97 + n - 1))]
    top = ((token, piece(token), logprob), *others) if n else ()
    return TokenLogprob(token, piece(token), logprob, top)


def _written(content: object) -> str:
    """Content as the fake's template writes it: parts other than those with images as they are."""
    has_images = isinstance(content, list) and any(marker_of(part) for part in content)
    return text_of(content) if has_images else str(content)


class FakeText:
    """The text process over bytes. Its template writes `role: content` lines, then `opened`.

    `template` is searched for reasoning tags; it knows no tools.
    """

    def __init__(
        self, *, adds_bos: bool = False, has_infill: bool = False, template: str = "fake", opened: str = ""
    ) -> None:
        self.info = TextInfo(template, False, None, (), BOS, EOS, "<s>", "</s>", N_VOCAB, adds_bos, has_infill)
        self.is_running = True
        self.chats: list[ChatPrompt] = []
        self.checked: list[tuple[object, str]] = []
        self.invalid_texts: set[str] = set()
        self.opened = opened
        self.planner = AnswerPlanner(
            template, lambda text: [text], _prepare_schema, knows_tools=False, carries_calls=False
        )

    async def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        tokens: list[int] = []
        for position, part in enumerate(text.split("<s>") if parse_special else [text]):
            tokens += [BOS] * (position > 0) + list(part.encode())
        return [BOS, *tokens] if add_special and self.info.adds_bos else tokens

    async def encode_inputs(self, texts: Sequence[str], limit: int | None = None) -> list[list[int]]:
        return [[*text.encode(), EOS] if limit is None else [*text.encode()[: limit - 1], EOS] for text in texts]

    async def encode_pairs(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        return [[*query.encode(), EOS, *document.encode(), EOS] for document in documents]

    async def encode_infill(
        self, prefix: str, suffix: str, files: Sequence[tuple[str, str]] = (), limit: int | None = None
    ) -> list[int]:
        if not self.info.has_infill:
            raise Unsupported("This model has no infill tokens.", param="suffix")
        assert limit is None or limit > 0
        others = "".join(name + text for name, text in files).encode()
        return [*others, 1, *prefix.encode(), 2, *suffix.encode(), 3]

    async def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(piece(token) for token in tokens).decode("utf-8", "replace")

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        return [piece(token) for token in tokens]

    async def render(self, chat: ChatPrompt) -> RenderedChat:
        self.chats.append(chat)
        asked, chat = chat, self.planner.prepare(chat)
        lines = [f"{message['role']}: {_written(message['content'])}" for message in chat.messages]
        is_continued = chat.messages[-1]["role"] == "assistant" and chat.continue_final_message is not False
        text = "\n".join(lines) + ("" if is_continued else f"\nassistant: {self.opened}")
        roles = [message["role"] for message in chat.messages]
        repairs = ("merge_same_role",) if any(a == b for a, b in itertools.pairwise(roles)) else ()
        plan = self.planner.plan(asked, text, str(chat.messages[-1]["content"]) if is_continued else "")
        markers = ImageMarkers(asked.markers)
        ends = itertools.accumulate(len(piece.encode()) for piece in markers.texts(text))
        return RenderedChat(
            text,
            tuple("".join(markers.texts(text)).encode()),
            (*repairs, *plan.loosened),
            form=plan.form,
            shown=plan.shown,
            grammar=plan.grammar,
            frame=plan.frame,
            reasoning=_reasoning_limit(plan.reasoning),
            parallel_tool_calls=self.planner.may_repeat(asked),
            images=tuple(ImagePlace(end, image) for end, image in zip(ends, markers.indexes(text), strict=False)),
        )

    async def check_json(self, schema: str, text: str) -> None:
        self.checked.append((json.loads(schema), text))
        if text in self.invalid_texts:
            raise EngineFailure("the finished text is not what its JSON schema asks for")

    async def check_grammar(self, grammar: Grammar) -> None:
        if grammar.kind is GrammarKind.JSON_SCHEMA:
            if json.loads(grammar.text) == {"type": "nonsense"}:
                raise InvalidRequest("no such type", param="grammar")
        elif grammar.kind is GrammarKind.GBNF and "root" not in grammar.text:
            raise InvalidRequest("the grammar has no rule 'root'", param="grammar")
