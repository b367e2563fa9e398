"""Speculative decoding with a draft model: a smaller model drafts tokens for a few sequences, the target verifies them.

`DraftModel` keeps a stream for each of them: the prefix that a sequence shares with what is there stays, and prefill of
the rest is chunked, so that decoding never halts for it. Drafts grow together, a token of each in one decode, and stop
together: rows of unequal counts are passes of their own. They are only as long as they promise more tokens a second
than they cost; where they do not pay, they are tried again ever more seldom. All together cost a hundredth of the steps
at most, and what they saved before. Knows neither the target model nor the samplers: a rejected draft costs time and
changes no text.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ggufd.engine.backend.interfaces import DraftDecoder
from ggufd.engine.speculation.acceptance import AcceptanceEstimator, ModelDraft, confidence_class
from ggufd.engine.speculation.draft_budget import DraftBudget
from ggufd.engine.speculation.draft_streams import CHUNK, DraftStream, DraftStreams
from ggufd.engine.speculation.drafted_step import Candidate, DraftedStep
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import Logits, NoRoomError

logger = logging.getLogger(__name__)

_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

_N_TRIED = 3
"""Draft tokens of a trial where drafting does not pay."""

_PREFILL_SHARE = 0.25
"""Share of the time of the sequences' own steps that prefill of the draft model may take."""

_LONGEST_S = 0.1
"""Bound on the time of drafts, or that of a step where it is longer: new requests and aborts wait for it."""


@dataclass(slots=True, eq=False)
class _Draft:
    """Draft of the candidate at `place`, at most `limit` tokens; its stream lacks `following`.

    A trial is made though it does not pay.
    """

    place: int
    candidate: Candidate
    acceptance: AcceptanceEstimator
    limit: int
    stream: DraftStream = field(default_factory=lambda: DraftStream(-1))
    following: Sequence[int] = ()
    is_trial: bool = False
    is_over: bool = False
    chance: float = 1.0
    tokens: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    @property
    def promise(self) -> float:
        """Chance that one more token is accepted, before it is known which."""
        return self.chance * self.acceptance.average


