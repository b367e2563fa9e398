"""Error handlers: whatever is raised becomes an answer that says what is wrong, and never a traceback."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ggufd.api.http.error_shape import REQUEST_ID_HEADER, shape_of
from ggufd.api.http.json_response import error_response, json_response
from ggufd.api.http.record import DISCONNECTED, note_error, record_of
from ggufd.api.http.requestlog import log_crash
from ggufd.errors import GgufdError, NotFound

logger = logging.getLogger(__name__)

_CLIENT_GONE = 499


def add_error_handlers(app: FastAPI) -> None:
    """Register the handlers, each of which answers in the shape of the API that was asked."""
    app.add_exception_handler(GgufdError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    app.add_exception_handler(Exception, _on_crash)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GgufdError)
    note_error(request.scope, error.code)
    return error_response(error, request.scope)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    code = str(error.detail).lower().replace(" ", "_")
    note_error(request.scope, code)
    if error.status_code == 404:
        missing = NotFound(f"There is no route {request.method} {request.url.path}. See /docs.")
        return error_response(missing, request.scope)
    message = f"{request.method} {request.url.path}: {error.detail}."
    body = shape_of(request.scope).body(
        message, status=error.status_code, kind="invalid_request_error", param=None, code=code
    )
    return json_response(body, status=error.status_code, headers=headers)


async def _on_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this; the status is for the log."""
    note_error(request.scope, DISCONNECTED)
    return Response(status_code=_CLIENT_GONE)


async def _on_crash(request: Request, error: Exception) -> Response:
    log_crash(logger, f"{request.method} {request.url.path[:60]!a} failed", error)
    failed = GgufdError("The server failed on this request. Its log says why.")
    response = error_response(failed, request.scope)
    response.headers[REQUEST_ID_HEADER] = record_of(request).request_id
    return response
