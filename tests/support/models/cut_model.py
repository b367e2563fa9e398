"""Makes a small model of a long context: the first layers of another one. What it says is noise; its shape is real.

For `ggufd bench curves --long-model`: `python -m tests.support.models.cut_model TARGET.gguf` cuts the demo model.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import gguf

from ggufd.models import hub

_LAYER = re.compile(r"blk\.(\d+)\.")


def write_cut_model(source: Path, target: Path, *, n_layers: int = 2, n_ctx: int = 32768) -> Path:
    """`source` is a model of the architecture llama; its types stay, and its rope is what it was."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    changed = {"llama.block_count": n_layers, "llama.context_length": n_ctx}
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, changed.get(key, field.contents()), kind, element)
    for tensor in reader.tensors:
        layer = _LAYER.match(tensor.name)
        if layer is None or int(layer[1]) < n_layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


if __name__ == "__main__":
    write_cut_model(hub.find("").path, Path(sys.argv[1]))
