"""Decodes of a step: which chunks of a plan share a llama.cpp batch.

Token rows and embedding rows cannot mix in one batch (llama.cpp computes embedding rows without looking tokens up), so
a step whose plan has both calls `llama_decode` twice. A deterministic request shares its batch with nobody: the rows
beside it would change what is computed.
"""

from __future__ import annotations

from ggufd.engine.scheduling.scheduler import Chunk

_TOKENS = (0, 0)
_IMAGES = (1, 0)
_ALONE = 2


def decodes(plan: list[Chunk]) -> list[list[Chunk]]:
    """Parts of a plan, in the order in which they are computed; each keeps the plan's order, which is by slot.

    Tokens come first: nobody's next token waits for an image.
    """
    parts: dict[tuple[int, int], list[Chunk]] = {}
    for chunk in plan:
        parts.setdefault(_company(chunk), []).append(chunk)
    return [parts[company] for company in sorted(parts)]


def _company(chunk: Chunk) -> tuple[int, int]:
    """Chunks of equal company share a batch; lower ones are computed first.

    A chunk that must have a batch to itself has a second number that no other has, such as its slot.
    """
    if chunk.sequence.is_deterministic:
        return _ALONE, chunk.sequence.slot or 0
    return _IMAGES if chunk.is_image else _TOKENS
