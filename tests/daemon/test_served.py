"""The change to another model: over threads and fakes, as a route, and in the whole server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from ggufd.api.services.settings import ApiConfig
from ggufd.daemon import daemon
from ggufd.daemon.served import FoundModel, OnProgress, Served, ServedModels, changed
from ggufd.engine.client.client import EngineClient
from ggufd.engine.client.state import EngineState
from ggufd.engine.messages.events import Output
from ggufd.engine.messages.reports import LoadFailed, LoadProgress
from ggufd.engine.queueing.fairness import TokenCounters
from ggufd.errors import ConfigError, EngineDown, EngineFailure, InvalidRequest, ModelError, Unavailable
from ggufd.keys.principal import BACKGROUND, Principal
from ggufd.llama.params import ModelParams
from ggufd.models.hub import ModelFile
from ggufd.settings import sources
from ggufd.settings.config import Config
from tests.support.fakes.api_client import FakeModels, error_of, parse_events, running
from tests.support.fakes.fake_llama import DeadLink, InprocSpawn, engines_of, inproc_client, make_request, soon

WAIT_S = 60.0
CONFIG = sources.load(None, {"drain_s": "0.2", "alias": "mine", "ctx_size": "1024"}, {})


class Text:
    """A text process of which only its life matters."""

    def __init__(self, *, is_bad: bool = False) -> None:
        self.is_bad = is_bad
        self.n_starts = self.n_stops = 0

    async def start(self) -> None:
        self.n_starts += 1
        if self.is_bad:
            raise ModelError("this vocabulary is of no use")

    async def stop(self) -> None:
        self.n_stops += 1


class Images:
    """The processes of images, of which only their life matters."""

    def __init__(self, *, is_bad: bool = False) -> None:
        self.is_bad = is_bad
        self.n_starts = self.n_stops = self.n_rests = 0

    async def start(self) -> None:
        self.n_starts += 1
        if self.is_bad:
            raise ModelError("this projector is of no use")

    async def stop(self) -> None:
        self.n_stops += 1

    def rest(self) -> None:
        self.n_rests += 1


class Refusing(DeadLink):
    """An engine that cannot load its model."""

    def __init__(self, on_message: Callable[[Any], None], on_exit: Callable[[int, str], None]) -> None:
        soon(on_message, [LoadProgress(0.5), LoadFailed("its tensors are missing")])
        soon(on_exit, 0, "")


class House:
    """Everything that was made and shown. Models named "lost" are not found, "mute" have no vocabulary, "blind" a bad
    projector, "broken" none of their tensors; what is set for "nobody" cannot be.
    """

    def __init__(self) -> None:
        self.made: list[Served] = []
        self.shown: list[str] = []
        self.engine_settings: dict[str, dict[str, Any]] = {}
        self.models = ServedModels(self.make(CONFIG, lambda share: None, lambda share: None), self.make)
        self.models.bind(lambda engine, text, config, images: self.shown.append(config.model_id))

    def make(self, config: Config, on_progress: OnProgress, on_fetch: OnProgress) -> Served:
        name = config.model.model or "first"
        if name == "lost":
            raise ModelError("lost: no such file")
        if name == "nobody":
            raise ConfigError("slot_save_path: the folder cannot be made")
        spawn: Any = Refusing if name == "broken" else InprocSpawn(n_ctx=4096, step_s=0.001)
        if name.startswith("hf:"):
            on_fetch(0.5)
        settings = dataclasses.replace(inproc_client().config, **self.engine_settings.get(name, {}))
        engine = EngineClient(settings, on_progress, spawn)
        text = cast(Any, Text(is_bad=name == "mute"))
        images = cast(Any, Images(is_bad=name == "blind"))
        self.made.append(Served(config, ModelFile(Path(name), 0), engine, text, ApiConfig(model_id=name), images))
        return self.made[-1]

    async def change(self, name: str) -> list[tuple[str, float | None]]:
        steps: list[tuple[str, float | None]] = []
        async with asyncio.timeout(WAIT_S):
            await self.models.change({"model": name}, lambda stage, share: steps.append((stage, share)))
        return steps

    async def answer(self) -> str:
        engine = self.models.served.engine
        stream = engine.submit(make_request(engine.new_request_id(), b"Hello"))
        return "".join([event.text async for event in stream if isinstance(event, Output)])

    @property
    def images(self) -> list[Images]:
        return [cast(Images, one.images) for one in self.made]

    @property
    def texts(self) -> list[Text]:
        return [cast(Text, one.text) for one in self.made]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    house.models.served.engine.start()
    await house.models.served.wait_ready()
    yield house
    await house.models.stop()
    assert all(text.n_stops for text in house.texts), "a text process was left behind"
    assert all(images.n_stops for images in house.images), "an encoder was left behind"


async def test_another_model_is_served_and_nothing_of_the_old_one_is_left(house: House) -> None:
    before = await house.answer()
    steps = await house.change("second")
    assert [stage for stage, _ in steps] == ["reading the vocabulary", "draining", "loading"]
    assert house.shown == ["second"]
    assert await house.answer() == before
    old = house.made[0]
    assert [text.n_stops for text in house.texts] == [1, 0]
    assert [(images.n_starts, images.n_stops) for images in house.images] == [(0, 1), (1, 0)]
    with pytest.raises(EngineDown, match="another model"):
        old.engine.submit(make_request(1, b"Hello"))
    assert await asyncio.to_thread(engines_of(old.engine).links[0].join, WAIT_S)


async def test_the_projector_sleeps_with_the_model(house: House) -> None:
    await house.models.served.start_images()
    house.models.served.engine.sleep()
    assert house.images[0].n_rests == 1
    assert await house.answer()
    assert house.images[0].n_rests == 1


async def test_what_runs_may_end_first_and_the_new_is_refused_meanwhile(house: House) -> None:
    engine = house.models.served.engine
    stream = engine.submit(make_request(engine.new_request_id(), b"Hello", max_tokens=20, ignore_eos=True))
    change = asyncio.create_task(house.change("second"))
    while engine.state is not EngineState.DRAINING:  # noqa: ASYNC110 - a state has no event
        await asyncio.sleep(0.001)
    with pytest.raises(EngineDown, match="another model is being loaded"):
        engine.submit(make_request(engine.new_request_id(), b"Hello"))
    assert [event async for event in stream][-1].finish is not None  # type: ignore[union-attr]
    await change


async def test_what_does_not_end_by_the_deadline_is_cut_and_told_so(house: House) -> None:
    engine = house.models.served.engine
    stream = engine.submit(make_request(engine.new_request_id(), b"Hello", max_tokens=None, ignore_eos=True))
    await house.change("second")
    with pytest.raises(EngineDown, match="the answer was cut"):
        [event async for event in stream]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("lost", "no such file"),
        ("mute", "of no use"),
        ("blind", "projector is of no use; start with --no-mmproj to serve the model without images"),
        ("nobody", "be made"),
    ],
)
async def test_a_model_that_is_seen_to_be_bad_disturbs_nobody(house: House, name: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{why}.*'first' is served as before") as caught:
        await house.change(name)
    assert caught.value.param == "model"
    assert house.shown == []
    assert house.models.served is house.made[0]
    assert await house.answer()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"model": ModelParams("x", n_gpu_layers=9)}, "--n-gpu-layers 9: llama.cpp sees no GPU"),
        ({"model": ModelParams("x", overrides=(("exps", "CUDA0"),))}, "no such buffer; it has CPU"),
        ({"model": ModelParams("x", rpc=("a:1",))}, "no RPC backend"),
        ({"require_gpu": True}, "require_gpu is set"),
    ],
    ids=["layers", "buffer", "rpc", "require_gpu"],
)
async def test_what_this_machine_has_not_is_refused_before_the_old_model_drains(
    house: House, settings: dict[str, Any], why: str
) -> None:
    house.engine_settings["second"] = settings
    with pytest.raises(InvalidRequest, match=f"{why}.*'first' is served as before"):
        await house.change("second")
    assert house.shown == []
    assert await house.answer()


async def test_how_much_is_fetched_is_told(house: House) -> None:
    steps = await house.change("hf:a/b")
    assert steps[:2] == [("fetching", None), ("fetching", 0.5)]


async def test_a_model_that_does_not_load_gives_way_to_the_old_one(house: House) -> None:
    before = await house.answer()
    with pytest.raises(InvalidRequest, match=r"its tensors are missing\. 'first' is served as before"):
        await house.change("broken")
    assert house.shown == ["broken", "first"]
    assert [text.n_stops for text in house.texts] == [0, 1]
    assert await house.answer() == before
    assert [stage for stage, _ in await house.change("second")][-1] == "loading"


async def test_when_neither_loads_the_server_is_told(house: House) -> None:
    house.made[0].engine._spawn = cast(Any, Refusing)
    with pytest.raises(EngineFailure, match="could not be loaded again either"):
        await house.change("broken")
    assert house.models.has_failed


async def test_one_change_at_a_time_and_it_goes_on_without_who_asked(house: House) -> None:
    engine = house.models.served.engine
    stream = engine.submit(make_request(engine.new_request_id(), b"Hello", max_tokens=60, ignore_eos=True))
    person = asyncio.create_task(house.change("second"))
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable, match="Another model is being loaded"):
        await house.change("third")
    person.cancel()
    await asyncio.gather(person, return_exceptions=True)
    assert house.models._change is not None
    await house.models._change
    assert house.shown == ["second"]
    stream.abort()


async def test_stopping_in_the_middle_ends_both(house: House) -> None:
    engine = house.models.served.engine
    engine.submit(make_request(engine.new_request_id(), b"Hello", max_tokens=None, ignore_eos=True))
    change = asyncio.create_task(house.change("second"))
    while engine.state is not EngineState.DRAINING:  # noqa: ASYNC110 - a state has no event
        await asyncio.sleep(0.001)
    await house.models.stop()
    await asyncio.gather(change, return_exceptions=True)
    assert [text.n_stops > 0 for text in house.texts] == [True, True]


async def test_an_engine_that_was_given_up_ends_the_wait(house: House) -> None:
    one = daemon.Daemon(FoundModel(CONFIG, ModelFile(Path("m.gguf"), 0), None), [])
    house.models.served.engine._supervisor.condition.state = EngineState.FAILED
    await asyncio.wait_for(one._until_stopped(house.models), WAIT_S)


class TestSettings:
    def test_another_model_keeps_the_settings_but_what_was_the_old_ones_own(self) -> None:
        config = changed(CONFIG, {"model": "x.gguf", "n_gpu_layers": 3})
        assert (config.model.model, config.model.n_gpu_layers, config.context.ctx_size) == ("x.gguf", 3, 1024)
        assert config.model.alias == ""
        assert config.server == CONFIG.server

    @pytest.mark.parametrize(
        ("settings", "param", "words"),
        [
            ({}, "model", "expected a file"),
            ({"model": ""}, "model", "expected a file"),
            ({"model": 5}, "model", "expected a file"),
            ({"model": "x", "port": 80}, "port", "settings of"),
            ({"model": "x", "ctx_size": "many"}, "ctx_size", "expected a whole number"),
            ({"model": "x", "ctx_size": 3, "parallel": 4}, None, "less than one token each"),
        ],
    )
    def test_what_is_wrong_is_named(self, settings: dict[str, Any], param: str | None, words: str) -> None:
        with pytest.raises(InvalidRequest, match=words) as caught:
            changed(CONFIG, settings)
        assert caught.value.param == param


class TestRoute:
    @pytest.mark.parametrize("path", ["/v1/models/load", "/models/load"])
    async def test_a_stream_tells_the_steps_and_what_is_served(self, path: str) -> None:
        models = FakeModels()
        async with running(models=models) as api:
            events = parse_events((await api.post(path, {"model": "x", "ctx_size": 5})).text)
        assert events[:3] == [
            {"status": "finding", "progress": None},
            {"status": "loading", "progress": 0.5},
            {"status": "loading", "progress": 1.0},
        ]
        assert events[3]["status"] == "ready"
        assert events[3]["model"]["id"] == "fake-model"
        assert models.settings == {"model": "x", "ctx_size": 5}

    async def test_without_a_stream_the_answer_is_the_model(self) -> None:
        async with running(models=FakeModels()) as api:
            assert (await api.ok("/v1/models/load", model="x", stream=False))["id"] == "fake-model"

    @pytest.mark.parametrize("stream", [True, False])
    async def test_what_is_wrong_before_the_first_step_is_a_plain_error(self, stream: bool) -> None:
        async with running(models=FakeModels(InvalidRequest("no such file", param="model"))) as api:
            error = await api.refused("/v1/models/load", {"model": "x", "stream": stream})
            assert error["param"] == "model"

    async def test_what_goes_wrong_later_ends_the_stream(self) -> None:
        async with running(models=FakeModels(EngineFailure("both are gone"), 2)) as api:
            events = parse_events((await api.post("/v1/models/load", {"model": "x"})).text)
            assert events[-1]["error"]["message"] == "both are gone"
            await api.refused("/v1/models/load", {"model": "x", "stream": False}, 500)

    async def test_a_page_in_a_browser_cannot_send_it_unasked(self) -> None:
        models = FakeModels()
        async with running(models=models) as api:
            response = await api.http.post("/v1/models/load", content=json.dumps({"model": "x"}))
            assert "application/json" in error_of(response, 400)["message"]
            response = await api.http.post("/v1/models/load", data={"model": "x"})
            assert error_of(response, 400)
        assert models.settings == {}

    async def test_where_nothing_can_be_changed_it_says_so(self) -> None:
        async with running() as api:
            assert (await api.refused("/v1/models/load", {"model": "x"}))["code"] == "unsupported"
            assert (await api.refused("/v1/models/load", {"model": "x", "stream": 1}))["param"] == "stream"


async def test_a_new_engine_begins_with_what_those_who_wait_for_it_got_before(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried: list[tuple[str, dict[str, float]]] = []
    real = EngineClient.carry

    def carry(client: EngineClient, counters: Iterable[tuple[str, float]]) -> None:
        real(client, counters)
        carried.append((client.state.name, dict(client.config.carried)))

    monkeypatch.setattr(EngineClient, "carry", carry)
    house.models.carry(lambda model: {"ann": 5.0} if model == "second" else {})
    await house.change("second")
    assert carried == [("LOADING", {"ann": 5.0})]
    # It is not for an engine that is started again later.
    assert house.models.served.engine.config.carried == ()
    with pytest.raises(InvalidRequest):
        await house.change("broken")
    assert [counters for _, counters in carried[1:]] == [{}, {"ann": 5.0}]


async def test_engines_charge_what_they_serve_to_one_account_book() -> None:
    served = TokenCounters()
    client = EngineClient(inproc_client().config, spawn=InprocSpawn(), served=served)
    client.start()
    await client.wait_ready()
    for account, is_background in (("ann", False), (BACKGROUND, True)):
        principal = Principal(name="ann", account=account)
        assert principal.is_background == is_background
        request = make_request(client.new_request_id(), b"Hello", principal=principal, max_tokens=8, ignore_eos=True)
        _ = [event async for event in client.submit(request)]
    await client.stop()
    # Five tokens of a prompt at a quarter each, and eight that were generated.
    assert served["ann"] == 5 * 0.25 + 8
    assert len(served) == 1
