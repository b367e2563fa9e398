"""Names of a model's tensors: the layer that one belongs to, and whether it holds experts."""

from __future__ import annotations

import re

_LAYER = re.compile(r"blk\.(\d+)\.")
_EXPERT = re.compile(r"blk\.\d+\.ffn_(?:gate|up|down|gate_up)_exps\.")


def layer_of(name: str) -> int | None:
    """The layer that a tensor of this name belongs to; None for embeddings and the output."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def is_expert(name: str) -> bool:
    """Whether a tensor holds weights of experts, of which a token uses a few."""
    return _EXPERT.match(name) is not None
