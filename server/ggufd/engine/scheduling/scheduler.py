"""Batch scheduling with chunked prefill: which tokens of which running sequences the next batch computes.

There is no prefill phase and no decode phase: each sequence's computed tokens catch up with its tokens. Every decoding
sequence gets its one row; then prefill fills a token budget, the least served account first and oldest first within it.
The budget keeps the step under `max_gap_ms` while a sequence decodes, or under `max_gap_steps` of its own steps where
those are slow: inter-token latency (ITL) is felt beside the usual pace, and a new request waits for many such steps.
It grows by as much again for each request that nobody has begun, up to `max_gap_full_ms`: small chunks are a pass over
the weights each, and leave slots waiting that could decode in one batch, so a full server would write less.
Prefill with no sequence decoding has larger chunks, bounded in time too: aborts and new requests wait for a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.costs.step_shape import TILE, SlotRows
from ggufd.engine.scheduling.shortest_first import ShortestFirst
from ggufd.engine.sequence.fixed_chunks import CPU_CHUNK, FixedChunks
from ggufd.engine.sequence.sequence import SequenceState

MIN_CHUNK = 16
"""Least tokens of a prefill chunk: with fewer a prompt would starve behind decoding sequences on a slow machine."""

_NEAR_TILE = 44
"""From so many rows on a whole tile takes no longer: flash attention computes fewer than 64 rows one by one.

