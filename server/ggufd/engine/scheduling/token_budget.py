"""Token budget of a step: how many rows of prefill it may compute, by what they cost and how long a gap may be.

The budget keeps the step under `max_gap_ms` while a sequence decodes, or under `max_gap_steps` of its own steps where
those are slow: inter-token latency (ITL) is felt beside the usual pace, and a new request waits for many such steps.
For the same reason a gap is shorter on a machine that decodes quickly, as far down as hardly anybody notices.
Where many requests have waited for a while it is up to three times as many steps, up to `max_gap_full_ms`: small chunks
are a pass over the weights each, and slots that wait could decode in one batch. On a crowded server it is five times as
many, and `max_gap_ms` on any machine.
Where few wait, what a larger chunk hardly saves is left out: the fewest whole tiles that cost about as much a token.
Prefill with no sequence decoding has larger chunks, bounded in time too: aborts and new requests wait for a chunk.
"""

from __future__ import annotations

import enum

from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.costs.step_shape import TILE, SlotRows
from ggufd.engine.scheduling.backlog import FEW

MIN_CHUNK = 16
"""Least tokens of a prefill chunk: with fewer a prompt would starve behind decoding sequences on a slow machine."""

_HARDLY = 1.1
"""A chunk becomes shorter where a token then takes at most so many times as long: with it the gap becomes shorter."""

_BUSY_STEPS, _CROWDED_STEPS = 3, 5
"""How many times `max_gap_steps` a gap may be where many requests wait, and where a server is crowded too."""

_MANY = 0.4
"""Requests that wait over those with a slot, where gaps have grown as far as they may, from `FEW` on."""

_UNFELT_S = 0.1
"""A gap that hardly anybody notices: no chunk becomes shorter than it allows."""

_LONE_STEPS = 18
"""Most steps of a lone stream that a gap may take, where it is longer than `_UNFELT_S`."""

_ALONE_GAPS = 3
"""How many times `max_gap_ms` a chunk may take when no sequence decodes."""


class GapLimit(enum.Enum):
    """How long a gap may be: as short as is hardly noticed, as usual, or long where a server is crowded.

    It is crowded where requests wait for a slot, or more wait for their prefill than decode.
    """

    SHORT = "short"
    USUAL = "usual"
    CROWDED = "crowded"


class TokenBudget:
    """Token budget of steps of `n_batch` rows at most, `n_ubatch` of which are computed at once.

    Gaps are in seconds, or in steps that only decode; `costs` says what both take.
    """

    def __init__(
        self,
        *,
        n_batch: int,
        n_ubatch: int,
        max_gap_s: float,
        max_gap_steps: int,
        max_gap_full_s: float,
        costs: StepCosts,
    ) -> None:
        self._n_batch = n_batch
        self._n_ubatch = n_ubatch
        self.max_gap_s = max_gap_s
        self._max_gap_steps = max_gap_steps
        self._max_gap_full_s = max_gap_full_s
        self._costs = costs

    def prefill(
        self,
        *,
        n_decode: int,
        n_past: int = 0,
        n_joined: int = 0,
        n_left: int = 0,
        is_watched: bool = False,
        waiting: float = 0.0,
        gap: GapLimit = GapLimit.USUAL,
        decode_s: float = 0.0,
        spent_s: float = 0.0,
    ) -> int:
        """Token budget of prefill behind `n_past` tokens, beside `n_decode` rows, with which `n_joined` share a pass.

        `n_left` tokens of the prompt are to be computed. What a chunk would leave of them is in it, where that is less
        than a tile and there is time for it: few rows take about as long as a tile.
        `waiting` is the number of requests that wait, for a slot or for their prefill, over that of those with a slot,
        where that is no burst.
        The step takes `decode_s` seconds for the rows that decode, and `spent_s` for other things than prefill.
        """
        is_alone = n_decode == 0 and not is_watched
        room = self._n_batch - n_decode
        if not self._costs.is_known:
            # Little, until it is known what a token costs: a slow machine would seem to hang.
            return min(room, self._n_ubatch, TILE if is_alone else 2 * MIN_CHUNK)
        if is_alone:
            affordable = self._costs.n_affordable(_ALONE_GAPS * self.max_gap_s, n_past)
            # Whole tiles of the matrix kernels: 64 rows and their multiples are computed best.
            return min(room, max(TILE, min(self._n_ubatch, affordable // TILE * TILE)))
        spent_s += decode_s
        unfelt_s, gap_s = min(_UNFELT_S, self.max_gap_s), self._gap_s(gap, decode_s, waiting)
        most = min(self._n_ubatch, self._costs.n_affordable(gap_s - spent_s, n_past))
        least = most if waiting > FEW else min(most, self._costs.n_affordable(unfelt_s - spent_s, n_past))
        n_tokens = self._in_tiles(least, most, n_past, n_joined)
        if n_tokens < n_left <= min(most, n_tokens + TILE - 1):
            n_tokens = n_left
        return min(room, self._n_ubatch, max(MIN_CHUNK, n_tokens))

    def _in_tiles(self, least: int, most: int, n_past: int, n_joined: int) -> int:
        """Tokens of a chunk of at most `most`: about `least`, or the fewest whole tiles that cost hardly more a token.

        The tokens that are computed with the decode rows are in no tile.
        """
        if 0 < most < TILE and self._chunk_s(TILE, n_past) <= _HARDLY * self._chunk_s(most, n_past):
            return TILE + n_joined
        most_s = _HARDLY * self._token_s(most, n_past)
        tiles = range(max(TILE, least // TILE * TILE), most + 1, TILE)
        return next((n + n_joined for n in tiles if self._token_s(n, n_past) <= most_s), most)

    def _token_s(self, n_tokens: int, n_past: int) -> float:
        """Expected seconds a token of a chunk by itself."""
        return self._chunk_s(n_tokens, n_past) / max(1, n_tokens)

    def _chunk_s(self, n_tokens: int, n_past: int) -> float:
        """Expected seconds of a chunk by itself. Flash attention on a CPU computes fewer than 64 rows one by one."""
        return self._costs.seconds([SlotRows(0, n_tokens, n_past)])

    def _gap_s(self, gap: GapLimit, decode_s: float, waiting: float) -> float:
        """Seconds that a gap may take between tokens of sequences whose own steps take `decode_s`."""
        steps_s = self._max_gap_steps * decode_s
        most = _CROWDED_STEPS if gap is GapLimit.CROWDED else _BUSY_STEPS
        growth = 1 + (most - 1) * min(1.0, max(0.0, waiting - FEW) / (_MANY - FEW))
        full_s = min(growth * steps_s, self._max_gap_full_s)
        return max(self._least_gap_s(gap), steps_s, full_s)

    def _least_gap_s(self, gap: GapLimit) -> float:
        """Seconds that a gap may take however quick the steps are."""
        if gap is GapLimit.CROWDED and self._max_gap_full_s > 0:
            return self.max_gap_s
        lone_s = 0.0 if gap is GapLimit.SHORT else _LONE_STEPS * self._costs.seconds([SlotRows(0, 1, 0)])
        return min(self.max_gap_s, max(_UNFELT_S, lone_s))

    def background(self, n_past: int = 0) -> int:
        """Token budget of prefill behind `n_past` tokens in idle time, for which a new request might have to wait."""
        if not self._costs.is_known:
            return min(self._n_ubatch, 2 * MIN_CHUNK)
        return min(self._n_ubatch, max(MIN_CHUNK, self._costs.n_affordable(self.max_gap_s, n_past)))
