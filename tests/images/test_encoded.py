"""What stands in a prompt in place of an image."""

from __future__ import annotations

from ggufd.engine.messages.images import ImageRows, ImageSpan, row_tokens
from ggufd.images.encoded import EncodedImage

FIRST = ImageRows("01" * 32, 3, "/rows/first")
SECOND = ImageRows("02" * 32, 2, "/rows/second")
TILES = EncodedImage(((7, 8), FIRST, (9,), SECOND))


def test_an_image_counts_its_rows_and_the_tokens_around_them() -> None:
    assert (TILES.n_rows, TILES.n_tokens) == (5, 8)
    assert list(TILES.rows) == [FIRST, SECOND]


def test_a_prompt_holds_tokens_and_rows_in_order_with_the_place_of_each() -> None:
    tokens, spans = TILES.prompt(10)
    assert tokens == (7, 8, *row_tokens(FIRST.digest, 3), 9, *row_tokens(SECOND.digest, 2))
    assert spans == (ImageSpan(12, FIRST), ImageSpan(16, SECOND))
    assert [tokens[span.start - 10] for span in spans] == [row_tokens(one.digest, 1)[0] for one in (FIRST, SECOND)]
