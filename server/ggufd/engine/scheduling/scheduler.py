"""Batch scheduling with chunked prefill: which tokens of which running sequences the next batch computes.

There is no prefill phase and no decode phase: each sequence's computed tokens catch up with its tokens. Every decoding
sequence gets its one row; then prefill fills a token budget, the least served account first and oldest first within it.
How large that is: see `engine.scheduling.token_budget`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.costs.step_shape import TILE, SlotRows
from ggufd.engine.scheduling.account_turns import AccountTurn, AccountTurns
from ggufd.engine.scheduling.backlog import Backlog
from ggufd.engine.scheduling.holes import hole_fillers
from ggufd.engine.scheduling.shortest_first import ShortestFirst
from ggufd.engine.scheduling.token_budget import MIN_CHUNK, GapLimit, TokenBudget
from ggufd.engine.sequence.fixed_chunks import CPU_CHUNK, FixedChunks
from ggufd.engine.sequence.sequence import SequenceState

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


class _Load(NamedTuple):
    """What a step has beside its sequences: see `Scheduler.schedule`."""

    n_waiting: int
    now_s: float
    spent_s: float
    is_watched: bool


class Scheduler:
    """Scheduler of batches of `n_batch` rows at most, `n_ubatch` computed at once, `n_outputs_max` with logits.

    Beside decoding sequences a step takes at most `max_gap_ms` milliseconds, or `max_gap_steps` of their own steps; up
    to `max_gap_full_ms` where many requests wait.
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
        self.fixed_chunks = FixedChunks(min(n_fixed, self._n_ubatch), n_outputs_max)
        self.costs = costs or StepCosts(self._n_ubatch)
        self.budget = TokenBudget(
            n_batch=n_batch,
            n_ubatch=self._n_ubatch,
            max_gap_s=max_gap_ms / 1000,
            max_gap_steps=max_gap_steps,
            max_gap_full_s=max_gap_full_ms / 1000,
            costs=self.costs,
        )
        self.shortest_first: ShortestFirst | None = None
        self._account_turns = AccountTurns()
        self._backlog = Backlog()

    def schedule(
        self,
        running: Iterable[SequenceState],
        *,
        is_watched: bool = False,
        n_waiting: int = 0,
        now_s: float = 0.0,
        spent_s: float = 0.0,
        served: Callable[[SequenceState], float] = lambda _: 0.0,
    ) -> list[Chunk]:
        """Chunks of the next batch, by ascending slot.

        `n_waiting` requests have no slot. `is_watched` says that a sequence decodes, if not in this batch. `now_s` is
        the time of any clock, in seconds; `spent_s` of the step have been spent on other things. Prefill is first for
        the account that was `served` least: a short prompt need not wait for all of a long one of another account.
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
            self._prefill(rest, plan, _Load(n_waiting, now_s, spent_s, is_watched), served)
        else:
            self._backlog.lasting(0.0, now_s)
        plan += alone
        plan.sort(key=_slot_of)
        return plan

    def _prefill(
        self,
        rest: list[SequenceState],
        plan: list[Chunk],
        load: _Load,
        served: Callable[[SequenceState], float],
    ) -> None:
        """Add chunks of the sequences with more than one uncomputed token to the `plan` of those that decode.

        A fixed chunk takes a pass of its own, so it is all that a step reads, once it has its turn.
        """

        def turn(one: SequenceState) -> tuple[float, ...]:
            # Tokens that a grammar forced are no prompt: the sequence is decoding, and goes first.
            return (one.n_generated == 0, served(one), one.request.priority, one.admit_s, one.index)

        if (first := min(rest, key=turn)).is_deterministic:
            plan.append(self._fixed_chunk(first))
            return
        rest = [sequence for sequence in rest if not sequence.is_deterministic]
        n_decoding = len(plan)
        decoding = [chunk.sequence for chunk in plan]
        single = [sequence for sequence in rest if _goes_singly(sequence, n_decoding)]
        plan += [Chunk(sequence, 1, 0) for sequence in single]
        readers = sorted((one for one in rest if one not in single), key=turn)
        if not readers:
            return
        line = [one for one in readers if turn(one)[:3] == turn(readers[0])[:3]]
        readers = self._shortest_first(line) + readers[len(line) :]
        account_turn = self._account_turns.next(readers[0], decoding, rest)
        if account_turn is AccountTurn.STREAMS:
            return
        if account_turn is AccountTurn.PROMPTS:
            plan[:] = [chunk for chunk in plan if not self._account_turns.waits(chunk.sequence)]
        n_behind = load.n_waiting + len(readers) - 1
        waiting = self._backlog.lasting(n_behind / (n_decoding + len(rest)), load.now_s)
        beside = plan + _filling(plan, readers)
        decode_s = self.costs.seconds(rows_of(beside)) if plan else self.costs.decode_s if load.is_watched else 0.0
        budget = self.budget.prefill(
            n_decode=n_rows(beside),
            n_past=readers[0].n_past,
            n_joined=_n_joined(beside, readers[0]),
            n_left=readers[0].n_uncomputed,
            is_watched=load.is_watched,
            waiting=waiting if account_turn is AccountTurn.ALL else 0.0,
            gap=_gap_limit(account_turn, is_crowded=waiting > 0 and (load.n_waiting > 0 or n_behind > n_decoding)),
            decode_s=decode_s,
            spent_s=load.spent_s,
        )
        if readers[0].n_uncomputed < 2 * MIN_CHUNK:
            # What would be left of it would take another pass over the weights.
            budget = max(budget, min(readers[0].n_uncomputed, self._n_ubatch, self._n_batch - n_rows(beside)))
        chunks = list(_shared_out(budget, self._n_outputs_max - n_rows(plan), readers))
        if chunks and self.shortest_first is not None:
            read_s = self.costs.prefill_s(chunks[0].n_tokens, chunks[0].sequence.n_past)
            self.shortest_first.charge(line, chunks[0].sequence, read_s)
        begun = {_slot_of(chunk) for chunk in chunks}
        plan[:] = [chunk for chunk in beside if _slot_of(chunk) not in begun] + chunks

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

    def pause_left_s(self, step_s: float, is_decoding: bool) -> float | None:
        """Seconds that other work may take after a step of `step_s`; None when no sequence waits for the next one."""
        return max(0.0, self.budget.max_gap_s - step_s) if is_decoding else None


def _gap_limit(turn: AccountTurn, *, is_crowded: bool) -> GapLimit:
    """How long the gap of a step may be that computes some of a prompt."""
    if turn is AccountTurn.PROMPTS:
        return GapLimit.SHORT
    return GapLimit.CROWDED if is_crowded and turn is AccountTurn.ALL else GapLimit.USUAL


def _goes_singly(sequence: SequenceState, n_decode: int) -> bool:
    """Whether tokens that a grammar forced are computed one a step, beside `n_decode` other rows.

    Sequences of unequal row counts are computed apart, in one more pass over the weights. Few sequences gain by that;
    many are computed better together, where a token that is not sampled costs less than others do.
    """
    most = _MAX_SINGLY if n_decode >= _MANY_STREAMS else 1 + n_decode // 2
    return sequence.n_generated > 0 and 1 < sequence.n_uncomputed <= most


def _filling(plan: list[Chunk], readers: list[SequenceState]) -> list[Chunk]:
    """Single prompt tokens, so that the rows of a plan and the first of the first reader's share a pass."""
    if not plan:
        return []
    slots = {_slot_of(chunk) for chunk in plan} | {readers[0].slot or 0}
    return [Chunk(sequence, 1, 0) for sequence in hole_fillers(slots, readers[1:])]


def _n_joined(plan: list[Chunk], reader: SequenceState) -> int:
    """How many tokens of a chunk of the reader are computed in the pass of other rows: llama.cpp joins neighbours."""
    slot = reader.slot or 0
    return int(any(abs(_slot_of(chunk) - slot) == 1 for chunk in plan))


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
    """Prefill chunks, each as long as the budget allows; only of the first prompt it may be a part below a tile."""
    has_begun = False
    for sequence in readers:
        if budget <= 0 or (has_begun and budget < min(sequence.n_uncomputed, TILE)):
            continue
        chunk = _prefill_chunk(sequence, budget, n_outputs_left)
        if chunk.n_tokens:
            yield chunk
            has_begun |= sequence.n_generated == 0
            budget -= chunk.n_tokens
            n_outputs_left -= chunk.n_outputs
