"""Everything that crosses the boundary of the engine process, in both directions: plain frozen data.

To the engine: a `Command`. From the engine: one list of `Event` a step.
Knows no HTTP, no JSON and no llama_cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class FinishSequence:
    """End this sequence now, as if its model had ended it: its last `Output` is still sent."""

    request_id: int
    index: int
