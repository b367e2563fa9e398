"""Front page at `GET /`: JSON for programs, a short page for people, without scripts or other files."""

from __future__ import annotations

import html
from string import Template
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from ggufd import __version__
from ggufd.api.http.json_response import json_response
from ggufd.api.services.services import Services, services_of

router = APIRouter(tags=["operations"])

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Vary": "Accept",
}

_LINKS = {
    "docs": "/docs",
    "models": "/v1/models",
    "health": "/health",
    "props": "/props",
    "slots": "/slots",
}

_CLIENTS = (
    ("SillyTavern, Text Completion", "API type <b>llama.cpp</b>, API URL", ""),
    ("SillyTavern, Chat Completion", "source <b>Custom (OpenAI-compatible)</b>, endpoint", "/v1"),
    ("Programs for OpenAI's API", "base URL", "/v1"),
    ("Programs for Anthropic's API", "base URL", ""),
    ("Programs for KoboldCpp", "URL", "/api"),
    ("Programs for Ollama", "host", ""),
)
"""Who connects, in which words, and what follows this server's address there."""


@router.get("/")
async def front(request: Request) -> Response:
    """Name, model and links of this server."""
    services = services_of(request)
    if "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(_page(services, str(request.base_url).rstrip("/")), headers=_HEADERS)
    return json_response(_summary(services), headers={"Vary": "Accept"})


def _summary(services: Services) -> dict[str, Any]:
    ready = services.engine.ready
    return {
        "name": "ggufd",
        "version": __version__,
        "model": services.config.model_id,
        "state": services.engine.state.name.lower(),
        "n_ctx": ready.n_ctx if ready is not None else None,
        "slots": ready.n_slots if ready is not None else None,
        "links": _LINKS,
    }


def _page(services: Services, url: str) -> str:
    summary = _summary(services)
    return _PAGE.substitute(
        model=html.escape(summary["model"]),
        version=html.escape(__version__),
        state=html.escape(_state(summary)),
        links=" ".join(f'<a href="{html.escape(url + path)}">{name}</a>' for name, path in _LINKS.items()),
        clients="\n".join(_row(name, what, url + path) for name, what, path in _CLIENTS),
        key="Use one of this server's keys as the API key."
        if services.config.keys is not None
        else "No API key is needed.",
    )


def _state(summary: dict[str, Any]) -> str:
    if summary["n_ctx"] is None:
        return f"{summary['state']}, the model is not there yet"
    return (
        f"{summary['state']}, {summary['slots']} conversations at once, {summary['n_ctx']} tokens of context for each"
    )


def _row(name: str, what: str, url: str) -> str:
    return f"<tr><th>{name}</th><td>{what} <code>{html.escape(url)}</code></td></tr>"


_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ggufd: $model</title>
<style>
:root { color-scheme: light dark; }
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 46rem; margin: 10vh auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p { margin: .25rem 0; }
.quiet { opacity: .7; }
nav a { margin-right: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; font-weight: normal; padding: .45rem .75rem .45rem 0;
  border-top: 1px solid rgb(128 128 128 / .35); }
code { font: .95em ui-monospace, monospace; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$model</h1>
<p class="quiet">served by ggufd $version: $state</p>
<nav>$links</nav>
<h2>How to connect</h2>
<table>
$clients
</table>
<p class="quiet">$key For programs on other machines: start the server with <code>--host 0.0.0.0</code>, and give them
this machine's address.</p>
</body>
</html>
"""
)