class DraftModel:
    """Drafts with `decoder`, a context of a few streams over the draft model.

    Tokens of `n_vocab` and more are none of the target model's. `eog` ends a text: nothing is drafted beyond it. A
    draft ends before a token to which the draft model gives less probability than `p_min`.
    """

    def __init__(self, decoder: DraftDecoder, *, n_vocab: int, eog: Collection[int], p_min: float) -> None:
        self._decoder = decoder
        self._streams = DraftStreams(decoder)
        self._n_vocab = n_vocab
        self._eog = eog
        self._p_min = p_min
        self._credit_s = 0.0
        self._is_lost = False
        self._budget = DraftBudget()
        self._drafted: dict[AcceptanceEstimator, int] = {}

    @property
    def n_dropped(self) -> int:
        """Times that what a stream held was of no use and dropped."""
        return self._streams.n_dropped

    def draft(self, candidates: Sequence[Candidate], step: DraftedStep) -> list[tuple[int, ...]]:
        """Draft tokens of each candidate that are worth verifying in `step`; often none."""
        tokens: list[tuple[int, ...]] = [() for _ in candidates]
        self._settle(candidates, step)
        if self._is_lost or step.plain_s == 0 or not self._budget.allows(1.0):
            return tokens
        try:
            drafts = self._drafts(candidates, step)
        except (NoRoomError, EngineFailure) as error:
            logger.warning("the draft model is given up; answers go on without it: %s", str(error) or "no room")
            self._is_lost = True
            return tokens
        for draft in drafts:
            tokens[draft.place] = tuple(draft.tokens)
            position = len(draft.candidate.tokens)
            draft.acceptance.note(ModelDraft(position, tuple(draft.tokens), tuple(draft.kinds)))
            self._drafted[draft.acceptance] = len(draft.tokens)
        return tokens

    def _settle(self, candidates: Sequence[Candidate], step: DraftedStep) -> None:
        """Learn what became of the last drafts, and add to the budget what they saved of steps, or cost."""
        self._budget.earn()
        lengths, n_accepted = list(step.none), 0
        for place, one in enumerate(candidates):
            if one.acceptance is not None:
                n_before = one.acceptance.n_accepted
                one.acceptance.settle(one.tokens)
                n_accepted += one.acceptance.n_accepted - n_before
                lengths[place] = self._drafted.get(one.acceptance, 0)
        if any(lengths) and step.plain_s:
            self._budget.add(n_accepted / step.n_running + 1 - step.seconds(lengths) / step.plain_s)
        self._drafted.clear()

    def _drafts(self, candidates: Sequence[Candidate], step: DraftedStep) -> list[_Draft]:
        """Drafts that pay together, and trials of the others where all of these have rested."""
        able = list(self._able(candidates))
        resting = [one for one in able if one.acceptance.is_resting()]
        if len(resting) == len(able):
            return []
        paying, rate = self._paying(able, step)
        others = [one for one in able if one not in paying]
        trials = others if self._may_try(others, resting, paying, step) else []
        self._catch_up([*paying, *trials], candidates, step.plain_s)
        if not all(map(self._is_ready, paying)):
            paying, rate = self._paying([one for one in paying if self._is_ready(one)], step)
        if not all(map(self._is_ready, trials)):
            trials = []
        for one in paying:
            one.acceptance.resume()
        for one in trials:
            one.acceptance.rest()
            one.is_trial, one.limit = True, min(one.limit, _N_TRIED)
        drafts = sorted([*paying, *trials], key=lambda one: one.stream.number)
        before_s = self._streams.computed_s
        self._grow(drafts, rate, step)
        self._budget.add((before_s - self._streams.computed_s) / step.plain_s)
        return drafts

    def _able(self, candidates: Sequence[Candidate]) -> Iterator[_Draft]:
        """Candidates that the draft model can read."""
        for place, one in enumerate(candidates):
            limit = min(one.limit, self._decoder.n_ctx - len(one.tokens))
            if one.acceptance is not None and limit >= 1:
                yield _Draft(place, one, one.acceptance, limit)

    # --- prefill ------------------------------------------------------------------------------------------------------

    def _catch_up(self, drafts: Sequence[_Draft], candidates: Sequence[Candidate], plain_s: float) -> None:
        """Give each draft its stream, and compute a chunk for one that lacks many tokens. A step takes `plain_s`."""
        owners = [one.acceptance for one in candidates]
        n_vocab = self._decoder.n_vocab
        for one in drafts:
            tokens = one.candidate.tokens
            stream = self._streams.stream_of(one.acceptance, tokens, owners)
            if stream is None:
                continue
            following = tokens[len(stream.tokens) :]
            if n_vocab >= self._n_vocab or max(following) < n_vocab:
                one.stream, one.following = stream, following
        for one in drafts:
            if one.following and not self._is_ready(one) and self._compute_chunk(one, len(drafts), plain_s):
                return

    def _is_ready(self, one: _Draft) -> bool:
        """Whether its stream lacks so few tokens that a draft can begin."""
        return 0 < len(one.following) <= self._streams.most_missing

    def _compute_chunk(self, one: _Draft, n_drafts: int, plain_s: float) -> bool:
        """Save up time for a chunk of what its stream lacks, and compute it; False where that cannot pay any more.

        Time is saved up until it is enough for a chunk: many short ones would take longer. `n_drafts` streams get a
        token more with every step: what hardly keeps pace with that is not begun.
        """
        per_token, n_missing = self._streams.prefill_s_per_token, len(one.following)
        most_s = _PREFILL_SHARE * plain_s
        if 2 * n_drafts * per_token > most_s or n_missing * per_token > most_s * one.candidate.n_left:
            return False
        self._credit_s += most_s
        n_affordable = int(self._credit_s / per_token) if per_token else CHUNK
        if n_affordable >= CHUNK:
            self._credit_s = 0.0
            n = min(n_affordable, n_missing - 1, self._decoder.n_batch)
            self._streams.compute([(one.stream, one.following[:n])], n_outputs=0)
            one.following = one.following[n:]
        return True

    # --- what pays ----------------------------------------------------------------------------------------------------

    def _paying(self, drafts: Sequence[_Draft], step: DraftedStep) -> tuple[list[_Draft], float]:
        """Most of the drafts that pay together, and tokens a second with them."""
        self._bound(drafts, step.plain_s)
        paying = sorted(drafts, key=lambda one: one.acceptance.average, reverse=True)
        while paying:
            rate = self._best_rate(paying, step)
            if rate > step.least_rate():
                return paying, rate
            paying.pop()
        return [], 0.0

    def _bound(self, drafts: Sequence[_Draft], plain_s: float) -> None:
        """Limit the drafts to what may be computed in time."""
        token_s = self._streams.token_s(len(drafts))
        n_affordable = int(max(_LONGEST_S, plain_s) / token_s) if token_s else 0
        for one in drafts:
            one.limit = min(one.limit, max(_N_TRIED, n_affordable))

    def _may_try(
        self, others: Sequence[_Draft], resting: Sequence[_Draft], paying: Sequence[_Draft], step: DraftedStep
    ) -> bool:
        """Whether drafts that do not pay are tried in this step: all have rested, and the step may have them.

        They rest and are tried together, as a step with drafts of some takes about as long as one with drafts of all.
        """
        is_due = not any(one in resting for one in others)
        return is_due and step.may_have(_grown(step.none, [*others, *paying]))

    def _best_rate(self, drafts: Sequence[_Draft], step: DraftedStep) -> float:
        """Tokens a second with drafts of the best length, if each token is accepted as often as the sequence's are."""
        best, token_s = 0.0, self._streams.token_s(len(drafts))
        for n in _LENGTHS:
            if n > max(one.limit for one in drafts):
                break
            lengths, n_gained = list(step.none), 0.0
            for one in drafts:
                lengths[one.place] = min(n, one.limit)
                n_gained += sum(one.acceptance.average**k for k in range(1, lengths[one.place] + 1))
            best = max(best, step.rate(lengths, n_gained, n * token_s))
        return best

    # --- drafting -----------------------------------------------------------------------------------------------------

    def _grow(self, drafts: Sequence[_Draft], rate: float, step: DraftedStep) -> None:
        """Add the likeliest tokens, one after another, as long as one more of each is likely to be worth its time.

        That is where it comes at `rate` tokens a second or more.
        """
        growing, lengths = list(drafts), list(step.none)
        while growing := [one for one in growing if not one.is_over and len(one.tokens) < one.limit]:
            longer = _grown(lengths, growing)
            if not step.may_have(longer):
                return
            row_s = step.seconds(longer) - step.seconds(lengths)
            paying = [one for one in growing if not one.is_trial]
            token_s = self._streams.token_s(len(growing)) + row_s
            if paying and sum(one.promise for one in paying) < rate * token_s:
                growing = [one for one in growing if one.is_trial]
                continue
            found = [likeliest(row) for row in self._likeliest(growing)]
            for one, (token, probability) in zip(growing, found, strict=True):
                one.chance *= one.acceptance.odds[confidence_class(probability)]
                one.is_over = token in self._eog or probability < self._p_min
            is_worth_it = sum(one.chance for one in paying if not one.is_over) >= rate * row_s
            for one, (token, probability) in zip(growing, found, strict=True):
                one.is_over |= not (is_worth_it or one.is_trial)
                _append(one, token, confidence_class(probability))
                lengths[one.place] = len(one.tokens)

    def _likeliest(self, growing: Sequence[_Draft]) -> Logits:
        """Logits behind each stream and what follows it, shape `[len(growing), n_vocab]`."""
        self._streams.compute([(one.stream, one.following) for one in growing], n_outputs=1)
        return self._streams.logits()[:, : self._n_vocab]


def _append(one: _Draft, token: int, kind: int) -> None:
    """Add a token of a confidence class to a draft that goes on; one that is over before its first learns from it."""
    if not one.is_over:
        one.tokens.append(token)
        one.kinds.append(kind)
        one.following = (token,)
    elif not one.tokens:
        one.acceptance.expect(one.acceptance.odds[kind])


def _grown(lengths: Sequence[int], growing: Sequence[_Draft]) -> list[int]:
    """The lengths with a token more of each that grows."""
    longer = list(lengths)
    for one in growing:
        longer[one.place] += 1
    return longer


def likeliest(row: Logits) -> tuple[int, float]:
    """Token with the largest of the logits, shape `[n_vocab]`, and its probability."""
    token = int(row.argmax())
    return token, 1.0 / float(np.exp(row - row[token]).sum())
