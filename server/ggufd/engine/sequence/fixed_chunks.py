"""Fixed chunks of prefill, in which the prompts of deterministic requests are computed.

llama.cpp's kernels differ by the number of rows, so the same prompt in other chunks gives other last bits, and sooner
or later another token. Chunks of a deterministic request end at fixed positions, and where an image begins or ends,
whatever else runs and whatever the cache holds; behind its prompt each token is computed by itself. So reusable are
whole chunks from position 0 on, and of no other requests.
"""

from __future__ import annotations

from ggufd.engine.sequence.sequence import SequenceState

CPU_CHUNK = 64
"""A tile of the matrix and attention kernels: longer chunks are little faster on a CPU, and others wait for them."""


class FixedChunks:
    """Chunks of `n_tokens` from position 0 on; of at most `n_outputs` where logits of the whole prompt are wanted."""

    def __init__(self, n_tokens: int, n_outputs: int) -> None:
        self.n_tokens = n_tokens
        self._n_outputs = n_outputs

    def next_chunk(self, sequence: SequenceState) -> int:
        """Length of the next chunk of a sequence. What a grammar forced is computed like what was sampled."""
        n_past = sequence.n_past
        if n_past >= sequence.n_prompt:
            return 1
        length = self.n_tokens
        if sequence.request.prompt_logprobs:
            length = min(length, self._n_outputs)
        end = min(n_past + length - n_past % length, sequence.n_prompt)
        return sequence.images.border(n_past, end) - n_past

    def whole(self, n_tokens: int) -> int:
        """Tokens of the whole chunks among the first `n_tokens`."""
        return n_tokens // self.n_tokens * self.n_tokens

    def boundary(self, sequence: SequenceState, n_tokens: int) -> int:
        """The last end of whole chunks among the first `n_tokens` of a prompt that lies within no image."""
        while (before := sequence.images.whole(self.whole(n_tokens))) != n_tokens:
            n_tokens = before
        return n_tokens

    def reusable(self, sequence: SequenceState) -> int:
        """Tokens of a deterministic sequence that others may reuse.

        Not the last one of its prompt, which was computed by itself where the answer's first token was taken back.
        """
        if sequence.request.prompt_logprobs:
            return 0
        return self.whole(min(sequence.n_past, sequence.n_prompt - 1))
