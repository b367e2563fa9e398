"""Intake of requests: open, paused for a while, or closed for good."""

from __future__ import annotations

from ggufd.engine.client.state import Condition, EngineState
from ggufd.errors import Draining, GgufdError, Unavailable


class Intake:
    """Whether new requests are taken. Those that wait or run are no concern of it."""

    def __init__(self, condition: Condition) -> None:
        self.refusal: GgufdError | None = None
        """What new requests are refused with; None where they are taken."""
        self._is_closed = False
        self._condition = condition

    def check(self) -> None:
        """Raises the refusal, where there is one."""
        if self.refusal is not None:
            raise self.refusal

    def close(self, refusal: GgufdError | None = None) -> GgufdError:
        """Refuse requests from now on, since the engine is to end; returns what they are refused with."""
        self._is_closed = True
        self.refusal = refusal or Draining("the server is shutting down and takes no new requests")
        return self.refusal

    def pause(self) -> None:
        """Refuse requests until `resume`. Nothing happens to one that is closed."""
        if self.refusal is None:
            self.refusal = Unavailable(
                "the server was told to drain and takes no new requests for now; try again later", retry_after_s=10
            )
            self._condition.tell(EngineState.DRAINING)

    def resume(self) -> None:
        """Take requests again after `pause`. Raises Draining where it is closed."""
        if self._is_closed:
            raise Draining("the server is shutting down, or another model is being loaded: that cannot be taken back")
        if self.refusal is not None:
            self.refusal = None
            self._condition.tell(self._condition.state)
