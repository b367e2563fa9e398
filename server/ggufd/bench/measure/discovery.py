"""What a server says of itself: model, slots, context, version."""

from __future__ import annotations

from typing import Any

from ggufd.bench.measure.client import BenchError, Client
from ggufd.bench.measure.site import MeasuredServer


async def discover(client: Client, max_slots: int | None = None, other_api_key: str | None = None) -> MeasuredServer:
    """Ask `/v1/models` and `/props` who the server is; what it does not say stays None."""
    models = await _ask(client, "/v1/models")
    data = models.get("data")
    entry: dict[str, Any] = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    name = entry.get("id")
    if client.model is None and isinstance(name, str):
        client.model = name
    props = await _ask(client, "/props")
    settings = props.get("default_generation_settings") or {}
    meta = entry.get("meta") or {}
    return MeasuredServer(
        client,
        n_ctx=_first_integer(settings.get("n_ctx"), meta.get("n_ctx"), entry.get("max_model_len")),
        n_slots=_first_integer(props.get("total_slots"), max_slots),
        model=_first_text(props.get("model_path"), name),
        build=_first_text(props.get("build_info"), entry.get("owned_by")),
        other=None if other_api_key is None else client.with_key(other_api_key),
    )


async def _ask(client: Client, path: str) -> dict[str, Any]:
    """The route's object; empty where the server has no such route. Not reached at all, or no key, is an error."""
    try:
        return await client.get(path)
    except BenchError as error:
        if error.status is None or error.status in (401, 403, 503):
            raise
        return {}


def _first_integer(*values: object) -> int | None:
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _first_text(*values: object) -> str | None:
    return next((value for value in values if isinstance(value, str) and value), None)
