"""The chat template of the settings: by its text, its name or its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufd.chat.rendering.template import CHATML
from ggufd.errors import ConfigError, ModelError
from ggufd.settings.config import Config, ModelSection
from ggufd.settings.model_files import chat_template


def template(**settings: str) -> str | None:
    return chat_template(Config(model=ModelSection(**settings)))  # type: ignore[arg-type]


def test_none_is_the_models_own() -> None:
    assert template() is None


def test_a_text_stands_for_itself_and_one_name_is_known() -> None:
    assert template(chat_template="{{ messages }}") == "{{ messages }}"
    assert template(chat_template="chatml") == CHATML


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ 'ä' }}", "utf-8")
    assert template(chat_template_file=str(tmp_path / "t.jinja")) == "{{ 'ä' }}"
    with pytest.raises(ModelError, match="cannot be read as a chat template"):
        template(chat_template_file=str(tmp_path / "none.jinja"))


def test_two_of_them_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="are both set"):
        template(chat_template="chatml", chat_template_file="t.jinja")


def test_another_name_is_no_template() -> None:
    """llama.cpp's other built-in names are read by it as the text of a template, which shows no message."""
    with pytest.raises(ValueError, match="the text of a Jinja template, or chatml"):
        ModelSection(chat_template="llama3")
