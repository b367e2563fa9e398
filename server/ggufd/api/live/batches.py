"""Batches in the live view: those that have not ended, as one caller may see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ggufd.api.live.sight import Sight
from ggufd.api.services.services import Services
from ggufd.batches.records import BatchRecord
from ggufd.errors import GgufdError


class OpenBatch(NamedTuple):
    """Batch that has not ended, and the name of the key that made it; "" of none that is known."""

    record: BatchRecord
    name: str


async def open_batches(services: Services) -> tuple[OpenBatch, ...]:
    """All open batches; none where there is no folder for them, or its database does not answer."""
    if services.batches is None:
        return ()
    names = {key.digest.hex(): key.name for key in services.config.keys or ()}
    try:
        records = await services.batches.run(lambda store: store.batches.all_open())
    except GgufdError:
        return ()
    return tuple(OpenBatch(record, names.get(record.owner, "")) for record in records)


def batches_json(batches: Sequence[OpenBatch], sight: Sight) -> list[dict[str, Any]]:
    """The rows that a caller is shown."""
    return [
        {
            "id": record.batch_id,
            "owner": name or None,
            "state": record.status.value,
            "endpoint": record.order.endpoint,
            "lines": record.total,
            "lines_left": record.n_left,
            "lines_failed": record.failed,
            "expires_at": record.expires,
        }
        for record, name in batches
        if sight.shows(name)
    ]
