"""Image projectors of the types beside `mlp` whose images say words too, and a text model with the tokens they need.

As in `projector_file`, a patch of a pure colour lights the unit of that colour, which adds the embeddings of a word.
Where four patches become one row, the first of them counts. Their one block is of zeros, and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.support.models.projector_file import (
    COLOURS,
    FAST,
    Floats,
    embeddings_of,
    metadata_of,
    picture,
    units_of,
    weights_of,
    words_of,
    write_filled,
)
from tests.support.models.tiny_model import N_VOCAB, write_tiny_model

WORDS = tuple("abcdefgh")
"""What the colours of `COLOURS` say."""

BREAK = "i"
"""What `pixtral` says at the end of each line but the last."""

CONTROL = (
    *("\n\n", "<fake_token_around_image>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
    *("[IMG_END]", "<img>", "</img>"),
    *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
)
"""Tokens that the types put around rows."""

_MERGED = 4
"""Patches of a row, but for `pixtral`."""


class Family(NamedTuple):
    """A type whose rows are of `side` x `side` pixels each; an image of `rows` x `rows` of them is one piece.

    `layout` is what stands in a prompt for it: tokens, and `ROWS`. It knows some of the colours.
    """

    kind: str
    side: int
    rows: int
    layout: tuple[str, ...]
    colours: tuple[str, ...] = tuple(COLOURS)

    def image(self, names: Grid) -> tuple[int, int, bytes]:
        """Width, height and RGB bytes of an image of these colours, each of them a row."""
        return picture(names, self.side)

    def typed(self, names: Grid) -> list[int]:
        """The tokens that mean the same as the image of one piece."""
        end_of_line = BREAK if self.kind == "pixtral" else ""
        said = end_of_line.join("".join(WORDS[list(COLOURS).index(name)] for name in line) for line in names)
        parts = [[*said.encode()] if part == ROWS else [token(part)] for part in self.layout]
        return [one for part in parts for one in part]

    def mixed(self) -> Grid:
        """Colours of an image of one piece, of which no line is as the one before."""
        n_colours = len(self.colours)
        numbers = range(self.rows)
        return [[self.colours[(3 * line + column + 1) % n_colours] for column in numbers] for line in numbers]


Grid = Sequence[Sequence[str]]
"""Names of colours, line by line."""

ROWS = ""
"""Place of the rows in a layout."""

_FAKE = "<fake_token_around_image>"

FAMILIES = (
    # A matrix alone: three colours and black, all others would be sums of them. The whole image follows its one tile.
    Family(
        "idefics3",
        32,
        2,
        (_FAKE, "<row_1_col_1>", ROWS, "\n\n", _FAKE, "<global-img>", ROWS, _FAKE),
        ("black", "red", "green", "blue"),
    ),
    Family("pixtral", 16, 4, (ROWS, "[IMG_END]")),
    Family("internvl", 32, 2, ("<img>", ROWS, "</img>")),
    # An image has 64 rows at least.
    Family("lfm2", 32, 8, ("<|image_start|>", ROWS, "<|image_end|>")),
)


def token(text: str) -> int:
    """Number of one of the tokens around rows."""
    return N_VOCAB + CONTROL.index(text)


def write_text_model(path: Path) -> Path:
    """Write a model that has the tokens around rows."""
    return write_tiny_model(path, control=CONTROL)


def write_kind(path: Path, family: Family, model: Path) -> Path:
    """Write a projector of a type for that model."""
    words, end_of_line = embeddings_of(model, WORDS), embeddings_of(model, (BREAK,))[0]
    make = {"idefics3": _idefics3, "pixtral": _pixtral, "internvl": _internvl, "lfm2": _lfm2}[family.kind]
    filled = {"v.patch_embd.weight": _patches(), **make(words, end_of_line)}
    scale = {} if family.kind == "pixtral" else {"clip.vision.projector.scale_factor": 2}
    metadata = {**metadata_of(FAST, words.shape[1]), "clip.projector_type": family.kind, **scale}
    return write_filled(path, metadata, filled, FAST)


def _patches() -> Floats:
    """The first three features of a patch are the channels of its middle pixel, the next three are 1 without them."""
    patch = weights_of(FAST, np.zeros((8, 1), np.float32))["v.patch_embd.weight"]
    for channel in range(3):
        patch[3 + channel] = -patch[channel]
    return patch


def _bias() -> Floats:
    bias = np.zeros(FAST.width, np.float32)
    bias[3:6] = 1
    return bias


def _positions(n_positions: int = FAST.n_rows) -> Floats:
    return np.zeros((n_positions, FAST.width), np.float32)


def _linear(name: str, weight: Floats, bias: Floats) -> dict[str, Floats]:
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _idefics3(words: Floats, _: Floats) -> dict[str, Floats]:
    """Rows are black's, and for each channel what takes black's to its colour's."""
    black, red, green, blue = (words[list(COLOURS).index(name)] for name in ("black", "red", "green", "blue"))
    matrix = np.zeros((words.shape[1], _MERGED * FAST.width), np.float32)
    matrix[:, :3] = np.stack([red - black, green - black, blue - black], axis=1)
    # A channel and 1 without it make 1.
    matrix[:, 0] += black
    matrix[:, 3] += black
    return {"v.patch_embd.bias": _bias(), "v.position_embd.weight": _positions(), "mm.model.fc.weight": matrix}


def _pixtral(words: Floats, end_of_line: Floats) -> dict[str, Floats]:
    return {
        "v.token_embd.img_break": end_of_line,
        **_linear("mm.1", *units_of(FAST.width)),
        **_linear("mm.2", words_of(words), np.zeros_like(words[0])),
    }


def _internvl(words: Floats, _: Floats) -> dict[str, Floats]:
    """The norm of its rows is undone: half of a patch's six features are 1, so that its mean and variance are known."""
    width = _MERGED * FAST.width
    mean = 3 * _MERGED / width
    deviation = math.sqrt(mean - mean**2 + 1e-5)
    return {
        "v.class_embd": np.zeros(FAST.width, np.float32),
        "v.patch_embd.bias": _bias(),
        "v.position_embd.weight": _positions(FAST.n_rows + 1),
        **_linear("mm.model.mlp.0", np.full(width, deviation, np.float32), np.full(width, mean, np.float32)),
        **_linear("mm.model.mlp.1", *units_of(width)),
        **_linear("mm.model.mlp.3", words_of(words), np.zeros_like(words[0])),
    }


def _lfm2(words: Floats, _: Floats) -> dict[str, Floats]:
    return {
        "v.position_embd.weight": _positions(),
        **_linear("mm.1", *units_of(_MERGED * FAST.width)),
        **_linear("mm.2", words_of(words), np.zeros_like(words[0])),
    }
