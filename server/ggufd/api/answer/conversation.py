"""Chat generation: render the prompt, submit it, parse the answers into reasoning, content and calls. Knows no wire
format."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ggufd.api.answer.explain import CacheExplainer
from ggufd.api.answer.generation import Generation, collect, submit
from ggufd.api.answer.reader import AnswerReader
from ggufd.api.images.prompts import ImagePrompt, RequestImages
from ggufd.api.request.chat.schemas import ChatRequest
from ggufd.api.request.chat.tools import check_choice
from ggufd.api.request.requests import check_n, engine_request
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import Services
from ggufd.chat.advice.repairs import repair_messages
from ggufd.chat.answers.parser import AnswerParser
from ggufd.chat.deltas.answer import Answer, Delta
from ggufd.chat.images import ImageMarkers, images_of, with_markers, with_texts
from ggufd.chat.prompt import AnswerFormat, ChatPrompt, Message, RenderedChat, ToolMode, any_arguments
from ggufd.engine.messages.events import Finish, Output
from ggufd.engine.messages.sampling import ReasoningBudget
from ggufd.errors import InvalidRequest

logger = logging.getLogger(__name__)


class Answered(NamedTuple):
    """Parsed choice. `reasoning_tokens` of it were reasoning; `logprobs` are of its tokens, if wanted."""

    answer: Answer
    finish: Finish
    logprobs: Sequence[Mapping[str, object]]
    reasoning_tokens: int


class _Prompt(NamedTuple):
    """Rendered prompt with the rows of its images, and the messages as they are shown: names stand for images."""

    chat: RenderedChat
    images: ImagePrompt | None
    shown: tuple[Message, ...]


class _Reading:
    """Choice that is parsed to its end."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._deltas: list[Delta] = []
        self._logprobs: list[Mapping[str, object]] = []

    def add(self, output: Output) -> None:
        """Take in what the engine said."""
        self._logprobs += self._reader.logprobs(output)
        self._deltas += self._reader.feed(output)

    @property
    def answered(self) -> Answered:
        """The whole choice. Raises EngineFailure when it did not end."""
        return Answered(Answer.of(self._deltas), self._reader.finish, self._logprobs, self._reader.reasoning_tokens)


