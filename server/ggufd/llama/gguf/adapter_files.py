"""Files of LoRA adapters and control vectors, checked against the model's header.

llama.cpp checks less than it computes with (the rank of an embedding's adapter, the experts of a mixture), and ends
the process where they do not fit; so a file is looked at before C sees it. Knows no llama_cpp and no numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ggufd.errors import ModelError
from ggufd.llama.gguf import gguf_header

_A, _B = ".lora_a", ".lora_b"
DIRECTION = "direction."
"""What the tensors of a control vector are called, with the number of their layer behind it."""


def check_lora(path: str, model: gguf_header.Gguf) -> None:
    """Check of a LoRA adapter's file. Raises ModelError, one line, where it does not fit this model."""
    header = read(path, "--lora")
    kind = header.metadata.get("general.type"), header.metadata.get("adapter.type")
    if kind != ("adapter", "lora"):
        raise ModelError(f"{path}: not a LoRA adapter; convert one with llama.cpp's convert_lora_to_gguf.py")
    architecture = header.metadata.get("general.architecture")
    if architecture != model.architecture:
        raise ModelError(
            f"{path}: an adapter for {architecture} models, but {model.name} is a {model.architecture} model"
        )
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise ModelError(f"{path}: an activated LoRA (aLoRA), which is not supported; expected a plain LoRA adapter")
    fault = next(_faults(header, {tensor.name: tensor for tensor in model.tensors()}), None)
    if fault is not None:
        raise ModelError(f"{path}: {fault}; it was made for another model than {model.name}")


def check_control_vector(path: str, model: gguf_header.Gguf) -> None:
    """Check of a control vector's file. Raises ModelError, one line, where it holds no directions for this model."""
    header = read(path, "--control-vector")
    width = model.integer("{arch}.embedding_length")
    for tensor in header.tensors:
        layer = tensor.name.removeprefix(DIRECTION)
        if not tensor.name.startswith(DIRECTION) or not layer.isdecimal() or int(layer) == 0:
            raise ModelError(
                f"{path}: not a control vector: it has a tensor {tensor.name!r}, expected direction.1 and so on"
            )
        if tensor.type.name.lower() != "f32" or tensor.shape != (width,):
            found = f"{tensor.name} is {tensor.type.name} of shape {tensor.shape}"
            raise ModelError(f"{path}: {found}; {model.name} needs {width} floats")
    if not header.tensors:
        raise ModelError(f"{path}: not a control vector: it has no tensors")


def check_layers(first: int, last: int, model: gguf_header.Gguf) -> None:
    """Check of a range of layers. Raises ModelError, one line, where no layer of this model is in it."""
    n_layers = model.integer("{arch}.block_count")
    # What leaves the last layer is added to by none.
    if first >= n_layers or last > n_layers:
        raise ModelError(
            f"--control-vector-layer-range {first},{last}: {model.name} has {n_layers} layers; expected a first one of "
            f"1 to {n_layers - 1}, and a last one of at most {n_layers}"
        )


def read(path: str, flag: str = "--lora") -> gguf_header.Header:
    """The header of such a file, which `flag` names. Raises ModelError, one line, also for names no file can have."""
    try:
        return gguf_header.read_file(Path(path).expanduser(), flag)
    except (ValueError, RuntimeError) as error:
        raise ModelError(
            f"{flag} {path!r}: not a valid file name ({error}); expected the path of a GGUF file"
        ) from None


def _faults(header: gguf_header.Header, model: Mapping[str, gguf_header.TensorInfo]) -> Iterator[str]:
    tensors = {tensor.name: tensor for tensor in header.tensors if not tensor.name.endswith("_norm.weight")}
    if not tensors:
        yield "it has no tensors"
    for name in tensors:
        if not name.endswith((_A, _B)):
            yield f"the tensor {name} is not part of a LoRA"
    for base in dict.fromkeys(name.removesuffix(_A).removesuffix(_B) for name in tensors):
        a, b, weight = tensors.get(base + _A), tensors.get(base + _B), model.get(base)
        if a is None or b is None:
            yield f"one of the two LoRA matrices of {base} is missing"
        elif weight is None:
            yield f"the model has no tensor {base}"
        elif not _fits(base, _four(a), _four(b), _four(weight)):
            yield f"the LoRA matrices of {base} do not match its shape"


def _fits(base: str, a: tuple[int, ...], b: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether `weight + scale * b a` can be computed: an embedding's `a` stands the other way round."""
    if base.endswith("token_embd.weight"):
        return a[0] == b[0] and a[1] == weight[1] and b[1] == weight[0] and a[2:] == b[2:] == weight[2:]
    return a[0] == weight[0] and b[1] == weight[1] and a[1] == b[0] and a[2:] == b[2:] == weight[2:]


def _four(tensor: gguf_header.TensorInfo) -> tuple[int, ...]:
    return (*tensor.shape, 1, 1, 1)[:4]
