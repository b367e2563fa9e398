"""Slots that an admin saves and restores by name: what can go wrong there, in words for who asked."""

from __future__ import annotations

from pathlib import Path

from ggufd.engine.kv_store import state_file
from ggufd.engine.kv_store.state_file import BadStateFile, KeptState
from ggufd.errors import InvalidRequest


def write(path: Path, kept: KeptState, mark: str) -> int:
    """Write all of it or nothing; how many bytes that are. `mark` names what it was computed with.

    Raises InvalidRequest.
    """
    try:
        return state_file.write(path, kept, mark)
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be written: {error.strerror or error}", param="filename") from None


def read(path: Path, mark: str) -> KeptState:
    """What was written. Raises InvalidRequest for a file that is missing, broken, or computed with something else."""
    try:
        kept, written = state_file.read(path)
    except FileNotFoundError:
        raise InvalidRequest(f"there is no saved slot {path.name}", param="filename") from None
    except (OSError, BadStateFile) as error:
        raise InvalidRequest(f"{path.name} is no saved slot, or broken: {error}", param="filename") from None
    if written != mark:
        raise InvalidRequest(
            f"{path.name} was saved by another model or other weights, under other settings (--parallel, --ctx-size, "
            "--flash-attn, cache types, RoPE, adapters) or by another build of llama.cpp, so it is of no use here: "
            "compute that chat again and save it again",
            param="filename",
        )
    return kept
