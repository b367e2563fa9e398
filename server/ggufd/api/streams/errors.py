"""Errors of resumable streams. They cross no process boundary."""

from __future__ import annotations

from ggufd.errors import GgufdError, NotFound


class StreamGone(NotFound):
    """Events of a stream that were sent once and are not kept any more."""

    status = 410
    code = "stream_gone"

    @classmethod
    def beginning(cls, first: int) -> StreamGone:
        """Events before number `first`."""
        return cls(
            f"The beginning of this stream is not kept any more: it had more bytes than may be kept, and event {first} "
            f"is the oldest that is left. Go on from there with 'Last-Event-ID: {first - 1}', or send the request "
            "again."
        )

    @classmethod
    def whole(cls) -> StreamGone:
        """A stream that had to make room while it was read."""
        return cls("This stream is not kept any more: newer ones took its room. Send the request again.")


class Unread(GgufdError):
    """Answer that was ended because nobody read it for too long."""

    status = 408
    type = "timeout_error"
    code = "stream_unread"

    @classmethod
    def after(cls, seconds: float) -> Unread:
        """An answer without a reader for so long."""
        return cls(f"Nobody read this answer for {seconds:g} s, so it was ended. Send the request again.")


def no_stream(stream_id: str, kept_s: float) -> NotFound:
    """Error for an id that is unknown to the caller. The same words for what is another's: they tell nothing."""
    return NotFound(
        f"There is no resumable stream '{stream_id[:100]}' of this key. It may have ended more than {kept_s:g} s ago, "
        "been deleted, been pushed out by newer ones, or been started without 'resumable' set to true."
    )
