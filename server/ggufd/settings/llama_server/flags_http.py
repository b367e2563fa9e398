"""Flags about the HTTP server: address, keys, routes, pages, tools, log."""

from __future__ import annotations

from typing import Any

from ggufd.settings.llama_server import readings
from ggufd.settings.llama_server.flag import (
    Flag,
    Refused,
    Shows,
    Taken,
    fixed,
    plain,
    sets,
    switch,
    valued,
)
from ggufd.settings.llama_server.readings import names

_TOOLS = "this server runs no tools, it only passes calls on; run them in the client, or behind an MCP program of yours"
_PAGE = "the page has no settings of its own"
_CORS = "what a page may send is the same for all of --cors-origins"


def _timeout(value: str) -> dict[str, Any]:
    seconds = readings.number(value)
    return {"read_timeout_s": seconds, "write_timeout_s": seconds}


def _ping(value: str) -> float:
    """-1 is never."""
    seconds = readings.number(value)
    return 1e9 if seconds < 0 else seconds


def _level(value: str) -> str:
    """llama-server's verbosity: 1 errors, 2 warnings, 3 information, above it debugging."""
    verbosity = readings.whole(value)
    return ("error", "error", "warning", "info")[max(0, verbosity)] if verbosity < 4 else "debug"


def _host(value: str) -> str:
    if ".sock" in value:
        raise ValueError("addresses of this machine, separated by commas; UNIX sockets are llama-server's alone")
    return value


ADDRESS: tuple[Flag, ...] = (
    valued("--host", sets("host", read=_host), "LLAMA_ARG_HOST"),
    valued("--port", sets("port"), "LLAMA_ARG_PORT"),
    plain("--reuse-port", Taken("a port belongs to one server"), "LLAMA_ARG_REUSE_PORT"),
    valued("--api-prefix", sets("root_path", read=lambda value: value.rstrip("/")), "LLAMA_ARG_API_PREFIX"),
    valued("--api-key", sets("api_key", read=names), "LLAMA_API_KEY", repeats=True),
    valued("--api-key-file", sets("api_key_file"), "LLAMA_ARG_API_KEY_FILE"),
    valued("--ssl-key-file", sets("ssl_key_file"), "LLAMA_ARG_SSL_KEY_FILE"),
    valued("--ssl-cert-file", sets("ssl_cert_file"), "LLAMA_ARG_SSL_CERT_FILE"),
    valued("-to --timeout", sets("read_timeout_s", "write_timeout_s", read=_timeout), "LLAMA_ARG_TIMEOUT"),
    valued("--sse-ping-interval", sets("ping_s", read=_ping), "LLAMA_ARG_SSE_PING_INTERVAL"),
    valued("--cors-origins", sets("cors_origins", read=names), "LLAMA_ARG_CORS_ORIGINS"),
    valued("--cors-methods", Taken(_CORS), "LLAMA_ARG_CORS_METHODS"),
    valued("--cors-headers", Taken(_CORS), "LLAMA_ARG_CORS_HEADERS"),
    switch(
        "--cors-credentials",
        "--no-cors-credentials",
        Taken("nothing here reads cookies; keys go in a header"),
        Taken("credentials are never asked for"),
        "LLAMA_ARG_CORS_CREDENTIALS",
    ),
)

ROUTES: tuple[Flag, ...] = (
    plain("--metrics", Taken("GET /metrics is there anyway, for --metrics-for"), "LLAMA_ARG_ENDPOINT_METRICS"),
    plain("--props", Taken("there is no property that POST /props could change"), "LLAMA_ARG_ENDPOINT_PROPS"),
    switch("--slots", "--no-slots", fixed(slots=True), fixed(slots=False), "LLAMA_ARG_ENDPOINT_SLOTS"),
)

PAGES: tuple[Flag, ...] = (
    switch("--ui --webui", "--no-ui --no-webui", fixed(ui=True), fixed(ui=False), "LLAMA_ARG_UI"),
    valued(
        "--path",
        Refused("files are not served here; serve the pages with a web server, and name it in --cors-origins"),
        "LLAMA_ARG_STATIC_PATH",
    ),
    valued("--ui-config --webui-config", Taken(_PAGE), "LLAMA_ARG_UI_CONFIG"),
    valued("--ui-config-file --webui-config-file", Taken(_PAGE), "LLAMA_ARG_UI_CONFIG_FILE"),
    switch(
        "--ui-mcp-proxy --webui-mcp-proxy",
        "--no-ui-mcp-proxy --no-webui-mcp-proxy",
        Refused(_TOOLS),
        Taken("there is no proxy"),
        "LLAMA_ARG_UI_MCP_PROXY",
    ),
    valued("--tools", Refused(_TOOLS), "LLAMA_ARG_TOOLS"),
    valued("--tools-runtime", Refused(_TOOLS), "LLAMA_ARG_TOOLS_RUNTIME"),
    valued("--mcp-servers-config", Refused(_TOOLS), "LLAMA_ARG_MCP_SERVERS_CONFIG"),
    valued("--mcp-servers-json", Refused(_TOOLS), "LLAMA_ARG_MCP_SERVERS_JSON"),
    switch("-ag --agent", "-no-ag --no-agent", Refused(_TOOLS), Taken("no tools are run"), "LLAMA_ARG_AGENT"),
)

LOG: tuple[Flag, ...] = (
    plain("--log-disable", fixed(log_level="error")),
    valued("--log-file", sets("log_file"), "LLAMA_ARG_LOG_FILE"),
    switch(
        "--log-jsonl",
        "--no-log-jsonl",
        fixed(log_format="json"),
        fixed(log_format="text"),
        "LLAMA_ARG_LOG_JSONL",
    ),
    valued(
        "--log-prompts-dir",
        Refused("prompts are written to no file; --log-level debug shows parts of them"),
    ),
    valued("--log-colors", Taken("the log is coloured on a terminal, and nowhere else"), "LLAMA_ARG_LOG_COLORS"),
    plain("-v --verbose --log-verbose", fixed(log_level="debug")),
    valued("-lv --verbosity --log-verbosity", sets("log_level", read=_level), "LLAMA_ARG_LOG_VERBOSITY"),
    switch(
        "--log-prefix",
        "--no-log-prefix",
        Taken("a line begins with its time and level"),
        Taken("a line begins with its time and level"),
        "LLAMA_ARG_LOG_PREFIX",
    ),
    switch(
        "--log-timestamps",
        "--no-log-timestamps",
        Taken("a line begins with its time"),
        Taken("a line begins with its time"),
        "LLAMA_ARG_LOG_TIMESTAMPS",
    ),
)

PROGRAM: tuple[Flag, ...] = (
    plain("-h --help --usage", Shows("help")),
    plain("--version", Shows("version")),
    plain("--completion-bash", Refused("there are no completions for a shell; -h lists the options")),
)
