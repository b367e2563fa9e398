"""The limits of waiting that no test measures."""

from __future__ import annotations

ANSWER_S = 30
"""For one answer of a server under test: httpx's own 5 s are not enough where other processes have the cores."""
