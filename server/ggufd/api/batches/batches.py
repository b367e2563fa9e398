"""`/v1/batches`: create, read, list, cancel and delete. A batch exists for the key that made it, and nobody else."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import AfterValidator, Field, Strict, WithJsonSchema
from starlette.responses import Response

from ggufd.api.batches.files import LEAST_KEPT_S, MOST_KEPT_S, store_of
from ggufd.api.batches.lines import ENDPOINTS
from ggufd.api.batches.objects import batch_json, page
from ggufd.api.batches.worker import BatchWorker
from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.request.docs import documented, error_responses
from ggufd.api.request.path_router import PathRouter
from ggufd.api.request.sampling import Int
from ggufd.api.request.validation import Body, validate
from ggufd.api.services.services import caller_of, services_of
from ggufd.batches.records import BatchOrder, BatchRecord
from ggufd.batches.store import BatchStore

router = PathRouter(tags=["OpenAI"])

_MOST_LISTED = 100
_MAX_WINDOW_S = 7 * 24 * 3600
_MAX_METADATA = 16
_UNIT_S = {"h": 3600, "d": 24 * 3600}


def _window(text: str) -> str:
    if not _seconds(text):
        raise ValueError("expected hours or days up to a week, such as '24h' or '7d'")
    return text


def _seconds(window: str) -> int:
    """Seconds of a completion window; 0 for one that is none."""
    found = re.fullmatch(r"([1-9][0-9]{0,2})([hd])", window)
    seconds = int(found[1]) * _UNIT_S[found[2]] if found else 0
    return seconds if seconds <= _MAX_WINDOW_S else 0


class OutputExpiry(Body):
    """How long the files of a batch are kept, from when they are made."""

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[Int, Field(ge=LEAST_KEPT_S, le=MOST_KEPT_S)]


Text = Annotated[str, Strict(), Field(max_length=512)]
Name = Annotated[str, Strict(), Field(max_length=64)]


_EXPIRY = {
    "type": "object",
    "properties": {
        "anchor": {"type": "string", "enum": ["created_at"]},
        "seconds": {"type": "integer", "minimum": LEAST_KEPT_S, "maximum": MOST_KEPT_S},
    },
    "required": ["seconds"],
}


class BatchRequest(Body):
    """The lines of `input_file_id` are sent to `endpoint`, each once, within `completion_window`."""

    input_file_id: Annotated[str, Strict()]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
    completion_window: Annotated[str, Strict(), AfterValidator(_window)] = "24h"
    metadata: Annotated[dict[Name, Text], Field(max_length=_MAX_METADATA)] | None = None
    output_expires_after: Annotated[OutputExpiry, WithJsonSchema(_EXPIRY)] | None = None


_EXAMPLE = {"input_file_id": "file-0", "endpoint": ENDPOINTS[0], "completion_window": "24h"}


@router.post("/batches", **documented(BatchRequest, {"lines of chat": _EXAMPLE}))
async def create_batch(request: Request) -> Response:
    """Compute the lines of an uploaded file when there is nothing else to do."""
    store, caller = store_of(request), caller_of(request)
    fields = validate(BatchRequest, await read_json(request, services_of(request).config.max_body_bytes), {})
    expiry = fields.output_expires_after
    order = BatchOrder(
        endpoint=fields.endpoint,
        input_file=fields.input_file_id,
        window=fields.completion_window,
        window_s=_seconds(fields.completion_window),
        keep_output_s=store.keep_s if expiry is None else expiry.seconds,
        address=caller.address,
        metadata=fields.metadata,
    )
    record = await store.run(BatchStore.create, caller.key_digest, order)
    return _told(request, record)


@router.get("/batches")
async def list_batches(request: Request) -> Response:
    """Batches of the caller's key, the newest first."""
    records = await store_of(request).run(lambda store: store.batches.all_of(caller_of(request).key_digest))
    model = services_of(request).config.model_id

    def shown(record: BatchRecord) -> dict[str, Any]:
        return batch_json(record, model)

    return json_response(page(records, request.query_params, lambda one: one.batch_id, shown, _MOST_LISTED))


@router.get("/batches/{batch_id}")
async def get_batch(request: Request, batch_id: str) -> Response:
    """Status, counts and files of a batch."""
    return _told(
        request, await store_of(request).run(lambda store: store.batches.get(caller_of(request).key_digest, batch_id))
    )


@router.post("/batches/{batch_id}/cancel", responses=error_responses())
async def cancel_batch(request: Request, batch_id: str) -> Response:
    """End a batch; what is computed already is kept."""
    return _told(request, await store_of(request).run(BatchStore.cancel, caller_of(request).key_digest, batch_id))


@router.delete("/batches/{batch_id}")
async def delete_batch(request: Request, batch_id: str) -> Response:
    """Forget a batch that has ended; its files stay."""
    await store_of(request).run(BatchStore.delete, caller_of(request).key_digest, batch_id)
    return json_response({"id": batch_id, "object": "batch", "deleted": True})


def _told(request: Request, record: BatchRecord) -> Response:
    """The batch; the worker looks at it now."""
    worker: BatchWorker = request.app.state.batch_worker
    worker.wake()
    return json_response(batch_json(record, services_of(request).config.model_id))
