"""Exception tree: every error that a user of the server can meet.

    GgufdError                      500 server_error
    ├── StartupError                shown in one line, exit code 1
    │   ├── ConfigError             a setting is unknown or impossible
    │   └── ModelError              the model cannot be found, read or loaded
    │       └── ModelTooLarge       not enough memory for it
    ├── InvalidRequest              400 invalid_request_error
    │   ├── ContextLengthExceeded   400, code context_length_exceeded
    │   └── Unsupported             400, code unsupported
    ├── Unauthorized                401 authentication_error
    │   └── NotAPeer                401, code invalid_peer_token: a server of a cluster answers its cluster only
    ├── Forbidden                   403 permission_error: needs an admin key
    ├── ForeignPage                 403 permission_error: cross-origin page or unknown Host
    ├── NotFound                    404 not_found_error
    ├── RequestEnded                410 request_ended: by its own key or an admin, from elsewhere
    ├── PayloadTooLarge             413 invalid_request_error
    ├── SwitchedOff                 501 not_supported_error: a route that the settings switched off
    ├── EngineFailure               500 server_error: this request failed, the server goes on
    └── TryLater                    with Retry-After
        ├── TooManyRequests         429 rate_limit_error: this key is over its limits
        └── Unavailable             503 service_unavailable
            ├── QueueFull           code queue_full
            ├── QueueTimeout        code queue_timeout
            ├── EngineDown          code engine_down: loading, restarting or given up
            └── Draining            code shutting_down

The API maps by class, never by message text. Across a process boundary go the code, the message, the field and the
seconds until a retry; `from_code` rebuilds the exception on the other side. So each class has a code of its own, and
takes nothing but these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Self


class GgufdError(Exception):
    """Root of the exception tree. `message` says what is wrong, what was expected and what to do."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.details: dict[str, int] = {}
        """Numbers of the message by the names that programs know; they do not cross to another process."""


class StartupError(GgufdError):
    """Failure to start; shown in one line, exit code 1."""

    code = "startup_failed"


class ConfigError(StartupError):
    """Setting that is unknown, of the wrong type or impossible."""

    code = "invalid_config"


class ModelError(StartupError):
    """Model that cannot be found, read or loaded."""

    code = "model_unusable"


class ModelTooLarge(ModelError):
    """Out of memory for a model, in RAM or on a GPU."""

    code = "model_too_large"


class InvalidRequest(GgufdError):
    """Invalid request: sending it again cannot help. `param` names the field."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """Prompt that does not fit into the context of a slot, or input that is too long for one embedding."""

    code = "context_length_exceeded"

    @classmethod
    def of_prompt(cls, n_prompt: int, n_ctx: int, *, param: str = "prompt") -> Self:
        """A prompt that alone does not fit."""
        error = cls(
            f"This model's maximum context length is {n_ctx} tokens, but the prompt has {n_prompt} tokens "
            f"and at least one more is needed for the answer, which exceeds the available context size. Shorten the "
            f"prompt, or start the server with a larger --ctx-size.",
            param=param,
        )
        error.details = {"n_prompt_tokens": n_prompt, "n_ctx": n_ctx}
        return error

    @classmethod
    def of_input(cls, n_tokens: int, n_ctx: int, *, param: str = "input") -> Self:
        """Input to embed or rerank that is longer than the context for it."""
        return cls(
            f"'{param}' is too large: it has {n_tokens} tokens, but at most {n_ctx} become one vector here. Split the "
            f"text.",
            param=param,
        )


class Unsupported(InvalidRequest):
    """Known field that this server or model does not support."""

    code = "unsupported"


class Unauthorized(GgufdError):
    """Missing or wrong API key."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotAPeer(Unauthorized):
    """Missing or wrong token of the cluster that the server belongs to."""

    code = "invalid_peer_token"


class Forbidden(GgufdError):
    """Valid key whose role does not allow this."""

    status = 403
    type = "permission_error"
    code = "admin_key_required"


class ForeignPage(GgufdError):
    """Browser request from a page of another origin, or with a Host that is not the server's."""

    status = 403
    type = "permission_error"
    code = "foreign_page"


class NotFound(GgufdError):
    """Unknown route or object."""

    status = 404
    type = "not_found_error"
    code = "not_found"


class RequestEnded(GgufdError):
    """Request that somebody ended who may, by its id; clients must not send it again by themselves."""

    status = 410
    type = "request_ended"
    code = "request_ended"


class PayloadTooLarge(GgufdError):
    """Request body over the configured limit."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class SwitchedOff(GgufdError):
    """Route that the settings switched off."""

    status = 501
    type = "not_supported_error"
    code = "switched_off"


class EngineFailure(GgufdError):
    """Failure of one request inside the engine; the server goes on."""

    code = "engine_failure"

    @classmethod
    def without_answer(cls) -> Self:
        """A request whose events ended before its answer did."""
        return cls("The engine ended this request without an answer. Send it again.")


class TryLater(GgufdError):
    """Temporary refusal; `retry_after_s` is the measured time until a retry makes sense."""

    status = 503
    type = "service_unavailable"
    code = "try_later"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class TooManyRequests(TryLater):
    """Rate limit of the key, though the server could do more."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Unavailable(TryLater):
    """Server that cannot take requests now, from any key."""

    code = "unavailable"


class QueueFull(Unavailable):
    """Queue at its limit."""

    code = "queue_full"


class QueueTimeout(Unavailable):
    """Request that waited in the queue up to its time limit."""

    code = "queue_timeout"


class EngineDown(Unavailable):
    """Engine process that is loading, restarting, or has been given up."""

    code = "engine_down"


class Draining(Unavailable):
    """Server that is shutting down."""

    code = "shutting_down"


def tree(root: type[GgufdError] = GgufdError) -> Iterator[type[GgufdError]]:
    """`root` and all classes of this module under it: those that a room adds for itself cross no boundary by name."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == __name__:
            yield from tree(child)


def from_code(code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> GgufdError:
    """Exception rebuilt from its flattened values; an unknown code becomes `EngineFailure`."""
    cls = next((one for one in tree() if one.code == code), EngineFailure)
    error = cls(message, param=param)
    if isinstance(error, TryLater) and retry_after_s is not None:
        error.retry_after_s = retry_after_s
    return error
