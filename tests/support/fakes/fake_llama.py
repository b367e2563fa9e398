"""A context, a vocabulary and grammars without llama.cpp, which hold the engine to the rules of the real ones.

`FakeDecoder` raises AssertionError for a batch that llama.cpp would refuse or compute slowly for no reason, and charges
its virtual clock for every ubatch, so holes between slots cost time as they do in reality. Its "model" is a hash of all
tokens of the slot: a wrong copy, a gap or a mixed-up row changes the text.

An engine for synchronous tests:

    rig = make_engine(n_slots=4)
    rig.engine.add(make_request(1, b"Hello"))
    texts = rig.run()

A client for asynchronous ones; the engine runs in a thread behind the real `process.serve` and a real pipe:

    client = inproc_client(n_slots=2)
    client.start()
    await client.wait_ready()
    async with client.submit(make_request(client.new_request_id(), b"Hello")) as stream:
        async for event in stream: ...
    await client.stop()

Give `inproc_client` an `InprocSpawn` of your own to halt its steps (`spawn.pause()`, `spawn.resume()`) or to crash it
(`spawn.links[-1].kill()`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import itertools
import multiprocessing
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ggufd.engine import process
from ggufd.engine.backend.interfaces import Grammars, Vocabulary
from ggufd.engine.builder import Backend, build_engine
from ggufd.engine.client.client import EngineClient
from ggufd.engine.costs.cost_file import CostFile
from ggufd.engine.embeddings.embedding import Embedder, EmbedderParams
from ggufd.engine.embeddings.inputs import InputList
from ggufd.engine.messages.config import EngineConfig, EngineRules
from ggufd.engine.messages.events import Admitted, Embedding, Failed, Finish, Output, Queued
from ggufd.engine.messages.images import ImageRows, ImageSpan, row_tokens
from ggufd.engine.messages.reports import EmbeddingInfo, Event, ModelInfo, Ready
from ggufd.engine.messages.requests import EmbedRequest, EngineRequest, Shutdown
from ggufd.engine.messages.sampling import Grammar, SamplingParams
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.queueing.waiting_list import WaitingList
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.engine.speculation.draft_model import DraftModel
from ggufd.errors import EngineFailure, InvalidRequest
from ggufd.keys.principal import Principal
from ggufd.llama.context.batch import Batch, Logits, NoRoomError, State, Vectors
from ggufd.llama.params import ContextParams, ModelParams, Pooling
from ggufd.placement.draft_plan import MAX_DRAFTED
from ggufd.processes.receiver import Dispatch, receive

BOS, EOS, EOT = 256, 257, 258
THE = 259
EMOJI_HEAD, EMOJI_TAIL = 260, 261
SUPPRESSED = 262
N_VOCAB = 264

_SPECIALS = {BOS: b"<s>", EOS: b"</s>", EOT: b"<eot>", SUPPRESSED: b"<never>", N_VOCAB - 1: b"<pad>"}
_OTHERS = {THE: b" the", EMOJI_HEAD: b"\xf0\x9f", EMOJI_TAIL: b"\x98\x80"}
N_EMBD = 4
"""Width of the fake model's embedding rows: see `make_image`."""

_ROW_MARK = 7.0
_ADAPTED = 1000
_PRIME = (1 << 61) - 1


class FakeVocabulary:
    """Token 0 to 255 is that byte; then control tokens, a token of several bytes, and two halves of an emoji."""

    eog_tokens = frozenset((EOS, EOT))
    suppressed_tokens = (SUPPRESSED,)

    def piece(self, token: int, *, special: bool) -> bytes:
        if token < 256:
            return bytes([token])
        if token in _OTHERS:
            return _OTHERS[token]
        return _SPECIALS[token] if special else b""


class FakeGrammars:
    """A grammar is the characters that may stand at each place: "ab/c" is an a or b, then a c, then the end.

    "!" at a place makes the matcher fail there; a grammar that starts with it is refused. One that starts with "?"
    is compiled once it was looked at three times. "*<" is free: any bytes up to a "<", and that; it may end there too.
    With `has_guesses` one decode may need several masks of a sequence, of which the first alone can be begun before.
    """

    def __init__(self, *, has_guesses: bool = False) -> None:
        self._has_guesses = has_guesses
        self.is_prepared = False

    def prepare(self) -> None:
        self.is_prepared = True

    def compile(self, grammar: Grammar) -> FakeCompiledGrammar:
        return FakeCompiledGrammar(grammar.text, has_guesses=self._has_guesses)

    def begin_masks(self, constraints: Sequence[FakeConstraint]) -> None:
        assert len(set(map(id, constraints))) == len(constraints) > 0
        for constraint in constraints:
            constraint.begin()


class FakeCompiledGrammar:
    def __init__(self, text: str, *, has_guesses: bool) -> None:
        self._has_guesses = has_guesses
        self._text = text.removeprefix("?")
        self._n_looks_left = 3 if text.startswith("?") else 0

    @property
    def is_ready(self) -> bool:
        self._n_looks_left -= 1
        return self._n_looks_left < 0

    def constraint(self) -> FakeConstraint:
        assert self._n_looks_left < 0, "started before it was compiled"
        if self._text.startswith("!"):
            raise InvalidRequest("the grammar is wrong", param="grammar")
        return FakeConstraint(self._text.split("/"), has_guesses=self._has_guesses)


