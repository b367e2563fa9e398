"""Makes a deeper model out of a dense one: behind every layer some that add nothing, so it says what its parent says.

What a draft model is worth depends on how much slower the other is, and how often it says the same. Of a small model
this makes a slow one, and its parent, more coarsely quantised, guesses for it. To measure with `ggufd bench`:
`python -m tests.support.models.franken_deep SOURCE.gguf TARGET.gguf`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_SILENT = ("attn_output.weight", "ffn_down.weight")
"""All that a layer adds comes through these two; bytes of zero are zeros in every type."""


def write_franken_deep(source: Path, target: Path, *, n_copies: int = 6) -> Path:
    """`source` is a dense model of the architecture llama; each of its layers becomes `n_copies`, types stay."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "llama.block_count"):
            kind = field.types[0]
            element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, element)
    writer.add_block_count(n_copies * int(reader.fields["llama.block_count"].contents()))
    for tensor in reader.tensors:
        _add(writer, tensor, n_copies)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add(writer: gguf.GGUFWriter, tensor: Any, n_copies: int) -> None:
    if not tensor.name.startswith("blk."):
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        return
    _, layer, name = tensor.name.split(".", 2)
    for copy in range(n_copies):
        is_silent = copy > 0 and name in _SILENT
        data = np.zeros_like(tensor.data) if is_silent else tensor.data
        writer.add_tensor(f"blk.{n_copies * int(layer) + copy}.{name}", data, raw_dtype=tensor.tensor_type)


if __name__ == "__main__":
    write_franken_deep(Path(sys.argv[1]), Path(sys.argv[2]))
