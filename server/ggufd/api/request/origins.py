"""Source paths of a converted request: an error in our chat request names the field that the client sent.

Knows no API: the converters note what they made of what.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ggufd.errors import InvalidRequest


class Origins:
    """Map from paths in a chat request, such as `messages[2].content`, to the client's own paths."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}

    def note(self, ours: str, theirs: str) -> None:
        """`ours` was made of `theirs`, and so was everything below it that is not noted itself."""
        self._paths[ours] = theirs

    def of(self, path: str) -> str:
        """The client's name for `path`, which is `path` itself where nothing is noted."""
        head = path
        while head:
            if head in self._paths:
                return self._paths[head] + path[len(head) :]
            head = head[: max(head.rfind("."), head.rfind("["), 0)]
        return path

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Inside, an InvalidRequest about the chat request becomes one about the client's own."""
        try:
            yield
        except InvalidRequest as error:
            if error.param is not None:
                theirs = self.of(error.param)
                error.message = error.message.replace(f"'{error.param}'", f"'{theirs}'")
                error.param = theirs
            raise
