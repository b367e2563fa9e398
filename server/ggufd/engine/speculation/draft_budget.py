"""Budget of time for rejected draft tokens, so that drafts cannot make texts slower that do not repeat themselves.

It grows by a hundredth of the time of all steps and by what accepted tokens saved, and pays for the rows that were
rejected. A draft whose rows it could not pay for, should all of them be rejected, is not made. A draft model has
another one, which also pays for what the draft model computes.
"""

from __future__ import annotations

SHARE = 0.01
"""Share of the time of all steps that rejected rows may take."""

_FIRST_STEPS, _MOST_STEPS = 2.0, 20.0
"""What it begins with and holds at most, in steps without drafts: enough for a first one, and for a long one."""


class DraftBudget:
    """Budget of all sequences together, in steps without drafts."""

    def __init__(self) -> None:
        self._n_steps = _FIRST_STEPS

    def earn(self) -> None:
        """Add the share of a step."""
        self.add(SHARE)

    def allows(self, took: float) -> bool:
        """Whether a step that takes so many steps' time could be paid for, should all of its drafts be rejected."""
        return took - 1 <= self._n_steps

    def settle(self, took: float, needed: float, worth: float) -> None:
        """Pay for the rejected tokens of a step, and add what the accepted ones saved.

        In steps without drafts: what it took, what it would have taken with the accepted tokens only, and how many
        would have been needed for as many tokens.
        """
        self.add(max(0.0, worth - needed) - max(0.0, took - needed))

    def add(self, n_steps: float) -> None:
        """Add what was saved, or pay where it is below zero."""
        self._n_steps = min(_MOST_STEPS, self._n_steps + n_steps)