class FakeConstraint:
    def __init__(self, places: list[str], *, has_guesses: bool) -> None:
        self._has_guesses = has_guesses
        self._places = places
        self._positions = [0]
        self._begun_at: int | None = None
        self._is_masked = self._is_refused = False
        self.n_masks = 0

    @property
    def _position(self) -> int:
        return self._positions[-1]

    @property
    def is_stopped(self) -> bool:
        return self._position == len(self._places)

    @property
    def is_free(self) -> bool:
        return not self.is_stopped and self._places[self._position] == "*<"

    @property
    def is_accepting(self) -> bool:
        return self.is_stopped or self.is_free

    def begin(self) -> None:
        assert not self.is_stopped, "began more than the grammar allows"
        assert not self.is_free, "began what may not be needed"
        self._begun_at = self._position

    def forced(self) -> list[int]:
        """A place with one character leaves no choice."""
        rest = itertools.takewhile(lambda place: len(place) == 1 and place != "!", self._places[self._position :])
        return [ord(place) for place in rest]

    def mask(self, row: Logits) -> None:
        assert not self.is_stopped, "asked for more than the grammar allows"
        if self.is_free:
            assert self._is_refused, "a mask where none was needed"
        else:
            assert self._begun_at == self._position or self._has_guesses, "a mask was not begun before its decode"
        if self._places[self._position] == "!":
            raise EngineFailure("the grammar cannot go on")
        row[[token for token in range(len(row)) if not self._fits(token)]] = -np.inf
        self._is_masked = True
        self._is_refused = False
        self.n_masks += 1

    def take(self, token: int) -> bool:
        assert self.is_free, "a token was chosen without a mask"
        if self._fits(token):
            self._advance(token)
            return True
        self._is_refused = True
        return False

    def accept(self, token: int) -> None:
        assert self._is_masked or token in self.forced()[:1], "a token was chosen without a mask"
        if not self._fits(token):
            raise EngineFailure(f"token {token} does not fit the grammar")
        self._advance(token)
        self._is_masked = False

    def _fits(self, token: int) -> bool:
        """An end may come where the text is whole, without being taken."""
        if self.is_free:
            return token < 256 or token in FakeVocabulary.eog_tokens
        return chr(token) in self._places[self._position]

    def _advance(self, token: int) -> None:
        stays = self.is_free and chr(token) != "<"
        self._positions.append(self._position + (not stays))

    def rewind(self, n: int) -> None:
        assert 0 < n < len(self._positions), "more taken back than was accepted"
        del self._positions[-n:]


class FakeChain:
    """Stands for llama.cpp's chain: draws by temperature from the row that C would read."""

    def __init__(
        self, decoder: FakeDecoder, params: SamplingParams, seed: int, said: Sequence[int], *, can_rewind: bool
    ) -> None:
        self._decoder = decoder
        self._temperature = params.temperature
        self._random = random.Random(f"{seed} {list(said)}")
        self.history = list(said)
        self._n_kept = 0
        self._can_rewind = can_rewind
        self.is_closed = False

    def distribution(self, row: Logits) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        weights = np.exp((row - row.max()).astype(np.float64) / max(self._temperature, 1e-3))
        return np.arange(len(row)), weights / weights.sum()

    def sample(self, row: Logits, batch_row: int) -> int:
        assert not self.is_closed, "sampled with a chain that was freed"
        assert row.ctypes.data == self._decoder.row(batch_row).ctypes.data, "C would read another row"
        self._n_kept += self._can_rewind
        if self._temperature <= 0:
            return int(row.argmax())
        weights = np.exp((row - row.max()) / self._temperature)
        return int(np.searchsorted(np.cumsum(weights), self._random.random() * weights.sum()))

    def accept(self, token: int) -> None:
        assert not self.is_closed, "told a chain that was freed"
        self._n_kept += self._can_rewind

    def rewind(self, n: int, said: Sequence[int]) -> None:
        assert 0 < n <= self._n_kept, "more taken back than was kept"
        self._n_kept -= n

    def keep(self, n: int) -> None:
        self._n_kept = min(self._n_kept, n)

    def close(self) -> None:
        assert not self.is_closed, "freed twice"
        self.is_closed = True


class EmbeddedRow(NamedTuple):
    """An embedding row that was computed: where, the number that stands for it, and its place in its image."""

    slot: int
    position: int
    number: int
    index: int


def make_image(folder: Path, name: str, n_rows: int = 12, *, alike: str = "") -> ImageRows:
    """An image for the fake model: each row says which one of which image it is.

    Its digest begins like that of the image named `alike`: so do the numbers of its rows, but for the last of eight.
    """
    digest = hashlib.sha256(name.encode()).hexdigest()
    if alike:
        digest = hashlib.sha256(alike.encode()).hexdigest()[:56] + digest[56:]
    numbers = [-1 - number for number in row_tokens(digest, n_rows)]
    rows = [(number >> 16, number & 0xFFFF, index, _ROW_MARK) for index, number in enumerate(numbers)]
    path = folder / f"{name}-{n_rows}.rows"
    path.write_bytes(np.array(rows, np.float32).tobytes())
    return ImageRows(digest, n_rows, str(path))


