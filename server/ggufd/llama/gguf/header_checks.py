"""Checks of a model's header: files that would make llama.cpp abort or fail later are refused, with one line.

Every check raises ModelError. Knows nothing of memory or of settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ggufd.errors import ModelError
from ggufd.llama.gguf.gguf_header import Gguf, Skipped, TensorInfo, Value
from ggufd.llama.gguf.tensor_names import layer_of

_CHECKED = {"llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe", "gemma", "gemma2", "gemma3", "phi3"}
"""Architectures whose layers all hold the tensors below, or llama.cpp refuses them."""

_IN_EVERY_LAYER = (
    ("attn_norm.weight",),
    ("attn_q.weight", "attn_qkv.weight"),
    ("attn_output.weight",),
    ("ffn_down.weight", "ffn_down_exps.weight"),
)

_PROJECTOR = "is a projector of images or sounds, which --mmproj takes, and no language model"
_BESIDE_A_MODEL = {
    "adapter": "is an adapter, which --lora takes, and no whole model",
    "controlvector": "is a control vector, which --control-vector takes, and no model",
    "imatrix": "is an importance matrix, which models are quantised with, and no model",
    "mmproj": _PROJECTOR,
    "clip": _PROJECTOR,
}
"""Files that lie beside models, by their `general.type` or their architecture."""

_NOT_WEIGHTS = {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}
"""Types that no matrix product of llama.cpp's takes on its left side; it crashes over them."""

_NO_TOKEN = 2**32 - 1
"""How some converters write that there is no such token: -1."""

_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_MATRIX = re.compile(r"(?:token_embd|output|blk\.\d+\.(?:attn|ffn)_\w+)\.weight", re.ASCII)
_NORM = re.compile(r"[\w.]*norm\.weight", re.ASCII)
_EXPERT_ALONE = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)\.\d+\.weight")


def check_kind(gguf: Gguf) -> None:
    """Check that a file is a whole model: it names an architecture, and is no adapter, projector or the like."""
    if not _NAME.fullmatch(gguf.architecture):
        raise ModelError(f"{gguf.name}: 'general.architecture' is missing; expected a model that llama.cpp can load")
    if kind := no_model(gguf.metadata):
        raise ModelError(f"{gguf.name}: {kind}; --model needs the model that it belongs to")


def check_tensors(gguf: Gguf, tensors: dict[str, TensorInfo], n_layers: int) -> None:
    """Check that all tensors are there, the embeddings are a table, and no type would crash llama.cpp."""
    _check_presence(gguf, tensors, n_layers)
    embedding = tensors["token_embd.weight"].shape
    if len(embedding) < 2 or embedding[0] < 1 or embedding[1] < 1:
        raise ModelError(f"{gguf.name}: damaged: 'token_embd.weight' is no table of a width and a vocabulary")
    _check_types(gguf, tensors)


def check_metadata(gguf: Gguf) -> None:
    """Check the numbers over which llama.cpp aborts at the first step or text."""
    _check_epsilon(gguf)
    _check_special_tokens(gguf)


def no_model(metadata: Mapping[str, Value]) -> str:
    """Description of a file that is no language model ("is an adapter ..."); empty for a model."""
    if metadata.get("general.architecture") in _BESIDE_A_MODEL:
        return _BESIDE_A_MODEL[str(metadata["general.architecture"])]
    return _BESIDE_A_MODEL.get(str(metadata.get("general.type")), "")


def required(gguf: Gguf, key: str, limit: int) -> int:
    """Metadata value of 1 to `limit`. Raises ModelError where it is missing or out of range."""
    name = f"{gguf.architecture}.{key}"
    if not gguf.has(name):
        raise ModelError(f"{gguf.name}: damaged or no language model: '{name}' is missing from its metadata")
    value = gguf.integer(name)
    if not 0 < value <= limit:
        raise ModelError(f"{gguf.name}: '{name}' is {value}; llama.cpp takes 1 to {limit}")
    return value


