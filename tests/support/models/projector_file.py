"""Image projectors whose images say words: exact oracles for everything that reads images.

A projector of the type `mlp` has one unit for each corner of the RGB cube. A patch of a pure colour lights the unit of
that colour alone, which adds one row of the text model's own embeddings: a plain red image is one word, once a patch,
and an image of many patches is a sentence. What a model says of such an image is what it says of the words typed,
where no token crosses the border of the image: text behind it should begin with a blank.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt

from ggufd.llama.gguf.tensor_types import BY_NAME
from ggufd.llama.model.model import GgufModel
from tests.support.models import gguf_files
from tests.support.models.tiny_model import quiet_llama

Floats = npt.NDArray[np.float32]

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "yellow": (255, 255, 0),
    "blue": (0, 0, 255),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
    "white": (255, 255, 255),
}
"""Corners of the RGB cube, in the order of a projector's words."""

WORDS = (" black", " red", " green", " yellow", " blue", " river", " sky", " white")
"""One token each in the demo model's vocabulary."""

_UNIT = 16.0
"""A lit unit: ggml's GELU gives exactly this, and exactly 0 for -16 and less."""


class Shape(NamedTuple):
    """Sizes of a projector. Blocks are zeros, of the type `kind`; the last one is not run."""

    image_size: int
    patch_size: int
    width: int = 32
    n_ff: int = 64
    n_blocks: int = 1
    kind: str = "f32"

    @property
    def n_rows(self) -> int:
        return (self.image_size // self.patch_size) ** 2


FAST = Shape(image_size=64, patch_size=16)
"""Sixteen rows of 4 x 4 patches of 16 x 16 pixels, in milliseconds."""

SLOW = Shape(image_size=128, patch_size=16, width=2048, n_ff=8192, n_blocks=24, kind="iq1_m")
"""64 rows of 8 x 8 patches of 16 x 16 pixels, in about a second of one core; 280 MB.

Slow for their size are weights of a bit and a half.
"""


def write_projector(path: Path, model: Path, words: Sequence[str] = WORDS, *, slow: bool = False) -> Path:
    """Write a projector for the model, whose images say `words`, one token each, by the order of `COLOURS`."""
    return write_shaped(path, embeddings_of(model, tuple(words)), SLOW if slow else FAST)


def write_shaped(path: Path, rows: Floats, shape: Shape, changes: Mapping[str, Any] | None = None) -> Path:
    """Write a projector of any shape, whose eight colours are `rows`; `changes` replace metadata."""
    metadata = {**metadata_of(shape, rows.shape[1]), **(changes or {})}
    return write_filled(path, metadata, weights_of(shape, rows), shape)


def write_filled(path: Path, metadata: Mapping[str, Any], filled: Mapping[str, Floats], shape: Shape) -> Path:
    """Write a projector with these weights and blocks of zeros."""
    tensors = [(name, tuple(reversed(values.shape)), "f32") for name, values in filled.items()]
    tensors += [(name, dims, shape.kind) for name, dims in block_tensors(shape)]
    gguf_files.write(path, metadata, tensors)
    _fill(path, gguf_files.header(metadata, tensors)[0], tensors, filled)
    return path


def write_sparse(path: Path, n_embd: int, *, n_bytes: int = 0, changes: Mapping[str, Any] | None = None) -> Path:
    """Write a projector of zeros that passes the checks of its header, in a file of at least `n_bytes`."""
    metadata = {**metadata_of(FAST, n_embd), **(changes or {})}
    filled = weights_of(FAST, np.zeros((8, n_embd), np.float32))
    tensors = [(name, tuple(reversed(values.shape)), "f32") for name, values in filled.items()]
    tensors += [(name, dims, "f32") for name, dims in block_tensors(FAST)]
    tensors.append(("v.padding", (max(1, n_bytes // 4),), "f32"))
    return gguf_files.write(path, metadata, tensors)


def metadata_of(shape: Shape, n_embd: int) -> dict[str, Any]:
    """Key-value pairs of a projector's file."""
    vision = {
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "embedding_length": shape.width,
        "feed_forward_length": shape.n_ff,
        "block_count": shape.n_blocks,
        "projection_dim": n_embd,
        "attention.head_count": 1,
        "attention.layer_norm_epsilon": 1e-5,
        "image_mean": [0.0, 0.0, 0.0],
        "image_std": [1.0, 1.0, 1.0],
    }
    return {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        **{f"clip.vision.{key}": value for key, value in vision.items()},
    }


def weights_of(shape: Shape, rows: Floats) -> dict[str, Floats]:
    """The tensors that are not all zeros, or belong to no block."""
    middle = shape.patch_size // 2
    patch = np.zeros((shape.width, 3, shape.patch_size, shape.patch_size), np.float32)
    for channel in range(3):
        patch[channel, channel, middle, middle] = 1
    units, bias = units_of(shape.width)
    return {
        "v.patch_embd.weight": patch,
        "v.position_embd.weight": np.zeros((shape.n_rows, shape.width), np.float32),
        "mm.0.weight": units,
        "mm.0.bias": bias,
        "mm.2.weight": words_of(rows),
        "mm.2.bias": np.zeros(rows.shape[1], np.float32),
    }


def units_of(width: int) -> tuple[Floats, Floats]:
    """Weight and bias of one unit for each colour, of which the first three of `width` features are the channels.

    A channel is 0 or 1: each that differs from a corner's takes its unit from 16 to -16 and below.
    """
    units = np.zeros((8, width), np.float32)
    corners = np.array(list(COLOURS.values())) // 255
    units[:, :3] = np.where(corners, 2 * _UNIT, -2 * _UNIT)
    return units, (_UNIT - 2 * _UNIT * corners.sum(axis=1)).astype(np.float32)


def words_of(rows: Floats) -> Floats:
    """Weight that turns a lit unit into its row."""
    return np.ascontiguousarray(rows.T / np.float32(_UNIT))


@functools.cache
def embeddings_of(model: Path, words: tuple[str, ...] = WORDS) -> Floats:
    """Rows of the model's token embeddings for words of one token each, as llama.cpp reads them."""
    quiet_llama()
    file = GgufModel(str(model))
    tokens = [file.vocabulary.tokenize(word, add_special=False, parse_special=False) for word in words]
    file.close()
    assert all(len(ids) == 1 for ids in tokens), f"one token each: {dict(zip(words, tokens, strict=True))}"
    table = next(one for one in gguf.GGUFReader(model).tensors if one.name == "token_embd.weight")
    raw = table.data[[ids[0] for ids in tokens]]
    return gguf.quants.dequantize(raw, table.tensor_type).astype(np.float32)


def block_tensors(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes, the row's length first, of the tensors of all blocks."""
    width, n_ff = shape.width, shape.n_ff
    square = ("attn_q", "attn_k", "attn_v", "attn_out")
    return [
        (f"v.blk.{block}.{name}.weight", dims)
        for block in range(shape.n_blocks)
        for name, dims in [
            *((one, (width, width)) for one in square),
            ("ffn_up", (width, n_ff)),
            ("ffn_down", (n_ff, width)),
        ]
    ]


def _fill(path: Path, head: bytes, tensors: gguf_files.Tensors, filled: Mapping[str, Floats]) -> None:
    """Write the weights that are there to a file of zeros."""
    offset = len(head)
    with path.open("r+b") as file:
        for name, dims, kind in tensors:
            if name in filled:
                file.seek(offset)
                file.write(filled[name].tobytes())
            _, _, block, block_bytes = BY_NAME[kind]
            n_bytes = int(np.prod(dims)) // block * block_bytes
            offset += -(-n_bytes // 32) * 32


def picture(words: Sequence[Sequence[str]], patch_size: int = FAST.patch_size) -> tuple[int, int, bytes]:
    """Width, height and RGB bytes of an image whose patches have these colours, by row."""
    colours = np.array([[COLOURS[name] for name in row] for row in words], np.uint8)
    pixels = colours.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    return pixels.shape[1], pixels.shape[0], pixels.tobytes()
