"""Next token of one sequence: sampled from its row under grammar, bans and budgets, and detokenized.

Tokens that a grammar forces are taken at once; what completes a banned phrase is taken back. Knows no batch, no cache
and no other sequence; `OutputProcessor` sends the output, ends the sequence, and has a row computed again where that
is needed.
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
from ggufd.engine.telemetry.counters import Counters
from ggufd.engine.telemetry.trace import StepTrace
from ggufd.errors import InvalidRequest

_MAX_DRAWS = 16
"""Most draws from one row, where one token after the other completes a banned phrase: the batch waits meanwhile."""

# llama.cpp takes 2**32 - 1 for "draw a seed".
_SEEDS = 2**32 - 1


@dataclass(slots=True)
class StepOutput:
    """Output of one step and sequence: text that may be sent, and the tokens that it completes.

    A `reason` ends the sequence; `end` is the token that ended it, where log-probabilities are wanted: it has no text.
    `parts` are how many characters and tokens were added at a time. `needs_row` says that no token was taken and the
    row is used up, or was for tokens that were taken back: the logits are to be computed once more.
    """

    text: str = ""
    items: list[OutputToken] = field(default_factory=list)
    reason: FinishReason | None = None
    end: TokenLogprob | None = None
    parts: list[tuple[int, int]] = field(default_factory=list)
    needs_row: bool = False

    def add(self, delta: Delta[OutputToken]) -> None:
        """Add text of one more token."""
        if delta.text or delta.items:
            self.text += delta.text
            self.items += delta.items
            self.parts.append((len(delta.text), len(delta.items)))


class TokenStep:
    """Samples the tokens of one engine's sequences. Each goes to `charge`; times come from `clock`, in seconds."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        counters: Counters,
        trace: StepTrace,
        context_shift: ContextShift,
        charge: Callable[[SequenceState], None],
        clock: Callable[[], float],
    ) -> None:
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._counters = counters
        self._trace = trace
        self._context_shift = context_shift
        self._charge = charge
        self._clock = clock

    def begin(self, sequence: SequenceState) -> None:
        """Make the sampler of a sequence that was admitted."""
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
        history = sequence.history
        if not is_vectorisable(params):
            can_rewind = sequence.guard is not None or sequence.constraint is not None
            return self._decoder.new_chain(params, seed, history, can_rewind=can_rewind)
        penalties = penalties_of(params, n_ctx=self._decoder.n_ctx, n_vocab=self._decoder.n_vocab, history=history)
        return VectorSampler(params, seed, penalties)

    def note_prompt(self, sequence: SequenceState, rows: Rows) -> None:
        """Add the log-probabilities of the prompt's tokens that follow those of `rows`."""
        logprobs = Logprobs(sequence.request.n_logprobs or 0)
        following = sequence.tokens[sequence.n_past + 1 : sequence.n_prompt]
        for row, token in zip(rows, following, strict=False):
            logprobs.note(row)
            sequence.prompt_logprobs.append(logprobs.of(token, self._vocabulary))

    def sample(self, sequence: SequenceState, row: Row, batch_row: int) -> StepOutput:
        """Sample a token from the logits in `row`, whose place in the last batch is `batch_row`.

        Raises InvalidRequest where no token is left, and EngineFailure where the logits are no numbers.
        """
        if math.isnan(row[0]):
            # One NaN within the model makes every logit NaN, so there is no need to look at all of them.
            raise NoNumbers
        assert sequence.bias is not None
        if sequence.logprobs is not None:
            sequence.logprobs.note(row)
        sequence.bias.apply(row, sequence.n_generated)
        for _ in range(_MAX_DRAWS):
            output = self._try(sequence, row, batch_row)
            if output is not None:
                return output
        # The batch waits: this sequence goes on with the next step.
        return StepOutput(needs_row=True)

    def _try(self, sequence: SequenceState, row: Row, batch_row: int) -> StepOutput | None:
        """Draw a token and append it; None where it alone was taken back at once, so that another may be drawn."""
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
            # A forced end of the reasoning leaves nothing else in its row.
            return self._go_back(sequence, sequence.guard, n, needs_row=n > 1 or is_ending)
        output = StepOutput()
        output.add(delta)
        output.reason = self._finish_reason(sequence) or self._force(sequence, output)
        return output

    def _sample(self, sequence: SequenceState, row: Row, batch_row: int) -> int | None:
        """Draw the next token; None when every token is banned here."""
        if sequence.constraint is None:
            return self._draw(sequence, row, batch_row)
        token = self._sample_constrained(sequence, sequence.constraint, row, batch_row)
        if sequence.guard is None:
            assert sequence.sampler is not None
            sequence.sampler.keep(0)
        return token

    def _sample_constrained(
        self, sequence: SequenceState, constraint: Constraint, row: Row, batch_row: int
    ) -> int | None:
        """Draw the next token under a grammar: where that is free, draw and then check, else mask and then draw.

        A forced end of the reasoning needs the mask, so it is never drawn freely.
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
        """Whether the grammar allows `token`, which it then has accepted; an end token is not for it to accept."""
        return constraint.is_accepting if token in self._vocabulary.eog_tokens else constraint.take(token)

    def _draw(self, sequence: SequenceState, row: Row, batch_row: int, *, is_masked: bool = False) -> int | None:
        """Draw of the tokens that bans and budgets leave; None when there is none."""
        assert sequence.sampler is not None
        if not self._restrict(sequence, row, is_masked=is_masked):
            return None
        if sequence.logprobs is not None:
            sequence.logprobs.note_draw(sequence.sampler, row)
        return sequence.sampler.sample(row, batch_row)

    def _restrict(self, sequence: SequenceState, row: Row, *, is_masked: bool) -> bool:
        """Apply bans and budgets to the row; False when no token is left. `is_masked` by a grammar already."""
        assert sequence.bias is not None
        if sequence.guard is not None:
            sequence.guard.apply(row, sequence.n_generated)
        if sequence.reasoning is not None:
            sequence.reasoning.apply(row)
        if sequence.guard is None and not (is_masked and sequence.bias.is_banning):
            # A grammar alone always leaves a token, biases alone do too, and looking costs as much as masking.
            return True
        return bool(np.isfinite(row.max()))

    def _append(self, sequence: SequenceState, token: int) -> Delta[OutputToken]:
        """Append a token; returns the text that may be sent now."""
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
        """Characters held back for the case that a grammar leads only to a banned phrase."""
        constraint = sequence.constraint
        return 0 if sequence.guard is None or constraint is None or constraint.is_free else GRAMMAR_WINDOW

    def _force(self, sequence: SequenceState, output: StepOutput) -> FinishReason | None:
        """Append the tokens that the grammar forces: they are computed together, as a prompt is.

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
            output.add(self._append(sequence, token))
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
        """Number of tokens to take back where the last one completed a banned phrase. See `BanGuard`."""
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
        if guard.is_lost:
            return self._end_lost(sequence)
        return StepOutput(needs_row=True) if needs_row else None

    def _held(self, sequence: SequenceState) -> bytes:
        """Bytes of the tokens that can still be taken back."""
        held = sequence.tokens[len(sequence.tokens) - sequence.detokenizer.n_pending :]
        return b"".join(self._vocabulary.piece(token, special=True) for token in held)

    def _widen_or_end(self, sequence: SequenceState) -> StepOutput:
        """Search further back where every token is banned here; the end, where all before was sent."""
        guard = sequence.guard
        if guard is None or guard.is_lost:
            return self._end_lost(sequence)
        if not guard.is_thorough and guard.search(sequence.n_generated):
            return StepOutput(needs_row=True)
        if not sequence.detokenizer.n_pending:
            return self._end_lost(sequence)
        guard.close(self._held(sequence))
        self._take_back(sequence, guard, 1, is_last=True)
        return StepOutput(needs_row=True)

    def _end_lost(self, sequence: SequenceState) -> StepOutput:
        """End of a sequence that has no allowed token."""
        if sequence.constraint is not None and not sequence.constraint.is_accepting:
            # An incomplete document must not look like a complete one.
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
