"""Cached attributes of a native handle, each read once, on first use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

Read = Callable[[Any], Any]
"""A function of the binding that takes the handle alone."""


def number(read: Read) -> cached_property[int]:
    return cached_property(lambda owner: int(read(owner.handle)))


def flag(read: Read) -> cached_property[bool]:
    return cached_property(lambda owner: bool(read(owner.handle)))


def token(read: Read) -> cached_property[int | None]:
    """A token, or None where llama.cpp says -1: there is no such token."""
    return cached_property(lambda owner: token_or_none(read(owner.handle)))


def token_or_none(found: int) -> int | None:
    return int(found) if found >= 0 else None
