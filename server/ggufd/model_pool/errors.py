"""Refusals of requests for a model that is not loaded."""

from __future__ import annotations

import re

from ggufd.errors import Forbidden, Unavailable

_FOLDERS = re.compile(r"""(?<![\w:/.~-])(?:/|[A-Za-z]:\\)[^:;,'"\n]*[/\\]""")
"""Folders of an absolute path, up to the file's name."""


def without_folders(message: str) -> str:
    """A reason without the folders of the files in it: it is told to whoever asked for the model."""
    return _FOLDERS.sub("", message)


class ModelNotLoaded(Forbidden):
    """Model that is known and not loaded, and that this key may not have loaded."""

    code = "model_not_loaded"


class ModelLoadFailed(Unavailable):
    """Model that could not be loaded when it was asked for; another one is served."""

    code = "model_load_failed"