def _check_presence(gguf: Gguf, tensors: dict[str, TensorInfo], n_layers: int) -> None:
    """Check for missing tensors: some in every layer, and by name where the architecture is well known."""
    if not tensors:
        raise ModelError(f"{gguf.name}: holds no weights, only a vocabulary; --model wants a whole model")
    if "token_embd.weight" not in tensors:
        raise ModelError(f"{gguf.name}: the tensor 'token_embd.weight' is missing; expected a language model")
    if any(_EXPERT_ALONE.match(name) for name in tensors):
        raise ModelError(
            f"{gguf.name}: keeps each expert in a tensor of its own, as files of early 2024 do; llama.cpp reads these "
            "no more: fetch a newer file of this model, or convert it again"
        )
    layers = {layer_of(name) for name in tensors}
    missing = [f"blk.{i}" for i in range(n_layers) if i not in layers]
    if gguf.architecture in _CHECKED:
        missing += [
            f"blk.{i}.{names[0]}"
            for i in range(n_layers)
            for names in _IN_EVERY_LAYER
            if not any(f"blk.{i}.{name}" in tensors for name in names)
        ]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{gguf.name}: tensors are missing, '{missing[0]}'{more}; the file does not hold all of its {n_layers} "
            "layers: fetch it again"
        )


def _check_types(gguf: Gguf, tensors: dict[str, TensorInfo]) -> None:
    for tensor in tensors.values():
        if tensor.type.name not in _floats_of(tensor):
            raise _wrong_type(gguf, tensor, "F32")
        if _MATRIX.fullmatch(tensor.name) and tensor.type.name in _NOT_WEIGHTS:
            raise _wrong_type(gguf, tensor, "a type for weights")


def _floats_of(tensor: TensorInfo) -> tuple[str, ...]:
    """Types that llama.cpp can read a row of numbers in; over others it ends the process."""
    if _is_bias(tensor):
        return ("F32", "F16")
    if len(tensor.shape) == 1 and (tensor.name == "rope_freqs.weight" or _NORM.fullmatch(tensor.name)):
        return ("F32",)
    return (tensor.type.name,)


def refuse_half_biases(gguf: Gguf) -> None:
    """Check for F16 biases: GPUs can add them, on the CPU llama.cpp ends the process. Raises ModelError."""
    tensor = next((one for one in gguf.tensors() if _is_bias(one) and one.type.name == "F16"), None)
    if tensor is not None:
        raise _wrong_type(gguf, tensor, "F32 on a CPU")


def _is_bias(tensor: TensorInfo) -> bool:
    return len(tensor.shape) == 1 and tensor.name.endswith(".bias")


def _wrong_type(gguf: Gguf, tensor: TensorInfo, expected: str) -> ModelError:
    return ModelError(
        f"{gguf.name}: the tensor '{tensor.name}' is of type {tensor.type.name}, expected {expected}; "
        "convert the model again"
    )


def _check_special_tokens(gguf: Gguf) -> None:
    """Check of special tokens: for one beyond the vocabulary llama.cpp takes another, or aborts at the first text."""
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Skipped):
        return
    for name in ("bos", "eos"):
        key = f"tokenizer.ggml.{name}_token_id"
        if tokens.length <= (token := gguf.integer(key)) < _NO_TOKEN:
            raise ModelError(
                f"{gguf.name}: '{key}' is {token}, but the vocabulary has {tokens.length} tokens, counted from 0; "
                "convert the model again"
            )


def _check_epsilon(gguf: Gguf) -> None:
    """Check of the norm's epsilon: an impossible one aborts the first step."""
    for name in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        key = f"{gguf.architecture}.attention.{name}"
        value = gguf.metadata.get(key, 0.0)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            found = value if isinstance(value, int | float) else "no number"
            raise ModelError(f"{gguf.name}: '{key}' is {found}; expected a small number such as 1e-05")
