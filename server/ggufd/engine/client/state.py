"""States of the engine as the API's process sees it, the transitions between them, and what its users are told.

A state is entered by the engine's supervisor; those who watch are told of it. Knows no process and no request.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Set
from pathlib import Path

from ggufd.engine.messages.config import EngineConfig
from ggufd.errors import EngineDown
from ggufd.llama.gguf.gguf_header import parts_of

_FIRST_LOAD_S = 5.0
_FAILED_RETRY_S = 60


class EngineState(enum.Enum):
    """State of the engine's process and its model.

                     loaded                  idle for `sleep_idle_s`
         LOADING ----------------> READY --------------------------> SLEEPING
            |                      |  ^  ^                            |    ^
            |         exit or hang |  |  |                    request |    | cannot be loaded
            |                      v  |  |                            v    |
            |              RESTARTING-+  +--------------------------- WAKING
            |    too often in |    loaded            loaded
            v    a row        v
           FAILED <-----------+

    LOADING fails at once: nothing was ever served. RESTARTING and WAKING may try several processes, each with less of
    the GPU (`retreat`). `stop` leads from everywhere to STOPPED. DRAINING is no transition: it is what a client shows
    from `drain` on, whatever the engine does. Requests are taken in READY, SLEEPING and WAKING.
    """

    LOADING = "loading"
    READY = "ready"
    SLEEPING = "sleeping"
    WAKING = "waking"
    RESTARTING = "restarting"
    FAILED = "failed"
    DRAINING = "draining"
    STOPPED = "stopped"


ASLEEP = frozenset((EngineState.SLEEPING, EngineState.WAKING))
TAKES_REQUESTS = ASLEEP | {EngineState.READY}
IS_LOADING = frozenset((EngineState.LOADING, EngineState.WAKING, EngineState.RESTARTING))

_NEXT: dict[EngineState, frozenset[EngineState]] = {
    EngineState.LOADING: frozenset((EngineState.READY, EngineState.FAILED)),
    EngineState.READY: frozenset((EngineState.SLEEPING, EngineState.RESTARTING)),
    EngineState.SLEEPING: frozenset((EngineState.WAKING,)),
    EngineState.WAKING: frozenset((EngineState.READY, EngineState.SLEEPING)),
    EngineState.RESTARTING: frozenset((EngineState.READY, EngineState.RESTARTING, EngineState.FAILED)),
}


def may_follow(state: EngineState, then: EngineState) -> bool:
    """Whether the drawing has a transition from `state` to `then`."""
    return then is EngineState.STOPPED or then in _NEXT.get(state, ())


class Condition:
    """State of the engine of `config`, from LOADING on.

    `trouble` is why there is no engine now that there was one, in words for the user; empty where there is, or it
    sleeps. `load_s` is how long the model took to load.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.state = EngineState.LOADING
        self.trouble = ""
        self.load_s = _FIRST_LOAD_S
        self._config = config
        self._watchers: list[Callable[[EngineState], None]] = []

    def watch(self, tell: Callable[[EngineState], None]) -> None:
        """Call `tell` with every state that the engine enters from now on."""
        self._watchers.append(tell)

    def tell(self, state: EngineState) -> None:
        """Tell those who watch of a state."""
        for tell in self._watchers:
            tell(state)

    def enter(self, state: EngineState, trouble: str | None = None) -> None:
        """Enter a state; a `trouble` replaces what there was."""
        assert may_follow(self.state, state), f"the engine cannot become {state.name} from {self.state.name}"
        self.state = state
        if trouble is not None:
            self.note_trouble(trouble)
        self.tell(state)

    def note_trouble(self, why: str) -> None:
        """Tell from now on why there is trouble, without folders."""
        self.trouble = self._without_folders(why)

    def require(self, states: Set[EngineState]) -> None:
        """Raises EngineDown unless the engine is in one of these states."""
        if self.state not in states:
            raise self._refusal()

    def stopped(self) -> EngineDown:
        """What is said of an engine that has ended as it should."""
        return EngineDown("the engine has stopped; try again soon", retry_after_s=self.load_s)

    def lost(self, reason: str) -> EngineDown:
        """What requests end with whose process is lost for `reason`."""
        told = f"{self._without_folders(reason)}; the request is lost. It is being started again"
        return EngineDown(told, retry_after_s=self.load_s)

    def _refusal(self) -> EngineDown:
        """Refusal of what needs the engine, by its state."""
        match self.state:
            case EngineState.LOADING:
                return EngineDown("the model is still being loaded; try again in a few seconds", retry_after_s=2)
            case EngineState.FAILED:
                return EngineDown(f"the engine was given up: {self.trouble}", retry_after_s=_FAILED_RETRY_S)
            case EngineState.STOPPED:
                return self.stopped()
            case state if state in ASLEEP:
                why = "the model is unloaded while nobody uses it; a request loads it"
                return EngineDown(why, retry_after_s=self.load_s)
        return EngineDown(
            f"the engine is being started again; try again in {math.ceil(self.load_s)} s: {self.trouble}",
            retry_after_s=self.load_s,
        )

    def _without_folders(self, message: str) -> str:
        """Message without the folders of the files that are loaded: requests may come from anybody."""
        for path in _files_of(self._config):
            message = message.replace(path, Path(path).name)
        return message


def _files_of(config: EngineConfig) -> list[str]:
    model = config.model
    draft = [] if config.draft is None else [config.draft.model.path]
    parts = map(str, parts_of(Path(model.path)))
    return [*parts, *model.loras, *(vector.path for vector in model.control_vectors), *draft]
