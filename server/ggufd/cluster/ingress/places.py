"""Places of what only one replica has: stored responses, resumable streams, files and batches, by their ids.

Found by asking all of them; what was seen lately is remembered, which saves the question. The memory is a shortcut and
nothing else: it may be wrong or empty, and what it says is asked of a replica, which knows whose each thing is.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from urllib.parse import quote

from ggufd.api.http.body import parse_json
from ggufd.cluster.ingress.asked import AskedRequest
from ggufd.cluster.ingress.everyone import Everyone
from ggufd.cluster.merging.names import parts_of
from ggufd.cluster.replicas import Replica
from ggufd.errors import InvalidRequest

_MOST_REMEMBERED = 10_000

_BY_PATH = re.compile(r"/(responses|streams|files|batches)/([^/]+)(/.*)?$")
_NEW_ID = re.compile(rb'"id":\s*"((?:resp|file|batch)[-_][A-Za-z0-9_-]+)"')
_SLOT = re.compile(r"/slots/[^/]+$")
_REQUEST = re.compile(r"(.*/requests/)([^/]+)$")

_NAMED_IN_BODY = (("/responses", "previous_response_id", "responses"), ("/batches", "input_file_id", "files"))
"""Routes whose body names a thing that must be there: the route, the field, and where the thing is asked for."""


class PlaceMemory:
    """Ids and where they were seen; the least recently used are forgotten."""

    def __init__(self, most: int = _MOST_REMEMBERED) -> None:
        self._most = most
        self._places: OrderedDict[str, str] = OrderedDict()

    def note(self, thing: str, replica_id: str) -> None:
        """A replica has this."""
        self._places[thing] = replica_id
        self._places.move_to_end(thing)
        while len(self._places) > self._most:
            self._places.popitem(last=False)

    def of(self, thing: str) -> str | None:
        """The id of the replica that had it."""
        return self._places.get(thing)


class Places:
    """Finder of the replica that a request has to go to."""

    def __init__(self, everyone: Everyone) -> None:
        self._everyone = everyone
        self.memory = PlaceMemory()

    def learn(self, replica_id: str, data: bytes) -> None:
        """Note the ids that the beginning of an answer names."""
        for found in _NEW_ID.findall(data):
            self.memory.note(found.decode(), replica_id)

    async def find(self, asked: AskedRequest) -> Replica | None:
        """The one replica for a request; None where any may answer, if only that it does not know.

        Raises InvalidRequest.
        """
        if (named := asked.query.get("replica")) is not None:
            return await self._listed(named)
        if (match := _REQUEST.match(asked.target)) and asked.method == "DELETE":
            return await self._of_request(asked, match)
        if _SLOT.match(asked.route) and asked.method == "POST":
            return await self._of_slot()
        if asked.route == "/stream" and "conv_id" in asked.query:
            return await self._of_conversation(asked, asked.query["conv_id"])
        for kind, thing in _things(asked):
            if (found := await self._of(asked, kind, thing)) is not None:
                return found
        return None

    async def _of(self, asked: AskedRequest, kind: str, thing: str) -> Replica | None:
        replicas = {replica.id: replica for replica in await self._everyone.all()}
        if (known := self.memory.of(thing)) in replicas:
            return replicas[known or ""]
        if len(replicas) < 2:
            return None
        told = await self._everyone.ask(asked, method="HEAD", target=f"/v1/{kind}/{quote(thing, safe='')}")
        found = next((one.replica for one in told if one.is_well), None)
        if found is not None:
            self.memory.note(thing, found.id)
        return found

    async def _of_conversation(self, asked: AskedRequest, name: str) -> Replica | None:
        """The replica with the newest stream of a conversation: earlier ones may have been elsewhere."""
        body = json.dumps({"conversation_ids": [name]}).encode()
        told = await self._everyone.ask(asked, method="POST", target="/v1/streams/lookup", body=body)
        begun = [
            (one["started_at"], told_by.replica)
            for told_by in told
            if told_by.is_well
            for one in told_by.json
            if one["conversation_id"] == name
        ]
        return max(begun, key=lambda pair: pair[0])[1] if begun else None

    async def _of_request(self, asked: AskedRequest, match: re.Match[str]) -> Replica | None:
        """The replica of a request by its name in the queue; the replica is asked for its own number."""
        name = asked.path.rpartition("/")[2]
        parts = parts_of(name)
        if parts is None:
            if len(await self._everyone.all()) < 2:
                return None
            raise InvalidRequest(
                f"'{name[:40]}': expected the id of a request as /v1/queue tells it, with its replica: 12@a."
            )
        number, replica_id = parts
        asked.target = f"{match[1]}{quote(number)}"
        return await self._listed(replica_id)

    async def _of_slot(self) -> Replica | None:
        if len(await self._everyone.all()) < 2:
            return None
        raise InvalidRequest(
            "Say whose slot it is: add 'replica=' with the replica that GET /slots tells.", param="replica"
        )

    async def _listed(self, replica_id: str) -> Replica:
        """Raises InvalidRequest where there is none of this id."""
        replicas = await self._everyone.all()
        for replica in replicas:
            if replica.id == replica_id:
                return replica
        names = ", ".join(replica.id for replica in replicas)
        raise InvalidRequest(
            f"'replica': there is no replica '{replica_id[:40]}'. There are: {names}.", param="replica"
        )


def _things(asked: AskedRequest) -> Iterator[tuple[str, str]]:
    """What a request names that only one replica has: in its path, or in its body."""
    if match := _BY_PATH.match(asked.route):
        kind, thing, _ = match.groups()
        if thing not in ("input_tokens", "lookup"):
            yield kind, thing
        return
    for route, field, kind in _NAMED_IN_BODY:
        if asked.method == "POST" and asked.route == route and f'"{field}"'.encode() in _bytes(asked):
            named = _named(_bytes(asked), field)
            if named:
                yield kind, named


def _bytes(asked: AskedRequest) -> bytes:
    return asked.body if isinstance(asked.body, bytes) else b""


def _named(body: bytes, field: str) -> str:
    try:
        named = parse_json(body).get(field)
    except InvalidRequest:
        # A replica will say what is wrong.
        return ""
    return named if isinstance(named, str) else ""
