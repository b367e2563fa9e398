"""Images of a prompt: where they may be cut, which rows stand where, and what is inconsistent."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import pytest

from ggufd.engine.messages.images import ImageRows, ImageSpan
from ggufd.engine.sequence.prompt_images import PromptImages, open_images
from ggufd.errors import EngineFailure
from tests.support.fakes.fake_llama import N_EMBD, make_image, make_image_request


@pytest.fixture
def images(tmp_path: Path) -> PromptImages:
    """Two images side by side at 2 and 5, and one at 12."""
    spans = [ImageSpan(at, make_image(tmp_path, f"image {at}", n)) for at, n in ((2, 3), (5, 4), (12, 2))]
    return open_images(spans, N_EMBD)


def test_a_prefix_ends_within_no_image(images: PromptImages) -> None:
    assert [images.whole(n) for n in range(16)] == [0, 1, 2, 2, 2, 5, 5, 5, 5, 9, 10, 11, 12, 12, 14, 15]
    assert PromptImages().whole(7) == 7


def test_a_chunk_ends_where_images_begin_and_where_the_last_of_neighbours_ends(images: PromptImages) -> None:
    assert [images.border(at, 99) for at in (0, 1, 2, 4, 5, 8, 9, 11, 12, 13, 14)] == [
        2, 2, 9, 9, 9, 9, 12, 12, 14, 14, 99,
    ]  # fmt: skip
    assert (images.border(0, 1), images.border(3, 4), images.border(10, 11)) == (1, 4, 11)
    assert PromptImages().border(3, 8) == 8


def test_rows_are_those_of_the_positions(images: PromptImages) -> None:
    def indices(start: int, end: int) -> list[list[int]]:
        return [part[:, 2].astype(int).tolist() for part in images.rows(start, end)]

    assert indices(2, 9) == [[0, 1, 2], [0, 1, 2, 3]]
    assert indices(4, 6) == [[2], [0]]
    assert indices(13, 14) == [[1]]
    with pytest.raises(AssertionError, match="have no rows"):
        images.rows(8, 10)


def test_tokens_that_are_not_those_of_the_images_are_violations(tmp_path: Path) -> None:
    request = make_image_request(1, [b"ab", make_image(tmp_path, "red"), b"cd"])
    images = open_images(request.images, N_EMBD)
    tokens = array("i", request.prompt)
    assert list(images.violations(tokens)) == []
    tokens.append(-4)
    assert list(images.violations(tokens)) == ["a number below zero is no row of an image"]
    tokens[-1], tokens[3] = 4, 5
    assert next(iter(images.violations(tokens))) == "the image at token 2 has other tokens"
    assert list(PromptImages().violations(array("i", [1, -1]))) == ["a number below zero is no row of an image"]
    assert list(PromptImages().violations(array("i", [1, 1]))) == []


def test_a_file_must_be_there_and_as_long_as_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    span = ImageSpan(3, ImageRows("ab" * 32, 2, str(path)))
    with pytest.raises(EngineFailure, match=r"token 3 cannot be read \(No such file or directory\)"):
        open_images([span], 4)
    for n_numbers in (7, 9, 0):
        path.write_bytes(np.zeros(n_numbers, np.float32).tobytes())
        with pytest.raises(EngineFailure, match=f"{4 * n_numbers} bytes for 2 rows, where 4 numbers a row"):
            open_images([span], 4)
    path.write_bytes(np.arange(8, dtype=np.float32).tobytes())
    (rows,) = open_images([span], 4).rows(3, 5)
    assert rows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
