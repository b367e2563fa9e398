"""Encoding of a request's images, which ends when its caller aborts it, or loses its key."""

from __future__ import annotations

import asyncio

from ggufd.api.images.prompts import ImagePrompt
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import Services
from ggufd.engine.messages.events import Finish
from ggufd.engine.messages.images import ImageSpan
from ggufd.errors import GgufdError, RequestEnded

Encoding = asyncio.Task[tuple[ImageSpan, ...]]


class RunningEncoding:
    """Encoding among a caller's running generations, of which nothing was said yet."""

    text = ""

    def __init__(self, caller: Caller, task: Encoding) -> None:
        self.caller = caller
        self.finishes: list[Finish] = []
        self.error: GgufdError | None = None
        self._task = task

    def abort(self) -> None:
        """End it: its request is over."""
        self.refuse(RequestEnded("This request was aborted while its images were encoded. Send it again if wanted."))

    def refuse(self, error: GgufdError) -> None:
        """End it with this error."""
        self.error = error
        self._task.cancel()


async def encode_images(services: Services, caller: Caller, images: ImagePrompt) -> tuple[ImageSpan, ...]:
    """The images of a prompt with the files of their rows. Raises what refuses one, or ends the request."""
    task = asyncio.create_task(images.encoded())
    running = RunningEncoding(caller, task)
    services.activity.enter(running)
    try:
        with services.revocations.during(caller, running.refuse):
            return await task
    except asyncio.CancelledError:
        if running.error is None:
            raise
        raise running.error from None
    finally:
        task.cancel()
        services.activity.leave(running)
