"""llama.cpp's log while a model loads: forwarded, and searched for facts that no function of llama.cpp returns."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

from ggufd.engine.messages.reports import Loading, LogLine, Notice
from ggufd.errors import ModelError
from ggufd.llama.gguf.gguf_header import Scalar
from ggufd.llama.log import LogCapture

_BUFFER = re.compile(r"(\S+)\s+(model|LoRA|KV|RS|compute|output)\s+buffer size\s*=\s*([\d.]+) MiB")
_CHANGED = re.compile(r"Using metadata override \([^)]*\) '(.+)' = ")
_NO_MEMORY = re.compile(r"(unable|failed) to allocate|out of memory", re.IGNORECASE)
_NOT_LOCKED = re.compile(r"failed to (?:mlock|VirtualLock).*|mlock not supported.*|\w+ProcessWorkingSetSize failed.*")
_LOCKING = ("mlock", "VirtualLock", "WorkingSetSize")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers")

Report = Callable[[Loading], None]


class LoadLog:
    """llama.cpp's log of one load: forwarded from `level` on, and searched for buffers, offloaded layers and errors."""

    def __init__(self, level: int, report: Report) -> None:
        self._level = level
        self._report = report
        self._is_counting = True
        self._is_lock_told = False
        self._errors: list[str] = []
        self._changed: set[str] = set()
        self.buffers: list[str] = []
        self.memory_bytes = 0
        self.n_gpu_layers = 0
        self.capture = LogCapture(self._receive)

    def start_counting(self) -> None:
        """Drop the buffers of calibration contexts from the count; those of the weights stay."""
        self.buffers = [line for line in self.buffers if " model " in line or " LoRA " in line]
        self.memory_bytes = 0
        for line in self.buffers:
            self._count(line)

    def tell(self, message: str) -> None:
        """Report a notice of the loader's own."""
        self._report(Notice(message))

    def explain(self, message: str) -> str:
        """`message`, with the first error of llama.cpp that says more than that loading failed."""
        reasons = [line for line in self._errors if "failed to load model" not in line]
        if not reasons:
            return message
        reason = re.sub(r"^\w+: ", "", reasons[0])
        return f"{message}: {reason}"

    @property
    def is_out_of_memory(self) -> bool:
        """Whether an allocation failed."""
        return any(_NO_MEMORY.search(line) for line in self._errors)

    def check_metadata(self, changes: Sequence[tuple[str, Scalar]]) -> None:
        """Raises ModelError where llama.cpp did not read a key that the settings change, or not with that type."""
        for key, value in changes:
            if key not in self._changed:
                raise ModelError(
                    f"override_kv {key}: llama.cpp reads no such key of this model, or not as a {type(value).__name__}"
                )

    def _receive(self, level: int, line: str) -> None:
        if level >= logging.ERROR:
            self._errors.append(line.strip())
        # Thousands of lines tell of none of it: to look for a word in them takes a tenth of a search.
        if "buffer size" in line and _BUFFER.search(line):
            self.buffers.append(line)
            self._count(line)
        if "override" in line and (changed := _CHANGED.search(line)) is not None:
            self._changed.add(changed[1])
        if "offloaded" in line and (offloaded := _OFFLOADED.search(line)) is not None:
            self.n_gpu_layers = int(offloaded[1])
        if any(word in line for word in _LOCKING) and not self._is_lock_told:
            self._note_lock(line)
        if level >= self._level:
            self._report(LogLine(level, line))

    def _note_lock(self, line: str) -> None:
        if (failure := _NOT_LOCKED.search(line)) is not None:
            self._is_lock_told = True
            self.tell(f"mlock: the model may go to swap, {failure[0]}; raise 'ulimit -l', or leave --mlock out")

    def _count(self, line: str) -> None:
        match = _BUFFER.search(line)
        if match is not None:
            self.memory_bytes += int(float(match[3]) * 1024 * 1024)
