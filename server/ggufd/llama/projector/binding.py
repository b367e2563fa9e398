"""Loading of libmtmd, with a one-line error where a build has none, and capture of its log."""

from __future__ import annotations

import ctypes
from typing import Any

from ggufd.errors import ModelError
from ggufd.llama.log import LogCapture


def load() -> Any:
    """The binding of libmtmd. Raises ModelError where llama-cpp-python was built without it."""
    try:
        # Not from the package: that would be asked for this name first, and run all its code.
        import llama_cpp.mtmd_cpp as mtmd_cpp
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"this build of llama-cpp-python reads no images: {error}; build it again without -DLLAVA_BUILD=OFF"
        ) from None
    return mtmd_cpp


class ProjectorLog(LogCapture):
    """Log callback of llama.cpp and of libmtmd."""

    def install(self) -> None:
        super().install()
        load().mtmd_log_set(self._callback, ctypes.c_void_p(0))
