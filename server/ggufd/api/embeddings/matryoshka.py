"""Matryoshka models, whose embeddings may be truncated: files do not say it, their makers do."""

from __future__ import annotations

import re
from collections.abc import Mapping

_ARCHITECTURES = frozenset(("gemma-embedding", "jina-bert-v3", "nomic-bert-moe"))
_NAMES = re.compile(
    r"nomic-embed-text-v1\.5|qwen3-(vl-)?embedding|embeddinggemma|mxbai-embed-(large|2d)|jina-embeddings-v[3-9]"
    r"|arctic-embed-(m-v1\.5|[ml]-v2)|matryoshka|stella.*v5|jasper",
)
_KEYS = ("general.name", "general.basename", "general.finetune")


def is_matryoshka(architecture: str, metadata: Mapping[str, str]) -> bool:
    """Whether vectors of a model with these facts may be cut short."""
    names = " ".join(metadata.get(key, "") for key in _KEYS).lower()
    return architecture in _ARCHITECTURES or _NAMES.search(re.sub(r"[\s_]+", "-", names)) is not None
