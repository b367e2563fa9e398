"""Second half of a step: the next tokens of computed sequences, verification of drafts, outputs and ends."""

from __future__ import annotations

from collections.abc import Callable

from ggufd.engine.backend.interfaces import Row, Rows
from ggufd.engine.costs.step_shape import SlotRows
from ggufd.engine.messages.events import PromptLogprobs
from ggufd.engine.sampling.sampling import NoNumbers
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.step.batcher import Computed
from ggufd.engine.step.drafting import Drafting, VerifiedRows
from ggufd.engine.step.lifecycle import Lifecycle, failure_of
from ggufd.engine.step.token_step import TokenStep


class OutputProcessor:
    """Turns logits into tokens and events of the sequences of `lifecycle`. Times come from `clock`, in seconds."""

    def __init__(
        self, lifecycle: Lifecycle, token_step: TokenStep, drafting: Drafting, clock: Callable[[], float]
    ) -> None:
        self._lifecycle = lifecycle
        self._token_step = token_step
        self._drafting = drafting
        self._clock = clock

    def process(self, computed: list[Computed]) -> None:
        """Advance all sequences of a batch, then sample: a failure ends siblings, which must be consistent by then."""
        before = _drafts(computed)
        for chunk, rows, _ in computed:
            sequence = chunk.sequence
            if sequence.request.prompt_logprobs and sequence.is_reading:
                self._token_step.note_prompt(sequence, rows)
            sequence.n_past += chunk.n_tokens - len(sequence.draft)
            if sequence.checkpoints and sequence.n_past == sequence.checkpoints[0]:
                del sequence.checkpoints[0]
                self._lifecycle.cache.offload.keep_checkpoint(sequence)
        for chunk, rows, last_row in computed:
            if not chunk.sequence.is_finished:
                self._sample(chunk.sequence, rows, last_row)
        if any(one.n_drafted for one in before):
            self._drafting.settle(_verified(computed, before))

    def _sample(self, sequence: SequenceState, rows: Rows, row: int) -> None:
        """Take the next token if the logits for it are there; report prefill progress if not."""
        if sequence.n_past < len(sequence.tokens):
            if not sequence.n_generated:
                self._lifecycle.events.put_progress(sequence, self._clock())
            return
        try:
            if sequence.draft:
                self._verify_draft(sequence, rows, row)
            else:
                self._next_token(sequence, rows[-1], row)
        except NoNumbers as error:
            self._lifecycle.discard(sequence, error)
        except Exception as error:
            self._lifecycle.fail_request(sequence.request.request_id, failure_of(error))

    def _verify_draft(self, sequence: SequenceState, rows: Rows, last_row: int) -> None:
        """Sample a token from each row of the draft until one differs from it; the rest of the draft is dropped."""
        draft, sequence.draft = sequence.draft, ()
        sequence.n_drafted += len(draft)
        first_row = last_row - len(draft)
        for position, drafted in enumerate(draft):
            n_tokens = len(sequence.tokens)
            self._next_token(sequence, rows[position], first_row + position)
            if sequence.is_finished or len(sequence.tokens) != n_tokens + 1 or sequence.tokens[-1] != drafted:
                break
            sequence.n_past += 1
            sequence.n_accepted += 1
        else:
            self._next_token(sequence, rows[-1], last_row)
            return
        if not sequence.is_finished:
            self._lifecycle.cache.cells.rewind(sequence)

    def _next_token(self, sequence: SequenceState, row: Row, batch_row: int) -> None:
        """Sample a token, send the text that is complete, and finish the sequence if this was its last."""
        if not sequence.first_token_s:
            self._note_first_token(sequence)
        output = self._token_step.sample(sequence, row, batch_row)
        if output.reason is not None:
            self._lifecycle.finish(sequence, output, output.reason)
        elif output.needs_row:
            self._lifecycle.cache.cells.rewind(sequence)
        elif output.text or output.items:
            self._lifecycle.events.put_text(sequence, output)

    def _note_first_token(self, sequence: SequenceState) -> None:
        """End of prefill: the time of the first token (TTFT), and the prompt's log-probabilities."""
        sequence.first_token_s = self._clock()
        self._lifecycle.events.put_progress(sequence, self._clock())
        if sequence.request.prompt_logprobs:
            entries = tuple(sequence.prompt_logprobs)
            self._lifecycle.events.put(PromptLogprobs(sequence.request.request_id, sequence.index, entries))


def _drafts(computed: list[Computed]) -> list[VerifiedRows]:
    """The rows of each sequence before drafts are verified; `n_accepted` is what the sequence had accepted before."""
    return [
        VerifiedRows(
            SlotRows(chunk.sequence.slot or 0, chunk.n_tokens, chunk.sequence.n_past),
            len(chunk.sequence.draft),
            chunk.sequence.n_accepted,
        )
        for chunk, _, _ in computed
    ]


def _verified(computed: list[Computed], before: list[VerifiedRows]) -> list[VerifiedRows]:
    """The rows of each sequence, with the draft tokens that this batch accepted."""
    return [
        old._replace(n_accepted=chunk.sequence.n_accepted - old.n_accepted)
        for (chunk, _, _), old in zip(computed, before, strict=True)
    ]
