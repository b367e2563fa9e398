"""Checks of an image projector's file (mmproj): what is not served, or would crash libmtmd, is refused with one line.

A projector is a file of the architecture `clip`: a vision encoder, and matrices that turn what it sees into rows as
wide as the text model's embeddings. Served are the types whose rows are decoded like tokens: one position each, and
each sees only what is before it. Knows no llama_cpp and no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ggufd.errors import ModelError
from ggufd.llama.gguf import gguf_header
from ggufd.llama.gguf.gguf_header import Header, TensorInfo, Value

FLAG = "--mmproj"

_MAX_IMAGE_SIZE = 8192
_MAX_BLOCKS = 512
_MAX_WIDTH = 1 << 20
_CHANNELS = 3


class _Family(NamedTuple):
    """What a projector type cannot do without: tensors, and the matrices from the encoder's width to the rows' width.

    `merges` says that a square of neighbouring patches becomes one row, as many a side as the scale factor.
    """

    needs: tuple[str, ...]
    matrices: tuple[str, ...]
    merges: bool = False


def _linear(*names: str) -> tuple[str, ...]:
    """Weight and bias of some matrices."""
    return tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))


_POSITIONS = "v.position_embd.weight"

_FAMILIES: Mapping[str, _Family] = {
    "mlp": _Family((_POSITIONS, *_linear("mm.0", "mm.2")), ("mm.0.weight", "mm.2.weight")),
    "idefics3": _Family((_POSITIONS, "mm.model.fc.weight"), ("mm.model.fc.weight",), merges=True),
    "pixtral": _Family(("v.token_embd.img_break", "mm.1.weight", "mm.2.weight"), ("mm.1.weight", "mm.2.weight")),
    "internvl": _Family(
        ("v.class_embd", _POSITIONS, *_linear("mm.model.mlp.0", "mm.model.mlp.1", "mm.model.mlp.3")),
        ("mm.model.mlp.1.weight", "mm.model.mlp.3.weight"),
        merges=True,
    ),
    "lfm2": _Family((_POSITIONS, *_linear("mm.1", "mm.2")), ("mm.1.weight", "mm.2.weight"), merges=True),
}

_YI = _Family((_POSITIONS, *_linear("mm.0", "mm.1", "mm.3", "mm.4")), ("mm.0.weight", "mm.3.weight"))
"""A variant of `mlp` with norms between its matrices, which has `mm.3.weight`."""

SERVED = tuple(_FAMILIES)
"""Projector types that are served, as `clip.projector_type` names them."""


@dataclass(frozen=True, slots=True)
class ProjectorFile:
    """A projector that passed the checks: its type, and `n_embd`, the width of its rows."""

    path: Path
    kind: str
    n_embd: int
    n_bytes: int


def is_projector(header: Header) -> bool:
    return header.metadata.get("general.architecture") == "clip"


def read(path: Path) -> ProjectorFile:
    """Projector of a file. Raises ModelError, one line, where it is none, damaged, or of a type that is not served."""
    return check(path, gguf_header.read_file(path, FLAG))


def check(path: Path, header: Header) -> ProjectorFile:
    """Projector of a file by its header. Raises ModelError."""
    return _Checks(header).run(path)


def check_width(projector: ProjectorFile, n_embd: int, model: str) -> None:
    """Check that the rows are as wide as the embeddings of the text model. Raises ModelError."""
    if projector.n_embd != n_embd:
        raise ModelError(
            f"{projector.path}: makes rows of {projector.n_embd} numbers, but {model} has embeddings of {n_embd}; "
            f"{FLAG} needs the projector that was published with this model"
        )


class _Checks:
    """All checks of one file."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._tensors = {tensor.name: tensor for tensor in header.tensors}

    def run(self, path: Path) -> ProjectorFile:
        kind = self._kind()
        family = _YI if kind == "mlp" and "mm.3.weight" in self._tensors else _FAMILIES[kind]
        n_blocks = self._check_sizes()
        self._check_colours()
        self._require(("v.patch_embd.weight", *family.needs))
        if "mm.patch_merger.weight" in self._tensors:
            self._require(("mm.input_norm.weight",))
        self._require_blocks(n_blocks)
        self._check_patches(kind)
        return ProjectorFile(path, kind, self._check_matrices(family), self._header.n_bytes)

    def _kind(self) -> str:
        if not is_projector(self._header):
            raise self._error(f"is no image projector; {FLAG} wants a file of the architecture 'clip'")
        if self._value("clip.has_vision_encoder") is not True:
            raise self._error("reads no images: it has no vision encoder")
        kind = self._value("clip.projector_type") or self._value("clip.vision.projector_type")
        if not isinstance(kind, str) or not kind:
            raise self._error("damaged: 'clip.projector_type' is missing")
        if kind not in _FAMILIES:
            raise self._error(
                f"is a projector of the type {gguf_header.shown(kind)}, which is not served; served are "
                f"{', '.join(SERVED)}: leave {FLAG} out"
            )
        return kind

    def _check_sizes(self) -> int:
        """Check the numbers of the encoder; its number of blocks."""
        image_size = self._number("image_size", _MAX_IMAGE_SIZE)
        self._number("patch_size", image_size)
        width = self._number("embedding_length", _MAX_WIDTH)
        n_heads = self._number("attention.head_count", width)
        if width % n_heads:
            raise self._error(f"damaged: {n_heads} heads cannot share a width of {width}")
        if self._value("clip.vision.spatial_merge_size") is not None:
            self._number("spatial_merge_size", image_size)
        epsilon = self._value("clip.vision.attention.layer_norm_epsilon")
        if not isinstance(epsilon, float) or not 0 <= epsilon < 1:
            raise self._error("damaged: 'clip.vision.attention.layer_norm_epsilon' is no small number such as 1e-05")
        return self._number("block_count", _MAX_BLOCKS)

    def _check_colours(self) -> None:
        for name in ("image_mean", "image_std"):
            values = self._value(f"clip.vision.{name}")
            if not isinstance(values, tuple) or len(values) < _CHANNELS:
                raise self._error(f"damaged: 'clip.vision.{name}' is no list of three numbers")
            if name == "image_std" and not all(values):
                raise self._error("damaged: 'clip.vision.image_std' has a zero, by which colours would be divided")

    def _require(self, names: Iterable[str]) -> None:
        missing = [name for name in names if name not in self._tensors]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise self._error(f"damaged: the tensor '{missing[0]}'{more} is missing; fetch it again")

    def _require_blocks(self, n_blocks: int) -> None:
        for block in range(n_blocks):
            self._require(self._needs_of(f"v.blk.{block}"))

    def _needs_of(self, block: str) -> Iterator[str]:
        is_fused = f"{block}.attn_qkv.weight" in self._tensors
        attention = ("attn_qkv",) if is_fused else ("attn_q", "attn_k", "attn_v")
        return (f"{block}.{name}.weight" for name in (*attention, "attn_out", "ffn_up", "ffn_down"))

    def _check_patches(self, kind: str) -> None:
        """Check the shape of the first matrix and the number of positions."""
        image_size, patch_size = (self._number(name, _MAX_IMAGE_SIZE) for name in ("image_size", "patch_size"))
        width = self._number("embedding_length", _MAX_WIDTH)
        expected = (patch_size, patch_size, _CHANNELS, width)
        if self._tensors["v.patch_embd.weight"].shape != expected:
            raise self._wrong_shape("v.patch_embd.weight", expected)
        if kind != "pixtral":
            self._check_positions(kind, width, image_size // patch_size)

    def _check_positions(self, kind: str, width: int, side: int) -> None:
        """Check that there is a position for each patch, as each type of encoder counts them."""
        found = self._tensors[_POSITIONS].shape
        n_found = found[1] if len(found) == 2 and found[0] == width else 0
        n_expected = side * side + ("v.class_embd" in self._tensors and kind != "idefics3")
        if kind == "lfm2":
            # They are resized to the image; only a square can be.
            is_well = n_found > 0 and math.isqrt(n_found) ** 2 == n_found
        else:
            is_well = n_found == n_expected or (kind == "mlp" and n_found > n_expected)
        if not is_well:
            raise self._wrong_shape(_POSITIONS, (width, n_expected))

    def _check_matrices(self, family: _Family) -> int:
        """Check that each matrix takes what the one before it makes; the width of the rows, which the last one makes.

        Some encoders give several of their layers to the first one, side by side.
        """
        scale = self._scale() if family.merges else 1
        width = self._number("embedding_length", _MAX_WIDTH) * scale * scale
        for number, name in enumerate(family.matrices):
            shape = self._tensors[name].shape
            is_matrix = len(shape) == 2 and 0 < shape[1] <= _MAX_WIDTH
            if not is_matrix or (shape[0] % width if number == 0 else shape[0] != width):
                raise self._wrong_shape(name, (width, shape[-1] if is_matrix else 1))
            width = shape[1]
        return width

    def _scale(self) -> int:
        """How many patches a side become one row."""
        side = self._number("image_size", _MAX_IMAGE_SIZE) // self._number("patch_size", _MAX_IMAGE_SIZE)
        scale = self._number("projector.scale_factor", side)
        if scale == 1 or side % scale:
            raise self._error(
                f"damaged: 'clip.vision.projector.scale_factor' is {scale}; expected a divisor of {side} above 1"
            )
        return scale

    def _number(self, name: str, most: int) -> int:
        key = f"clip.vision.{name}"
        value = self._value(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._error(f"damaged: '{key}' is missing from its metadata")
        if not 0 < value <= most:
            raise self._error(f"damaged: '{key}' is {value}; expected 1 to {most}")
        return value

    def _value(self, key: str) -> Value | None:
        return self._header.metadata.get(key)

    def _wrong_shape(self, name: str, expected: tuple[int, ...]) -> ModelError:
        found: TensorInfo = self._tensors[name]
        return self._error(
            f"damaged: the tensor '{name}' has the shape {_shape(found.shape)}, expected {_shape(expected)}"
        )

    def _error(self, what: str) -> ModelError:
        return ModelError(f"{self._header.name}: {what}")


def _shape(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))
