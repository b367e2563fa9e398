"""Cache advice over whole chats: each cause is found and named, and what is no fault of the client never is."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.chat.advice.advisor import (
    FINDING_S,
    MAX_BYTES,
    MAX_CHARACTERS,
    MAX_CHATS,
    MAX_OWNERS,
    MAX_SEGMENTS,
    PROMPT_S,
    CacheAdvisor,
)
from ggufd.chat.advice.causes import Cause
from ggufd.chat.advice.chats import PromptTurn
from ggufd.chat.advice.sentences import SENTENCES
from tests.chat.advice.chats import (
    OWNER,
    RULES,
    TEMPLATES,
    Clock,
    Messages,
    Sent,
    Slot,
    answer,
    chatml,
    send,
    story,
    talk,
    turns,
)
from tests.support.pages import DOCS

Template = Callable[[Messages], str]


def sent(template: Template, system: str, messages: Messages, turn: int, **more: Any) -> Sent:
    every = [("system", system), *messages]
    return Sent(template(every), answer(turn - 1), every, **more)


def systems(template: Template, texts: Sequence[str]) -> list[Sent]:
    """A chat whose system text is another one in each turn."""
    return [sent(template, text, talk(turn), turn) for turn, text in enumerate(texts, 3)]


def only(prompts: Sequence[Sent]) -> Any:
    """The one finding of these prompts."""
    (finding,) = send(prompts)[1]
    return finding


# --- causes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("cause", "values"),
    [
        (Cause.DATE_OR_TIME, ["12:31", "12:32", "12:35", "12:41"]),
        (Cause.DATE_OR_TIME, ["9:59 PM", "10:00 PM", "10:01 PM", "10:02 PM"]),
        (Cause.DATE_OR_TIME, ["2026-11-29T12:31:05Z", "2026-11-29T12:31:15Z", "2026-11-29T12:32:00Z"]),
        (Cause.DATE_OR_TIME, ["a few seconds ago", "2 minutes ago", "5 minutes ago"]),
        (Cause.DATE_OR_TIME, ["1764419465", "1764419500", "1764419999"]),
        (Cause.RANDOM_TEXT, ["3f9a77aa", "99e0417c", "abb01c3d"]),
        (Cause.RANDOM_TEXT, ["request-7c9e6679-7425", "request-16fd2706-8baf", "request-00000000-aaaa"]),
        (Cause.RANDOM_TEXT, ["a merry mood", "a foul mood", "no mood to talk", "a mood for songs"]),
        (Cause.RANDOM_TEXT, ["17", "4", "20"]),
    ],
)
def test_a_value_near_the_top_that_changes_each_turn(template: Template, cause: Cause, values: list[str]) -> None:
    finding = only(systems(template, [f"You are a pirate with {value}. {RULES}" for value in values]))
    assert finding.cause is cause
    assert finding.turns == len(values) - 1
    assert finding.share < 0.05
    assert finding.tokens / finding.turns > 0.8 * len(RULES)
    assert finding.seconds == pytest.approx(finding.tokens / 1000)
    assert (finding.message, finding.role) == (0, "system")
    common = len("You are a pirate with ")
    assert finding.was[:common].endswith("with ") or "with " in finding.was
    assert values[-2][-3:] in finding.was
    assert values[-1][-3:] in finding.now


@pytest.mark.parametrize("template", [template for template in TEMPLATES if template is not story])
@pytest.mark.parametrize("said", ["", ".", "Yes."])
def test_a_clock_above_lines_that_are_all_the_same(template: Template, said: str) -> None:
    """No segment but the clock's is there once only, and the words of an answer are too few to know the chat by."""
    prompts = []
    for turn in range(4):
        system = f"It is 10:0{turn}:00. " + "Be polite whatever is said to you. " * 12
        messages = [("system", system), *[("user", "Go on."), ("assistant", said or ".")] * turn, ("user", "Go on.")]
        prompts.append(Sent(template(messages), said, messages))
    finding = only(prompts)
    assert (finding.cause, finding.turns, finding.role) == (Cause.DATE_OR_TIME, 3, "system")
    assert "10:02" in finding.was
    assert "10:03" in finding.now


