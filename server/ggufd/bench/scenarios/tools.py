"""tools: decode rate of chats with tools beside chats without, and the duration of a required call."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.site import Case, Figure, Site, Sizes
from ggufd.bench.measure.words import sentences
from ggufd.bench.scenarios.decode import plural, rates, ratios

NAME = "tools"
PROMPT = 24
TOOLS = 4
STREAMS = (1, 8)
ROOM = 800
"""Tokens that the tools may take in a prompt."""

_CALL_TOKENS = 200


def cases(sizes: Sizes) -> list[Case]:
    """One stream and eight, or as many as are measured at most."""
    counts = sorted({min(n, max(sizes.streams)) for n in STREAMS})
    needs = sizes.decode_tokens + PROMPT + ROOM
    return [Case(NAME, plural(n), needs, partial(_measure, n), streams=n) for n in counts]


def drawn_tools(source: random.Random, n: int) -> list[dict[str, Any]]:
    """So many tools with arguments of a few kinds; their names are drawn anew."""
    return [_tool(source, index) for index in range(n)]


def _tool(source: random.Random, index: int) -> dict[str, Any]:
    names = [sentences(source, 2).rstrip(".").lower().replace(" ", "_") for _ in range(3)]
    properties = {
        f"{names[0]}_a": {"type": "string", "maxLength": 24},
        f"{names[1]}_b": {"type": "integer"},
        f"{names[2]}_c": {"enum": ["low", "high"]},
    }
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    name = f"tool_{index}_{names[0]}"[:60]
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}


async def _measure(n: int, site: Site) -> list[Figure]:
    """Chats without tools first, then chats that may call them, then with a call that must be made.

    The first are as long as the server makes the others: the deeper, the slower is every token. Prompts are read before
    the clock runs: they are long, and servers differ in whom they let wait for it.
    """
    n_tokens = site.sizes.decode_tokens
    may_call = [{**_chat(site, PROMPT), "tools": drawn_tools(site.words.random, TOOLS)} for _ in range(n)]
    told = await site.together([""] * n, 1, may_call)
    plain = [_chat(site, answer.prompt_tokens or PROMPT) for answer in told]
    await site.together([""] * n, 1, plain)
    free = rates(NAME, plural(n), await site.together([""] * n, n_tokens, plain))
    await site.together([""] * n, 1, may_call)
    offered = rates(NAME, plural(n), await site.together([""] * n, n_tokens, may_call))
    figures = [figure for figure in offered if n == 1 or figure.metric.quantity == "all streams"]
    figures += ratios(figures, free, "over as long a chat")
    must = {"tool_choice": "required", "parallel_tool_calls": False, "ignore_eos": False}
    calls = await site.together([""] * n, _CALL_TOKENS, [{**one, **must} for one in may_call])
    metric = Metric(NAME, plural(n), "a required call", "s", Better.LOWER)
    return [*figures, Figure(metric, max(call.times[-1] - call.sent for call in calls))]


def _chat(site: Site, n_tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": site.words.text(n_tokens)}]}
