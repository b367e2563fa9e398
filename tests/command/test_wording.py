"""Pydantic's complaints as people say them: its own sentences go in, so that a version that words them anew is seen."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from ggufd.settings.config import Section
from ggufd.wording import plain


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (int, "x", "a whole number"),
        (float, "x", "a number"),
        (str, 5, "a string"),
        (bool, "maybe", "true or false"),
        (tuple[int, ...], 5, "an array"),
        (list[int], 5, "an array"),
        (dict[str, int], 5, "an object"),
        (Section, 5, "an object"),
        (Annotated[int, Field(ge=2)], 1, "at least 2"),
        (Annotated[int, Field(le=2)], 3, "at most 2"),
        (Annotated[int, Field(gt=2)], 2, "more than 2"),
        (Annotated[int, Field(lt=2)], 2, "less than 2"),
    ],
)
def test_what_was_expected(kind: Any, value: Any, words: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(value)
    message = plain(caught.value.errors()[0]["msg"])
    assert message.partition(", unable to")[0] == f"Input should be {words}"