def test_a_clock_beside_another_branch_of_the_chat() -> None:
    plain = [sent(chatml, RULES, talk(turn), turn) for turn in turns(1, 8)]
    assert only([*plain, *systems(chatml, [f"It is 12:3{minute}. {RULES}" for minute in range(5)])]).turns == 4


def test_a_billing_header_that_is_not_repaired() -> None:
    header = "x-anthropic-billing-header: cc_version=2.1.1.{0}; cc_entrypoint=cli; cch={0};You are Claude Code. "
    finding = only(systems(chatml, [header.format(value) + RULES for value in ("fa690", "36ee5", "0aaa9")]))
    assert (finding.cause, finding.turns) == (Cause.BILLING_HEADER, 2)
    assert "36ee5" in finding.was
    assert "0aaa9" in finding.now


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_history_that_is_trimmed_each_turn(template: Template) -> None:
    finding = only([sent(template, RULES, talk(turn)[2 * (turn - 6) :], turn) for turn in turns(6, 9)])
    assert (finding.cause, finding.turns) == (Cause.HISTORY_TRIMMED, 3)
    assert (finding.message, finding.role) == (1, "user")
    assert finding.position >= len(RULES)


@pytest.mark.parametrize("n_cut", [37, 100])
def test_a_history_that_is_cut_within_a_message(n_cut: int) -> None:
    prompts = []
    for turn in turns(12, 15):
        text = story(talk(turn))
        prompts.append(Sent(RULES + "\n" + text[n_cut * (turn - 11) :], answer(turn - 1)))
    assert only(prompts).cause is Cause.HISTORY_TRIMMED


@pytest.mark.parametrize("template", TEMPLATES[:3])
@pytest.mark.parametrize("depth", [2, 4])
def test_a_note_at_a_depth_that_moves_each_turn(template: Template, depth: int) -> None:
    def with_note(messages: Messages) -> Messages:
        note = ("system", "[The author would like a storm soon, and more rope.]")
        return [*messages[:-depth], note, *messages[-depth:]]

    finding = only([sent(template, RULES, with_note(talk(turn)), turn) for turn in turns(5, 8)])
    assert (finding.cause, finding.turns) == (Cause.INJECTED_BLOCK, 3)


@pytest.mark.parametrize("template", TEMPLATES[:2])
def test_a_block_behind_every_last_message(template: Template) -> None:
    block = ("system", RULES.replace("harbour", "tavern"))
    finding = only([sent(template, RULES, [*talk(turn), block], turn) for turn in turns(5, 8)])
    assert (finding.cause, finding.turns) == (Cause.INJECTED_BLOCK, 3)
    assert "tavern" in finding.was


def test_a_world_info_entry_that_comes_and_goes() -> None:
    entry = "The kraken sleeps below the reef. It wakes when somebody sings. "
    finding = only(systems(chatml, [(entry if turn % 2 else "") + RULES for turn in range(6)]))
    assert (finding.cause, finding.turns) == (Cause.INJECTED_BLOCK, 5)
    finding = only(
        [
            Sent(story([("system", (entry + "\n" if turn % 2 else "") + RULES), *talk(turn)]), answer(turn - 1))
            for turn in turns(4, 9)
        ]
    )
    assert finding.cause is Cause.INJECTED_BLOCK


def test_tools_in_another_order_each_turn() -> None:
    names = ["read", "write", "edit", "run"]
    prompts = []
    for turn, order in enumerate(itertools.islice(itertools.permutations(names), 4), 3):
        tools = "\n".join(f'{{"name": "{name}", "description": "To {name} a file."}}' for name in order)
        prompts.append(sent(chatml, f"Tools:\n{tools}\n{RULES}", talk(turn), turn, tools=tuple(order)))
    assert only(prompts).cause is Cause.TOOLS_ORDER


