"""The clients that programs are written with, against the real server with the demo model: each does its own thing.

What they get is held to shape, not to sense: the demo model is small.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from typing import Any, Literal

import anthropic
import instructor
import openai
import pytest
from anthropic.types.beta import BetaMessageParam
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from ggufd.errors import EngineFailure
from tests.support.fakes.api_server import serving
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = "demo"
QUESTION = "What is the weather in Paris?"


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")

    city: str = Field(max_length=20)
    sky: Literal["clear", "cloudy", "rain"]


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "4096", "--temp", "0", "--threads", "1", "--api-key", "secret") as running:
        yield running


@pytest.fixture
def base_url(server: LiveServer) -> str:
    return f"{server.url}/v1"


class TestOpenAI:
    """The Responses API through the official client."""

    @pytest.fixture
    def client(self, base_url: str) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=base_url, api_key="secret", max_retries=0, timeout=120) as client:
            yield client

    def test_an_answer_that_met_its_limit_is_incomplete(self, client: openai.OpenAI) -> None:
        response = client.responses.create(model=MODEL, input="Name three colours.", max_output_tokens=12)
        assert response.output_text
        assert response.status == "incomplete"
        assert response.usage is not None
        assert response.usage.output_tokens == 12

    def test_a_stream_adds_up_to_its_response(self, client: openai.OpenAI) -> None:
        stop: Any = {"stop": [","]}
        with client.responses.stream(
            model=MODEL, input="Name three colours.", max_output_tokens=200, extra_body=stop
        ) as stream:
            events = list(stream)
            final = stream.get_final_response()
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert final.status == "completed"
        assert final.output_text == text
        assert text
        assert [event.sequence_number for event in events] == list(range(len(events)))

    def test_a_conversation_goes_on_by_id(self, client: openai.OpenAI) -> None:
        first = client.responses.create(model=MODEL, input="My name is Ada.", max_output_tokens=8)
        second = client.responses.create(
            model=MODEL, input="What is my name?", previous_response_id=first.id, max_output_tokens=8
        )
        assert second.usage is not None
        assert second.usage.input_tokens_details.cached_tokens > 0
        assert client.responses.retrieve(second.id).output_text == second.output_text
        assert [item.type for item in client.responses.input_items.list(second.id, order="asc")] == ["message"] * 3
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)

    def test_an_answer_is_parsed_into_a_model(self, client: openai.OpenAI) -> None:
        parsed = client.responses.parse(model=MODEL, input=QUESTION, text_format=Weather, max_output_tokens=60)
        assert isinstance(parsed.output_parsed, Weather)

    def test_a_tool_is_called_and_its_result_taken(self, client: openai.OpenAI) -> None:
        tool: Any = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}
        asked = client.responses.create(
            model=MODEL,
            input=QUESTION,
            tools=[tool],
            tool_choice="required",
            max_output_tokens=100,
        )
        (call,) = [item for item in asked.output if item.type == "function_call"]
        assert call.name == "get_weather"
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain, 12 degrees."}
        answer = client.responses.create(
            model=MODEL, input=[result], previous_response_id=asked.id, tools=[tool], max_output_tokens=12
        )
        assert answer.output_text

    @pytest.mark.parametrize("options", [{}, {"parallel_tool_calls": True}], ids=["unsaid", "several"])
    def test_a_streamed_call_is_put_together(self, client: openai.OpenAI, options: Any) -> None:
        tool: Any = {"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}
        with client.responses.stream(
            model=MODEL,
            input=QUESTION,
            tools=[tool],
            tool_choice="required",
            max_output_tokens=200,
            **options,
        ) as stream:
            final = stream.get_final_response()
        assert final.status == "completed"
        (call,) = [item for item in final.output if item.type == "function_call"]
        assert set(call.parsed_arguments) == {"city"}  # type: ignore[call-overload]

    @pytest.mark.parametrize("options", [{}, {"parallel_tool_calls": True}], ids=["unsaid", "several"])
    def test_the_chats_stream_helper_puts_calls_together(self, client: openai.OpenAI, options: Any) -> None:
        function = {"name": "get_weather", "parameters": WEATHER, "strict": True}
        ask: Any = {
            "model": MODEL,
            "messages": [{"role": "user", "content": QUESTION}],
            "tools": [{"type": "function", "function": function}],
            "tool_choice": "required",
            "max_tokens": 200,
            **options,
        }
        with client.chat.completions.stream(**ask) as stream:
            (streamed,) = stream.get_final_completion().choices
        (whole,) = client.chat.completions.create(**ask).choices
        for choice in (streamed, whole):
            (call,) = choice.message.tool_calls or ()
            assert choice.finish_reason == "tool_calls"
            assert call.function.name == "get_weather"
            assert set(json.loads(call.function.arguments)) == {"city"}

    def test_what_is_wrong_is_an_exception_with_the_field(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=MODEL, input="x", tools=[{"type": "web_search"}])
        assert caught.value.param == "tools[0].type"


class TestAnthropic:
    """The Messages API through the official client."""

    @pytest.fixture
    def client(self, server: LiveServer) -> Iterator[anthropic.Anthropic]:
        with anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0, timeout=120) as client:
            yield client

    def test_a_stream_adds_up_to_its_message(self, client: anthropic.Anthropic) -> None:
        ask: Any = {"model": MODEL, "max_tokens": 12, "messages": [{"role": "user", "content": "Name a colour."}]}
        whole = client.messages.create(**ask)
        with client.messages.stream(**ask) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == final.content[0].text  # type: ignore[union-attr]
        for message in (whole, final):
            assert [block.type for block in message.content] == ["text"]
            assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 12)
        counted = client.messages.count_tokens(model=MODEL, messages=ask["messages"])
        assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)

    @pytest.mark.parametrize("options", [{}, {"disable_parallel_tool_use": False}], ids=["unsaid", "several"])
    def test_a_tool_is_used_and_its_result_taken(self, client: anthropic.Anthropic, options: Any) -> None:
        tools: Any = [{"name": "get_weather", "description": "The weather.", "input_schema": WEATHER}]
        messages: Any = [{"role": "user", "content": QUESTION}]
        ask: Any = {"model": MODEL, "max_tokens": 200, "tools": tools}
        choice: Any = {"type": "any", **options}
        with client.messages.stream(messages=messages, tool_choice=choice, **ask) as stream:
            asked = stream.get_final_message()
        for message in (asked, client.messages.create(messages=messages, tool_choice=choice, **ask)):
            assert message.stop_reason == "tool_use"
            (use,) = [block for block in message.content if block.type == "tool_use"]
            assert set(use.input) == {"city"}
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "Rain, 12 degrees."}
        messages += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
        answer = client.messages.create(messages=messages, **{**ask, "max_tokens": 12})
        assert answer.content

    def test_a_stop_sequence_is_named(self, client: anthropic.Anthropic) -> None:
        begun: Any = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2, 3, 4, 5, 6,"}]
        answer = client.messages.create(model=MODEL, max_tokens=20, messages=begun, stop_sequences=[" 8"])
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " 8")

    def test_what_is_wrong_is_an_exception(self, client: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.BadRequestError, match="custom"):
            client.messages.create(
                model=MODEL,
                max_tokens=5,
                messages=[{"role": "user", "content": "x"}],
                tools=[{"type": "web_search_20250305", "name": "web_search"}],
            )
        with pytest.raises(anthropic.AuthenticationError):
            client.with_options(api_key="wrong").messages.count_tokens(model=MODEL, messages=[])


def test_an_answer_that_breaks_off_is_an_exception() -> None:
    engine = FakeEngine(["Hello world"])
    engine.error, engine.error_after = EngineFailure("It broke."), 3
    with serving(engine) as served:
        with (
            openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
            client.responses.stream(model=MODEL, input="x") as events,
            pytest.raises(openai.APIError, match="It broke"),
        ):
            list(events)
        with (
            anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as claude,
            claude.messages.stream(model=MODEL, max_tokens=50, messages=[{"role": "user", "content": "x"}]) as message,
            pytest.raises(anthropic.APIStatusError, match="It broke"),
        ):
            list(message)


class TestLangChain:
    """`langchain-openai`, over chat completions and over responses."""

    @pytest.fixture(params=[False, True], ids=["chat", "responses"])
    def chat(self, base_url: str, request: pytest.FixtureRequest) -> ChatOpenAI:
        return ChatOpenAI(
            base_url=base_url,
            api_key="secret",  # type: ignore[arg-type]
            model=MODEL,
            max_tokens=60,
            max_retries=0,
            stream_usage=True,
            use_responses_api=request.param,
        )

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_an_answer_is_a_model(self, chat: ChatOpenAI, method: Any) -> None:
        assert isinstance(chat.with_structured_output(Weather, method=method).invoke(QUESTION), Weather)

    def test_a_tool_is_called_and_its_result_taken(self, chat: ChatOpenAI) -> None:
        tool = {"name": "get_weather", "description": "The weather.", "parameters": WEATHER}
        asked = chat.bind_tools([tool], tool_choice="required").invoke(QUESTION)
        (call,) = asked.tool_calls
        assert (call["name"], set(call["args"])) == ("get_weather", {"city"})
        result = ToolMessage("Rain, 12 degrees.", tool_call_id=call["id"])
        answer = chat.bind(max_tokens=8).invoke([HumanMessage(QUESTION), asked, result])
        assert answer.text

    def test_a_stream_has_text_and_usage(self, chat: ChatOpenAI) -> None:
        chunks = list(chat.stream("Name a colour."))
        assert "".join(chunk.text for chunk in chunks)
        (usage,) = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
        assert 0 < usage["output_tokens"] <= 60


class TestInstructor:
    """`instructor`: answers as models, over chat completions and over responses."""

    @pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
    def test_a_chat_answers_with_a_model(self, base_url: str, mode: instructor.Mode) -> None:
        with openai.OpenAI(base_url=base_url, api_key="secret", max_retries=0) as inner:
            answer = instructor.from_openai(inner, mode=mode).chat.completions.create(
                model=MODEL,
                response_model=Weather,
                max_tokens=60,
                max_retries=0,
                messages=[{"role": "user", "content": QUESTION}],
            )
        assert isinstance(answer, Weather)

    def test_a_response_is_a_model(self, base_url: str) -> None:
        with openai.OpenAI(base_url=base_url, api_key="secret", max_retries=0) as inner:
            client = instructor.from_openai(inner, mode=instructor.Mode.RESPONSES_TOOLS)
            answer = client.responses.create(
                model=MODEL, response_model=Weather, max_output_tokens=60, max_retries=0, input=QUESTION
            )
        assert isinstance(answer, Weather)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@pytest.mark.filterwarnings("ignore:Items? .* using the `ReadOnly` qualifier:UserWarning")
class TestLiteLLM:
    """`litellm`, which speaks all three APIs."""

    @pytest.fixture
    def litellm(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """The package, told before its import that it need not ask the network for prices.

        It makes an event loop of its own where there is none, and leaves it open.
        """
        monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        yield importlib.import_module("litellm")
        loop.close()
        asyncio.set_event_loop(None)

    @pytest.mark.parametrize(("provider", "path"), [("openai", "/v1"), ("anthropic", "")])
    def test_an_answer_comes_whole_and_streamed(
        self, litellm: Any, server: LiveServer, provider: str, path: str
    ) -> None:
        ask: dict[str, Any] = {
            "model": f"{provider}/{MODEL}",
            "api_base": server.url + path,
            "api_key": "secret",
            "max_tokens": 8,
            "messages": [{"role": "user", "content": "Name a colour."}],
        }
        (choice,) = litellm.completion(**ask).choices
        assert choice.message.content
        chunks = list(litellm.completion(stream=True, **ask))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert {chunk.choices[0].finish_reason for chunk in chunks} == {None, choice.finish_reason} == {None, "length"}

    def test_a_response_streams(self, litellm: Any, base_url: str) -> None:
        ask: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": "secret"}
        events = list(litellm.responses(input="Tell me a story.", max_output_tokens=16, stream=True, **ask))
        assert events[0].type == "response.created"
        last = events[-1].response
        assert (last.status, last.usage.output_tokens) == ("incomplete", 16)


class TestPydanticAI:
    """`pydantic-ai`, over chat completions, over responses and over messages."""

    @pytest.fixture(
        params=[OpenAIChatModel, OpenAIResponsesModel, AnthropicModel], ids=["chat", "responses", "messages"]
    )
    async def model(self, server: LiveServer, base_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
        options: dict[str, Any] = {"api_key": "secret", "max_retries": 0, "timeout": 120}
        if request.param is AnthropicModel:
            if not isinstance(BetaMessageParam, type) and Version(version("pydantic-ai-slim")) < Version("2.68"):
                pytest.skip("this pydantic-ai makes messages of a class, which this anthropic has no more")
            async with anthropic.AsyncAnthropic(base_url=server.url, **options) as messages:
                yield AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=messages))
            return
        async with openai.AsyncOpenAI(base_url=base_url, **options) as client:
            yield request.param(MODEL, provider=OpenAIProvider(openai_client=client))

    async def test_an_agent_answers_with_a_model(self, model: Any) -> None:
        settings = ModelSettings(max_tokens=60)
        answer = await Agent(model, output_type=Weather, model_settings=settings, retries=0).run(QUESTION)
        assert isinstance(answer.output, Weather)

    async def test_a_stream_has_text(self, model: Any) -> None:
        async with Agent(model, model_settings=ModelSettings(max_tokens=8)).run_stream("Name a colour.") as answer:
            texts = [text async for text in answer.stream_text(delta=True)]
        assert "".join(texts)
