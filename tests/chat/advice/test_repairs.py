"""Cache repairs: the listed rules, and nothing else, change a conversation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.chat.advice.repairs import CACHE_REPAIRS, repair_messages, without_billing_header
from ggufd.settings.config import Config
from tests.support.pages import DOCS

HEADER = "x-anthropic-billing-header: cc_version=2.1.101.e51; cc_entrypoint=cli; cch=a5145;"
ALL = tuple(CACHE_REPAIRS)


def system(content: Any, role: str = "system") -> tuple[dict[str, Any], ...]:
    return ({"role": role, "content": content}, {"role": "user", "content": HEADER})


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (f"{HEADER}\nYou are Claude Code.", "You are Claude Code."),
        (f"{HEADER}You are Claude Code.", "You are Claude Code."),
        (f"{HEADER} \r\nYou are Claude Code.", "You are Claude Code."),
        ("x-anthropic-billing-header: cc_version=9.9; cc_entrypoint=sdk-cli;\nSay hi.", "Say hi."),
        ("x-anthropic-billing-header: cch=00000\nSay hi.", "Say hi."),
        (HEADER, ""),
        (f"Say hi.\n{HEADER}", f"Say hi.\n{HEADER}"),
        ("x-anthropic-billing-header: what is this?", "x-anthropic-billing-header: what is this?"),
        ("", ""),
    ],
)
def test_the_billing_header_goes_and_what_follows_stays(text: str, rest: str) -> None:
    assert without_billing_header(text) == rest


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_is_repaired_and_says_so(role: str) -> None:
    messages, names = repair_messages(system(f"{HEADER}\nSay hi.", role), ALL)
    assert messages == ({"role": role, "content": "Say hi."}, {"role": "user", "content": HEADER})
    assert names == ("billing_header",)


def test_a_part_without_text_goes() -> None:
    parts = [{"type": "text", "text": HEADER}, {"type": "text", "text": "Say hi."}]
    messages, names = repair_messages(system(parts), ALL)
    assert messages[0]["content"] == [{"type": "text", "text": "Say hi."}]
    assert names == ("billing_header",)
    messages, _ = repair_messages(system(parts[:1]), ALL)
    assert messages[0]["content"] == [{"type": "text", "text": ""}]


def test_every_rule_can_be_named_in_the_settings_and_is_on_by_default() -> None:
    assert Config().context.cache_repairs == ALL


def test_every_rule_is_a_row_of_the_page() -> None:
    page = (DOCS / "using/cache.md").read_text("utf-8")
    assert all(f"| `{name}` |" in page for name in ALL)


def test_a_rule_that_is_switched_off_changes_nothing() -> None:
    messages = system(HEADER)
    assert repair_messages(messages, ()) == (messages, ())


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(("system", "developer", "user", "assistant", "tool")),
                "content": st.text() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()})),
            }
        )
    )
)
def test_every_other_conversation_stays_as_it_is(messages: list[dict[str, Any]]) -> None:
    assert repair_messages(messages, ALL) == (tuple(messages), ())


@given(st.text(st.sampled_from("abc019=;.- \n")), st.text())
def test_a_repair_is_complete_at_once(pairs: str, text: str) -> None:
    once = without_billing_header(f"x-anthropic-billing-header:{pairs}\n{text}")
    assert without_billing_header(once) == once or once.startswith("x-anthropic-billing-header:")
    assert once.endswith(text)
