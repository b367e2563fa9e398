"""Reserved slots and preemption, over the fake context: who gets a slot, and that nobody notices having lost one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufd.engine.loader import Loaded, load
from ggufd.engine.messages.config import EngineConfig, EngineRules
from ggufd.engine.messages.events import Admitted, Output
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.errors import EngineFailure
from ggufd.keys.ring import Limits
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.models import hub
from tests.support.examples import examples
from tests.support.fakes.fake_llama import Rig, make_engine, make_request, run_alone


def job(request_id: int, account: str = "batch", **changes: Any) -> EngineRequest:
    """A long answer to a prompt of its own."""
    prompt = bytes([65 + request_id % 26]) * 20
    return make_request(request_id, prompt, **({"max_tokens": 80, "ignore_eos": True, "account": account} | changes))


def chat(request_id: int, account: str = "chat", **changes: Any) -> EngineRequest:
    """A short answer."""
    prompt = bytes([97 + request_id % 26]) * 5
    return make_request(request_id, prompt, **({"max_tokens": 4, "ignore_eos": True, "account": account} | changes))


def steps_until_admitted(rig: Rig, request_id: int) -> int:
    for n in range(1, 1000):
        if any(isinstance(event, Admitted) and event.request_id == request_id for event in rig.step()):
            return n
    raise AssertionError("never admitted")


def steps_until_done(rig: Rig, request_id: int) -> int:
    for n in range(1, 1000):
        rig.step()
        if rig.collected[request_id].is_done:
            return n
    raise AssertionError("never done")


def assert_as_alone(rig: Rig, *requests: EngineRequest) -> None:
    for request in requests:
        assert rig.collected[request.request_id].texts == run_alone(request).texts, request.request_id


# --- reserved slots ---------------------------------------------------------------------------------------------------


def test_a_reserved_slot_waits_for_short_requests() -> None:
    rig = make_engine(n_slots=3, n_reserved=1, short_tokens=30)
    rig.add(*(job(i) for i in range(4)))
    rig.step()
    assert rig.engine.stats().running == 2
    rig.add(chat(10))
    assert steps_until_admitted(rig, 10) == 1
    rig.run()


@pytest.mark.parametrize(
    ("changes", "is_short"),
    [({}, True), ({"max_tokens": 26}, False), ({"max_tokens": None}, False), ({"prompt": b"z" * 27}, False)],
)
def test_short_is_what_is_to_be_computed_and_generated(changes: dict[str, Any], is_short: bool) -> None:
    rig = make_engine(n_slots=2, n_reserved=1, short_tokens=30)
    rig.add(job(0))
    rig.step()
    prompt = changes.pop("prompt", b"hello")
    rig.add(make_request(1, prompt, **({"max_tokens": 4} | changes)))
    rig.step()
    assert (rig.engine.stats().running == 2) == is_short
    rig.run()


def test_a_long_history_that_is_cached_is_short() -> None:
    rig = make_engine(n_slots=2, n_reserved=1, short_tokens=30)
    history = b"q" * 100
    rig.add(make_request(1, history, max_tokens=4))
    rig.run()
    rig.add(job(2))
    rig.step()
    rig.add(make_request(3, history + b"next", max_tokens=4))
    assert steps_until_admitted(rig, 3) == 1
    rig.run()


def test_one_slot_is_everybodys_whatever_is_reserved() -> None:
    rig = make_engine(n_slots=2, n_reserved=9, short_tokens=30)
    rig.add(job(1))
    assert steps_until_admitted(rig, 1) == 1
    rig.run()


# --- preemption -------------------------------------------------------------------------------------------------------


def test_without_preemption_a_newcomer_waits_for_a_free_slot() -> None:
    rig = make_engine(n_slots=2)
    rig.add(*(job(i) for i in range(6)), chat(10))
    assert steps_until_admitted(rig, 10) == 1, "the queue's order already puts it first"
    rig = make_engine(n_slots=2)
    rig.add(*(job(i) for i in range(6)))
    rig.step()
    rig.add(chat(10))
    assert steps_until_admitted(rig, 10) > 50
    rig.run()


@pytest.mark.parametrize("changes", [{}, {"temperature": 1.0, "seed": 7}, {"xtc_probability": 0.5, "seed": 7}])
def test_an_account_gets_its_share_of_the_slots_at_once_and_the_preempted_say_the_same(changes: dict[str, Any]) -> None:
    rig = make_engine(n_slots=4, preempts=True)
    jobs = [job(i, **changes) for i in range(8)]
    rig.add(*jobs)
    for _ in range(10):
        rig.step()
    chats = [chat(20 + i) for i in range(5)]
    for request in chats:
        rig.add(request)
        assert steps_until_admitted(rig, request.request_id) == 1
        steps_until_done(rig, request.request_id)
        rig.step()
    assert rig.engine.stats().preemptions == 5
    rig.run()
    assert_as_alone(rig, *jobs, *chats)


@pytest.mark.parametrize(("n_slots", "n_others", "n_preemptions"), [(1, 0, 0), (2, 1, 1), (3, 1, 1), (4, 2, 2)])
def test_slots_are_shared_evenly_and_nobody_is_preempted_to_and_fro(
    n_slots: int, n_others: int, n_preemptions: int
) -> None:
    rig = make_engine(n_slots=n_slots, preempts=True)
    rig.add(*(job(i) for i in range(6)))
    rig.step()
    rig.add(*(job(10 + i, "other") for i in range(6)))
    for _ in range(40):
        rig.step()
    accounts = [sequence.request.principal.account for sequence in rig.engine._running]
    assert accounts.count("other") == n_others
    assert rig.engine.stats().preemptions == n_preemptions
    rig.run()


def test_a_heavier_account_keeps_more_slots() -> None:
    rig = make_engine(n_slots=4, preempts=True)
    rig.add(*(job(i, limits=Limits(weight=3.0)) for i in range(6)))
    rig.step()
    rig.add(*(job(10 + i, "other") for i in range(6)))
    for _ in range(40):
        rig.step()
    accounts = [sequence.request.principal.account for sequence in rig.engine._running]
    assert sorted(accounts) == ["batch", "batch", "batch", "other"]
    rig.run()


def test_an_account_that_was_served_much_more_has_no_claim() -> None:
    rig = make_engine(n_slots=2, n_ctx=4096, preempts=True)
    rig.add(job(1, max_tokens=1000), job(2, max_tokens=1000), job(3, max_tokens=1000))
    rig.step()
    rig.queue.counters.charge("chat", 1500, 1.0)
    rig.add(chat(10))
    assert steps_until_admitted(rig, 10) > 100
    rig.run()


def test_the_more_urgent_request_of_the_same_account_takes_a_slot() -> None:
    rig = make_engine(n_slots=2, preempts=True)
    jobs = [job(i, priority=5) for i in range(4)]
    rig.add(*jobs)
    rig.step()
    rig.add(job(9, priority=6))
    urgent = chat(10, "batch", priority=0)
    rig.add(urgent)
    assert steps_until_admitted(rig, 10) == 1
    assert {sequence.request.request_id for sequence in rig.engine._running} == {0, 10}
    rig.run()
    assert_as_alone(rig, urgent, *jobs)


def test_one_that_waited_long_enough_is_not_preempted_again() -> None:
    rig = make_engine(n_slots=1, preempts=True, n_ctx=4096)
    rig.add(job(1, priority=1, max_tokens=500))
    rig.step()
    rig.decoder.sleep(31.0)
    rig.add(chat(2, "batch"))
    rig.step()
    assert not rig.collected[2].events
    rig.run()


def test_a_less_urgent_newcomer_has_no_claim_to_a_share() -> None:
    rig = make_engine(n_slots=2, preempts=True)
    rig.add(*(job(i) for i in range(4)))
    rig.step()
    rig.add(chat(10, priority=1))
    rig.step()
    assert not rig.collected[10].events
    rig.run()


def test_a_sequence_in_prefill_goes_on_where_it_was() -> None:
    rig = make_engine(n_slots=1, n_batch=16, preempts=True)
    long = make_request(1, bytes(range(97, 123)) * 4, max_tokens=10, ignore_eos=True, account="a")
    rig.add(long)
    rig.step()
    rig.add(job(2, "a"), chat(3, priority=-1))
    rig.step()
    assert rig.engine.stats().preemptions == 1
    computed = rig.n_computed
    rig.run()
    assert_as_alone(rig, long)
    assert rig.n_computed - computed < len(long.prompt) + 10 + 20 + 80 + 5 + 4 - 16


def test_a_preempted_sequence_goes_on_under_its_own_adapters() -> None:
    rig = make_engine(n_slots=2, n_adapters=2, preempts=True, cache_ram_bytes=1 << 20)
    jobs = [job(i, adapters=(1.0, 0.5)) for i in range(2)]
    chats = [job(10 + i, "chat", max_tokens=30, adapters=(0.0, 1.0) if i % 2 else ()) for i in range(4)]
    rig.add(*jobs)
    for request in chats:
        for _ in range(9):
            rig.step()
        rig.add(request)
    rig.run()
    assert rig.engine.stats().preemptions >= 2
    for request in (*jobs, *chats):
        alone = run_alone(request, n_adapters=2)
        assert rig.collected[request.request_id].texts == alone.texts


def test_a_grammar_and_bans_and_stop_strings_go_on_where_they_were() -> None:
    rig = make_engine(n_slots=1, preempts=True)
    grammar = Grammar(GrammarKind.REGEX, "/".join(["ab", "cd", "efg"] * 9))
    requests = [
        make_request(1, b"abc", grammar=grammar, temperature=1.0, seed=3, account="a", max_tokens=60),
        make_request(2, b"xyz", banned_strings=("e",), stop=("qq",), account="a", max_tokens=40, ignore_eos=True),
    ]
    for request in requests:
        rig.add(request)
        for i in range(4):
            rig.step()
            rig.step()
            urgent = chat(100 * request.request_id + i, priority=-1)
            rig.add(urgent)
            steps_until_done(rig, urgent.request_id)
        rig.run()
    assert rig.engine.stats().preemptions >= 6
    assert_as_alone(rig, *requests)


def test_a_preempted_request_can_be_aborted_and_frees_everything() -> None:
    rig = make_engine(n_slots=1, preempts=True)
    rig.add(job(1, priority=1, xtc_probability=0.5))
    rig.step()
    rig.step()
    rig.add(job(2, xtc_probability=0.5))
    rig.step()
    (preempted,) = rig.queue.waiting()
    assert preempted.state is not None
    rig.abort(1)
    assert preempted.state is None
    assert sum(not chain.is_closed for chain in rig.decoder.chains) == 1
    rig.run()
    assert all(chain.is_closed for chain in rig.decoder.chains)
    assert rig.queue.counters["batch"] == pytest.approx(0.25 * 40 + 80 + 2)


def test_what_a_preempted_request_had_not_computed_is_given_back_when_it_is_aborted() -> None:
    rig = make_engine(n_slots=1, n_batch=16, preempts=True)
    rig.add(make_request(1, b"x" * 100, account="a"))
    rig.step()
    rig.add(job(2, "a"), chat(3, priority=-1))
    rig.step()
    assert rig.queue.counters["a"] == 100 * 0.25
    rig.abort(1)
    assert rig.queue.counters["a"] == 16 * 0.25
    rig.run()


def test_no_more_are_preempted_than_there_are_slots() -> None:
    rig = make_engine(n_slots=2, preempts=True)
    for urgency in range(8):
        rig.add(job(urgency, priority=-urgency))
        rig.step()
    assert sum(sequence.is_preempted for sequence in rig.queue.waiting()) == 2
    rig.run()


def test_a_state_that_cannot_be_read_preempts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_engine(n_slots=1, preempts=True)
    rig.add(job(1))
    rig.step()

    def broken(slot: int) -> None:
        raise EngineFailure("no state")

    with monkeypatch.context() as patch:
        patch.setattr(rig.decoder, "get_state", broken)
        rig.add(chat(2, priority=-1))
        rig.step()
    assert rig.engine.stats().preemptions == 0
    rig.run()
    assert_as_alone(rig, job(1), chat(2, priority=-1))


def test_a_state_that_cannot_be_restored_is_computed_anew_and_the_text_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_engine(n_slots=1, preempts=True)
    rig.add(job(1, priority=1, xtc_probability=0.5))
    rig.step()
    rig.add(chat(2))

    def broken(slot: int, state: object) -> None:
        rig.decoder.trim(slot, 0)
        raise EngineFailure("the state could not be restored")

    with monkeypatch.context() as patch:
        patch.setattr(rig.decoder, "set_state", broken)
        rig.run()
    assert rig.engine.stats().preemptions == 1
    assert rig.engine.stats().failed_restores == 1
    assert all(chain.is_closed for chain in rig.decoder.chains)
    assert_as_alone(rig, job(1, priority=1, xtc_probability=0.5))
    assert_as_alone(rig, chat(2))
    rig.add(job(3))
    rig.run()
    assert_as_alone(rig, job(3))


def test_a_short_prompt_does_not_wait_until_anothers_long_one_is_read() -> None:
    rig = make_engine(n_slots=2, n_ctx=2048, n_batch=64)
    rig.add(make_request(1, b"y" * 1500, account="batch"))
    rig.step()
    rig.add(make_request(2, b"short", account="chat", max_tokens=1))
    assert steps_until_done(rig, 2) == 1
    rig.run()


@pytest.mark.e2e
@pytest.mark.usefixtures("quiet_log_afterwards")
def test_a_real_model_goes_on_with_exactly_the_text_it_was_in() -> None:
    """The demo model, quantised: any other state, or any other batch, would round otherwise sooner or later."""

    def new() -> Loaded:
        model = ModelParams(str(hub.find("").path), n_gpu_layers=0)
        context = ContextParams(n_ctx=512, n_slots=1, n_threads=1, flash_attn="off")
        return load(EngineConfig(model, context, rules=EngineRules(preempts=True)), lambda _: None)

    def text_of(loaded: Loaded, interruptions: tuple[int, ...]) -> tuple[str, int]:
        tokens = tuple(range(1000, 1040))
        engine = loaded.engine
        story = make_request(1, tokens, max_tokens=60, ignore_eos=True, priority=1)
        engine.add(story)
        texts: list[str] = []
        for n in range(200):
            if n in interruptions:
                engine.add(make_request(100 + n, tokens[:20], max_tokens=3, ignore_eos=True))
            outputs = [event for event in engine.step() if isinstance(event, Output) and event.request_id == 1]
            texts += [output.text for output in outputs]
            engine.check_integrity()
            if any(output.finish for output in outputs):
                break
        return "".join(texts), engine.stats().preemptions

    undisturbed, n = text_of(new(), ())
    assert n == 0
    disturbed, n = text_of(new(), (1, 8, 30, 50))
    assert n == 4
    assert disturbed == undisturbed
    assert len(undisturbed) > 60


# --- anything at any time ---------------------------------------------------------------------------------------------

actions = st.one_of(
    st.tuples(
        st.just("add"),
        st.fixed_dictionaries(
            {
                "account": st.sampled_from("abc"),
                "priority": st.integers(-1, 1),
                "n": st.integers(1, 2),
                "max_tokens": st.sampled_from([2, 9, 25]),
                "prompt": st.sampled_from([b"abcdefgh" * 6, b"abcdefgh" * 5 + b"zz", b"q", b"xyz" * 8]),
                "temperature": st.sampled_from([0.0, 1.5]),
            },
            optional={
                "stop": st.just(("e",)),
                "xtc_probability": st.just(0.5),
                "banned_strings": st.just(("e", "th")),
                "limits": st.sampled_from([Limits(max_running=1), Limits(weight=4.0)]),
            },
        ),
    ),
    st.tuples(st.just("steps"), st.integers(1, 6)),
    st.tuples(st.just("abort"), st.integers(0, 20)),
)


@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(actions, min_size=3, max_size=24), st.integers(1, 4), st.integers(0, 1), st.booleans())
def test_whoever_is_preempted_whenever_every_text_is_the_one_it_has_alone(
    script: list[tuple[str, Any]], n_slots: int, n_reserved: int, can_trim: bool
) -> None:
    rig = make_engine(
        n_slots=n_slots,
        n_ctx=128,
        n_batch=24,
        can_trim=can_trim,
        preempts=True,
        n_reserved=n_reserved,
        short_tokens=40,
        cache_ram_bytes=1000,
    )
    requests: list[EngineRequest] = []
    for action, argument in script:
        if action == "add":
            changes = dict(argument)
            requests.append(make_request(len(requests), changes.pop("prompt"), seed=5, **changes))
            rig.add(requests[-1])
        elif action == "steps":
            for _ in range(argument):
                rig.step()
        elif argument < len(requests) and not rig.collected[argument].is_done:
            rig.abort(argument)
    rig.run()
    assert all(chain.is_closed for chain in rig.decoder.chains)
    for request in requests:
        if request.request_id not in rig.aborted:
            assert rig.collected[request.request_id].texts == run_alone(request, n_ctx=128).texts
