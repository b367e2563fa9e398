"""The model pool on an event loop: turns, swaps, failures, limits; how a model is loaded is a fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from ggufd.errors import Draining, GgufdError, InvalidRequest, QueueFull, QueueTimeout, TooManyRequests, Unavailable
from ggufd.keys.principal import Principal
from ggufd.keys.ring import Limits
from ggufd.model_pool.catalogue import KnownModel, ModelCatalogue
from ggufd.model_pool.errors import ModelLoadFailed, ModelNotLoaded, without_folders
from ggufd.model_pool.pool import Claim, ModelPool, ModelTurn, PoolRules

WAIT_S = 20.0
ADMIN = Claim(Principal(name="ann", account="ann"))
USER = Claim(Principal(name="bob", account="bob"), may_swap=False)


@dataclass
class Rig:
    """A pool over models a, b and c; "broken" ones cannot be loaded. `gate` holds loads back."""

    swap_after_s: float = 0.0
    max_waiting: int = 64
    loads: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    running: int = 0
    kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.now_s = 1000.0
        self.gate = asyncio.Event()
        self.gate.set()
        rules = PoolRules(self.swap_after_s, self.max_waiting, retry_after_s=60.0)
        models = [KnownModel(name, f"{name}.gguf", (f"{name}-alias",), size_bytes=1 << 20) for name in "abc"]
        self.pool = ModelPool(ModelCatalogue(models), "a", self.load, rules, lambda: self.now_s, self.kept)

    async def load(self, name: str) -> None:
        assert self.running == 0, "a swap under a running request"
        self.loads.append(name)
        await self.gate.wait()
        self.now_s += 4.0
        if name in self.broken:
            raise InvalidRequest(f"{name}.gguf: its tensors are missing.")

    async def ask(self, name: str | None, claim: Claim = ADMIN) -> str:
        """The name of the model that answered."""
        async with asyncio.timeout(WAIT_S):
            with self.pool.enter(name, claim) as turn:
                await turn.wait()
                self.running += 1
                await asyncio.sleep(0)
                self.running -= 1
                return self.pool.loaded

    def waiting(self, name: str, claim: Claim = ADMIN) -> ModelTurn:
        turn = self.pool.enter(name, claim)
        assert not turn.is_ready
        return turn


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    made.gate.set()
    await made.pool.stop()


async def test_each_request_is_answered_by_the_model_that_it_names(rig: Rig) -> None:
    asked = [None, "a", "b", "b-alias", "c", "a", "gpt-4", "b", "c"]
    answers = await asyncio.gather(*(rig.ask(name) for name in asked))
    for name, answer in zip(asked, answers, strict=True):
        assert name in (None, "gpt-4") or answer == name[:1]
    assert sorted(rig.loads) == sorted(["b", "c", "a"][: len(rig.loads)])


async def test_one_that_runs_keeps_its_model(rig: Rig) -> None:
    with rig.pool.enter("a", ADMIN) as first:
        await first.wait()
        turn = rig.waiting("b")
        assert not await turn.wait(0.01)
        assert rig.loads == []
    async with asyncio.timeout(WAIT_S):
        await turn.wait()
    assert rig.loads == ["b"]
    assert turn.waited_s >= 4.0


class TestFailure:
    async def test_its_waiters_get_the_reason_and_the_old_model_serves_on(self, rig: Rig) -> None:
        rig.broken.add("b")
        rig.gate.clear()
        turn, held = rig.waiting("b"), asyncio.create_task(rig.ask("a", USER))
        await asyncio.sleep(0)
        rig.gate.set()
        with pytest.raises(ModelLoadFailed, match=r"'b' could not be loaded: b\.gguf: its tensors are missing"):
            await turn.wait(WAIT_S)
        assert rig.pool.loaded == "a"
        assert await rig.ask(None, USER) == "a"
        with pytest.raises(ModelNotLoaded):
            await held

    async def test_it_is_not_tried_again_for_a_while(self, rig: Rig) -> None:
        rig.broken.add("b")
        with pytest.raises(ModelLoadFailed):
            await rig.ask("b")
        with pytest.raises(ModelLoadFailed, match="not tried again for 60 s") as caught:
            rig.pool.enter("b", ADMIN)
        assert caught.value.retry_after_s == 60.0
        rig.now_s += 61
        rig.broken.clear()
        assert await rig.ask("b") == "b"
        assert rig.loads == ["b", "b"]
        assert rig.pool.failures == {}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("/srv/my models/b.gguf: its tensors are missing.", "b.gguf: its tensors are missing."),
        ("'/srv/b.gguf' is no model; '/srv/a.gguf' is served", "'b.gguf' is no model; 'a.gguf' is served"),
        ("C:\\models\\b.gguf: is no model", "b.gguf: is no model"),
        ("hf:owner/repo: https://host/a/b is not there", "hf:owner/repo: https://host/a/b is not there"),
        ("models/b.gguf: 1/2 of it is missing", "models/b.gguf: 1/2 of it is missing"),
    ],
)
def test_a_reason_names_no_folder_of_the_server(message: str, told: str) -> None:
    assert without_folders(message) == told


class TestRights:
    async def test_without_them_a_model_that_is_not_loaded_is_refused_and_none_is_swapped(self, rig: Rig) -> None:
        with pytest.raises(ModelNotLoaded, match="'b' is not loaded") as caught:
            rig.pool.enter("b", USER)
        assert (caught.value.status, caught.value.code, caught.value.param) == (403, "model_not_loaded", "model")
        assert await rig.ask("a", USER) == await rig.ask("any", USER) == "a"
        assert rig.loads == []

    async def test_they_may_use_what_another_had_loaded(self, rig: Rig) -> None:
        rig.gate.clear()
        asyncio.get_running_loop().call_later(0.01, rig.gate.set)
        assert await asyncio.gather(rig.ask("b"), rig.ask("b", USER)) == ["b", "b"]

    async def test_who_waited_for_the_old_model_is_told_when_it_left(self, rig: Rig) -> None:
        rig.gate.clear()
        rig.waiting("b")
        with pytest.raises(ModelNotLoaded):
            rig.pool.enter("a", USER)


class TestLimits:
    async def test_so_many_wait_and_no_more(self) -> None:
        rig = Rig(max_waiting=2)
        with rig.pool.enter("a", ADMIN):
            rig.waiting("b"), rig.waiting("c")
            with pytest.raises(QueueFull, match="2 requests are waiting for a model"):
                rig.pool.enter("b", ADMIN)
            assert len(rig.pool.waiting) == 2

    async def test_whoever_has_fewer_waiting_takes_the_place_of_whoever_has_most(self) -> None:
        rig = Rig(max_waiting=2)
        with rig.pool.enter("a", ADMIN):
            first, second = rig.waiting("b"), rig.waiting("c")
            other = rig.waiting("b", Claim(Principal(account="other"), may_swap=True))
            assert rig.pool.waiting == [first, other]
            with pytest.raises(QueueFull, match="you had most; somebody else has this one now: 2 requests are waiting"):
                await second.wait()

    async def test_a_keys_own_limit_holds(self) -> None:
        rig = Rig()
        claim = Claim(Principal(name="ann", account="ann", limits=Limits(max_waiting=1)))
        with rig.pool.enter("a", ADMIN):
            rig.waiting("b", claim)
            with pytest.raises(TooManyRequests, match="1 requests waiting"):
                rig.pool.enter("b", claim)

    async def test_what_cannot_be_there_in_its_time_is_refused_at_once(self) -> None:
        rig = Rig(swap_after_s=30.0)
        with rig.pool.enter("a", Claim(Principal(account="other"))):
            with pytest.raises(QueueTimeout, match="its model is due in about 3") as caught:
                rig.pool.enter("b", Claim(ADMIN.principal, timeout_s=5.0))
            assert caught.value.param == "timeout"
            assert rig.pool.waiting == []

    async def test_what_has_waited_as_long_as_it_may_is_told_so(self, rig: Rig) -> None:
        with rig.pool.enter("a", ADMIN):
            turn = rig.waiting("b")
            rig.pool.expire(turn)
            with pytest.raises(QueueTimeout, match="as long as it may"):
                await turn.wait()
        await asyncio.sleep(0)
        assert rig.loads == []


async def test_who_leaves_while_waiting_causes_no_swap(rig: Rig) -> None:
    with rig.pool.enter("a", ADMIN) as running:
        await running.wait()
        with rig.waiting("b"):
            pass
    await asyncio.sleep(0)
    assert rig.loads == []
    assert rig.pool.waiting == []


async def test_an_expected_wait_comes_from_measured_loads(rig: Rig) -> None:
    assert await rig.ask("b") == "b"
    assert await rig.ask("a") == "a"
    with rig.pool.enter("a", ADMIN):
        assert rig.waiting("b").forecast == (1, 4.0)


class TestChange:
    async def test_what_asks_meanwhile_waits_for_it(self, rig: Rig) -> None:
        async def load() -> KnownModel:
            await rig.load("new")
            return KnownModel("new", "new.gguf")

        rig.gate.clear()
        change = asyncio.create_task(rig.pool.change("new", load, "ann"))
        await asyncio.sleep(0)
        asked = asyncio.create_task(rig.ask(None, USER))
        with pytest.raises(Unavailable, match="Another model is being loaded"):
            await rig.pool.change("b", load, "ann")
        rig.gate.set()
        await change
        assert await asked == "new"
        assert rig.pool.catalogue.find("new") is not None

    async def test_one_that_fails_leaves_everything_as_it_was(self, rig: Rig) -> None:
        async def load() -> KnownModel:
            raise InvalidRequest("no such file")

        with pytest.raises(GgufdError, match="no such file"):
            await rig.pool.change("new", load, "ann")
        assert await rig.ask(None, USER) == "a"


async def test_at_the_end_whoever_waits_is_told(rig: Rig) -> None:
    with rig.pool.enter("a", ADMIN):
        turn = rig.waiting("b")
        rig.pool.close(Draining("the server is shutting down"))
        with pytest.raises(Draining):
            await turn.wait()
        with pytest.raises(Draining):
            rig.pool.enter("a", ADMIN)


class TestKept:
    @pytest.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        made = Rig(kept=("c",))
        yield made
        made.gate.set()
        await made.pool.stop()

    async def test_one_runs_at_once_for_everybody_also_during_a_swap(self, rig: Rig) -> None:
        rig.gate.clear()
        asked = asyncio.create_task(rig.ask("b"))
        while not rig.loads:  # noqa: ASYNC110 - a load has no event
            await asyncio.sleep(0)
        for claim in (ADMIN, USER):
            with rig.pool.enter("c-alias", claim) as turn:
                assert turn.is_ready
                assert (turn.model, turn.waited_s) == ("c", 0.0)
        rig.gate.set()
        assert await asked == "b"
        assert rig.loads == ["b"]

    async def test_one_that_runs_holds_no_swap_up(self, rig: Rig) -> None:
        with rig.pool.enter("c", ADMIN):
            assert await rig.ask("b") == "b"
        assert not rig.pool.would_swap("c")

    async def test_a_server_that_ends_refuses_it_too(self, rig: Rig) -> None:
        rig.pool.close(Draining("the server ends"))
        with pytest.raises(Draining):
            rig.pool.enter("c", ADMIN)
