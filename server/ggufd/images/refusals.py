"""Refusals of images, which name their place: of several images only one may be wrong."""

from __future__ import annotations

from ggufd.errors import InvalidRequest


def at_place(error: InvalidRequest, place: str) -> InvalidRequest:
    """The refusal with its place in a request, in `param` and in the message: not every API has the former."""
    return InvalidRequest(f"'{place}': {error.message[:1].lower()}{error.message[1:]}", param=place)
