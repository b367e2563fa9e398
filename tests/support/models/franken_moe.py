"""Makes a mixture of experts out of a dense model: every feed-forward part stacked k times, and a router of zeros.

With identical experts it says what its parent says, whatever the router thinks. To measure one with `ggufd bench`:
`python -m tests.support.models.franken_moe SOURCE.gguf TARGET.gguf`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_FFN = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))\.weight")


def write_franken_moe(source: Path, target: Path, *, n_experts: int = 4, n_used: int = 2) -> Path:
    """`source` is a dense model of the architecture llama; its types stay."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, element)
    writer.add_expert_count(n_experts)
    writer.add_expert_used_count(n_used)
    for tensor in reader.tensors:
        _add(writer, tensor, n_experts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add(writer: gguf.GGUFWriter, tensor: Any, n_experts: int) -> None:
    match = _FFN.fullmatch(tensor.name)
    if match is None:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        return
    writer.add_tensor(f"{match[1]}_exps.weight", np.stack([tensor.data] * n_experts), raw_dtype=tensor.tensor_type)
    if match[1].endswith("ffn_up"):
        width = int(tensor.shape[0])
        writer.add_tensor(
            match[1].replace("ffn_up", "ffn_gate_inp") + ".weight", np.zeros((n_experts, width), np.float32)
        )


if __name__ == "__main__":
    write_franken_moe(Path(sys.argv[1]), Path(sys.argv[2]))
