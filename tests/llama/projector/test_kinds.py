"""Projectors of the types beside `mlp`: what an image says stands in the prompt, row by row and tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ggufd.llama.gguf import projector_file
from ggufd.llama.model.model import GgufModel
from ggufd.llama.params import ProjectorParams
from ggufd.llama.projector.projector import Part, Projector
from tests.llama.projector.test_projector import quiet_log
from tests.support.models.projector_file import embeddings_of
from tests.support.models.projector_kinds import (
    BREAK,
    FAMILIES,
    WORDS,
    Family,
    token,
    write_kind,
    write_text_model,
)
from tests.support.models.tiny_model import N_EMBD

SAID = (*WORDS, BREAK)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet_log().install()
    return write_text_model(tmp_path_factory.mktemp("kinds") / "model.gguf")


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.kind)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture(scope="module")
def projector(family: Family, text_model: Path) -> Iterator[Projector]:
    path = write_kind(text_model.with_name(f"{family.kind}.gguf"), family, text_model)
    model = GgufModel(str(text_model))
    projector = Projector(model, ProjectorParams(str(path), projector_file.read(path).n_embd))
    yield projector
    projector.close()
    model.close()


def tokens_of(parts: tuple[Part, ...], text_model: Path) -> list[int]:
    """The tokens of an image, and those whose embeddings its rows are."""
    tokens: list[int] = []
    for part in parts:
        tokens += part if isinstance(part, tuple) else [word_of(row, text_model) for row in part]
    return tokens


def word_of(row: np.ndarray, text_model: Path) -> int:
    known = embeddings_of(text_model, SAID)
    (found,) = [number for number, word in enumerate(known) if np.allclose(row, word, atol=1e-6)]
    return ord(SAID[found])


def test_an_image_is_what_its_typed_words_are(projector: Projector, family: Family, text_model: Path) -> None:
    for names in (family.mixed(), [[family.colours[1]] * family.rows] * family.rows):
        parts = projector.encode(*family.image(names))
        assert tokens_of(parts, text_model) == family.typed(names)
        shapes = tuple(part if isinstance(part, tuple) else len(part) for part in parts)
        assert shapes == projector.layout(*family.image(names)[:2])
        assert all(part.shape[1] == N_EMBD for part in parts if not isinstance(part, tuple))


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.kind in ("idefics3", "internvl")], indirect=True)
def test_a_wide_image_is_two_tiles_and_a_small_copy_of_all(
    projector: Projector, family: Family, text_model: Path
) -> None:
    names = [["red", "red", "blue", "blue"]] * 2
    fake, start, left, right, all_of_it = "<fake_token_around_image>", "\n\n", *map(list, (b"bbbb", b"eeee", b"bebe"))
    expected = {
        "idefics3": [
            *(token(fake), token("<row_1_col_1>"), *left, token(fake), token("<row_1_col_2>"), *right),
            *(token(start), token(fake), token("<global-img>"), *all_of_it, token(fake)),
        ],
        "internvl": [token("<img>"), *left, *right, *all_of_it, token("</img>")],
    }
    assert tokens_of(projector.encode(*family.image(names)), text_model) == expected[family.kind]
