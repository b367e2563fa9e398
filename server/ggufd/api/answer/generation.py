"""Generation: all sequences of one HTTP request as one stream of events, with their usage.

Several prompts become several engine requests; choice `i * n + j` is sequence `j` of prompt `i`. Knows no JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

from starlette.requests import ClientDisconnect, Request

from ggufd.api.answer.advice import note_prompt
from ggufd.api.answer.explain import CacheExplainer
from ggufd.api.http.record import DISCONNECTED
from ggufd.api.receipts.receipt import Receipt
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import RequestEvents, Services
from ggufd.engine.messages.events import Finish, FinishReason, Output, PromptLogprobs, RequestEvent, TokenLogprob, Usage
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import GrammarKind
from ggufd.errors import EngineFailure, GgufdError

T = TypeVar("T")

HeldOf = Callable[[str, str | None], Sequence[tuple[str, str]]]
"""What in a whole answer must satisfy which schema, as schemas and texts. The second is what holds what is said."""

OnOutput = Callable[[int, Output], None]
"""Takes the number of a choice and what the engine said of it."""

Batch = tuple[int, list[RequestEvent]]
"""The first choice of one engine request, and what happened to that request; `index` counts from that choice."""


class Generation:
    """Running engine requests of one HTTP request, inside an `async with`. Leaving that early aborts them.

    `n` is the sequences of each request, `total` those of all; `requests` are what the engine was given. It belongs to
    `caller`, in whose name it can be found and aborted, and whose key must be valid until its end; `finishes` are the
    ends that the engine told, each explained by the `explainer` before it is passed on. A finished text that a JSON
    schema held is checked first; where schemas held parts of it, those are found by `held_of`.
    `is_scoring` says that only the prompt counts: the engine computes one token, and it is dropped here.
    `keeps_stop` says that a stop string stays at the end of the text that it ended.
    """

    def __init__(
        self,
        services: Services,
        requests: Sequence[EngineRequest],
        streams: Sequence[RequestEvents],
        caller: Caller,
        explainer: CacheExplainer,
        *,
        held_of: HeldOf | None = None,
        is_scoring: bool = False,
        keeps_stop: bool = False,
    ) -> None:
        self.n = requests[0].n if requests else 1
        self.total = self.n * len(streams)
        self.caller = caller
        self.finishes: list[Finish] = []
        self.requests = requests
        self._streams = streams
        self._services = services
        self._activity = services.activity
        self._revocations = services.revocations
        self._explainer = explainer
        self._check = services.text.check_json
        self._held_of = held_of
        self._is_scoring = is_scoring
        self._keeps_stop = keeps_stop
        self._choices = [_Progress() for _ in range(self.total)]
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._activity.enter(self)
        self._stack.callback(self._activity.leave, self)
        self._stack.callback(self._tell)
        for stream in self._streams:
            await self._stack.enter_async_context(stream)
        self._stack.enter_context(self._revocations.during(self.caller, self.refuse))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def abort(self) -> None:
        """End every sequence now: `batches` tells what there was, then that they ended."""
        self.caller.record.reason = FinishReason.ABORT.value
        for stream in self._streams:
            stream.abort()

    def refuse(self, error: GgufdError) -> None:
        """End every sequence now: `batches` raises `error`, and tells nothing more."""
        for stream in self._streams:
            stream.refuse(error)

    def finish(self, index: int) -> None:
        """End one choice, whose answer is over before the engine knows. Its last event still comes.

        A deterministic one goes on to its own end: when it would be ended depends on who else is served.
        """
        if self._explainer.receipt is not None:
            return
        self._streams[index // self.n].finish(index % self.n)

    @property
    def image_tokens(self) -> int:
        """Rows of images in all prompts."""
        return sum(span.rows.n_rows for request in self.requests for span in request.images)

    @property
    def text(self) -> str:
        """The first choice's text so far."""
        return "".join(self._choices[0].texts)

    async def batches(self) -> AsyncIterator[Batch]:
        """Everything that happens, until every sequence has finished. Raises the error that ended a request."""
        batches = _of_one(self._streams[0], 0) if len(self._streams) == 1 else self._merged()
        record = self.caller.record
        try:
            async for first, told in batches:
                events = list(map(_with_stop, told)) if self._keeps_stop else told
                if record.first_s is None and any(isinstance(event, Output) for event in events):
                    record.note_first_token()
                for index, finish in self._note(first, events):
                    await self._explainer.note(index, self.requests[index // self.n], finish.usage)
                    await self._verify(index, finish)
                yield first, _scored(events) if self._is_scoring else events
        except GgufdError as error:
            record.reason = error.code
            raise
        for index, progress in enumerate(self._choices):
            if progress.finish is None:
                yield index - index % self.n, [self._cut(index, progress)]

    def _note(self, first: int, events: Sequence[RequestEvent]) -> list[tuple[int, Finish]]:
        """Take note of what happened; the choices that ended."""
        ended = []
        for event in events:
            if isinstance(event, Output):
                progress = self._choices[first + event.index]
                progress.n_tokens += len(event.tokens)
                if self._explainer.receipt is not None:
                    self._explainer.receipt.add(first + event.index, event)
                if first + event.index == 0 or self._held_of or self._schema_of(first + event.index):
                    progress.texts.append(event.text)
                if event.finish is not None:
                    progress.finish = event.finish
                    self.finishes.append(event.finish)
                    ended.append((first + event.index, event.finish))
        return ended

    def _schema_of(self, index: int) -> str | None:
        """The JSON schema that holds what a choice says."""
        grammar = self.requests[index // self.n].sampling.grammar
        return grammar.text if grammar is not None and grammar.kind is GrammarKind.JSON_SCHEMA else None

    async def _verify(self, index: int, finish: Finish) -> None:
        """Raises EngineFailure when a text that ended by itself, uncut, is not what its schemas ask for."""
        schema = self._schema_of(index)
        is_held = schema is not None or self._held_of is not None
        if not is_held or finish.reason is not FinishReason.STOP or finish.stop is not None:
            return
        for asked_for, text in (self._held_of or _as_a_whole)("".join(self._choices[index].texts), schema):
            await self._check(asked_for, text)

    def _tell(self) -> None:
        """Write into the record what the request has cost, as far as the engine told."""
        record = self.caller.record
        usages = [progress.finish.usage for progress in self._choices if progress.finish is not None]
        firsts = [progress.finish.usage for progress in self._choices[:: self.n] if progress.finish is not None]
        record.is_work = True
        record.prompt_tokens += sum(len(request.prompt) for request in self.requests[: len(self._streams)])
        record.cached_tokens += sum(usage.cached_tokens for usage in firsts)
        record.completion_tokens += sum(progress.n_tokens for progress in self._choices)
        if firsts and firsts[0].cache_class is not None:
            record.cache_class = firsts[0].cache_class.value
        if usages:
            record.queue_s = record.waited_s + max(usage.queue_s for usage in usages)
            record.prefill_s = max(usage.prefill_s for usage in usages)
            record.decode_s = max(usage.decode_s for usage in usages)
            record.decoded_tokens = sum(usage.decoded_tokens for usage in usages)
        record.reason = record.reason or self._reason()
        self._note_prompts()

    def _note_prompts(self) -> None:
        """Let the prompts that were computed be compared with those before."""
        for position, progress in enumerate(self._choices[:: self.n]):
            if progress.finish is not None:
                prompt, tokens = self._explainer.prompt(position), self.requests[position].prompt
                answer, usage = "".join(progress.texts), progress.finish.usage
                note_prompt(self._services, self.caller, prompt, tokens, answer, usage)

    def _reason(self) -> str:
        is_whole = self.finishes and len(self.finishes) == self.total
        return self.finishes[0].reason.value if is_whole else DISCONNECTED

    def _cut(self, index: int, progress: _Progress) -> Output:
        """The end of an aborted sequence, which the engine says nothing of. What its time went to is unknown."""
        request = self.requests[index // self.n]
        usage = Usage(len(request.prompt), progress.n_tokens, 0, 0.0, 0.0, 0.0)
        return Output(request.request_id, index % self.n, "", finish=Finish(FinishReason.ABORT, usage))

    async def _merged(self) -> AsyncIterator[Batch]:
        # Backpressure: this queue is bounded, so events for a slow reader wait in the streams, which have a limit.
        inbox: asyncio.Queue[Batch | Exception | None] = asyncio.Queue(maxsize=len(self._streams))
        pumps = [
            asyncio.create_task(_pump(stream, position * self.n, inbox))
            for position, stream in enumerate(self._streams)
        ]
        self._stack.push_async_callback(_cancel, pumps)
        n_open = len(pumps)
        while n_open:
            item = await inbox.get()
            if item is None:
                n_open -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item


@dataclass(slots=True)
class _Progress:
    """Progress of one sequence."""

    texts: list[str] = field(default_factory=list)
    n_tokens: int = 0
    finish: Finish | None = None


def _as_a_whole(text: str, schema: str | None) -> Sequence[tuple[str, str]]:
    return [] if schema is None else [(schema, text)]


async def _of_one(stream: RequestEvents, first: int) -> AsyncIterator[Batch]:
    while events := await stream.take():
        yield first, events


async def _pump(stream: RequestEvents, first: int, inbox: asyncio.Queue[Batch | Exception | None]) -> None:
    try:
        async for batch in _of_one(stream, first):
            await inbox.put(batch)
        await inbox.put(None)
    except Exception as error:
        await inbox.put(error)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _with_stop(event: RequestEvent) -> RequestEvent:
    """The event with the stop string that the engine cut off, if that is what it tells."""
    if isinstance(event, Output) and event.finish is not None and event.finish.stop:
        return dataclasses.replace(event, text=event.text + event.finish.stop)
    return event


def _scored(events: list[RequestEvent]) -> list[RequestEvent]:
    """Events of a request that only scores its prompt: its end alone is left, without the token."""
    kept: list[RequestEvent] = []
    for event in events:
        if not isinstance(event, Output):
            kept.append(event)
        elif event.finish is not None:
            usage = dataclasses.replace(event.finish.usage, completion_tokens=0)
            finish = Finish(FinishReason.LENGTH, usage)
            kept.append(Output(event.request_id, event.index, "", finish=finish))
    return kept


async def submit(
    services: Services,
    requests: Sequence[EngineRequest],
    caller: Caller,
    explainer: CacheExplainer,
    *,
    held_of: HeldOf | None = None,
    is_scoring: bool = False,
    keeps_stop: bool = False,
) -> Generation:
    """Hand all requests to the engine, or none: when one is refused, those before it are aborted.

    Those with a timeout may be refused by the engine, which knows the queue: that is waited for.
    """
    caller.record.model = services.config.model_id
    if requests and requests[0].is_deterministic:
        explainer.receipt = Receipt(services, requests, caller.record)
    streams: list[RequestEvents] = []
    try:
        for request in requests:
            streams.append(services.engine.submit(request))  # noqa: PERF401 - those before a refusal must stay
        await _placed(services, requests, streams, caller)
    except (GgufdError, asyncio.CancelledError):
        async with Generation(services, requests, streams, caller, explainer):
            raise
    return Generation(
        services,
        requests,
        streams,
        caller,
        explainer,
        held_of=held_of,
        is_scoring=is_scoring,
        keeps_stop=keeps_stop,
    )


async def _placed(
    services: Services, requests: Sequence[EngineRequest], streams: Sequence[RequestEvents], caller: Caller
) -> None:
    """Wait until the engine has taken in what it may refuse. Raises that refusal."""
    for request, stream in zip(requests, streams, strict=True):
        if request.timeout_s is not None:
            with services.revocations.during(caller, stream.refuse):
                await stream.placed()


@dataclass(slots=True)
class FinishedChoice:
    """Finished answer, and the `outputs` that it came in."""

    outputs: list[Output] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None

    def add(self, event: Output | PromptLogprobs) -> None:
        """Take in what the engine said."""
        if isinstance(event, PromptLogprobs):
            self.prompt_logprobs = event.entries
            return
        self.outputs.append(event)
        self.finish = event.finish or self.finish

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def tokens(self) -> list[int]:
        return [token for output in self.outputs for token in output.tokens]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [entry for output in self.outputs for entry in output.logprobs]

    @property
    def ended(self) -> Finish:
        """How it ended. Raises EngineFailure when it did not."""
        if self.finish is None:
            raise EngineFailure.without_answer()
        return self.finish

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of a token, what `best_of` ranks by; an empty answer ranks last."""
        logprobs = [entry.logprob for entry in self.logprobs]
        return sum(logprobs) / len(logprobs) if logprobs else -1e9


async def collect(generation: Generation, on_output: OnOutput = lambda index, output: None) -> list[FinishedChoice]:
    """Wait for the whole of every choice, in order of their indexes. `on_output` is told what comes, as it comes."""
    choices = [FinishedChoice() for _ in range(generation.total)]
    async with generation:
        async for first, events in generation.batches():
            for event in events:
                if isinstance(event, (Output, PromptLogprobs)):
                    choices[first + event.index].add(event)
                if isinstance(event, Output):
                    on_output(first + event.index, event)
    return choices


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves; then ClientDisconnect is raised.

    The body must have been read before: what is received now can only be the end of the connection.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
