"""What the engine asks of a context and a vocabulary.

The contract that `llama.context.context` keeps and the fake enforces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ggufd.engine.messages.sampling import Grammar, SamplingParams
from ggufd.llama.context.batch import Batch, Logits, State, Vectors


class Decoder(Protocol):
    """A context of `n_slots` independent streams of `n_ctx` tokens each. See `llama.context.context.Context`.

    Rules: positions of a slot have no gap; the rows of a batch stand by ascending slot; logits exist only for rows
    that asked; at most `n_outputs_max` rows ask.
    """

    @property
    def n_slots(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_batch(self) -> int: ...
    @property
    def n_threads(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def n_outputs_max(self) -> int: ...
    @property
    def can_trim(self) -> bool: ...
    @property
    def copies_all(self) -> bool: ...
    @property
    def can_shift(self) -> bool: ...
    @property
    def batch(self) -> Batch: ...
    @property
    def n_adapters(self) -> int: ...
    def set_threads(self, n_threads: int | None) -> None: ...
    def set_adapters(self, scales: tuple[float, ...]) -> None: ...
    def decode(self) -> float: ...
    def logits(self) -> Logits: ...
    def trim(self, slot: int, n_keep: int) -> bool: ...
    def n_past(self, slot: int) -> int: ...
    def move(self, slot: int, source: int, target: int, n: int) -> None: ...
    def get_state(self, slot: int) -> State: ...
    def set_state(self, slot: int, state: State) -> None: ...
    def new_chain(self, params: SamplingParams, seed: int, said: Sequence[int], *, can_rewind: bool) -> Sampler: ...


class DraftDecoder(Protocol):
    """A context of one stream, number 0, over a draft model. The rules are those of `Decoder`."""

    @property
    def n_ctx(self) -> int: ...
    @property
    def n_batch(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def batch(self) -> Batch: ...
    def decode(self) -> float: ...
    def logits(self) -> Logits: ...
    def trim(self, slot: int, n_keep: int) -> bool: ...
    def n_past(self, slot: int) -> int: ...


class VectorDecoder(Protocol):
    """A context whose `n_inputs` sequences share `n_ctx` cells. See `llama.context.embedding.EmbeddingContext`.

    Rules: positions of a sequence have no gap; every row asks for its output; unless it `can_split`, all of a sequence
    is in one batch; a sequence is forgotten before its number is used again, and computed under one set of adapters.
    """

    @property
    def n_ctx(self) -> int: ...
    @property
    def n_batch(self) -> int: ...
    @property
    def n_inputs(self) -> int: ...
    @property
    def can_split(self) -> bool: ...
    @property
    def batch(self) -> Batch: ...
    def set_adapters(self, scales: tuple[float, ...]) -> None: ...
    def decode(self) -> float: ...
    def rows(self) -> Vectors: ...
    def scores(self, sequence: int) -> Vectors: ...
    def forget(self, sequence: int) -> None: ...


class Vocabulary(Protocol):
    """Pieces and special tokens. See `llama.model.vocabulary.ModelVocabulary`."""

    @property
    def eog_tokens(self) -> frozenset[int]: ...
    @property
    def suppressed_tokens(self) -> tuple[int, ...]: ...
    def piece(self, token: int, *, special: bool) -> bytes: ...


class Constraint(Protocol):
    """A grammar's state along one sequence. See `engine.sampling.constraint.GrammarConstraint`.

    Where it `is_free` nearly any token may come: one is drawn without a mask then, and `take` says whether it may. Only
    where it may not is a mask needed, and another draw.
    """

    @property
    def is_free(self) -> bool: ...

    def take(self, token: int) -> bool:
        """Accept a token if it may come next; False, and nothing changed, if not."""

    def mask(self, row: Row) -> None:
        """Set the logits of all tokens that may not come next to minus infinity."""

    def accept(self, token: int) -> None: ...

    def forced(self) -> list[int]:
        """The tokens that must come next, as the grammar leaves no choice; often none. They are not accepted yet.

        Where there are any it is not free.
        """

    def rewind(self, n: int) -> None:
        """Take back the last `n` accepted tokens."""

    @property
    def is_stopped(self) -> bool:
        """Whether nothing but the end may follow."""

    @property
    def is_accepting(self) -> bool:
        """Whether the text is whole and may end here."""


class CompiledGrammar(Protocol):
    """A grammar that is being compiled, or is. See `engine.sampling.constraint.MaskedGrammar`."""

    @property
    def is_ready(self) -> bool:
        """Whether `constraint` will not wait; also when the grammar was refused."""

    def constraint(self) -> Constraint:
        """A new one, at the start. Raises `InvalidRequest` when the grammar cannot be enforced."""


class Grammars(Protocol):
    """Compiles grammars, beside the steps. See `engine.sampling.constraint.GrammarCompiler`."""

    def prepare(self) -> None:
        """Do what the first grammar would have to wait for; when nobody waits."""

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Returns at once."""

    def begin_masks(self, constraints: Sequence[Any]) -> None:
        """Compute what `mask` of these constraints needs, beside the decode that comes now."""


Row = npt.NDArray[np.float32]
"""The logits of one output, shape `[n_vocab]`, writable: samplers and masks change it in place."""


Rows = npt.NDArray[np.float32]
"""The logits of some outputs, shape `[n_outputs, n_vocab]`."""


Distribution = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Tokens, and the probability of each."""


class Sampler(Protocol):
    """Chooses tokens for one sequence. `sample` also remembers what it chose; `accept` what came without a choice.

    `sample` leaves the row as it was: after a `rewind` it may be asked again.

    `rewind(n, said)` takes the last `n` choices back; `said` is all that is left, prompt included. What is drawn next
    is drawn anew: with the same random number a banned token would always be replaced by its neighbour.
    `keep(n)` says that no more than the last `n` choices will ever be taken back.
    `distribution` is what `sample` would draw from: tokens and their probabilities, without any that are zero.
    """

    def distribution(self, row: Row) -> Distribution: ...
    def sample(self, row: Row, batch_row: int) -> int: ...
    def accept(self, token: int) -> None: ...
    def rewind(self, n: int, said: Sequence[int]) -> None: ...
    def keep(self, n: int) -> None: ...
    def close(self) -> None: ...
