"""Routes that all replicas answer together: what they tell is put together, what they are told is told to all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlencode

from starlette.responses import Response

from ggufd.api.http.error_shape import openai_body
from ggufd.api.http.json_response import json_response
from ggufd.api.services.metrics import MEDIA_TYPE
from ggufd.cluster.ingress.asked import AskedRequest
from ggufd.cluster.ingress.everyone import Everyone, Told, bodies_of
from ggufd.cluster.ingress.live_relay import LiveRelay
from ggufd.cluster.ingress.model_change import ModelChange
from ggufd.cluster.merging import lists
from ggufd.cluster.merging.exposition import merged_exposition
from ggufd.cluster.relay.failures import none_left

_PROBE_S = 2.0
_ALIVE = "/health/live"

_LIVE = "/v1/live"
"""Without its prefix it is the page that shows it."""

_MERGED: Mapping[tuple[str, str], lists.Merge] = {
    ("GET", "/queue"): lists.queue,
    ("GET", "/slots"): lists.slots,
    ("GET", "/models"): lists.models,
    ("GET", "/api/tags"): lists.ollama_models,
    ("GET", "/api/ps"): lists.ollama_models,
    ("GET", "/streams"): lists.data,
    ("GET", "/cache/advice"): lists.data,
    ("POST", "/streams/lookup"): lists.concatenated,
    ("GET", "/api/extra/generate/check"): lists.longest_text,
    ("POST", "/api/extra/generate/check"): lists.longest_text,
    ("GET", "/api/extra/perf"): lists.performance,
    ("POST", "/api/extra/abort"): lists.aborted,
}

_TOLD_TO_ALL = frozenset(
    (
        ("POST", "/lora-adapters"),
        ("POST", "/models/unload"),
        ("POST", "/drain"),
        ("DELETE", "/drain"),
        ("POST", "/sleep"),
        ("POST", "/internal/stop-generation"),
    )
)
_LOAD = ("POST", "/models/load")
_PAGED = frozenset((("GET", "/files"), ("GET", "/batches")))
_PROBES = frozenset(("/health", "/ready", "/health/ready"))

Answer = Callable[[AskedRequest], Awaitable[Response]]


class FanOut:
    """Answers of all replicas together."""

    def __init__(self, everyone: Everyone) -> None:
        self._everyone = everyone

    def find(self, asked: AskedRequest) -> Answer | None:
        """What answers a request; None where one replica does."""
        method = "GET" if asked.method == "HEAD" else asked.method
        key = (method, asked.route)
        if key in _MERGED:
            return self._merged
        if key in _TOLD_TO_ALL:
            return self._told_to_all
        if key in _PAGED:
            return self._paged
        if key == _LOAD:
            return self._load
        if method == "GET" and asked.route in _PROBES:
            return self._health
        if method == "GET" and asked.path == _LIVE:
            return self._live
        return {("GET", "/metrics"): self._metrics, ("GET", _ALIVE): self._alive}.get(key)

    async def _merged(self, asked: AskedRequest) -> Response:
        told = await self._everyone.ask(asked)
        bodies = bodies_of(told)
        method = "GET" if asked.method == "HEAD" else asked.method
        return json_response(_MERGED[method, asked.route](bodies)) if bodies else _refused(told)

    async def _paged(self, asked: AskedRequest) -> Response:
        """A list of which each replica has a part: the page is cut from all of it."""
        query = {name: value for name, value in asked.query.items() if name in ("purpose", "order")}
        target = f"{asked.target.partition('?')[0]}?{urlencode(query)}"
        told = await self._everyone.ask(asked, target=target)
        bodies = bodies_of(told)
        limit = asked.query.get("limit", "1")
        if not bodies or not limit.isdecimal() or not int(limit[:6]):
            # What is wrong with it a replica says.
            return _refused(told if not bodies else await self._everyone.ask(asked))
        return json_response(lists.page(bodies, asked.query))

    async def _told_to_all(self, asked: AskedRequest) -> Response:
        """The first failure; where there is none, the first answer."""
        told = await self._everyone.ask(asked, patience_s=None)
        return _refused(told) if not all(one.is_well for one in told) or not told else told[0].as_response()

    async def _load(self, asked: AskedRequest) -> Response:
        """Another model, in one replica after the other, so that the rest serves meanwhile."""
        return await ModelChange(self._everyone, asked).response()

    async def _metrics(self, asked: AskedRequest) -> Response:
        told = await self._everyone.ask(asked)
        pages = {one.replica.id: one.body.decode() for one in told if one.is_well}
        if not pages:
            return _refused(told)
        return Response(merged_exposition(pages), headers={"content-type": MEDIA_TYPE})

    async def _live(self, asked: AskedRequest) -> Response:
        return await LiveRelay(self._everyone, asked).response()

    async def _health(self, asked: AskedRequest) -> Response:
        """200 where one replica takes requests, and what each says."""
        told = await self._everyone.ask(asked, patience_s=_PROBE_S, method="GET")
        states = {one.replica.id: _state(one) for one in told}
        for replica in await self._everyone.all():
            states.setdefault(replica.id, "gone")
        well = [one for one in told if one.is_well]
        if well:
            return json_response({"status": _state(well[0]), "replicas": states})
        message = "The cluster takes no requests now: none of its servers does."
        error = openai_body(message, status=503, kind="service_unavailable", param=None, code="no_replica")
        body = {"status": _state(told[0]) if told else "gone", **error, "replicas": states}
        return json_response(body, status=503, headers={"Retry-After": "2"})

    async def _alive(self, asked: AskedRequest) -> Response:
        """The ingress itself."""
        return json_response({"status": "ok"})


def _state(told: Told) -> str:
    try:
        return str(told.json.get("status"))
    except (ValueError, AttributeError):
        return str(told.status)


def _refused(told: list[Told]) -> Response:
    """The first answer that refuses. Raises NoReplica where nobody answered."""
    for one in told:
        if not one.is_well:
            return one.as_response()
    if told:
        return told[0].as_response()
    raise none_left(1)
