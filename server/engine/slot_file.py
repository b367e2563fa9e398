"""A computed chat in a file: its tokens, its state, and what it was computed with. numpy's own format, checked by CRC.

The file is trusted as far as the folder that it lies in: the state goes back to llama.cpp, which checks its shape.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from contextlib import suppress
from pathlib import Path

import numpy as np

from server.engine.host_cache import Kept
from server.errors import InvalidRequest


def write(path: Path, kept: Kept, mark: str) -> int:
    """Write all of it or nothing; how many bytes that are. `mark` names the model. Raises InvalidRequest."""
    about = json.dumps({"mark": mark, "realm": kept.realm, "asker": kept.asker})
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, about=np.array(about), tokens=np.array(kept.tokens, np.int32), state=kept.state)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        return path.stat().st_size
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be written: {error.strerror or error}", param="filename") from None


def read(path: Path, mark: str) -> Kept:
    """What was written. Raises InvalidRequest for a file that is missing, broken, or of another model."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            tokens, state = file["tokens"], file["state"]
    except FileNotFoundError:
        raise InvalidRequest(f"there is no saved slot {path.name}", param="filename") from None
    except Exception as error:
        # zipfile and numpy have many words for a file that is broken.
        raise InvalidRequest(f"{path.name} is no saved slot, or broken: {error}", param="filename") from None
    if about["mark"] != mark:
        raise InvalidRequest(f"{path.name} was saved by another model: {about['mark']}", param="filename")
    namespace, adapters = about["realm"]
    return Kept(array("i", tokens.tolist()), np.ascontiguousarray(state), (namespace, tuple(adapters)), about["asker"])
