"""Prefix matching: which slot or kept state holds the longest common prefix of a prompt.

Tokens are compared, never hashes, and only within one cache scope: other adapters compute other states, and the time
of a first token would tell whether somebody else has sent the same prompt. Rows of images are compared by numbers, and
an image that does not match whole is not reused at all. Nothing is changed here.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from ggufd.engine.backend.interfaces import Decoder
from ggufd.engine.backend.tokens import common_prefix
from ggufd.engine.kv_store.host_cache import HostCache
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.events import CacheDifference
from ggufd.engine.messages.requests import CacheScope
from ggufd.engine.sequence.fixed_chunks import FixedChunks
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.chunk_reuse import Move, plan_moves
from ggufd.engine.slots.slot_table import Slot, SlotTable

MIN_SHARED_TOKENS = 32
"""A shorter prefix is worth neither the rest of a longer chat nor waiting for."""

_N_EXPLAINED = 16
"""So many tokens are told of what a slot holds where a prompt differs from it."""


class PrefixMatch(NamedTuple):
    """A slot, and the length of the prefix that it has in common with a prompt."""

    slot: Slot
    n_common: int


def _is_reading(leader: SequenceState) -> bool:
    """Whether others may wait for the prompt that this one computes right now."""
    return leader.is_reading and not leader.request.prompt_logprobs


class PrefixMatcher:
    """Compares prompts with the slots of `table` and the states in `host`.

    `n_cache_reuse` > 0 lets runs of at least so many tokens be moved to where a trimmed history has them now. Of what
    deterministic requests computed, others of them reuse whole `chunks`.
    """

    def __init__(
        self, decoder: Decoder, table: SlotTable, host: HostCache, chunks: FixedChunks, *, n_cache_reuse: int = 0
    ) -> None:
        self._decoder = decoder
        self._table = table
        self._host = host
        self._chunks = chunks
        self._n_cache_reuse = n_cache_reuse if decoder.can_shift else 0

    # --- slots --------------------------------------------------------------------------------------------------------

    def match(self, sequence: SequenceState) -> list[PrefixMatch]:
        """Every slot with the prefix that this sequence can reuse of it, longest first.

        The last token of a prompt is always computed again: its logits are needed.
        """
        matches = [PrefixMatch(slot, self._usable(slot, sequence)) for slot in self._table.slots]
        return sorted(matches, key=lambda match: match.n_common, reverse=True)

    def longest(self, sequence: SequenceState) -> int:
        """Length of the longest prefix that this sequence can reuse of any slot."""
        return max(self._usable(slot, sequence) for slot in self._table.slots)

    def _usable(self, slot: Slot, sequence: SequenceState) -> int:
        request = sequence.request
        if request.prompt_logprobs or not slot.is_readable or slot.cache_scope != request.cache_scope:
            return 0
        n_common = sequence.images.whole(min(len(sequence.tokens) - 1, common_prefix(slot.computed, sequence.tokens)))
        if sequence.is_deterministic:
            return self._usable_chunks(slot, sequence, n_common)
        # A content that cannot be cut, here or in its copy, serves only a prompt that continues all of it.
        can_cut = self._decoder.can_trim if slot.is_idle else self._decoder.copies_all
        n_least = slot.n_fixed if can_cut else slot.n_computed
        return n_common if n_common >= n_least else 0

    def _usable_chunks(self, slot: Slot, sequence: SequenceState, n_common: int) -> int:
        """How much a deterministic sequence reuses of another one's prompt, whose answer was computed token by token.

        Nothing where a copy or a cut might lay the cells otherwise.
        """
        if not self._decoder.copies_all:
            return 0
        leader = slot.sequence
        n_least = n_common if leader is None else min(n_common, self._chunks.reusable(leader))
        return self._chunks.boundary(sequence, n_least)

    def in_scope(self, tokens: array[int], cache_scope: CacheScope) -> list[PrefixMatch]:
        """Every slot of a cache scope with its common prefix, whether that can be reused or not."""
        slots = [slot for slot in self._table.slots if slot.cache_scope == cache_scope]
        return [PrefixMatch(slot, common_prefix(slot.computed, tokens)) for slot in slots]

    def should_wait(self, sequence: SequenceState) -> bool:
        """Whether a running sequence is computing a longer prefix of this prompt right now than any slot holds.

        Nobody waits for background work, which pauses meanwhile.
        """
        if sequence.request.prompt_logprobs or not self._decoder.copies_all:
            return False
        n_least = self.longest(sequence) + MIN_SHARED_TOKENS
        limit = len(sequence.tokens) - 1
        for slot in self._table.running:
            leader = slot.sequence
            assert leader is not None
            if leader.is_background and not sequence.is_background:
                continue
            if slot.cache_scope == sequence.request.cache_scope and _is_reading(leader):
                promised = sequence.images.whole(min(limit, common_prefix(leader.tokens, sequence.tokens)))
                if sequence.is_deterministic:
                    promised = self._chunks.boundary(sequence, min(promised, leader.n_prompt - 1))
                if promised >= n_least and promised > leader.n_past:
                    return True
        return False

    def moves(self, slot: Slot, sequence: SequenceState, n_prefix: int) -> list[Move]:
        """Chunk reuse: what an idle slot holds behind the common prefix, and where this prompt has it.

        Not for a prompt with images, which are never moved.
        """
        is_unchanged = sequence.request.prompt_logprobs or sequence.is_deterministic or sequence.images
        if self._n_cache_reuse == 0 or n_prefix == 0 or is_unchanged:
            return []
        limit = len(sequence.tokens) - 1
        return plan_moves(slot.tokens, sequence.tokens, n_prefix, self._n_cache_reuse, limit)

    # --- kept states --------------------------------------------------------------------------------------------------

    def n_reusable(self, sequence: SequenceState) -> int:
        """Length of the longest prefix that this sequence can reuse of any slot or of host RAM."""
        found = self._host.match(sequence.tokens, sequence.request.cache_scope)
        return max(self.longest(sequence), sequence.images.whole(found[1]) if found else 0)

    def best_kept(self, sequence: SequenceState) -> KeptState | None:
        """The state in host RAM with the longest common prefix; None where a slot is about as good."""
        found = self._host.match(sequence.tokens, sequence.request.cache_scope)
        if found is None or sequence.images.whole(found[1]) < self.longest(sequence) + MIN_SHARED_TOKENS:
            return None
        return found[0]

    def n_parted(self, sequence: SequenceState) -> int:
        """Where this prompt leaves the longest prefix of it that was ever kept, whether that can be reused or not."""
        tokens, cache_scope = sequence.tokens, sequence.request.cache_scope
        in_slots = [match.n_common for match in self.in_scope(tokens, cache_scope)]
        return sequence.images.whole(max([self._host.longest_common(tokens, cache_scope), *in_slots]))

    # --- explanation --------------------------------------------------------------------------------------------------

    def difference(self, sequence: SequenceState) -> CacheDifference | None:
        """The first difference between a prompt and the slot that matches best; None where there is none.

        Of equal matches the person's own comes first, then the latest. Only its person is told what a slot holds.
        """
        person = sequence.request.principal.person
        matches = self.in_scope(sequence.tokens, sequence.request.cache_scope)
        kept = [match for match in matches if match.slot.n_computed]
        if not kept:
            return None
        slot, n_common = max(kept, key=lambda one: (one.n_common, one.slot.person == person, one.slot.last_used))
        if n_common in (slot.n_computed, len(sequence.tokens)):
            return None
        first = sequence.images.whole(n_common)
        held = tuple(slot.computed[first : first + _N_EXPLAINED])
        return CacheDifference(first, held if slot.person == person else None)
