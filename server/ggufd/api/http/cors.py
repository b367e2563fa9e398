"""Cross-origin requests of web pages (CORS), from the origins of the settings. Knows no route."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

LOCAL = "localhost"
"""What stands in the settings for every page that this machine itself serves, at whatever port."""

LOCAL_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?"


class CrossOriginMiddleware(CORSMiddleware):
    """CORS for `origins`: `*` is all, `localhost` the pages of this machine.

    A preflight from elsewhere is no fault of the request: it is answered without the header that would allow it.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=[origin for origin in origins if origin != LOCAL],
            allow_origin_regex=LOCAL_ORIGIN if LOCAL in origins else None,
            allow_methods=["*"],
            allow_headers=["*"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if not self.is_allowed_origin(request_headers["origin"]):
            return Response(headers={"Vary": "Origin"})
        return response
