"""`/v1/files`: upload, list, read and delete. A file exists for the key that made it, and nobody else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from ggufd.api.batches.multipart import FILE_FIELD, Form, boundary_of, read_form
from ggufd.api.batches.objects import file_json, page
from ggufd.api.http.json_response import json_response
from ggufd.api.request.docs import error_responses
from ggufd.api.request.path_router import PathRouter
from ggufd.api.services.services import caller_of, services_of
from ggufd.batches.files import FileWriter
from ggufd.batches.records import StoredFile
from ggufd.batches.store import BatchStore
from ggufd.errors import InvalidRequest, NotFound, Unavailable, Unsupported

logger = logging.getLogger(__name__)

router = PathRouter(tags=["OpenAI"])

LEAST_KEPT_S = 3600
MOST_KEPT_S = 30 * 24 * 3600
"""Bounds of how long a file may be asked to be kept, as OpenAI has them."""

_PIECE = 256 * 1024
_MOST_LISTED = 10_000
_DISK_RETRY_S = 60

_FORM = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": LEAST_KEPT_S, "maximum": MOST_KEPT_S},
    },
    "required": ["file", "purpose"],
}
_UPLOAD: dict[str, Any] = {
    "openapi_extra": {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
    "responses": error_responses(),
}


def store_of(request: Request) -> BatchStore:
    """The store of batches. Raises Unsupported where the server has none."""
    store = services_of(request).batches
    if store is None:
        raise Unsupported(
            "Batches are off here: their files are kept in a folder, and none is set. Whoever runs the server can "
            "start it with --batch-dir FOLDER."
        )
    return store


@router.post("/files", **_UPLOAD)
async def create_file(request: Request) -> Response:
    """Upload a file of lines for a batch, as a form."""
    store, owner = store_of(request), caller_of(request).key_digest
    boundary = boundary_of(request.headers.get("content-type", ""))
    try:
        upload = _Upload(store, await store.run(BatchStore.new_upload, owner))
        return json_response(file_json(await upload.read(request, boundary, owner)))
    except OSError as error:
        logger.error("a file could not be stored: %s", error)
        raise Unavailable(
            f"The file could not be stored: {error}. Try again when whoever runs the server has looked at its disk.",
            retry_after_s=_DISK_RETRY_S,
        ) from None


class _Upload:
    """Upload to `writer`, in pieces large enough for a thread."""

    def __init__(self, store: BatchStore, writer: FileWriter) -> None:
        self._store = store
        self._writer = writer
        self._held = bytearray()

    async def read(self, request: Request, boundary: bytes, owner: str) -> StoredFile:
        """Read the form and keep its file, or nothing. Raises InvalidRequest, PayloadTooLarge, StorageFull, OSError."""
        try:
            form = await read_form(request.stream(), boundary, self._write)
            keep_s = _checked(form, self._store.keep_s)
            await self._flush()
            assert form.filename is not None
            return await self._store.run(BatchStore.keep_upload, self._writer, owner, form.filename, keep_s)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(self._writer.drop))
            raise

    async def _write(self, piece: bytes) -> None:
        self._held += piece
        if len(self._held) >= _PIECE:
            await self._flush()

    async def _flush(self) -> None:
        held, self._held = bytes(self._held), bytearray()
        await self._store.run(lambda _: self._writer.write(held))


def _checked(form: Form, keep_s: int) -> int:
    """Seconds to keep a file for. Raises InvalidRequest for what is wrong with its form."""
    if form.filename is None:
        raise InvalidRequest("'file': is required but missing.", param=FILE_FIELD)
    purpose = form.fields.get("purpose")
    if purpose != "batch":
        got = "is required but missing" if purpose is None else f"expected 'batch', got {purpose[:60]!a}"
        raise InvalidRequest(f"'purpose': {got}; files are kept for batches only.", param="purpose")
    if form.fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise InvalidRequest("'expires_after[anchor]': expected 'created_at'.", param="expires_after[anchor]")
    seconds = form.fields.get("expires_after[seconds]")
    if seconds is None:
        return keep_s
    if not seconds.isascii() or not seconds.isdecimal() or not LEAST_KEPT_S <= int(seconds[:9]) <= MOST_KEPT_S:
        raise InvalidRequest(
            f"'expires_after[seconds]': expected {LEAST_KEPT_S} to {MOST_KEPT_S}.", param="expires_after[seconds]"
        )
    return int(seconds)


@router.get("/files")
async def list_files(request: Request) -> Response:
    """Files of the caller's key, the newest first unless `order` is `asc`; `purpose` chooses among them."""
    store, query = store_of(request), request.query_params
    files = await store.run(lambda store: store.files.all_of(caller_of(request).key_digest))
    order, purpose = query.get("order", "desc"), query.get("purpose")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order': expected one of asc, desc.", param="order")
    if order == "desc":
        files.reverse()
    chosen = [file for file in files if purpose in (None, file.purpose)]
    return json_response(page(chosen, query, lambda file: file.file_id, file_json, _MOST_LISTED))


@router.get("/files/{file_id}")
async def get_file(request: Request, file_id: str) -> Response:
    """What is known of a file."""
    return json_response(
        file_json(await store_of(request).run(lambda store: store.files.get(caller_of(request).key_digest, file_id)))
    )


@router.delete("/files/{file_id}")
async def delete_file(request: Request, file_id: str) -> Response:
    """Delete a file, unless a batch is being computed from it."""
    await store_of(request).run(BatchStore.delete_file, caller_of(request).key_digest, file_id)
    return json_response({"id": file_id, "object": "file", "deleted": True})


@router.get("/files/{file_id}/content")
async def get_file_content(request: Request, file_id: str) -> Response:
    """The content of a file."""
    store = store_of(request)
    file, path = await store.run(BatchStore.content, caller_of(request).key_digest, file_id)
    try:
        content = await asyncio.to_thread(Path.open, path, "rb")
    except OSError:
        raise NotFound(f"The content of the file '{file.file_id}' is gone.") from None
    headers = {"Content-Length": str(file.n_bytes)}
    return StreamingResponse(_pieces(content), headers=headers, media_type="application/octet-stream")


async def _pieces(content: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while piece := await asyncio.to_thread(content.read, _PIECE):
            yield piece
    finally:
        content.close()
