"""Handlers that get the parts of their path."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.responses import JSONResponse, Response

from ggufd.api.request.path_router import PathRouter

router = PathRouter()


@router.get("/files/{file_id}/lines/{line}")
async def read_line(request: Request, file_id: str, line: str) -> Response:
    """A line of a file."""
    return JSONResponse([request.method, file_id, line])


@router.get("/models/{model_id:path}")
async def read_model(request: Request, model_id: str) -> Response:
    """A model."""
    return JSONResponse(model_id)


@router.get("/files")
async def read_files(request: Request) -> Response:
    """All files."""
    return JSONResponse([])


@pytest.fixture(scope="module")
def app() -> FastAPI:
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    app.include_router(router, include_in_schema=False)
    return app


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/files/a%20b/lines/7", ["GET", "a b", "7"]),
        ("/models/owner/name.gguf", "owner/name.gguf"),
        ("/files", []),
    ],
    ids=str,
)
def test_the_parts_of_a_path_are_texts(app: FastAPI, prefix: str, path: str, said: Any) -> None:
    answer = TestClient(app).get(prefix + path)
    assert (answer.status_code, answer.json()) == (200, said)


def test_they_are_documented_as_fastapi_documents_them(app: FastAPI) -> None:
    plain = FastAPI()

    async def read_line(file_id: str, line: str) -> Response:
        """A line of a file."""
        return Response()

    plain.get("/v1/files/{file_id}/lines/{line}")(read_line)
    expected = plain.openapi()["paths"]["/v1/files/{file_id}/lines/{line}"]["get"]
    # A part that is any text cannot be wrong.
    del expected["responses"]["422"]
    assert app.openapi()["paths"]["/v1/files/{file_id}/lines/{line}"]["get"] == expected


def test_a_path_without_parts_has_none_documented(app: FastAPI) -> None:
    assert "parameters" not in app.openapi()["paths"]["/v1/files"]["get"]