class Conversation:
    """One chat request. `param` is what the client calls the messages.

    After `start`, `headers` are for the response, `prompt` is the rendered text, and `parallel_tool_calls` says whether
    an answer may call several. `images` has what is known of the images of the same HTTP request.
    """

    def __init__(
        self,
        services: Services,
        fields: ChatRequest,
        caller: Caller,
        param: str = "messages",
        images: RequestImages | None = None,
    ) -> None:
        self._services = services
        self._fields = fields
        self._caller = caller
        self._param = param
        self._messages, self._cache_repairs = repair_messages(fields.messages, services.config.cache_repairs)
        self._images = images or RequestImages(services.images, services.text, caller.principal)
        self.explainer = CacheExplainer(services.text, is_shown=fields.explain_cache)
        self.n_logprobs = _n_logprobs(fields)
        self.headers: dict[str, str] = {}
        self.prompt = ""
        self.parallel_tool_calls = True
        self._form = AnswerFormat()
        self._generation: Generation | None = None
        self._parameters: Mapping[str, Any] = {}
        self._keeps_thinking = (fields.reasoning_format or services.config.reasoning_format) == "none"
        check_choice(fields.tools, fields.choice)
        check_n("n", fields.n, services.config.max_n)

    async def start(self) -> Generation:
        """Render and submit. Raises what refuses it. Where no tokens are wanted the prompt is read, and that is all."""
        services = self._services
        ready = services.require_ready()
        rendered, images, shown = await self._assemble()
        self._form = rendered.form if services.config.output.chat_parsing else AnswerFormat()
        self.parallel_tool_calls = rendered.parallel_tool_calls
        may_call = self._fields.choice.mode is not ToolMode.NONE
        self._parameters = _enforced(self._fields.tools, rendered.repairs) if may_call else {}
        self._report(rendered.repairs)
        self.prompt = rendered.text
        tools = tuple(tool["function"]["name"] for tool in self._fields.tools)
        self.explainer.add_prompt(rendered.text, shown, tools)
        request = await engine_request(
            services,
            self._without_foreign_biases(ready.model.n_vocab),
            rendered.tokens,
            caller=self._caller,
            param=self._param,
            n_logprobs=self.n_logprobs,
            rendered=rendered,
            reasoning_budget=self._limited(rendered.reasoning),
            images=images,
        )
        self._generation = await submit(
            services,
            [request],
            self._caller,
            self.explainer,
            held_of=self._held_of if self._parameters or request.sampling.grammar is not None else None,
            is_scoring=self._fields.max_tokens == 0,
            keeps_stop=self._fields.include_stop_str_in_output,
        )
        return self._generation

    def reader(self, index: int = 0) -> AnswerReader:
        """A new reader for a choice, once the request was started."""
        assert self._generation is not None, "start() comes first"
        parser = AnswerParser(self._form, keeps_thinking=self._keeps_thinking)
        return AnswerReader(parser, functools.partial(self._generation.finish, index))

    @property
    def image_tokens(self) -> int:
        """Rows of images in the prompt, once the request was started."""
        return 0 if self._generation is None else self._generation.image_tokens

    async def answers(self) -> list[Answered]:
        """Start, and wait for every choice."""
        generation = await self.start()
        readings = [_Reading(self.reader(index)) for index in range(generation.total)]
        await collect(generation, lambda index, output: readings[index].add(output))
        return [reading.answered for reading in readings]

    def _held_of(self, text: str, schema: str | None) -> Sequence[tuple[str, str]]:
        """The arguments of each call, and what is said, where something is or nothing is called."""
        parser = AnswerParser(self._form)
        answer = Answer.of([*parser.feed(text), *parser.finish()])
        calls = [call for call in answer.calls if call.name in self._parameters]
        held = [(json.dumps(self._parameters[call.name]), call.arguments) for call in calls]
        return [*held, (schema, answer.content)] if schema and (answer.content or not answer.calls) else held

    async def render(self) -> RenderedChat:
        """The rendered prompt, without generating: to count its tokens, those of its images too."""
        return (await self._assemble()).chat

    async def _assemble(self) -> _Prompt:
        """The rendered prompt with the rows of its images, which are measured and not encoded yet."""
        parts = tuple(images_of(self._messages))
        if not parts:
            return _Prompt(await self._render(self._messages, ()), None, self._messages)
        messages, markers = with_markers(self._messages, self._services.image_key)
        rendered = await self._render(messages, markers)
        images = await self._images.place(rendered.tokens, rendered.images, parts)
        text = ImageMarkers(markers).replaced(rendered.text, images.texts)
        chat = dataclasses.replace(rendered, text=text, tokens=images.tokens)
        return _Prompt(chat, images, with_texts(self._messages, images.texts))

    async def _render(self, messages: tuple[Message, ...], markers: tuple[str, ...]) -> RenderedChat:
        fields = self._fields
        chat = ChatPrompt(
            messages,
            add_generation_prompt=fields.add_generation_prompt,
            continue_final_message=self._continues,
            template_kwargs=self._template_kwargs(),
            tools=fields.tools,
            tool_choice=fields.choice,
            parallel_tool_calls=fields.parallel_tool_calls,
            markers=markers,
        )
        try:
            rendered = await self._services.text.render(chat)
        except InvalidRequest as error:
            if error.param == "messages":
                error.param = self._param
            raise
        if not self._cache_repairs:
            return rendered
        return dataclasses.replace(rendered, repairs=(*self._cache_repairs, *rendered.repairs))

    @property
    def _continues(self) -> bool | None:
        """What the request says of its last message, else the server; None leaves it to the message."""
        asked = self._fields.continue_final_message
        return False if asked is None and not self._services.config.output.prefill_assistant else asked

    def _template_kwargs(self) -> dict[str, Any]:
        """The template's variables; an effort of none is the variable that templates have for that."""
        fields = self._fields
        effort: dict[str, Any] = {}
        if fields.reasoning_effort is not None:
            effort = {"reasoning_effort": fields.reasoning_effort}
        if fields.reasoning_effort == "none" or fields.reasoning_budget == 0:
            effort = {"enable_thinking": False}
        return {**self._services.config.template_kwargs, **effort, **fields.template_kwargs}

    def _limited(self, reasoning: ReasoningBudget | None) -> ReasoningBudget | None:
        """Limit of the reasoning: the budget of the request, or else of the server."""
        budget = self._fields.reasoning_budget
        if budget is None:
            budget = 0 if self._fields.reasoning_effort == "none" else self._services.config.reasoning_budget
        if reasoning is None:
            return None
        return dataclasses.replace(reasoning, max_tokens=None if budget < 0 else budget)

    def _report(self, repairs: tuple[str, ...]) -> None:
        if repairs:
            logger.info("the conversation was repaired, for its chat template or for the cache: %s", ", ".join(repairs))
            self.headers["x-ggufd-repairs"] = ", ".join(repairs).encode("ascii", "replace").decode()

    def _without_foreign_biases(self, n_vocab: int) -> ChatRequest:
        """The fields without biases of tokens that this vocabulary does not have, which the response then says.

        Clients of chat routes know no tokenizer but the one they guess from the model's name: that is no reason to
        refuse them.
        """
        biases = self._fields.logit_bias or ()
        own = tuple((token, bias) for token, bias in biases if token < n_vocab)
        if len(own) == len(biases):
            return self._fields
        logger.debug("%d of %d biases are of tokens out of the vocabulary", len(biases) - len(own), len(biases))
        self._caller.record.ignored.append("logit_bias")
        return self._fields.model_copy(update={"logit_bias": own})


def _enforced(tools: Sequence[Mapping[str, Any]], repairs: Sequence[str]) -> dict[str, Any]:
    """The schemas of the tools' arguments by name, without those that only are held in part."""
    functions = [tool["function"] for tool in tools]
    return {
        function["name"]: function["parameters"]
        for function in functions
        if function.get("parameters") and any_arguments(function["name"]) not in repairs
    }


def _n_logprobs(fields: ChatRequest) -> int | None:
    """How many alternatives are wanted, None when no log-probabilities are."""
    if fields.logprobs:
        return fields.top_logprobs or 0
    if fields.top_logprobs:
        raise InvalidRequest("'top_logprobs': only together with logprobs set to true.", param="top_logprobs")
    return None
