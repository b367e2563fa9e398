"""What the live view costs at 16 busy slots and three viewers: processor time of both processes, not of the clock."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable

from ggufd.api.live.collector import Collector
from ggufd.api.live.sight import Sight
from ggufd.api.live.view import LiveMessages
from ggufd.api.services.adapters import AdapterScales
from ggufd.api.services.services import Services
from ggufd.api.services.settings import ApiConfig
from ggufd.engine.messages.reports import LiveState
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from tests.support.fakes.fake_engine import FakeEngine, FakeText
from tests.support.fakes.fake_llama import make_engine, make_request

BUDGET_S = 0.005
N = 50


def mean_s(action: Callable[[], object]) -> float:
    action()
    start_s = time.process_time()
    for _ in range(N):
        action()
    return (time.process_time() - start_s) / N


def busy() -> Callable[[], LiveState]:
    rig = make_engine(n_slots=16)
    for number in range(32):
        key = f"key-{number % 5}"
        prompt = b"ab" * (number + 1) + b"c"
        rig.add(make_request(number, prompt, person=key, account=key, max_tokens=200, ignore_eos=True))
    for _ in range(8):
        rig.step()
    return rig.engine.live_state


async def test_a_second_of_it_costs_less_than_five_milliseconds() -> None:
    ask = busy()
    state = ask()
    told = pickle.dumps([state], pickle.HIGHEST_PROTOCOL)
    engine_s = mean_s(ask) + mean_s(lambda: pickle.dumps([state], pickle.HIGHEST_PROTOCOL))

    ring = KeyRing([*(Key(f"key-{n}", digest_of(str(n))) for n in range(5)), Key("root", digest_of("r"), Role.ADMIN)])
    config = ApiConfig("fake-model", keys=ring)
    engine = FakeEngine()
    engine.live = state
    services = Services(engine, FakeText(), config, AdapterScales(config))
    collector = Collector(lambda: services, 0.01)
    collector.serve(engine)
    with collector.viewer():
        await asyncio.wait_for(collector.next_tick(), 5)
    await collector.close()

    def messages() -> None:
        made = LiveMessages(collector)
        seen = made.position()._replace(rows=collector.history.n_rows - 1)
        made.update(services, Sight(sees_all=True), is_admin=True, seen=seen)
        for person in ("key-1", "key-2"):
            assert made.update(services, Sight(sees_all=False, person=person), is_admin=False, seen=seen)

    api_s = mean_s(lambda: pickle.loads(told)) + mean_s(messages)
    assert engine_s + api_s < BUDGET_S, f"engine {engine_s * 1000:.2f} ms, API {api_s * 1000:.2f} ms"
