"""Slot files: saving and restoring a slot by name, with errors in words for the admin who asked."""

from __future__ import annotations

from pathlib import Path

from ggufd.engine.kv_store import state_file
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.kv_store.state_head import BadStateFile
from ggufd.errors import InvalidRequest


def write(path: Path, kept: KeptState, fingerprint: str) -> int:
    """Write a state, all of it or nothing; the size of the file in bytes. Raises InvalidRequest."""
    try:
        return state_file.write(path, kept, fingerprint)
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be written: {error.strerror or error}", param="filename") from None


def read(path: Path, fingerprint: str) -> KeptState:
    """Read a state. Raises InvalidRequest for a file that is missing, broken, or of another fingerprint."""
    try:
        kept, found = state_file.read(path)
    except FileNotFoundError:
        raise InvalidRequest(f"there is no saved slot {path.name}", param="filename") from None
    except (OSError, BadStateFile) as error:
        raise InvalidRequest(f"{path.name} is no saved slot, or broken: {error}", param="filename") from None
    if found != fingerprint:
        raise InvalidRequest(
            f"{path.name} was saved by another model or other weights, under other settings (--parallel, --ctx-size, "
            "--flash-attn, cache types, RoPE, adapters) or by another build of llama.cpp, so it is of no use here: "
            "compute that chat again and save it again",
            param="filename",
        )
    return kept
