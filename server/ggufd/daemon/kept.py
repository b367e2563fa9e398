"""Models that stay loaded beside the one that is swapped: loaded one after the other at the start, ended with it.

Each has an engine and a text process of its own, as the model that is swapped has; a crash of one ends no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ggufd.daemon.served import Served
from ggufd.errors import ModelError, StartupError

if TYPE_CHECKING:
    from ggufd.api.services.services import ModelInstance

logger = logging.getLogger("ggufd")


class KeptModels:
    """Holder of the models beside, by name."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self._served = dict(served)

    @property
    def instances(self) -> dict[str, ModelInstance]:
        """What the API serves them with."""
        from ggufd.api.services.services import ModelInstance

        return {name: ModelInstance(one.engine, one.text, one.api, one.images) for name, one in self._served.items()}

    async def load(self) -> None:
        """Load them all. Raises ModelError that names the one which cannot be served.

        One after the other, and before the model that is swapped: what each may take goes by the memory that is free.
        """
        for name, one in self._served.items():
            try:
                one.engine.start()
                await asyncio.gather(one.wait_ready(), one.start_text(), one.start_images())
            except StartupError as error:
                raise ModelError(f"[models.{name}] keep_loaded: {error.message}") from None
            logger.info("%s is loaded, and stays", name)

    async def drain(self, within_s: float) -> None:
        """Refuse new requests, and let those that run end, for so many seconds."""
        for one in self._served.values():
            one.engine.drain()
        idle = [one.engine.wait_idle() for one in self._served.values()]
        try:
            await asyncio.wait_for(asyncio.gather(*idle), within_s)
        except TimeoutError:
            n_open = sum(one.engine.n_running + one.engine.n_waiting for one in self._served.values())
            logger.warning("stopping; requests of models beside cut off at the deadline: %d", n_open)

    async def stop(self) -> None:
        """End their processes."""
        await asyncio.gather(*(one.stop() for one in self._served.values()))
