"""Every flag and variable of the vendored llama-server, in one table.

tests/settings/llama_server/test_table.py holds it to llama.cpp's `common/arg.cpp`, both ways.
"""

from __future__ import annotations

from collections.abc import Mapping

from ggufd.settings.llama_server import flags_answer, flags_context, flags_http, flags_model
from ggufd.settings.llama_server.flag import Flag

SECTIONS: Mapping[str, tuple[Flag, ...]] = {
    "Model": flags_model.SOURCES,
    "Images": flags_model.IMAGES,
    "Loading": flags_model.LOADING,
    "Placement": flags_model.PLACEMENT,
    "Context": flags_context.CONTEXT,
    "Threads": flags_context.THREADS,
    "Caches": flags_context.CACHES,
    "Speculative decoding": flags_context.SPECULATION,
    "Sampling": flags_answer.SAMPLING,
    "Output": flags_answer.OUTPUT,
    "Chat": flags_answer.CHAT,
    "Address": flags_http.ADDRESS,
    "Routes": flags_http.ROUTES,
    "Pages and tools": flags_http.PAGES,
    "Log": flags_http.LOG,
    "Program": flags_http.PROGRAM,
}
"""The flags, by what they are about."""

TABLE: tuple[Flag, ...] = tuple(flag for flags in SECTIONS.values() for flag in flags)

BY_NAME: Mapping[str, Flag] = {name: flag for flag in TABLE for name in (*flag.names, *flag.off_names)}

BY_VARIABLE: Mapping[str, Flag] = {name: flag for flag in TABLE for name in flag.variables}
