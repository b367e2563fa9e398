"""Records of files, batches and lines, as they are stored. Plain data; times are Unix seconds."""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ggufd.errors import GgufdError


class BatchStatus(enum.Enum):
    """Where a batch is, in OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done for it."""
        return self in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """File of `n_bytes` bytes that belongs to the key with the digest `owner`."""

    file_id: str
    owner: str
    purpose: str
    filename: str
    n_bytes: int
    created: int
    expires: int


@dataclass(frozen=True, slots=True)
class LineFault:
    """What is wrong with a line of an input file; the first line is 1, and None is the file itself."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """What was asked for: the lines of a file, sent to `endpoint`, within `window_s` seconds.

    `address` is where the order came from; without keys it stands for a person. What is made is kept for
    `keep_output_s` seconds.
    """

    endpoint: str
    input_file: str
    window: str
    window_s: int
    keep_output_s: int
    address: str = ""
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """Batch of the key with the digest `owner`. `times` are those of each status that it came to.

    `completed` and `failed` count lines. `ends_as` is the status that finalizing leads to.
    """

    batch_id: str
    owner: str
    order: BatchOrder
    status: BatchStatus
    created: int
    expires: int
    total: int = 0
    completed: int = 0
    failed: int = 0
    times: Mapping[str, int] = field(default_factory=dict)
    output_file: str | None = None
    error_file: str | None = None
    faults: tuple[LineFault, ...] = ()
    ends_as: BatchStatus = BatchStatus.COMPLETED

    @property
    def n_left(self) -> int:
        """Lines of which nothing is told yet."""
        return self.total - self.completed - self.failed


@dataclass(frozen=True, slots=True)
class BatchLine:
    """Line of a batch: bytes `[offset, offset + n_bytes)` of its input file. `attempts` have failed so far."""

    number: int
    offset: int
    n_bytes: int
    custom_id: str
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class LineResult:
    """Line of the output file, or of the error file where it is not `is_ok`; JSON without an end of line."""

    is_ok: bool
    text: str


class StorageFull(GgufdError):
    """Batch storage at its limit: nothing more is kept until something is deleted or expires."""

    status = 503
    type = "service_unavailable"
    code = "batch_storage_full"


def unix_now() -> int:
    """The time now, as files and batches carry it."""
    return int(time.time())


Json = dict[str, Any]
