"""Wire objects of files and batches, as OpenAI has them, and pages of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from ggufd.api.batches.dispatch import LineResponse
from ggufd.batches.records import BatchLine, BatchRecord, BatchStatus, Json, LineResult, StoredFile
from ggufd.errors import InvalidRequest, NotFound

One = TypeVar("One", StoredFile, BatchRecord)

_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")

_WHY_LOST = {
    BatchStatus.EXPIRED: ("batch_expired", "This line was not computed before the batch's completion window ended."),
    BatchStatus.CANCELLED: ("batch_cancelled", "This line was not computed before the batch was cancelled."),
}


def file_json(file: StoredFile) -> Json:
    """The object of a file."""
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.n_bytes,
        "created_at": file.created,
        "expires_at": file.expires,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def batch_json(record: BatchRecord, model: str) -> Json:
    """The object of a batch."""
    order = record.order
    return {
        "id": record.batch_id,
        "object": "batch",
        "endpoint": order.endpoint,
        "model": model,
        "errors": {"object": "list", "data": [asdict(one) for one in record.faults]} if record.faults else None,
        "input_file_id": order.input_file,
        "completion_window": order.window,
        "status": record.status.value,
        "output_file_id": record.output_file,
        "error_file_id": record.error_file,
        "created_at": record.created,
        "expires_at": record.expires,
        **{f"{name}_at": record.times.get(name) for name in _TIMES},
        "request_counts": {"total": record.total, "completed": record.completed, "failed": record.failed},
        "metadata": order.metadata,
    }


def result_of(line: BatchLine, response: LineResponse) -> LineResult:
    """The line of the output or the error file that tells of a response."""
    told = {"status_code": response.status, "request_id": response.request_id, "body": json.loads(response.body)}
    return LineResult(response.status == 200, _line(line, told, None))


def lost(line: BatchLine, ends_as: BatchStatus) -> str:
    """The line of the error file for a line that was not computed."""
    code, message = _WHY_LOST.get(ends_as, ("batch_failed", "This line was not computed."))
    return _line(line, None, {"code": code, "message": message})


def given_up(line: BatchLine, message: str) -> LineResult:
    """The line of the error file for a line that cannot be computed."""
    return LineResult(False, _line(line, None, {"code": "line_failed", "message": message}))


def _line(line: BatchLine, response: Mapping[str, Any] | None, error: Mapping[str, str] | None) -> str:
    told = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    return json.dumps(told, separators=(",", ":"))


def page(
    found: Sequence[One], query: Mapping[str, str], name: Callable[[One], str], shown: Callable[[One], Json], most: int
) -> Json:
    """A page of what was found: `limit` of it behind `after`. Raises InvalidRequest or NotFound for the query."""
    rest, after = list(found), query.get("after")
    if after is not None:
        places = [place for place, one in enumerate(rest) if name(one) == after]
        if not places:
            raise NotFound("'after': there is no such id in the list.", param="after")
        rest = rest[places[0] + 1 :]
    limit = _limit(query.get("limit"), most)
    data = [shown(one) for one in rest[:limit]]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(rest) > limit,
    }


def _limit(text: str | None, most: int) -> int:
    if text is None:
        return min(most, 10_000) if most > 100 else 20
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= most:
        raise InvalidRequest(f"'limit': expected a number from 1 to {most}.", param="limit")
    return int(text)
