"""Errors about a converted request name what the client sent."""

from __future__ import annotations

import pytest

from ggufd.api.request.origins import Origins
from ggufd.errors import InvalidRequest


def make_origins() -> Origins:
    origins = Origins()
    origins.note("messages", "input")
    origins.note("messages[1]", "input[4]")
    origins.note("messages[1].tool_calls[0].function", "input[5]")
    origins.note("tools[0].function.parameters", "tools[0].input_schema")
    return origins


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("messages", "input"),
        ("messages[1]", "input[4]"),
        ("messages[1].content[2].text", "input[4].content[2].text"),
        ("messages[1].tool_calls[0].function.name", "input[5].name"),
        ("messages[10]", "input[10]"),
        ("tools[0].function.parameters.properties", "tools[0].input_schema.properties"),
        ("tools[0]", "tools[0]"),
        ("temperature", "temperature"),
        ("", ""),
    ],
)
def test_the_longest_noted_beginning_counts(ours: str, theirs: str) -> None:
    assert make_origins().of(ours) == theirs


def test_an_error_is_about_the_clients_field() -> None:
    with pytest.raises(InvalidRequest) as caught, make_origins().in_errors():
        raise InvalidRequest("'messages[1].content': expected a string.", param="messages[1].content")
    assert caught.value.param == "input[4].content"
    assert caught.value.message == "'input[4].content': expected a string."


def test_an_error_without_a_field_stays_as_it_is() -> None:
    with pytest.raises(InvalidRequest) as caught, make_origins().in_errors():
        raise InvalidRequest("no")
    assert (caught.value.param, caught.value.message) == (None, "no")
