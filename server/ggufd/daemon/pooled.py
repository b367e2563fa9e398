"""Served models of a pool: a swap for a request, and one that an admin asks for, take the same way.

An admin names a known model, or any other as `-m` takes it, which is known from then on. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ggufd.daemon.known_models import KnownModels, known_model
from ggufd.daemon.served import ServedModels, changed
from ggufd.engine.queueing.fairness import TokenCounters
from ggufd.errors import InvalidRequest
from ggufd.model_pool.catalogue import KnownModel
from ggufd.model_pool.pool import ModelPool, PoolRules
from ggufd.planner.known_plans import plan_known
from ggufd.settings import sources
from ggufd.settings.config import Config

if TYPE_CHECKING:
    from ggufd.api.services.services import Report, Show

logger = logging.getLogger("ggufd")

ADMIN = "\0admin"
"""Account of a model that an admin had loaded: no key has this name."""


_POLL_S = 0.1


class PooledModels:
    """Holder of the served model and of the pool of those that are known. A `ModelSwitcher`.

    `tokens` is what the engines of the models charge.
    """

    def __init__(self, served: ServedModels, known: KnownModels, config: Config, tokens: TokenCounters) -> None:
        self._served = served
        self._configs = dict(known.configs)
        rules = PoolRules(
            config.pool.swap_after_s, config.queue.max_queue, config.queue.max_queue_wait_s, config.pool.swap_retry_s
        )
        self.pool = ModelPool(known.catalogue, known.first, self._load, rules, kept=known.kept, tokens=tokens)
        served.carry(self.pool.standing)

    def bind(self, show: Show) -> None:
        """As `ServedModels.bind`."""
        self._served.bind(show)

    async def plan(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the planner says of a model that `settings` name."""
        return await self._served.plan_of(self._config_of(settings))

    async def change(self, settings: Mapping[str, Any], report: Report) -> None:
        """Serve the model that `settings` name. See `api.services.services.ModelSwitcher`."""
        self._served.check_idle()
        self._check_not_kept(settings.get("model"))
        config = self._config_of(settings)

        async def load() -> KnownModel:
            await self._served.change_to(config, report)
            return self._learn(config)

        await self.pool.change(config.name or config.model.model, load, ADMIN)

    def _check_not_kept(self, asked: object) -> None:
        """Raises InvalidRequest for a model that is loaded beside."""
        known = self.pool.catalogue.find(asked) if isinstance(asked, str) else None
        if known is not None and known.name in self.pool.kept:
            raise InvalidRequest(
                f"'{known.name}' stays loaded beside the model that is swapped: [models.{known.name}] in the settings "
                "says keep_loaded. Take that away and start the server again to have it loaded otherwise.",
                param="model",
            )

    def _config_of(self, settings: Mapping[str, Any]) -> Config:
        """Settings of a known model with what was said besides, or of any other model. Raises InvalidRequest."""
        asked = settings.get("model")
        known = self.pool.catalogue.find(asked) if isinstance(asked, str) else None
        if known is None:
            return changed(self._served.served.config, settings)
        base, more = self._configs[known.name], {key: value for key, value in settings.items() if key != "model"}
        if not more:
            return base
        # The names of settings, and what may be one, are checked as for any other model.
        changed(base, {"model": base.model.model or known.source or ".", **more})
        return sources.revise(base, more).model_copy(update={"name": base.name})

    def _learn(self, config: Config) -> KnownModel:
        """What is known of the model that is served now. One that was not known before is, from now on."""
        served = self._served.served
        name = served.api.model_id
        if name not in self._configs:
            self._configs[name] = config.model_copy(update={"name": name})
        aliases = tuple(one for one in served.api.model_aliases if one != served.file.path.name)
        return known_model(name, config.model.model, aliases, served.file)

    async def _load(self, name: str) -> None:
        """Load a known model for a request. Raises GgufdError."""
        await self._until_streams_end()
        await self._served.change_to(self._configs[name], lambda stage, share: None)
        self.note_served()

    async def make_plans(self) -> None:
        """Have the planner say of each model whether it fits. Models that were not downloaded yet have none."""
        here = {model.name: self._configs[model.name] for model in self.pool.catalogue if model.facts is not None}
        try:
            self.pool.plans.update(await plan_known(here, self.pool.loaded, sorted(self.pool.kept)))
        except OSError as error:
            logger.warning("the plans of the known models could not be made: %s", error)

    async def _until_streams_end(self) -> None:
        """Wait for resumable streams: they go on without their client, and so without a turn."""
        engine, left_s = self._served.served.engine, self.pool.rules.max_wait_s
        while engine.n_running + engine.n_waiting and left_s > 0:
            await asyncio.sleep(_POLL_S)
            left_s -= _POLL_S

    def note_served(self) -> None:
        """Note what the file of the served model says: it may have been downloaded just now."""
        self.pool.catalogue.add(self._learn(self._served.served.config))
