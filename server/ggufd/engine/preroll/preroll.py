"""Pre-roll: background prefill of the prompt that a chat will send next, when its client drops old messages each turn.

Behind a cut all positions have changed, so all of it has to be computed again, every turn. But a cut tells how the
client makes them (`trim`), and all but the new message is known while the person reads. `PreRoll` computes that in an
idle slot, a small batch at a time, while no request waits. The result is an ordinary cached prefix: a prompt that
comes otherwise matches less of it, and no text changes. Chats with images are left alone.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass

from ggufd.engine.backend.interfaces import Decoder
from ggufd.engine.backend.tokens import common_prefix
from ggufd.engine.costs.step_shape import SlotRows
from ggufd.engine.messages.requests import CacheScope, EngineRequest
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.sequence.trim import Chat, find_trim, predict
from ggufd.engine.slots.cells import KVCells
from ggufd.engine.slots.placement import SlotPlacement
from ggufd.engine.slots.slot_table import Slot, SlotTable
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import NoRoomError

_MAX_CHATS = 16
"""So many chats are remembered, least recently used first out; a few bytes for each token."""

_MIN_WORTH = 64
"""A shorter prefill is soon done when the prompt arrives."""


@dataclass(slots=True)
class _Task:
    """A predicted prompt of a chat, to be computed in a slot other than `taken`: the chat's and other predictions'."""

    tokens: array[int]
    chat: Chat
    taken: list[Slot]
    slot: Slot | None = None


class PreRoll:
    """Remembers chats, and computes their predicted prompts in idle slots of `table`."""

    def __init__(
        self, decoder: Decoder, table: SlotTable, cells: KVCells, placement: SlotPlacement, scheduler: Scheduler
    ) -> None:
        self._decoder = decoder
        self._table = table
        self._cells = cells
        self._placement = placement
        self._scheduler = scheduler
        self._chats: list[Chat] = []
        self._tasks: deque[_Task] = deque(maxlen=_MAX_CHATS)
        self.n_computed = 0

    # --- requests -----------------------------------------------------------------------------------------------------

    def begin(self, request: EngineRequest, prompt: array[int]) -> Chat:
        """Find the chat that a prompt continues, or begin one."""
        cache_scope = request.cache_scope
        chat = self._chat_of(prompt, cache_scope) or Chat(array("i"), cache_scope, request.principal.person)
        chat.longest = max(chat.longest, len(prompt))
        self._chats = [one for one in self._chats if one is not chat][1 - _MAX_CHATS :]
        self._chats.append(chat)
        return chat

    def end(self, chat: Chat, sequence: SequenceState) -> None:
        """Predict the next prompts of a chat that was answered, in place of earlier predictions.

        The sequence still has its slot.
        """
        chat.tokens = sequence.history
        for task in [task for task in self._tasks if task.chat is chat]:
            self._tasks.remove(task)
        if chat.trim is None or sequence.slot is None:
            return
        taken = [self._table.slot_of(sequence)]
        for tokens in predict(chat.tokens, chat.trim, chat.longest):
            if len(tokens) < self._decoder.n_ctx:
                self._tasks.append(_Task(tokens, chat, taken))

    def _chat_of(self, prompt: array[int], cache_scope: CacheScope) -> Chat | None:
        """The chat that the prompt continues, or was cut out of."""
        own = [
            (common_prefix(chat.tokens, prompt), chat)
            for chat in reversed(self._chats)
            if chat.cache_scope == cache_scope
        ]
        for n_common, chat in sorted(own, key=lambda one: -one[0]):
            if 2 * n_common >= len(chat.tokens):
                return chat
            trim = find_trim(chat.tokens, prompt)
            if trim is not None:
                chat.trim = trim.after(chat.trim)
                return chat
        return None

    # --- idle work ----------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._tasks)

    def step(self) -> None:
        """Compute one batch, no longer than a new request may be kept waiting. Only while `has_work`."""
        task = self._tasks[0]
        try:
            is_done = self._begin(task) if task.slot is None else self._go_on(task, task.slot)
        except (NoRoomError, EngineFailure):
            if task.slot is not None and task.slot.is_idle:
                self._cells.evict(task.slot)
            is_done = True
        if is_done:
            self._tasks.popleft()

    def _begin(self, task: _Task) -> bool:
        """Claim a slot; whether nothing is left to be done."""
        slot = self._placement.claim_idle(task.tokens, task.chat.cache_scope, task.chat.person, keep=task.taken)
        if slot is None:
            return True
        task.slot = slot
        task.taken.append(slot)
        return len(task.tokens) - slot.n_computed < _MIN_WORTH

    def _go_on(self, task: _Task, slot: Slot) -> bool:
        """Compute the next tokens; whether these were the last. A request may have taken the slot since."""
        n_past = slot.n_computed
        if not slot.is_idle or common_prefix(slot.tokens, task.tokens) < n_past:
            return True
        part = task.tokens[n_past : n_past + self._scheduler.budget.background(n_past)]
        self._decoder.batch.clear()
        self._decoder.batch.add(slot.index, part, n_past, 0)
        self._decoder.set_threads(None)
        self._decoder.set_adapters(task.chat.cache_scope.adapters)
        rows = [SlotRows(slot.index, len(part), n_past)]
        self._scheduler.costs.record(rows, self._decoder.decode(), n_prefill=len(part))
        self._cells.note_decode()
        self._cells.extend(slot, part)
        self.n_computed += len(part)
        return slot.n_computed == len(task.tokens)