def test_messages_that_are_edited_again_and_again() -> None:
    prompts = []
    for turn in turns(5, 9):
        messages = talk(turn)
        for edited in range(turn - 4):
            messages[2 * edited + 1] = ("assistant", answer(edited, "the weather"))
        prompts.append(sent(chatml, RULES, messages, turn))
    assert only(prompts).cause is Cause.EDITED_MESSAGE


def test_every_cause_has_a_sentence_and_a_row_of_its_page() -> None:
    assert set(SENTENCES) == set(Cause)
    page = (DOCS / "using/cache.md").read_text("utf-8")
    assert all(f"| `{cause.value}` |" in page for cause in Cause)


# --- false alarms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
class TestNothingToSay:
    def test_of_a_chat_that_grows(self, template: Template) -> None:
        assert send([sent(template, RULES, talk(turn), turn) for turn in turns(1, 12)]) == ([], [])

    def test_of_a_first_message_that_is_short(self, template: Template) -> None:
        words = ("hi", "ho", "hi", "12:31", "12:32")
        first = [sent(template, "Be brief.", [("user", word)], 1) for word in words]
        assert send(first) == ([], [])

    def test_of_regenerated_answers(self, template: Template) -> None:
        prompts = []
        for turn in turns(1, 8):
            prompts += [sent(template, RULES, talk(turn), turn)] * 3
        assert send(prompts) == ([], [])

    def test_of_a_last_message_that_is_edited(self, template: Template) -> None:
        prompts = []
        for turn in turns(2, 6):
            *earlier, (_, last) = talk(turn)
            for hour in range(12):
                edited = f"It is {hour}:30. " * (hour % 3) + last + " And then?" * (hour % 4) + RULES
                prompts.append(sent(template, RULES, [*earlier, ("user", edited)], turn))
        assert send(prompts) == ([], [])

    def test_of_chats_side_by_side(self, template: Template) -> None:
        prompts = []
        for turn in turns(1, 8):
            for topic in ("ships", "maps", "rum"):
                every = [("system", RULES), *talk(turn, topic)]
                prompts.append(Sent(template(every), answer(turn - 1, topic), every))
        assert send(prompts) == ([], [])

    def test_of_characters_that_share_most_of_their_cards(self, template: Template) -> None:
        prompts = []
        for turn in turns(1, 8):
            for name in ("Anne", "Mary"):
                every = [("system", f"You are {name}. {RULES}"), *talk(turn)]
                prompts.append(Sent(template(every), answer(turn - 1), every))
        assert send(prompts) == ([], [])

    def test_of_branches_of_one_chat(self, template: Template) -> None:
        prompts = [sent(template, RULES, talk(turn), turn) for turn in turns(1, 8)]
        prompts += [sent(template, f"Ahoy. {RULES}", talk(turn), turn) for turn in turns(1, 8)]
        prompts += [sent(template, RULES, talk(turn), turn) for turn in turns(1, 8)]
        assert send(prompts) == ([], [])

    def test_of_a_chat_that_is_left_and_begun_again(self, template: Template) -> None:
        prompts = [sent(template, RULES, talk(turn), turn) for turn in (1, 2, 3, 4, 2, 3, 1, 2, 3)]
        assert send(prompts) == ([], [])

    def test_of_one_edit_or_one_trim(self, template: Template) -> None:
        prompts = [sent(template, RULES, talk(turn)[0 if turn < 8 else 4 :], turn) for turn in turns(5, 12)]
        lost, findings = send(prompts)
        assert [one.cause for one in lost] == [Cause.HISTORY_TRIMMED]
        assert findings == []


def test_a_history_with_reasoning_that_is_trimmed() -> None:
    def thoughtful(messages: Messages) -> Messages:
        thought = "<think>\nWhat do they want to know, and why now?\n</think>\n\n"
        return [(role, thought + text if role == "assistant" else text) for role, text in messages]

    prompts = [sent(chatml, RULES, thoughtful(talk(turn))[2 * (turn - 6) :], turn) for turn in turns(6, 9)]
    assert only(prompts).cause is Cause.HISTORY_TRIMMED


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_cause_of_a_chat_whose_tags_are_of_harmony(template: Template) -> None:
    prompts = []
    for turn in turns(3, 8):
        final = "<|channel|>final<|message|>"
        messages = [(role, final + text if role == "assistant" else text) for role, text in talk(turn)]
        thought = f"<|channel|>analysis<|message|>The user asks again. {RULES}<|end|><|start|>assistant"
        messages[-2] = ("assistant", thought + messages[-2][1])
        prompts.append(sent(template, RULES, messages, turn))
    assert send(prompts)[1] == []


