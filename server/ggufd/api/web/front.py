"""`GET /`: the web page for a browser, JSON for programs. `GET /live`, and the files of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from ggufd import __version__
from ggufd.api.http.json_response import json_response
from ggufd.api.http.paths import own_path
from ggufd.api.request.path_router import PathRouter
from ggufd.api.services.services import Services, services_of
from ggufd.api.web.assets import Asset, web_assets
from ggufd.errors import NotFound

router = APIRouter(tags=["operations"])
pages = PathRouter(tags=["operations"], include_in_schema=False)

LIVE = "/live"
FILES = "/ui"
"""Where the files of the pages lie; the version of their content follows."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
}

_LINKS = {
    "docs": "/docs",
    "models": "/v1/models",
    "health": "/health",
    "props": "/props",
    "slots": "/slots",
}


def is_page(scope: Scope) -> bool:
    """Whether a browser asks for a page or a file of one: these hold no data, and need no key."""
    path = own_path(scope)
    if scope["method"] != "GET":
        return False
    return (path == "/" and _wants_page(Headers(scope=scope))) or path == LIVE or path.startswith(f"{FILES}/")


@router.get("/")
async def front(request: Request) -> Response:
    """Name, model and links of this server; the web page for a browser, unless the server was started with --no-ui."""
    services = services_of(request)
    if services.config.ui and _wants_page(request.headers):
        return _page(request, "index.html")
    return json_response(_summary(services), headers={"Vary": "Accept"})


@pages.get(LIVE)
async def live_page(request: Request) -> Response:
    """The page of the live view."""
    return _page(request, "live.html")


@pages.get(f"{FILES}/{{version}}/{{name:path}}")
async def web_file(request: Request, version: str, name: str) -> Response:
    """A file of the pages. Its address names its content, so that a browser never asks for it twice."""
    assets = web_assets()
    asset = assets.files.get(name) if version == assets.version else None
    if asset is None:
        raise NotFound("There is no such file of the web page. Reload the page.")
    return _sent(request, asset, {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"})


def _wants_page(headers: Headers) -> bool:
    return "text/html" in headers.get("accept", "")


def _page(request: Request, name: str) -> Response:
    if _is_deeper(request.scope):
        return RedirectResponse(f"..{LIVE}")
    return _sent(
        request,
        web_assets().pages[name],
        {"Cache-Control": "no-cache", "Vary": "Accept, Accept-Encoding", **_HEADERS},
    )


def _is_deeper(scope: Scope) -> bool:
    """Whether the page was asked for as a folder of its own, from which the addresses in it would lead astray."""
    sent: bytes = scope.get("raw_path") or b""
    return sent.partition(b"?")[0].endswith(LIVE.encode() + b"/")


def _sent(request: Request, asset: Asset, headers: Mapping[str, str]) -> Response:
    headers = {**headers, "ETag": asset.etag, "X-Content-Type-Options": "nosniff"}
    if request.headers.get("if-none-match") == asset.etag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(asset.compressed, headers=headers, media_type=asset.media_type)
    return Response(asset.plain, headers=headers, media_type=asset.media_type)


def _summary(services: Services) -> dict[str, Any]:
    ready = services.engine.ready
    return {
        "name": "ggufd",
        "version": __version__,
        "model": services.config.model_id,
        "models": 1 if services.pool is None else len(services.pool.catalogue),
        "state": services.engine.state.name.lower(),
        "n_ctx": ready.n_ctx if ready is not None else None,
        "slots": ready.n_slots if ready is not None else None,
        "links": _LINKS,
    }
