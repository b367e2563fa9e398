"""Interfaces of the engine to its backend: contexts, vocabulary, samplers, grammars.

`llama.context.context` implements them; the fake context of the tests enforces their rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ggufd.engine.messages.sampling import Grammar, SamplingParams
from ggufd.llama.context.batch import Batch, Logits, State, Vectors

Row = npt.NDArray[np.float32]
"""Logits of one output, shape `[n_vocab]`, writable: samplers and masks change it in place."""

Rows = npt.NDArray[np.float32]
"""Logits of some outputs, shape `[n_outputs, n_vocab]`."""

Distribution = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Tokens, and the probability of each."""


class Decoder(Protocol):
    """Context of `n_slots` independent streams of `n_ctx` tokens each. See `llama.context.context.Context`.

    Rules: positions of a slot have no gap; the rows of a batch stand by ascending slot; a batch is tokens, or embedding
    rows of `n_embd` numbers, never both; logits exist only for rows that asked; at most `n_outputs_max` rows ask.
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
    def n_embd(self) -> int: ...
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
    def new_chain(self, params: SamplingParams, seed: int, history: Sequence[int], *, can_rewind: bool) -> Sampler: ...


class DraftDecoder(Protocol):
    """Context of a few streams over a draft model. The rules are those of `Decoder`."""

    @property
    def n_slots(self) -> int: ...
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
    """Context of `n_inputs` sequences that share `n_ctx` cells. See `llama.context.embedding.EmbeddingContext`.

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


class Sampler(Protocol):
    """Sampler chain of one sequence. Penalties and seeds follow the tokens that it sampled or was told of."""

    def distribution(self, row: Row) -> Distribution:
        """What `sample` would draw from, without tokens of probability zero."""

    def sample(self, row: Row, batch_row: int) -> int:
        """Draw a token and remember it. The row is left as it was: after a `rewind` it may be used again."""

    def accept(self, token: int) -> None:
        """Remember a token that came without being drawn."""

    def rewind(self, n: int, history: Sequence[int]) -> None:
        """Take back the last `n` tokens; `history` is all that is left, prompt included.

        The next draw uses a new random number: with the same one a banned token would always be replaced by its
        neighbour.
        """

    def keep(self, n: int) -> None:
        """Forget what a rewind needs of all but the last `n` tokens."""

    def close(self) -> None:
        """Free what is held outside Python."""


class Constraint(Protocol):
    """State of a grammar after the tokens of one sequence. See `engine.sampling.constraint.GrammarConstraint`.

    Where it `is_free` nearly any token is allowed: one is drawn without a mask, and `take` says whether it is. Only
    where it is not, a mask and another draw are needed.
    """

    @property
    def is_free(self) -> bool: ...

    def take(self, token: int) -> bool:
        """Accept a token if it is allowed next; returns whether it was."""

    def mask(self, row: Row) -> None:
        """Set the logits of all tokens that are not allowed next to minus infinity."""

    def accept(self, token: int) -> None: ...

    def forced(self) -> list[int]:
        """Tokens that the grammar forces next, not accepted yet; often none. Where there are any it is not free."""

    def rewind(self, n: int) -> None:
        """Take back the last `n` accepted tokens."""

    @property
    def is_stopped(self) -> bool:
        """Whether only the end is allowed."""

    @property
    def is_accepting(self) -> bool:
        """Whether the text is complete and may end here."""


class CompiledGrammar(Protocol):
    """Grammar that is compiled in the background. See `engine.sampling.constraint.MaskedGrammar`."""

    @property
    def is_ready(self) -> bool:
        """Whether `constraint` returns at once; also when the grammar was refused."""

    def constraint(self) -> Constraint:
        """New state at the start of a text. Raises `InvalidRequest` when the grammar cannot be enforced."""


class Grammars(Protocol):
    """Compiler of grammars, beside the steps. See `engine.sampling.constraint.GrammarCompiler`."""

    def prepare(self) -> None:
        """Initialize what the first grammar would have to wait for: idle maintenance."""

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Start compiling; returns at once."""

    def begin_masks(self, constraints: Sequence[Any]) -> None:
        """Compute the masks of these constraints while the next batch is decoded."""
