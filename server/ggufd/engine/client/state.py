"""States of the engine as the API's process sees it, and the transitions between them."""

from __future__ import annotations

import enum


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