def make_image_request(request_id: int, parts: Iterable[Iterable[int] | ImageRows], **changes: Any) -> EngineRequest:
    """A request whose prompt is tokens and images, as `make_request` makes one of tokens."""
    prompt: list[int] = []
    spans = []
    for part in parts:
        if isinstance(part, ImageRows):
            spans.append(ImageSpan(len(prompt), part))
            prompt += row_tokens(part.digest, part.n_rows)
        else:
            prompt += part
    return make_request(request_id, prompt, images=tuple(spans), **changes)


class FakeDecoder:
    """See `ggufd.engine.backend.interfaces.Decoder`. Seconds pass on `clock` alone: `base_s` a ubatch, `row_s` a row.

    A token that was computed under other adapters is another one to the model from then on.
    `failures` are raised by the next decodes, one each; an `EngineFailure` leaves the slots of its batch half computed.
    A batch of more than `max_rows` rows, or with one of `full_slots`, has no room; one with one of `bad_slots` fails.
    A state is of use only to a context of as many slots. What else goes wrong with the n-th `set_state` stands in
    `bad_restores`: it is "refused", or comes back "short"; the n-th `get_state` fails where n is in `bad_reads`.
    """

    def __init__(
        self,
        n_slots: int = 4,
        n_ctx: int = 256,
        n_batch: int = 64,
        n_outputs_max: int = 64,
        can_trim: bool = True,
        copies_all: bool = True,
        n_adapters: int = 0,
        n_threads: int = 2,
        base_s: float = 0.01,
        row_s: float = 0.0005,
        copy_s_per_token: float = 1e-6,
        seed: int = 0,
    ) -> None:
        self.n_slots, self.n_ctx, self.n_batch = n_slots, n_ctx, n_batch
        self.n_outputs_max = n_outputs_max
        self.n_vocab = N_VOCAB
        self.n_embd = N_EMBD
        self.n_threads = n_threads
        self.n_adapters = n_adapters
        self.adapters: tuple[float, ...] = ()
        self.threads: int | None = None
        self.can_trim = can_trim
        self.copies_all = can_trim and copies_all
        self._n_fixed = [0] * n_slots
        self.batch = Batch.with_capacity(n_batch, N_EMBD)
        self.failures: list[Exception] = []
        self.max_rows = n_batch
        self.full_slots: set[int] = set()
        self.bad_slots: set[int] = set()
        self.chains: list[FakeChain] = []
        self.computed: list[tuple[int, int]] = []
        self.embedded: list[EmbeddedRow] = []
        self.n_ubatches = 0
        self.n_copies = 0
        self.n_reads = 0
        self.bad_restores: dict[int, str] = {}
        self.bad_reads: set[int] = set()
        self.before_decode: Callable[[], None] = lambda: None
        self._base_s, self._row_s, self._copy_s_per_token = base_s, row_s, copy_s_per_token
        self._moved: set[int] = set()
        self._slots: list[list[int]] = [[] for _ in range(n_slots)]
        self._logits = np.full((n_outputs_max, N_VOCAB), np.nan, np.float32)
        self._output_of_row: dict[int, int] = {}
        self._now_s = 100.0
        self._seed = seed

    def clock(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds

    def tokens(self, slot: int) -> list[int]:
        return [value % _ADAPTED if value >= 0 else value for value in self._slots[slot]]

    # --- decode -----------------------------------------------------------------------------------------------------

    def set_threads(self, n_threads: int | None) -> None:
        assert n_threads is None or 1 <= n_threads <= self.n_threads
        self.threads = n_threads

    def set_adapters(self, scales: tuple[float, ...]) -> None:
        assert len(scales) in (0, self.n_adapters)
        self.adapters = scales

    def decode(self) -> float:
        self.before_decode()
        self._moved.clear()
        runs = self._runs()
        self._fail(runs)
        self._logits[:] = np.nan
        self._output_of_row = {}
        for row in range(self.batch.n_rows):
            self._compute(row)
        self.computed += [(slot, len(rows)) for slot, rows in runs]
        seconds = self._cost_s(runs)
        self._now_s += seconds
        return seconds

    def _runs(self) -> list[tuple[int, list[int]]]:
        """`(slot, rows)` in order, after all checks of the batch's form."""
        batch = self.batch
        assert 0 < batch.n_rows <= self.n_batch, f"{batch.n_rows} rows"
        assert batch.n_outputs <= self.n_outputs_max, f"{batch.n_outputs} outputs"
        assert batch.n_outputs == int(batch.output[: batch.n_rows].sum())
        assert batch.n_embedded in (0, batch.n_rows), "tokens and embedding rows in one batch"
        runs: list[tuple[int, list[int]]] = []
        for row in range(batch.n_rows):
            slot = int(batch.seq_id[row])
            if not runs or runs[-1][0] != slot:
                assert not runs or runs[-1][0] < slot, "rows do not stand by ascending slot"
                runs.append((slot, []))
            runs[-1][1].append(row)
        for slot, rows in runs:
            n_past = len(self._slots[slot])
            assert [int(batch.pos[row]) for row in rows] == list(range(n_past, n_past + len(rows))), "a gap"
            assert n_past + len(rows) <= self.n_ctx, "more tokens than the slot has cells"
        return runs

    def _fail(self, runs: list[tuple[int, list[int]]]) -> None:
        slots = {slot for slot, _ in runs}
        if slots & self.full_slots or self.batch.n_rows > self.max_rows:
            raise NoRoomError
        if not self.failures and not slots & self.bad_slots:
            return
        error = self.failures.pop(0) if self.failures else EngineFailure("llama_decode failed with status -3")
        if not isinstance(error, NoRoomError):
            for slot, rows in runs:
                self._slots[slot] += [0] * (len(rows) // 2 + 1)
        raise error

    def _compute(self, row: int) -> None:
        batch = self.batch
        slot = int(batch.seq_id[row])
        if batch.n_embedded:
            self._read_row(slot, batch.embd[row])
            self._note_output(slot, row)
            return
        token = int(batch.token[row])
        assert 0 <= token < self.n_vocab, f"{token} is no token"
        self._slots[slot].append(
            token + _ADAPTED * (zlib.crc32(repr(self.adapters).encode()) % 1000 if any(self.adapters) else 0)
        )
        self._note_output(slot, row)

    def _read_row(self, slot: int, row: Vectors) -> None:
        """An embedding row of `make_image`: the fake takes the number that stands for it as the token."""
        assert row.shape == (N_EMBD,)
        high, low, index, rest = row.tolist()
        assert rest == _ROW_MARK, "no row of an image"
        number = -1 - (int(high) << 16 | int(low))
        self.embedded.append(EmbeddedRow(slot, len(self._slots[slot]), number, int(index)))
        self._slots[slot].append(number)

    def _note_output(self, slot: int, row: int) -> None:
        if self.batch.output[row]:
            output = len(self._output_of_row)
            self._logits[output] = self.logits_after(self._slots[slot])
            self._output_of_row[row] = output

    def logits_after(self, tokens: list[int]) -> Logits:
        """The logits of what comes after all tokens of a slot."""
        return logits_after(tokens, self._seed)

    def _cost_s(self, runs: list[tuple[int, list[int]]]) -> float:
        """One pass over the weights for each run of neighbours with equal token counts."""
        n_ubatches = 0
        before: tuple[int, int] | None = None
        for slot, rows in runs:
            if before is None or before[0] + 1 != slot or before[1] != len(rows):
                n_ubatches += 1
            before = (slot, len(rows))
        self.n_ubatches += n_ubatches
        return n_ubatches * self._base_s + self.batch.n_rows * self._row_s

    def logits(self) -> Logits:
        assert self.batch.n_outputs == len(self._output_of_row) > 0, "no logits were asked for"
        return self._logits[: self.batch.n_outputs]

    def row(self, batch_row: int) -> Logits:
        """What `llama_get_logits_ith` would give."""
        assert batch_row in self._output_of_row, f"row {batch_row} has no logits"
        return self._logits[self._output_of_row[batch_row]]

    # --- memory -----------------------------------------------------------------------------------------------------

    def trim(self, slot: int, n_keep: int) -> bool:
        if not self.can_trim and 0 < n_keep < len(self._slots[slot]):
            return False
        assert n_keep == 0 or n_keep >= self._n_fixed[slot], "a copy was cut back that cannot be"
        self._n_fixed[slot] = self._n_fixed[slot] if n_keep else 0
        del self._slots[slot][n_keep:]
        return True

    @property
    def can_shift(self) -> bool:
        return self.copies_all

    def move(self, slot: int, source: int, target: int, n: int) -> None:
        """Moved tokens are as if computed anew; what stood behind them must be trimmed or moved next."""
        tokens = self._slots[slot]
        assert 0 < target < source
        self._moved.add(slot)
        assert source + n <= len(tokens)
        tokens[target : target + n] = tokens[source : source + n]

    def n_past(self, slot: int) -> int:
        return len(self._slots[slot])

    def get_state(self, slot: int) -> State:
        assert slot not in self._moved, "copied before the next decode had rotated what was moved"
        self._now_s += self._copy_s_per_token * len(self._slots[slot])
        self.n_reads += 1
        if self.n_reads - 1 in self.bad_reads:
            raise EngineFailure(f"the state of slot {slot} could not be read")
        head = [-1, self.n_slots, len(self._slots[slot])]
        return np.frombuffer(np.array([*head, *self._slots[slot]], np.int32).tobytes(), np.uint8).copy()

    def set_state(self, slot: int, state: State) -> None:
        self._slots[slot], self._n_fixed[slot] = [], 0
        fault = self.bad_restores.get(self.n_copies, "")
        self.n_copies += 1
        tokens = self._tokens_of(state)
        if tokens is None or fault == "refused":
            raise EngineFailure(f"the state of slot {slot} could not be restored")
        self._slots[slot] = tokens[:-1] if fault == "short" else tokens
        self._n_fixed[slot] = 0 if self.copies_all else len(self._slots[slot])
        self._now_s += self._copy_s_per_token * len(self._slots[slot])

    def _tokens_of(self, state: State) -> list[int] | None:
        """What a state of a context like this one holds; None of any other, or one that is cut."""
        if len(state) < 12 or len(state) % 4:
            return None
        magic, n_slots, n_tokens, *tokens = np.frombuffer(state.tobytes(), np.int32).tolist()
        is_sound = magic == -1 and n_slots == self.n_slots and n_tokens == len(tokens) <= self.n_ctx
        return tokens if is_sound else None

    def new_chain(self, params: SamplingParams, seed: int, said: Sequence[int], *, can_rewind: bool) -> FakeChain:
        chain = FakeChain(self, params, seed, said, can_rewind=can_rewind)
        self.chains.append(chain)
        return chain


class FakeDraft(FakeDecoder):
    """A draft model beside `target`, of as many streams, four at most, whose seconds pass on the target's clock.

    It says what the target would, but for the share `error` of all places; made of the text alone, so always the same.
    """

    def __init__(self, target: FakeDecoder, *, error: float = 0.0, **options: Any) -> None:
        own = {"n_ctx": target.n_ctx, "base_s": 0.001, "row_s": 0.0, **options}
        super().__init__(n_slots=min(target.n_slots, MAX_DRAFTED), **own)
        self._target = target
        self._error = error
        self.most_streams = 0
        """Most streams of one decode."""

    def decode(self) -> float:
        try:
            seconds = super().decode()
        finally:
            seq_ids, outputs = self.batch.seq_id[: self.batch.n_rows], self.batch.output[: self.batch.n_rows]
            assert len(set(seq_ids[outputs == 1].tolist())) == self.batch.n_outputs, "more logits than a guess needs"
            self.most_streams = max(self.most_streams, len(set(seq_ids.tolist())))
        self._target.sleep(seconds)
        return seconds

    def logits_after(self, tokens: list[int]) -> Logits:
        row = self._target.logits_after(tokens)
        if zlib.crc32(repr(tokens).encode()) % 1000 < 1000 * self._error:
            return np.roll(row, 7)
        return row


class FakeVectorDecoder:
    """See `ggufd.engine.backend.interfaces.VectorDecoder`.

    A row is a hash of its sequence's tokens so far, `WIDTH` numbers.

    A sequence is computed under one set of adapters, which adds to the hash; there are as many as over `decoder`.
    Seconds pass on the clock of `decoder`, `row_s` a row. `failures` are raised by the next decodes, one each.
    """

    WIDTH = 6

    def __init__(
        self,
        decoder: FakeDecoder,
        *,
        n_ctx: int = 64,
        n_batch: int = 48,
        n_inputs: int = 4,
        can_split: bool = True,
        row_s: float = 0.002,
    ) -> None:
        self.n_ctx, self.n_batch, self.n_inputs, self.can_split = n_ctx, n_batch, n_inputs, can_split
        self.batch = Batch.with_capacity(n_batch)
        self.failures: list[Exception] = []
        self.batches: list[list[int]] = []
        self.adapters: tuple[float, ...] = ()
        self.sets: list[tuple[float, ...]] = []
        self._decoder = decoder
        self.row_s = row_s
        self._held: dict[int, list[int]] = {}
        self._under: dict[int, tuple[float, ...]] = {}
        self._rows = np.full((n_batch, self.WIDTH), np.nan, np.float32)

    @property
    def n_held(self) -> int:
        return len(self._held)

    def set_adapters(self, scales: tuple[float, ...]) -> None:
        assert len(scales) in (0, self._decoder.n_adapters)
        self.adapters = scales

    def decode(self) -> float:
        batch = self.batch
        assert 0 < batch.n_rows <= self.n_batch
        assert batch.n_outputs == batch.n_rows, "a row without an output"
        self._rows[:] = np.nan
        sequences = [int(one) for one in batch.seq_id[: batch.n_rows]]
        for row, sequence in enumerate(sequences):
            assert 0 <= sequence < self.n_inputs
            held = self._held.setdefault(sequence, [])
            assert int(batch.pos[row]) == len(held), "a gap"
            assert self._under.setdefault(sequence, self.adapters) == self.adapters, "a sequence under two sets"
            assert self.can_split or row == 0 or sequence in sequences[:row] or not held, "a sequence in pieces"
            held.append(int(batch.token[row]))
            self._rows[row] = vector_after(held, self.adapters)
        assert sum(map(len, self._held.values())) <= self.n_ctx, "more tokens than there are cells"
        self.batches.append(sequences)
        self.sets.append(self.adapters)
        seconds = batch.n_rows * self.row_s
        self._decoder.sleep(seconds)
        if self.failures:
            raise self.failures.pop(0)
        return seconds

    def rows(self) -> Vectors:
        return self._rows[: self.batch.n_rows]

    def scores(self, sequence: int) -> Vectors:
        assert sequence in self.batches[-1], "llama.cpp has scores of the last batch only"
        return vector_after(self._held[sequence], self._under[sequence])[None, :1]

    def forget(self, sequence: int) -> None:
        self._held.pop(sequence, None)
        self._under.pop(sequence, None)


def no_vectors() -> Embedder:
    """For an engine that is asked for none."""

    def make() -> FakeVectorDecoder:
        raise EngineFailure("there is no context for vectors here")

    return Embedder(EmbedderParams("mean", 64, N_VOCAB), make, WaitingList(600.0))


def vector_after(tokens: Sequence[int], adapters: Sequence[float] = ()) -> Vectors:
    """The row of a sequence's last token."""
    value = 1 + (zlib.crc32(repr(tuple(adapters)).encode()) if any(adapters) else 0)
    for token in tokens:
        value = (value * 1_000_003 + token + 7) % _PRIME
    return np.random.default_rng(value).normal(0, 1, FakeVectorDecoder.WIDTH).astype(np.float32)


def logits_after(tokens: Sequence[int], seed: int = 0) -> Logits:
    """The fake model: logits that depend on every token and its place. Letters are likelier than other bytes."""
    value = seed + 1
    for token in tokens:
        value = (value * 1_000_003 + token + 7) % _PRIME
    row = np.random.default_rng(value).normal(0, 2, N_VOCAB).astype(np.float32)
    row[97:123] += 3
    row[128:256] -= 4
    row[[EOS, EOT, BOS, N_VOCAB - 1]] -= 1
    return row


# --- requests and a rig to run them -----------------------------------------------------------------------------------


def taken_of(kind: type[Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Take out of `changes` what are fields of a dataclass."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: changes.pop(name) for name in tuple(changes) if name in names}


def make_request(request_id: int, prompt: bytes | Iterable[int], **changes: Any) -> EngineRequest:
    """A request; greedy unless `sampling` says otherwise. Fields of sampling and principal may be given directly."""
    changes.setdefault("sampling", SamplingParams(**{"temperature": 0.0} | taken_of(SamplingParams, changes)))
    changes.setdefault("principal", Principal(**taken_of(Principal, changes)))
    changes.setdefault("max_tokens", 12)
    return EngineRequest(request_id, tuple(prompt), **changes)


@dataclass
class Collected:
    """All that was said of one request, checked for order: no event after the end, at most one output a step."""

    n: int
    events: list[Event] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    pieces: dict[int, list[tuple[str, int]]] = field(default_factory=dict)
    finishes: dict[int, Finish] = field(default_factory=dict)
    vectors: dict[int, Vectors] = field(default_factory=dict)
    failure: Failed | None = None

    @property
    def is_done(self) -> bool:
        return self.failure is not None or len(self.finishes) + len(self.vectors) == self.n

    def add(self, event: Any) -> None:
        assert self.failure is None, f"{event} after {self.failure}"
        self.events.append(event)
        if isinstance(event, Failed):
            assert not self.is_done, "failed after the end"
            self.failure = event
            return
        if isinstance(event, Queued):
            assert not any(isinstance(before, Admitted) for before in self.events), "still queued though admitted"
            return
        assert event.index not in self.finishes, f"{event} after the finish"
        assert event.index not in self.vectors or isinstance(event, Admitted), f"{event} after the vector"
        if isinstance(event, Embedding):
            self.vectors[event.index] = np.frombuffer(event.data, "<f4").reshape(-1, event.width)
        if isinstance(event, Output):
            pieces = list(event.pieces())
            assert ("".join(text for text, _ in pieces), sum(n for _, n in pieces)) == (event.text, len(event.tokens))
            self.pieces.setdefault(event.index, []).extend(piece for piece in pieces if piece != ("", 0))
            self.texts[event.index] = self.texts.get(event.index, "") + event.text
            self.tokens.setdefault(event.index, []).extend(event.tokens)
            if event.finish is not None:
                self.finishes[event.index] = event.finish


class Rig:
    """An engine over a fake decoder that checks its integrity after every step."""

    def __init__(
        self,
        decoder: FakeDecoder,
        *,
        max_gap_ms: float = 100.0,
        max_gap_steps: int = 0,
        max_gap_full_ms: float = 0.0,
        max_queue_wait_s: float = 600.0,
        rules: EngineRules | None = None,
        pooling: Pooling = "mean",
        draft: FakeDraft | None = None,
        p_min: float = 0.0,
        vocabulary: Vocabulary | None = None,
        grammars: Grammars | None = None,
        cost_file: CostFile | None = None,
    ) -> None:
        self.decoder = decoder
        self.vectors = FakeVectorDecoder(decoder)
        self.queue = RequestQueue(max_queue_wait_s)
        self.embedder = Embedder(
            EmbedderParams(pooling, self.vectors.n_ctx, N_VOCAB, decoder.n_adapters),
            lambda: self.vectors,
            WaitingList(max_queue_wait_s, accounts=self.queue.accounts),
            decoder.clock,
        )
        self.scheduler = Scheduler(
            n_batch=decoder.n_batch,
            n_ubatch=decoder.n_batch,
            n_outputs_max=decoder.n_outputs_max,
            max_gap_ms=max_gap_ms,
            max_gap_steps=max_gap_steps,
            max_gap_full_ms=max_gap_full_ms,
        )
        vocabulary = vocabulary or FakeVocabulary()
        draft_model = None
        if draft is not None:
            draft_model = DraftModel(draft, n_vocab=decoder.n_vocab, eog=vocabulary.eog_tokens, p_min=p_min)
        backend = Backend(
            decoder,
            vocabulary,
            grammars or FakeGrammars(has_guesses=rules is not None and rules.max_draft > 0),
            draft_model,
        )
        self.engine = build_engine(backend, self.queue, self.scheduler, self.embedder, rules, decoder.clock, cost_file)
        self.collected: dict[int, Collected] = {}
        self.aborted: set[int] = set()
        self.finished: set[tuple[int, int]] = set()

    def add(self, *requests: EngineRequest | EmbedRequest) -> None:
        for request in requests:
            self.collected[request.request_id] = Collected(request.n)
            self.engine.add(request)

    def abort(self, request_id: int) -> None:
        self.aborted.add(request_id)
        self.engine.abort(request_id)
        self.engine.check_integrity()

    def finish(self, request_id: int, index: int = 0) -> None:
        self.finished.add((request_id, index))
        self.engine.finish(request_id, index)
        self.engine.check_integrity()

    def step(self) -> list[Event]:
        events = self.engine.step()
        self.engine.check_integrity()
        self._check_slots()
        n_open = sum(1 for chain in self.decoder.chains if not chain.is_closed)
        n_preempted = sum(sequence.is_preempted for sequence in self.queue.waiting())
        assert n_open <= self.engine.stats().running + n_preempted, "a sampler chain was not freed"
        seen: set[tuple[int, int]] = set()
        for event in events:
            assert not isinstance(event, Failed) or event.request_id not in self.aborted
            if isinstance(event, Output):
                assert event.request_id not in self.aborted, "an output after the abort"
                assert (event.request_id, event.index) not in seen, "two outputs in one step"
                seen.add((event.request_id, event.index))
            self.collected[event.request_id].add(event)
        return events

    def _check_slots(self) -> None:
        """The books may count right and be wrong all the same: every slot must hold the very tokens that they say."""
        for slot in self.engine._cache.table.slots:
            assert self.decoder.tokens(slot.index) == slot.computed.tolist(), f"slot {slot.index} holds other tokens"

    def run(self, max_steps: int = 5000) -> dict[int, Collected]:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                return self.collected
            self.step()
        raise AssertionError(f"still work after {max_steps} steps")

    def text(self, request_id: int, index: int = 0) -> str:
        return self.collected[request_id].texts[index]

    @property
    def n_computed(self) -> int:
        """Rows computed so far."""
        return sum(n for _, n in self.decoder.computed)


RIG_OPTIONS = frozenset(("max_gap_ms", "max_gap_steps", "max_gap_full_ms", "max_queue_wait_s", "pooling", "cost_file"))
RULES = frozenset(field.name for field in dataclasses.fields(EngineRules))


def make_engine(**options: Any) -> Rig:
    """A rig with these options of its own, or rules of its engine; the others are the decoder's."""
    own = {name: options.pop(name) for name in RIG_OPTIONS & options.keys()}
    rules = EngineRules(**{name: options.pop(name) for name in RULES & options.keys()})
    return Rig(FakeDecoder(**options), rules=rules, **own)


def run_alone(request: EngineRequest, **decoder: Any) -> Collected:
    """The request by itself in a fresh engine of as many slots as it has sequences."""
    rig = make_engine(n_slots=1, **decoder)
    rig.add(request)
    return rig.run()[request.request_id]


# --- a client over a thread -------------------------------------------------------------------------------------------

_KILLED = -9


def soon(function: Callable[..., None], *args: Any) -> None:
    """Call it on the event loop, but not now: as a `Link` says what it has to say."""
    asyncio.get_running_loop().call_soon(function, *args)


class ThreadLink:
    """A `Link` whose engine runs in a thread of this process."""

    def __init__(
        self,
        main: Callable[[Connection], None],
        on_message: Callable[[list[Event]], None],
        on_exit: Callable[[int, str], None],
    ) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self._on_message, self._on_exit = on_message, on_exit
        self._exit_code = 0
        self._is_over = threading.Event()
        self._worker = threading.Thread(target=self._work, args=(main, theirs), daemon=True)
        self._worker.start()
        receive(self._ours, self._tell, self._end, asyncio.get_running_loop())

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):
            self._ours.send(message)

    def kill(self) -> None:
        """As near to SIGKILL as a thread gets: it ends after its step, and nothing more is told."""
        self._exit_code = _KILLED
        self.send(Shutdown())

    def join(self, timeout_s: float) -> bool:
        return self._is_over.wait(timeout_s)

    def _work(self, main: Callable[[Connection], None], conn: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):
            main(conn)
        conn.close()

    def _tell(self, events: list[Event]) -> None:
        if self._exit_code == 0:
            self._on_message(events)

    def _end(self, dispatch: Dispatch) -> None:
        self._worker.join()
        self._ours.close()
        dispatch(self._on_exit, self._exit_code, "")
        self._is_over.set()


class DeadLink:
    """A `Link` to an engine that does nothing."""

    def send(self, message: Any) -> None: ...
    def kill(self) -> None: ...


class InprocSpawn:
    """Starts engines in threads; `links` and `decoders` are those so far, the last one is the current.

    `step_s` real seconds pass a step; other arguments are `FakeDecoder`'s.
    """

    def __init__(self, *, step_s: float = 0.0, max_queue_wait_s: float = 600.0, **decoder: Any):
        self.links: list[ThreadLink] = []
        self.decoders: list[FakeDecoder] = []
        self._step_s = step_s
        self._decoder_args = decoder
        self._max_queue_wait_s = max_queue_wait_s
        self._gate = threading.Event()
        self._gate.set()

    def pause(self) -> None:
        """No step is computed from now on until `resume`."""
        self._gate.clear()

    def resume(self) -> None:
        self._gate.set()

    def __call__(self, on_message: Callable[[list[Event]], None], on_exit: Callable[[int, str], None]) -> ThreadLink:
        decoder = FakeDecoder(**self._decoder_args)
        decoder.before_decode = self._before_decode
        self.decoders.append(decoder)
        link = ThreadLink(lambda conn: self._main(conn, decoder), on_message, on_exit)
        self.links.append(link)
        return link

    def _before_decode(self) -> None:
        self._gate.wait()
        time.sleep(self._step_s)

    def _main(self, conn: Connection, decoder: FakeDecoder) -> None:
        scheduler = Scheduler(
            n_batch=decoder.n_batch,
            n_ubatch=decoder.n_batch,
            n_outputs_max=decoder.n_outputs_max,
            max_gap_ms=100.0,
        )
        queue = RequestQueue(self._max_queue_wait_s)
        conn.send([fake_ready(decoder)])
        vectors = FakeVectorDecoder(decoder)
        waiting = WaitingList[InputList](self._max_queue_wait_s, accounts=queue.accounts)
        embedder = Embedder(EmbedderParams("mean", vectors.n_ctx, N_VOCAB), lambda: vectors, waiting)
        backend = Backend(decoder, FakeVocabulary(), FakeGrammars())
        process.serve(conn, build_engine(backend, queue, scheduler, embedder))


def inproc_client(
    spawn: InprocSpawn | None = None,
    *,
    max_queue: int = 64,
    max_queue_wait_s: float = 600.0,
    step_timeout_s: float = 0.0,
    **decoder: Any,
) -> EngineClient:
    """A client whose engine is the real one over a fake decoder, in a thread. Call `start`, `wait_ready`, `stop`."""
    spawn = spawn or InprocSpawn(max_queue_wait_s=max_queue_wait_s, **decoder)
    config = EngineConfig(
        ModelParams("fake.gguf"),
        ContextParams(n_ctx=256, n_slots=4),
        max_queue=max_queue,
        max_queue_wait_s=max_queue_wait_s,
        step_timeout_s=step_timeout_s,
    )
    return EngineClient(config, spawn=spawn)


def engines_of(client: EngineClient) -> InprocSpawn:
    """The engines of a client that runs them in threads."""
    spawn = client._supervisor._process.spawn
    assert isinstance(spawn, InprocSpawn)
    return spawn


def spawn_with(client: EngineClient, spawn: Any) -> None:
    """Start the client's next engines with `spawn`."""
    client._supervisor._process.spawn = spawn


def configure(client: EngineClient, **changes: Any) -> None:
    """Change the settings that its next engine gets."""
    supervisor = client._supervisor
    supervisor.config = supervisor.condition._config = dataclasses.replace(client.config, **changes)


def link_of(client: EngineClient) -> Any:
    """The engine that the client talks to now, or None."""
    return client._supervisor._process.link


def fake_ready(decoder: FakeDecoder) -> Ready:
    """What an engine over `decoder` says when it is loaded."""
    model = ModelInfo(
        name="fake",
        path="fake.gguf",
        architecture="fake",
        description="fake",
        ftype="F32",
        n_params=1000,
        size_bytes=4000,
        n_vocab=decoder.n_vocab,
        n_ctx_train=decoder.n_ctx,
        n_embd=8,
        n_layer=1,
        chat_template=None,
        bos_piece="<s>",
        eos_piece="</s>",
        metadata={},
    )
    return Ready(
        model=model,
        n_ctx=decoder.n_ctx,
        n_slots=decoder.n_slots,
        n_batch=decoder.n_batch,
        n_threads=1,
        n_gpu_layers=0,
        devices=(),
        flash_attn=False,
        flash_attn_why="",
        reuse="any" if decoder.copies_all else "whole",
        memory_bytes=4000,
        buffers=(),
        build="fake",
        fingerprint="fake",
        embedding=EmbeddingInfo("mean", FakeVectorDecoder.WIDTH, 64, is_asked_for=False),
    )
