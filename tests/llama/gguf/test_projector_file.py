"""Headers of image projectors: what would crash libmtmd, or is not served, is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.errors import ModelError
from ggufd.llama.gguf import projector_file
from ggufd.llama.gguf.projector_file import ProjectorFile
from tests.support.models import gguf_files
from tests.support.models.projector_file import FAST, metadata_of

N_EMBD = 32

VISION = [
    ("v.patch_embd.weight", (16, 16, 3, 32), "f32"),
    *((f"v.blk.0.{name}.weight", (32, 32), "f32") for name in ("attn_q", "attn_k", "attn_v", "attn_out")),
    ("v.blk.0.ffn_up.weight", (32, 64), "f32"),
    ("v.blk.0.ffn_down.weight", (64, 32), "f32"),
]


def linear(name: str, n_in: int, n_out: int) -> list[tuple[str, tuple[int, ...], str]]:
    return [(f"{name}.weight", (n_in, n_out), "f32"), (f"{name}.bias", (n_out,), "f32")]


def positions(n_positions: int) -> tuple[str, tuple[int, ...], str]:
    return ("v.position_embd.weight", (32, n_positions), "f32")


PROJECTIONS = {
    "mlp": [positions(17), ("v.class_embd", (32,), "f32"), *linear("mm.0", 32, 8), *linear("mm.2", 8, N_EMBD)],
    "idefics3": [positions(16), ("mm.model.fc.weight", (128, N_EMBD), "f32")],
    "pixtral": [
        ("v.token_embd.img_break", (N_EMBD,), "f32"),
        ("mm.1.weight", (32, 8), "f32"),
        ("mm.2.weight", (8, N_EMBD), "f32"),
    ],
    "internvl": [
        positions(17),
        ("v.class_embd", (32,), "f32"),
        *linear("mm.model.mlp.0", 128, 128)[1:],
        ("mm.model.mlp.0.weight", (128,), "f32"),
        *linear("mm.model.mlp.1", 128, 8),
        *linear("mm.model.mlp.3", 8, N_EMBD),
    ],
    "lfm2": [positions(16), *linear("mm.1", 128, 8), *linear("mm.2", 8, N_EMBD)],
}


def metadata_of_kind(kind: str) -> dict[str, Any]:
    scale = {} if kind == "mlp" else {"clip.vision.projector.scale_factor": 2}
    return {**metadata_of(FAST, N_EMBD), "clip.projector_type": kind, **scale}


def write(path: Path, kind: str = "mlp", without: str = "", **changes: Any) -> Path:
    """A projector of a kind without one of its tensors; `changes` replace metadata of the vision encoder."""
    metadata = metadata_of_kind(kind)
    metadata |= {f"clip.vision.{key}": value for key, value in changes.items()}
    tensors = [one for one in (*VISION, *PROJECTIONS.get(kind, PROJECTIONS["mlp"])) if one[0] != without]
    return gguf_files.write(path, metadata, tensors)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mmproj.gguf"


def refusal(path: Path) -> str:
    """What is said of a file that is refused: one line that names it."""
    with pytest.raises(ModelError) as caught:
        projector_file.read(path)
    message = caught.value.message
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_types_with_plain_positions_are_read_with_the_width_of_their_rows(path: Path, kind: str) -> None:
    assert projector_file.read(write(path, kind)) == ProjectorFile(path, kind, N_EMBD, path.stat().st_size)


def test_the_variant_of_mlp_with_norms_is_read(path: Path) -> None:
    projection = [*linear("mm.0", 32, 8), *linear("mm.1", 8, 8), *linear("mm.3", 8, 48), *linear("mm.4", 48, 48)]
    tensors = [positions(16), *VISION, *projection]
    gguf_files.write(path, metadata_of(FAST, 48), tensors)
    assert projector_file.read(path).n_embd == 48


@pytest.mark.parametrize("kind", ["gemma3", "qwen2.5vl_merger", "resampler", "llama4", "no\x1bsuch"])
def test_other_types_are_refused_by_name(path: Path, kind: str) -> None:
    said = refusal(write(path, kind))
    assert said == (
        f"is a projector of the type '{kind.replace(chr(27), '?')}', which is not served; "
        "served are mlp, idefics3, pixtral, internvl, lfm2: leave --mmproj out"
    )


CRASHES = [
    *(("mlp", name) for name in ("v.patch_embd.weight", "v.position_embd.weight")),
    *(("mlp", f"mm.{number}.{part}") for number in (0, 2) for part in ("weight", "bias")),
    *(("lfm2", name) for name in ("v.position_embd.weight", "mm.1.bias")),
    *(("internvl", name) for name in ("v.class_embd", "v.position_embd.weight")),
    ("mlp", "v.blk.0.attn_q.weight"),
    ("idefics3", "v.blk.0.attn_v.weight"),
]
"""Types, and tensors without which libmtmd ends the process."""


@pytest.mark.parametrize(("kind", "name"), CRASHES)
def test_a_tensor_whose_lack_would_crash_is_named(path: Path, kind: str, name: str) -> None:
    assert refusal(write(path, kind, without=name)) == f"damaged: the tensor '{name}' is missing; fetch it again"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_size": 0}, "'clip.vision.image_size' is 0; expected 1 to 8192"),
        ({"image_size": 9000}, "'clip.vision.image_size' is 9000; expected 1 to 8192"),
        ({"patch_size": 0}, "'clip.vision.patch_size' is 0; expected 1 to 64"),
        ({"patch_size": 8}, "'v.patch_embd.weight' has the shape 16 x 16 x 3 x 32, expected 8 x 8 x 3 x 32"),
        ({"image_size": 128}, "'v.position_embd.weight' has the shape 32 x 17, expected 32 x 65"),
        ({"attention.head_count": 0}, "'clip.vision.attention.head_count' is 0; expected 1 to 32"),
        ({"attention.head_count": 5}, "5 heads cannot share a width of 32"),
        ({"attention.head_count": True}, "'clip.vision.attention.head_count' is missing from its metadata"),
        ({"block_count": 100_000}, "'clip.vision.block_count' is 100000; expected 1 to 512"),
        ({"block_count": 2}, "the tensor 'v.blk.1.attn_q.weight' and 5 more is missing; fetch it again"),
        ({"image_mean": [0.0]}, "'clip.vision.image_mean' is no list of three numbers"),
        ({"image_std": [1.0, 0.0, 1.0]}, "'clip.vision.image_std' has a zero, by which colours would be divided"),
        ({"attention.layer_norm_epsilon": -1.0}, "is no small number such as 1e-05"),
    ],
    ids=str,
)
def test_impossible_numbers_are_named(path: Path, changes: dict[str, Any], expected: str) -> None:
    said = refusal(write(path, **changes))
    assert said.startswith("damaged: ")
    assert said.endswith(expected)


@pytest.mark.parametrize("kind", ["idefics3", "internvl", "lfm2"])
@pytest.mark.parametrize(
    ("scale", "expected"), [(0, "expected 1 to 4"), (1, "a divisor of 4 above 1"), (3, "a divisor of 4 above 1")]
)
def test_a_scale_at_which_patches_cannot_be_merged_is_refused(path: Path, kind: str, scale: int, expected: str) -> None:
    said = refusal(write(path, kind, **{"projector.scale_factor": scale}))
    assert said.startswith(f"damaged: 'clip.vision.projector.scale_factor' is {scale}; ")
    assert said.endswith(expected)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [("mm.0.weight", (48, 8), "32 x 8"), ("mm.2.weight", (9, 32), "8 x 32"), ("mm.2.weight", (8,), "8 x 1")],
)
def test_matrices_that_do_not_follow_each_other_are_refused(
    path: Path, name: str, shape: tuple[int, ...], expected: str
) -> None:
    tensors = [(one, shape if one == name else own, kind) for one, own, kind in (*VISION, *PROJECTIONS["mlp"])]
    gguf_files.write(path, metadata_of_kind("mlp"), tensors)
    found = " x ".join(map(str, shape))
    assert refusal(path) == f"damaged: the tensor '{name}' has the shape {found}, expected {expected}"


@pytest.mark.parametrize("kind", ["mlp", "idefics3", "internvl", "lfm2"])
@pytest.mark.parametrize("n_positions", [0, 15])
def test_positions_that_are_not_those_of_the_patches_are_refused(path: Path, kind: str, n_positions: int) -> None:
    others = [one for one in (*VISION, *PROJECTIONS[kind]) if one[0] != "v.position_embd.weight"]
    metadata = metadata_of_kind(kind)
    gguf_files.write(path, metadata, [positions(n_positions), *others])
    said = refusal(path)
    assert said.startswith(f"damaged: the tensor 'v.position_embd.weight' has the shape 32 x {n_positions}, expected ")


def test_a_file_cut_anywhere_or_of_something_else_is_refused(path: Path) -> None:
    whole = write(path).read_bytes()
    for end in (0, 3, 4, 20, 200, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        refusal(path)
    path.write_bytes(b"\x89PNG" * 100)
    assert refusal(path) == "not a GGUF file; --mmproj wants a file in llama.cpp's GGUF format"


def test_a_language_model_is_no_projector(path: Path) -> None:
    gguf_files.write(path, *gguf_files.llama())
    assert refusal(path) == "is no image projector; --mmproj wants a file of the architecture 'clip'"


def test_a_projector_of_sounds_alone_reads_no_images(path: Path) -> None:
    gguf_files.write(path, {"general.architecture": "clip", "clip.has_audio_encoder": True}, [])
    assert refusal(path) == "reads no images: it has no vision encoder"


def test_rows_of_another_width_than_the_model_s_are_refused(path: Path) -> None:
    projector = projector_file.read(write(path))
    projector_file.check_width(projector, N_EMBD, "model.gguf")
    with pytest.raises(ModelError) as caught:
        projector_file.check_width(projector, 576, "model.gguf")
    assert caught.value.message == (
        f"{path}: makes rows of 32 numbers, but model.gguf has embeddings of 576; --mmproj needs the projector that "
        "was published with this model"
    )


def said_of(path: Path) -> str:
    """The kind and width of a projector that was read, or why it was not."""
    try:
        found = projector_file.read(path)
    except ModelError as error:
        return error.message
    assert found.n_embd > 0
    return found.kind


@pytest.mark.parametrize("kind", PROJECTIONS)
@given(changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_header_with_any_bytes_changed_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"changed-{kind}.gguf"
    data = bytearray(write(path, kind).read_bytes())
    for place, value in changes:
        data[place] = value
    path.write_bytes(data)
    assert "\n" not in said_of(path)


NAMES = [name for name, _, _ in VISION] + [name for tensors in PROJECTIONS.values() for name, _, _ in tensors]


@given(
    name=st.sampled_from(sorted(set(NAMES))),
    shape=st.lists(st.integers(0, 64), max_size=4).map(tuple),
    kind=st.sampled_from(list(PROJECTIONS)),
)
def test_a_tensor_of_any_shape_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, shape: tuple[int, ...], kind: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "shaped.gguf"
    tensors = [(one, shape if one == name else own, of) for one, own, of in (*VISION, *PROJECTIONS[kind])]
    gguf_files.write(path, metadata_of_kind(kind), tensors)
    assert "\n" not in said_of(path)
