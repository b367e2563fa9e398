"""One sequence's next token: drawn from its row, held to its rules, turned into text that may be sent.

What a grammar leaves no choice about is taken at once; what completes a banned phrase is taken back. Knows no batch and
nobody else's sequence; the engine sends what is said here, and ends what is said to be over.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ggufd.engine.backend.interfaces import Constraint, Decoder, Row, Rows, Sampler, Vocabulary
from ggufd.engine.messages.events import FinishReason, TokenLogprob
from ggufd.engine.sampling.banned import GRAMMAR_WINDOW, BanGuard
from ggufd.engine.sampling.detokenizer import Delta
from ggufd.engine.sampling.sampling import (
    Bias,
    Logprobs,
    NoNumbers,
    VectorSampler,
    bounded,
    is_vectorisable,
    penalties_of,
)
from ggufd.engine.sequence.sequence import OutputToken, SequenceState
from ggufd.engine.slots.context_shift import ContextShift
from ggufd.engine.slots.prefix_cache import PrefixCache
from ggufd.engine.telemetry.counters import Counters
from ggufd.engine.telemetry.trace import StepTrace
from ggufd.errors import InvalidRequest

_MAX_DRAWS = 16
"""From one row of logits, where one token after the other completes a banned phrase; others wait meanwhile."""

# llama.cpp takes 2**32 - 1 for "draw a seed".
_SEEDS = 2**32 - 1


@dataclass(slots=True)
class StepOutput:
    """Text that may be sent now, with the tokens it completes; a `reason` says that nothing more will come.

    `end` is the token that ended it, where log-probabilities are wanted: it has no text. `parts` are how many
    characters and tokens were added at a time.
    """

    text: str = ""
    items: list[OutputToken] = field(default_factory=list)
    reason: FinishReason | None = None
    end: TokenLogprob | None = None
    parts: list[tuple[int, int]] = field(default_factory=list)

    def add(self, delta: Delta[OutputToken]) -> None:
        """More of the text."""
        if delta.text or delta.items:
            self.text += delta.text
            self.items += delta.items
            self.parts.append((len(delta.text), len(delta.items)))


class TokenStep:
    """Chooses tokens for the sequences of one engine. `charge` is told of each; times come from `clock`, in seconds."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        cache: PrefixCache,
        counters: Counters,
        trace: StepTrace,
        context_shift: ContextShift,
        charge: Callable[[SequenceState], None],
        clock: Callable[[], float],
    ) -> None:
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._cache = cache
        self._counters = counters
        self._trace = trace
        self._context_shift = context_shift
        self._charge = charge
        self._clock = clock

    def begin(self, sequence: SequenceState) -> None:
        """A sequence was admitted: get ready to choose its tokens."""
        sequence.sampler = self._new_sampler(sequence)

    def _new_sampler(self, sequence: SequenceState) -> Sampler:
        request, params = sequence.request, bounded(sequence.request.sampling)
        seed = params.seed if params.seed is not None else random.SystemRandom().randrange(_SEEDS)
        seed = (seed + sequence.index) % _SEEDS
        sequence.bias = Bias(
            params,
            banned=self._vocabulary.suppressed_tokens,
            eog=self._vocabulary.eog_tokens,
            min_tokens=request.min_tokens,
        )
        said = request.prompt
        if not is_vectorisable(params):
            can_rewind = sequence.guard is not None or sequence.constraint is not None
            return self._decoder.new_chain(params, seed, said, can_rewind=can_rewind)
        penalties = penalties_of(params, n_ctx=self._decoder.n_ctx, n_vocab=self._decoder.n_vocab, said=said)
        return VectorSampler(params, seed, penalties)

    def note_prompt(self, sequence: SequenceState, rows: Rows) -> None:
        """The log-probabilities of the prompt's tokens that follow those of `rows`."""
        logprobs = Logprobs(sequence.request.n_logprobs or 0)
        following = sequence.tokens[sequence.n_past + 1 : sequence.n_prompt]
        for row, token in zip(rows, following, strict=False):
            logprobs.note(row)
            sequence.prompt_logprobs.append(logprobs.of(token, self._vocabulary))

    def sample(self, sequence: SequenceState, row: Row, batch_row: int) -> StepOutput:
        """Choose the token that the logits in `row` are for. Raises InvalidRequest where none is left to choose, and
        EngineFailure where they are no numbers.

        `batch_row` is the row's place in the batch that was computed last.
        """
        if math.isnan(row[0]):
            # One NaN within the model makes every logit NaN, so there is no need to look at all of them.
            raise NoNumbers
        assert sequence.bias is not None
        if sequence.logprobs is not None:
            sequence.logprobs.note(row)
        sequence.bias.apply(row, sequence.n_generated)
        for _ in range(_MAX_DRAWS):
            said = self._try(sequence, row, batch_row)
            if said is not None:
                return said
        # Others wait: it goes on with the next step, for which the logits are computed once more.
        self._cache.rewind(sequence)
        return StepOutput()

    def _try(self, sequence: SequenceState, row: Row, batch_row: int) -> StepOutput | None:
        """Draw a token and take it; None where it alone was taken back at once, so that another may be drawn."""
        is_ending = sequence.reasoning is not None and sequence.reasoning.is_ending
        start_s = self._clock()
        token = self._sample(sequence, row, batch_row)
        self._trace.sample_s += self._clock() - start_s
        if token is None:
            return self._widen_or_end(sequence)
        if token in self._vocabulary.eog_tokens:
            end = None if sequence.logprobs is None else sequence.logprobs.of(token, self._vocabulary)
            return StepOutput(reason=FinishReason.STOP, end=end)
        delta = self._append(sequence, token)
        if sequence.guard is not None and (n := self._n_back(sequence, sequence.guard)):
            # The end of a limited part leaves nothing else in its row.
            return self._go_back(sequence, sequence.guard, n, needs_row=n > 1 or is_ending)
        said = StepOutput()
        said.add(delta)
        said.reason = self._finish_reason(sequence) or self._force(sequence, said)
        return said

    def _sample(self, sequence: SequenceState, row: Row, batch_row: int) -> int | None:
        """The next token; None when every token is banned here."""
        if sequence.constraint is None:
            return self._draw(sequence, row, batch_row)
        token = self._sample_held(sequence, sequence.constraint, row, batch_row)
        if sequence.guard is None:
            assert sequence.sampler is not None
            sequence.sampler.keep(0)
        return token

    def _sample_held(self, sequence: SequenceState, constraint: Constraint, row: Row, batch_row: int) -> int | None:
        """The next token under a grammar: drawn and then looked at where it is free, else from what it allows.

        The end of a limited part is looked for in what is allowed, so it is never drawn freely.
        """
        if constraint.is_free and not (sequence.reasoning is not None and sequence.reasoning.is_ending):
            token = self._draw(sequence, row, batch_row)
            if token is None or self._fits(constraint, token):
                return token
            assert sequence.sampler is not None
            sequence.sampler.rewind(1, sequence.history)
        constraint.mask(row)
        token = self._draw(sequence, row, batch_row, is_masked=True)
        if token is not None and token not in self._vocabulary.eog_tokens:
            constraint.accept(token)
        return token

    def _fits(self, constraint: Constraint, token: int) -> bool:
        """Whether the grammar allows `token`, which it then has taken; an end is not for it to take."""
        return constraint.is_accepting if token in self._vocabulary.eog_tokens else constraint.take(token)

    def _draw(self, sequence: SequenceState, row: Row, batch_row: int, *, is_masked: bool = False) -> int | None:
        """A token of those that bans and limits leave; None when there is none."""
        assert sequence.sampler is not None
        if not self._restrict(sequence, row, is_masked=is_masked):
            return None
        if sequence.logprobs is not None:
            sequence.logprobs.note_draw(sequence.sampler, row)
        return sequence.sampler.sample(row, batch_row)

    def _restrict(self, sequence: SequenceState, row: Row, *, is_masked: bool) -> bool:
        """Apply bans and limits to the row, which a grammar `is_masked`; False when no token is left."""
        assert sequence.bias is not None
        if sequence.guard is not None:
            sequence.guard.apply(row, sequence.n_generated)
        if sequence.reasoning is not None:
            sequence.reasoning.apply(row)
        if sequence.guard is None and not (is_masked and sequence.bias.is_banning):
            # A grammar alone always leaves something, biases alone do too, and looking costs as much as masking.
            return True
        return bool(np.isfinite(row.max()))

    def _append(self, sequence: SequenceState, token: int) -> Delta[OutputToken]:
        """Take a token; what of the text may be sent now."""
        sequence.tokens.append(token)
        self._counters.note_token(sequence)
        self._charge(sequence)
        if sequence.reasoning is not None:
            sequence.reasoning.note(self._vocabulary.piece(token, special=True), sequence.tokens)
        request = sequence.request
        is_shown = not request.skip_special_tokens or token in request.shown_tokens
        piece = self._vocabulary.piece(token, special=is_shown)
        logprob = None if sequence.logprobs is None else sequence.logprobs.of(token, self._vocabulary)
        start_s = self._clock()
        delta = sequence.detokenizer.feed(piece, OutputToken(token, logprob), self._n_kept(sequence))
        self._trace.detokenize_s += self._clock() - start_s
        return delta

    def _n_kept(self, sequence: SequenceState) -> int:
        """How many characters are held back for the case that a grammar leads to a banned phrase only."""
        constraint = sequence.constraint
        return 0 if sequence.guard is None or constraint is None or constraint.is_free else GRAMMAR_WINDOW

    def _force(self, sequence: SequenceState, said: StepOutput) -> FinishReason | None:
        """Take the tokens about which the grammar leaves no choice: they are computed together, as a prompt is.

        Not where each token's own row is needed, for its log-probabilities or to go back to.
        """
        if sequence.constraint is None:
            return None
        tokens = sequence.constraint.forced()
        if sequence.logprobs is not None or sequence.guard is not None:
            return None
        assert sequence.sampler is not None
        assert sequence.bias is not None
        for token in tokens:
            is_refused = sequence.bias.bans(token) or token in self._vocabulary.eog_tokens
            if is_refused or self._context_shift.is_full(sequence):
                break
            sequence.sampler.accept(token)
            sequence.constraint.accept(token)
            said.add(self._append(sequence, token))
            reason = self._finish_reason(sequence)
            if reason is not None:
                return reason
        return None

    def _finish_reason(self, sequence: SequenceState) -> FinishReason | None:
        limit = self._context_shift.limit(sequence.request)
        if sequence.detokenizer.stop is not None:
            return FinishReason.STOP
        if sequence.constraint is not None and sequence.constraint.is_stopped:
            return FinishReason.STOP
        if limit is not None and sequence.n_generated >= limit:
            return FinishReason.LENGTH
        if self._context_shift.is_full(sequence) and self._context_shift.gap(sequence) is None:
            return FinishReason.LENGTH
        return None

    # --- banned phrases ---------------------------------------------------------------------------------------------

    def _n_back(self, sequence: SequenceState, guard: BanGuard) -> int:
        """How many tokens must be taken back, since the last one completed a banned phrase. See `BanGuard`."""
        assert sequence.sampler is not None
        detokenizer = sequence.detokenizer
        if detokenizer.n_banned == 0:
            sequence.sampler.keep(detokenizer.n_pending)
            guard.forget(sequence.n_generated - detokenizer.n_pending)
            if not guard.is_closed(lambda: self._held(sequence)):
                return 0
        return guard.n_back(max(detokenizer.n_banned, 1), detokenizer.n_pending, sequence.n_generated)

    def _go_back(self, sequence: SequenceState, guard: BanGuard, n: int, *, needs_row: bool) -> StepOutput | None:
        """Take a banned phrase back by `n` tokens; None where the row of logits serves once more."""
        self._take_back(sequence, guard, n, is_last=n == 1 and sequence.detokenizer.n_banned <= 1)
        if needs_row:
            self._cache.rewind(sequence)
        if guard.is_lost:
            return self._end_lost(sequence)
        return StepOutput() if needs_row else None

    def _held(self, sequence: SequenceState) -> bytes:
        """The bytes of the tokens that can still be taken back."""
        held = sequence.tokens[len(sequence.tokens) - sequence.detokenizer.n_pending :]
        return b"".join(self._vocabulary.piece(token, special=True) for token in held)

    def _widen_or_end(self, sequence: SequenceState) -> StepOutput:
        """Every token is banned here: the search goes further back, or, where all before was sent, this is the end."""
        guard = sequence.guard
        if guard is None or guard.is_lost:
            return self._end_lost(sequence)
        if not guard.is_thorough and guard.search(sequence.n_generated):
            # The logits are used up: they are computed once more.
            self._cache.rewind(sequence)
            return StepOutput()
        if not sequence.detokenizer.n_pending:
            return self._end_lost(sequence)
        guard.close(self._held(sequence))
        self._take_back(sequence, guard, 1, is_last=True)
        self._cache.rewind(sequence)
        return StepOutput()

    def _end_lost(self, sequence: SequenceState) -> StepOutput:
        """There is no way on."""
        if sequence.constraint is not None and not sequence.constraint.is_accepting:
            # Half of what was asked for must not look like the whole.
            raise InvalidRequest("no token is left that the constraint, the biases and the bans all allow")
        return StepOutput(reason=FinishReason.STOP)

    def _take_back(self, sequence: SequenceState, guard: BanGuard, n: int, *, is_last: bool) -> None:
        """Take back the last `n` tokens and ban the first of them where it stood."""
        assert sequence.sampler is not None
        position = len(sequence.tokens) - n
        guard.ban(sequence.n_generated - n, sequence.tokens[position], is_last=is_last)
        del sequence.tokens[position:]
        sequence.detokenizer.rewind(n)
        sequence.sampler.rewind(n, sequence.history)
        if sequence.constraint is not None:
            sequence.constraint.rewind(n)
        if sequence.lookup is not None:
            sequence.lookup.rewind(position)
        if sequence.reasoning is not None:
            sequence.reasoning.rewind(n)
