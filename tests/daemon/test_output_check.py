"""Constraints and biases of the settings are checked when the server starts, not by the first request."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from ggufd.api.services.settings import ApiConfig
from ggufd.daemon.served import Served
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.errors import ConfigError, InvalidRequest
from ggufd.models.hub import ModelFile
from ggufd.settings.config import Config


class Info:
    n_vocab = 10


class CheckingText:
    """A text process that can enforce no grammar with `bad` in it."""

    info = Info()

    async def start(self) -> None:
        pass

    async def check_grammar(self, grammar: Grammar) -> None:
        if "bad" in grammar.text:
            raise InvalidRequest("'grammar': line 1: expected a rule")


async def start(**sampling: Any) -> None:
    api = ApiConfig(model_id="m", sampling=sampling)
    await Served(Config(), ModelFile(Path("m"), 0), cast(Any, None), cast(Any, CheckingText()), api).start_text()


async def test_what_can_be_held() -> None:
    await start()
    await start(grammar=Grammar(GrammarKind.GBNF, "good"), logit_bias=((9, 1.0),))


async def test_a_grammar_that_cannot_be_enforced() -> None:
    with pytest.raises(ConfigError, match=r"^gbnf of the settings: 'grammar': line 1: expected a rule$"):
        await start(grammar=Grammar(GrammarKind.GBNF, "bad"))


async def test_a_token_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"^logit_bias 10: this model has no such token; expected 0 to 9$"):
        await start(logit_bias=((9, 1.0), (10, 1.0)))
