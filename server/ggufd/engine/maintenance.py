"""Idle maintenance, and checks of the engine's own consistency."""

from __future__ import annotations

from ggufd.engine.backend.interfaces import Grammars
from ggufd.engine.costs.cost_file import CostFile
from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.embeddings.embedding import Embedder
from ggufd.engine.step.lifecycle import Lifecycle

_CHECK_EVERY = 256
"""Steps between two consistency checks, which cost some microseconds a slot."""


class Maintenance:
    """What an engine does beside its requests."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        embedder: Embedder,
        grammars: Grammars,
        costs: StepCosts,
        cost_file: CostFile | None = None,
    ) -> None:
        self._lifecycle = lifecycle
        self._embedder = embedder
        self._grammars = grammars
        self._costs = costs
        self._cost_file = cost_file
        self._n_steps = 0

    def run_idle(self) -> bool:
        """A short piece of work that is best done while there are no requests; returns whether there is more.

        Raises `EngineFailure` when the engine is inconsistent: a new engine is better than another request's text.
        """
        self.check_integrity()
        self._grammars.prepare()
        self._lifecycle.cache.offload.save_next()
        pre_roll = self._lifecycle.pre_roll
        if pre_roll is None or not pre_roll.has_work:
            return False
        pre_roll.step()
        return pre_roll.has_work

    def note_step(self) -> None:
        """Check the consistency after every 256th step. Raises `EngineFailure`."""
        self._n_steps += 1
        if self._n_steps % _CHECK_EVERY == 0:
            self.check_integrity()

    def close(self, timeout_s: float) -> None:
        """End of the engine: what can be kept for the next one is saved, within that time."""
        self._lifecycle.close(timeout_s)
        if self._cost_file is not None and self._costs.learned is not None:
            self._cost_file.write(self._costs.learned)

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless queue, running sequences, slots and embedding requests agree."""
        self._lifecycle.check_integrity()
        self._embedder.check_integrity()
        self._lifecycle.queue.check_integrity(self._lifecycle.running, self._embedder.standing)