def test_reasoning_that_a_template_drops_is_no_fault_of_the_client() -> None:
    prompts = []
    for turn in turns(3, 8):
        messages = talk(turn)
        thought = f"<think>\nThe user asks for the {turn}th time. {RULES}\n</think>\n\n"
        messages[-2] = ("assistant", thought + messages[-2][1])
        prompts.append(sent(chatml, RULES, messages, turn))
    assert send(prompts) == ([], [])


def test_a_small_cost_is_not_worth_a_word() -> None:
    notes = [
        sent(story, RULES, [*talk(turn), ("system", "Be brief, and tell the truth.")], turn) for turn in turns(4, 9)
    ]
    assert send(notes) == ([], [])


@st.composite
def ordinary_chats(draw: st.DrawFn) -> list[Sent]:
    """Chats of one user side by side, that grow, are regenerated, and have their last message edited."""
    template = draw(st.sampled_from(TEMPLATES))
    text = st.text(st.characters(codec="utf-8"), max_size=200)
    chats: list[list[tuple[str, str]]] = []
    prompts = []
    for step in range(draw(st.integers(1, 12))):
        number = draw(st.integers(0, min(len(chats), 2)))
        if number == len(chats):
            chats.append([("system", draw(st.sampled_from((RULES, "Be brief."))) + draw(text))])
        chat, what = chats[number], draw(st.sampled_from(("ask", "again", "edit")))
        if what == "ask" or len(chat) < 2:
            chat.append(("user", f"{step} " + draw(text)))
        else:
            chat.pop()
            if what == "edit":
                chat[-1] = ("user", f"{step} " + draw(text))
        said = f"Answer {step}: " + draw(text)
        prompts.append(Sent(template(chat), said, tuple(chat)))
        chat.append(("assistant", said))
    return prompts


@settings(deadline=None)
@given(ordinary_chats())
def test_no_advice_for_ordinary_chats(prompts: list[Sent]) -> None:
    assert send(prompts)[1] == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=400), st.text(max_size=50)), max_size=12))
def test_any_prompts_are_taken(prompts: list[tuple[str, str]]) -> None:
    send([Sent(prompt, said) for prompt, said in prompts])


# --- bounds -----------------------------------------------------------------------------------------------------------


def spoiled(advisor: CacheAdvisor, owner: str, slot: Slot | None = None, *, n: int = 3) -> None:
    slot = slot or Slot()
    for one in systems(chatml, [f"It is 12:{minute:02}. {RULES}" for minute in range(n)]):
        advisor.observe(owner, slot.compute(one))


def test_prompts_are_forgotten_after_an_hour_and_findings_after_a_day() -> None:
    clock = Clock()
    advisor = CacheAdvisor(clock)
    spoiled(advisor, OWNER)
    (finding,) = advisor.findings(OWNER)
    assert (finding.since, finding.last) == (clock.now_s, clock.now_s)
    clock.now_s += PROMPT_S + 1
    assert advisor.findings(OWNER) == [finding]
    assert not list(advisor.chats())
    clock.now_s += FINDING_S
    assert advisor.findings(OWNER) == []


def test_they_are_forgotten_in_time_when_nobody_sends_anything_more() -> None:
    clock = Clock()
    calls: list[tuple[float, Callable[[], None]]] = []
    advisor = CacheAdvisor(clock, lambda seconds, call: calls.append((clock.now_s + seconds, call)))
    spoiled(advisor, OWNER)
    clock.now_s += 60
    advisor.observe(OWNER, Slot().compute(Sent("Another chat.", "")))
    kept = []
    while calls:
        assert len(calls) == 1
        clock.now_s, call = calls.pop()
        call()
        kept.append((len(list(advisor.chats())), len(advisor.owners)))
    assert kept[0][0] == 1
    assert kept[-1] == (0, 0)
    assert clock.now_s <= Clock().now_s + FINDING_S + 60


