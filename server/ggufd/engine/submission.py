"""Submission of requests to the engine: checks, one sequence for each choice, and what is prepared while they wait."""

from __future__ import annotations

from collections.abc import Callable

from ggufd.engine.backend.interfaces import Decoder, Grammars
from ggufd.engine.embeddings.embedding import Embedder
from ggufd.engine.messages.requests import EmbedRequest, EngineRequest
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.queueing.validation import RequestBounds, check_request
from ggufd.engine.sequence.prompt_images import PromptImages, open_images
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.prefix_cache import PrefixCache


class Submission:
    """Puts requests into the queues: of `queue` for text, of `embedder` for vectors. Bounded together."""

    def __init__(
        self,
        decoder: Decoder,
        grammars: Grammars,
        queue: RequestQueue,
        cache: PrefixCache,
        embedder: Embedder,
        clock: Callable[[], float],
    ) -> None:
        self._bounds = RequestBounds(decoder.n_ctx, decoder.n_vocab, decoder.n_adapters)
        self._n_embd = decoder.n_embd
        self._grammars = grammars
        self._queue = queue
        self._cache = cache
        self._embedder = embedder
        self._clock = clock

    def add(self, request: EngineRequest | EmbedRequest) -> None:
        """Queue a request. Raises `GgufdError` when it cannot be served."""
        if isinstance(request, EmbedRequest):
            self._embedder.add(request)
            return
        check_request(request, self._bounds)
        self._queue.push(self._sequences_of(request, open_images(request.images, self._n_embd)))

    def _sequences_of(self, request: EngineRequest, images: PromptImages) -> list[SequenceState]:
        """Sequences of a request; they share its images, the grammar that is compiled, and the state read from disk."""
        now_s = self._clock()
        sequences = [SequenceState.of(request, index, now_s, images) for index in range(request.n)]
        grammar = request.sampling.grammar
        compiled = None if grammar is None else self._grammars.compile(grammar)
        fetch = self._cache.offload.fetch(sequences[0])
        for sequence in sequences:
            sequence.grammar = compiled
            sequence.fetch = fetch
        return sequences