Measured behind 1,300 tokens, 2 threads: 40 rows 174 ms, 57 rows 250 ms, 64 rows 170 to 200 ms.
"""

_ALONE_GAPS = 12
"""How many times `max_gap_ms` a chunk may take when no sequence decodes."""

_BACKGROUND_GAPS = 3
"""How many times `max_gap_ms` a tile may take in idle time."""

_MANY_STREAMS = 4
"""From so many decoding sequences on, a few forced tokens take longer in a pass of their own than one a step."""

_MAX_SINGLY = 16


class Chunk(NamedTuple):
    """`n_tokens` of one sequence from its `n_past` on, its draft included, the last `n_outputs` of them with logits."""

    sequence: SequenceState
    n_tokens: int
    n_outputs: int

    @property
    def is_decode(self) -> bool:
        """Whether it only decodes: the last sampled token and its draft, no prefill."""
        return self.sequence.n_generated > 0 and self.n_tokens == 1 + len(self.sequence.draft)

    @property
    def is_image(self) -> bool:
        """Whether it is embedding rows of images, and no tokens."""
        return self.sequence.tokens[self.sequence.n_past] < 0

    def without_draft(self) -> Chunk:
        """The chunk without the draft, which its sequence gives up."""
        n_draft, self.sequence.draft = len(self.sequence.draft), ()
        return Chunk(self.sequence, self.n_tokens - n_draft, self.n_outputs - n_draft)


def rows_of(plan: Iterable[Chunk]) -> list[SlotRows]:
    """Rows of a plan, by slot."""
    return [SlotRows(_slot_of(chunk), chunk.n_tokens, chunk.sequence.n_past) for chunk in plan]


def n_rows(plan: list[Chunk]) -> int:
    """Number of rows of a plan."""
    return sum(chunk.n_tokens for chunk in plan)


def halves(plan: list[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
    """First half of the rows and the rest, at least one row each; a chunk that lies across is divided."""
    n_left = n_rows(plan) // 2
    first, second = [], []
    for chunk in plan:
        n_first = min(chunk.n_tokens, n_left)
        n_second = chunk.n_tokens - n_first
        n_left -= n_first
        # Logits are of a chunk's last tokens.
        n_outputs = min(chunk.n_outputs, n_second)
        if n_first:
            first.append(Chunk(chunk.sequence, n_first, chunk.n_outputs - n_outputs))
        if n_second:
            second.append(Chunk(chunk.sequence, n_second, n_outputs))
    return first, second


class Scheduler:
    """Scheduler of batches of `n_batch` rows at most, `n_ubatch` computed at once, `n_outputs_max` with logits.

    Beside decoding sequences a step takes at most `max_gap_ms` milliseconds, or `max_gap_steps` of their own steps; up
    to `max_gap_full_ms` while others wait.
    Deterministic requests are computed in chunks of `n_fixed` tokens, as far as a batch holds so many.
    """

    def __init__(
        self,
        *,
        n_batch: int,
        n_ubatch: int,
        n_outputs_max: int,
        max_gap_ms: float,
        max_gap_steps: int = 0,
        max_gap_full_ms: float = 0.0,
        n_fixed: int = CPU_CHUNK,
        costs: StepCosts | None = None,
    ) -> None:
        self._n_batch = n_batch
        self._n_ubatch = min(n_ubatch, n_batch)
        self._n_outputs_max = n_outputs_max
        self._max_gap_s = max_gap_ms / 1000
        self._max_gap_steps = max_gap_steps
        self._max_gap_full_s = max_gap_full_ms / 1000
        self.fixed_chunks = FixedChunks(min(n_fixed, self._n_ubatch), n_outputs_max)
        self.costs = costs or StepCosts(self._n_ubatch)
        self.shortest_first: ShortestFirst | None = None

    def schedule(
        self,
        running: Iterable[SequenceState],
        *,
        is_watched: bool = False,
        n_waiting: int = 0,
        spent_s: float = 0.0,
        served: Callable[[SequenceState], float] = lambda _: 0.0,
    ) -> list[Chunk]:
        """Chunks of the next batch, by ascending slot.

        `n_waiting` requests have no slot. `is_watched` says that a sequence decodes, if not in this batch; `spent_s`
        seconds of the step have been spent on other things. Prefill is first for the account that was `served` least: a
        short prompt need not wait for all of a long one of another account.
        """
        plan: list[Chunk] = []
        rest, alone = [], []
        for sequence in running:
            if sequence.is_deterministic and not sequence.is_reading:
                alone.append(self._fixed_chunk(sequence))
            elif sequence.is_decoding:
                plan.append(_decode_chunk(sequence))
            else:
                rest.append(sequence)
        if rest:
            spent_s += sum(self.costs.seconds(rows_of([chunk])) for chunk in alone)
            self._prefill(rest, plan, is_watched=is_watched, n_waiting=n_waiting, spent_s=spent_s, served=served)
        plan += alone
        plan.sort(key=_slot_of)
        return plan

    def _prefill(
        self,
        rest: list[SequenceState],
        plan: list[Chunk],
        *,
        is_watched: bool,
        n_waiting: int,
        spent_s: float,
        served: Callable[[SequenceState], float],
    ) -> None:
        """Add chunks of the sequences with more than one uncomputed token to the `plan` of those that decode.

        A fixed chunk takes a pass of its own, so it is all that a step reads, once it has its turn.
        """

        def turn(one: SequenceState) -> tuple[float, ...]:
            # Tokens that a grammar forced are no prompt: the sequence is decoding, and goes first.
            return (one.n_generated == 0, served(one), one.request.priority, one.admit_s, one.index)

        first = min(rest, key=turn)
        if first.is_deterministic:
            plan.append(self._fixed_chunk(first))
            return
        rest = [sequence for sequence in rest if not sequence.is_deterministic]
        n_decoding = len(plan)
        single = [sequence for sequence in rest if _goes_singly(sequence, n_decoding)]
        plan += [Chunk(sequence, 1, 0) for sequence in single]
        n_decode = n_rows(plan)
        readers = sorted((one for one in rest if one not in single), key=turn)
        line = [one for one in readers if turn(one)[:3] == turn(readers[0])[:3]]
        readers = self._shortest_first(line) + readers[len(line) :]
        n_behind = n_waiting + max(0, len(readers) - 1)
        decode_s = self.costs.seconds(rows_of(plan)) if plan else 0.0
        if is_watched and not plan:
            decode_s = self.costs.decode_s
        budget = self.token_budget(
            n_decode=n_decode,
            n_past=readers[0].n_past if readers else 0,
            is_watched=is_watched,
            n_behind=n_behind,
            spent_s=spent_s + decode_s,
        )
        n_outputs_left = self._n_outputs_max - n_decode
        if readers and readers[0].n_uncomputed < 2 * MIN_CHUNK:
            # What would be left of it would take another pass over the weights.
            budget = max(budget, min(readers[0].n_uncomputed, self._n_ubatch, self._n_batch - n_decode))
        chunks = list(_shared_out(budget, n_outputs_left, readers))
        if chunks and self.shortest_first is not None:
            read_s = self.costs.prefill_s(chunks[0].n_tokens, chunks[0].sequence.n_past)
            self.shortest_first.charge(line, chunks[0].sequence, read_s)
        plan += chunks

    def _shortest_first(self, line: list[SequenceState]) -> list[SequenceState]:
        """Sequences of one account and priority in the order of their prefill; `line` is by their admission."""
        if self.shortest_first is None or len(line) < 2:
            return line
        first = self.shortest_first.pick(line)
        return [first, *(one for one in line if one is not first)]

    def _fixed_chunk(self, sequence: SequenceState) -> Chunk:
        """The next chunk of a deterministic sequence."""
        n_tokens = self.fixed_chunks.next_chunk(sequence)
        if sequence.request.prompt_logprobs and sequence.is_reading:
            return Chunk(sequence, n_tokens, n_tokens)
        return Chunk(sequence, n_tokens, int(n_tokens == sequence.n_uncomputed))

    def decode_s(self, decoding: Sequence[SequenceState]) -> float:
        """Expected seconds of a step in which these sequences decode, and nothing else is computed."""
        rows = [SlotRows(one.slot or 0, 1, one.n_past) for one in decoding if not one.is_deterministic]
        alone = ([SlotRows(one.slot or 0, 1, one.n_past)] for one in decoding if one.is_deterministic)
        return self.costs.seconds(rows) + sum(map(self.costs.seconds, alone))

    @property
    def max_gap_s(self) -> float:
        """Seconds that a step may take beside decoding sequences, where their own steps are quick."""
        return self._max_gap_s

    def pause_left_s(self, step_s: float, is_decoding: bool) -> float | None:
        """Seconds that other work may take after a step of `step_s`; None when no sequence waits for the next one."""
        return max(0.0, self._max_gap_s - step_s) if is_decoding else None

    def token_budget(
        self, *, n_decode: int, n_past: int = 0, is_watched: bool = False, n_behind: int = 0, spent_s: float = 0.0
    ) -> int:
        """Token budget of prefill behind `n_past` tokens, beside `n_decode` rows.

        `spent_s` is what the step takes without it. `n_behind` requests wait for whoever is read now.
        """
        is_alone = n_decode == 0 and not is_watched
        room = self._n_batch - n_decode
        if not self.costs.is_known:
            # Little, until it is known what a token costs: a slow machine would seem to hang.
            return min(room, self._n_ubatch, TILE if is_alone else 2 * MIN_CHUNK)
        if is_alone:
            affordable = self.costs.n_affordable(_ALONE_GAPS * self._max_gap_s, n_past)
            # Whole tiles of the matrix kernels: 64 rows and their multiples are computed best.
            return min(room, max(TILE, min(self._n_ubatch, affordable // TILE * TILE)))
        affordable = self.costs.n_affordable(self._gap_s(n_behind) - spent_s, n_past)
        if _NEAR_TILE <= affordable < TILE:
            affordable = TILE
        return min(room, self._n_ubatch, max(MIN_CHUNK, affordable))

    def _gap_s(self, n_behind: int) -> float:
        """Longest gap allowed between tokens of decoding sequences, while so many requests wait for their prefill."""
        gap_s = max(self._max_gap_s, self._max_gap_steps * self.costs.pace_s)
        return max(gap_s, min((1 + n_behind) * gap_s, self._max_gap_full_s))

    def background_budget(self, n_past: int = 0) -> int:
        """Token budget of prefill behind `n_past` tokens in idle time, for which a new request might have to wait.

        A whole tile where that is not much longer: on a slow machine fewer rows would take nearly as long, and half of
        the idle time would be wasted.
        """
        if not self.costs.is_known:
            return min(self._n_ubatch, 2 * MIN_CHUNK)
        tile_s = self.costs.seconds([SlotRows(0, TILE, n_past)])
        least = TILE if tile_s <= _BACKGROUND_GAPS * self._max_gap_s else MIN_CHUNK
        return min(self._n_ubatch, max(least, self.costs.n_affordable(self._max_gap_s, n_past)))


def _goes_singly(sequence: SequenceState, n_decode: int) -> bool:
    """Whether tokens that a grammar forced are computed one a step, beside `n_decode` other rows.

    Sequences of unequal row counts are computed apart, in one more pass over the weights. Few sequences gain by that;
    many are computed better together, where a token that is not sampled costs less than others do.
    """
    most = _MAX_SINGLY if n_decode >= _MANY_STREAMS else 1 + n_decode // 2
    return sequence.n_generated > 0 and 1 < sequence.n_uncomputed <= most


def _slot_of(chunk: Chunk) -> int:
    return chunk.sequence.slot or 0


def _decode_chunk(sequence: SequenceState) -> Chunk:
    """Chunk of the last sampled token and its draft, each with a row of logits of its own."""
    n_tokens = 1 + len(sequence.draft)
    return Chunk(sequence, n_tokens, n_tokens)


def _prefill_chunk(sequence: SequenceState, budget: int, n_outputs_left: int) -> Chunk:
    """Chunk of prefill: logits of the last token only, or of all where the prompt's log-probabilities are wanted.

    It is tokens only, or rows of images only.
    """
    n_tokens = min(sequence.n_uncomputed, budget)
    n_tokens = sequence.images.border(sequence.n_past, sequence.n_past + n_tokens) - sequence.n_past
    if sequence.checkpoints:
        n_tokens = min(n_tokens, sequence.checkpoints[0] - sequence.n_past)
    if sequence.request.prompt_logprobs and sequence.is_reading:
        n_tokens = min(n_tokens, n_outputs_left)
        return Chunk(sequence, n_tokens, n_tokens)
    is_last = n_tokens == sequence.n_uncomputed
    if is_last and n_outputs_left == 0:
        return Chunk(sequence, n_tokens - 1, 0)
    return Chunk(sequence, n_tokens, 1 if is_last else 0)


def _shared_out(budget: int, n_outputs_left: int, readers: Iterable[SequenceState]) -> Iterator[Chunk]:
    """Prefill chunks, each as long as the budget allows; only the first may be shorter than the least chunk."""
    has_begun = False
    for sequence in readers:
        if budget <= 0 or (has_begun and budget < min(sequence.n_uncomputed, MIN_CHUNK)):
            continue
        chunk = _prefill_chunk(sequence, budget, n_outputs_left)
        if chunk.n_tokens:
            yield chunk
            has_begun = True
            budget -= chunk.n_tokens
            n_outputs_left -= chunk.n_outputs