def test_the_bounds_are_those_of_the_security_page() -> None:
    page = " ".join((DOCS / "development/security.md").read_text("utf-8").split())
    assert "the last eight of a key" in page
    assert "for an hour, 32 MiB of all keys together" in page
    assert "80 characters of a prompt, for a day" in page
    assert (MAX_CHATS, PROMPT_S, MAX_BYTES, FINDING_S) == (8, 3600, 32 << 20, 86400)


def test_each_owner_has_findings_of_its_own() -> None:
    advisor = CacheAdvisor(Clock())
    for one in systems(chatml, [f"It is 12:{minute:02}. {RULES}" for minute in range(6)]):
        for owner in ("ada", "bob"):
            advisor.observe(owner, Slot().compute(one))
    assert [finding.turns for owner in ("ada", "bob") for finding in advisor.findings(owner)] == [5, 5]
    assert advisor.findings("eve") == []
    assert advisor.owners == ["ada", "bob"]
    advisor.forget(["ada"])
    assert advisor.owners == ["bob"]
    assert advisor.findings("ada") == []
    assert advisor.findings("bob")


def test_of_prompts_of_two_owners_none_is_compared() -> None:
    advisor = CacheAdvisor(Clock())
    for number, one in enumerate(systems(chatml, [f"It is 12:{minute:02}. {RULES}" for minute in range(6)])):
        assert advisor.observe(f"owner {number}", Slot().compute(one)) is None


def test_the_number_of_owners_and_chats_is_bounded() -> None:
    advisor = CacheAdvisor(Clock())
    for number in range(MAX_OWNERS + 5):
        spoiled(advisor, str(number))
    assert len(advisor.owners) == MAX_OWNERS
    assert "0" not in advisor.owners
    for number in range(MAX_CHATS + 5):
        advisor.observe("x", Slot().compute(Sent(f"{number}{number}{number}. " * 50, "")))
    advisor.check_integrity()


def test_the_memory_is_bounded() -> None:
    advisor = CacheAdvisor(Clock())
    text = "A line that is as long as lines are in books, more or less.\n" * (MAX_CHARACTERS // 61)
    for number in range(40):
        turn = PromptTurn(f"\U0001f600{number}\n{text}", [number] * 1000, "", 1000, 1.0)
        advisor.observe(str(number % 5), turn)
        advisor.check_integrity()
    assert list(advisor.chats())


def test_a_prompt_that_is_too_long_is_not_looked_at() -> None:
    advisor = CacheAdvisor(Clock())
    for text in ("x" * (MAX_CHARACTERS + 1), "x\n" * (MAX_SEGMENTS + 1)):
        advisor.observe(OWNER, PromptTurn(text, [1], "", 1, 1.0))
    assert advisor.owners == []


def test_what_is_mended_is_advice_no_more() -> None:
    advisor, slot = CacheAdvisor(Clock()), Slot()
    spoiled(advisor, OWNER, slot)
    for turn in turns(6, 15):
        assert advisor.findings(OWNER)
        advisor.observe(OWNER, slot.compute(sent(chatml, f"It is 12:02. {RULES}", talk(turn), turn)))
    assert advisor.findings(OWNER) == []


def test_a_long_prompt_takes_a_few_milliseconds() -> None:
    lines = "".join(f"{number}. She looked at the {number}th of them, and said nothing.\n" for number in range(2300))
    advisor = CacheAdvisor(Clock())
    took = []
    for turn, one in enumerate(systems(chatml, [f"It is 12:{minute:02}. {lines}" for minute in range(10)])):
        tokens = range(turn, turn + len(one.prompt) // 4)
        start = time.process_time()
        advisor.observe(OWNER, PromptTurn(one.prompt, tokens, one.answer, len(tokens), 10.0))
        took.append(time.process_time() - start)
    assert len(tokens) > 30_000
    assert min(took[3:]) < 0.02
