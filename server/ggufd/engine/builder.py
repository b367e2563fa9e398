"""Assembly of an engine from its parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from ggufd.engine.backend.interfaces import Decoder, Grammars, Vocabulary
from ggufd.engine.costs.cost_file import CostFile
from ggufd.engine.embeddings.embedding import Embedder
from ggufd.engine.engine import Engine
from ggufd.engine.maintenance import Maintenance
from ggufd.engine.messages.config import EngineRules
from ggufd.engine.preroll.preroll import PreRoll
from ggufd.engine.queueing.admission import Admission
from ggufd.engine.queueing.announcer import Announcer
from ggufd.engine.queueing.forecast import Forecast
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.scheduling.scheduler import Scheduler
from ggufd.engine.scheduling.shortest_first import ShortestFirst
from ggufd.engine.scheduling.threads import ThreadTuner
from ggufd.engine.slots.context_shift import ContextShift
from ggufd.engine.slots.prefix_cache import PrefixCache
from ggufd.engine.speculation.draft_model import DraftModel
from ggufd.engine.speculation.speculator import Speculator
from ggufd.engine.statistics import Statistics
from ggufd.engine.step.batch_runner import BatchRunner
from ggufd.engine.step.batcher import Batcher, Costs
from ggufd.engine.step.deadlines import Deadlines
from ggufd.engine.step.drafting import Drafting
from ggufd.engine.step.embedding_step import EmbeddingStep
from ggufd.engine.step.lifecycle import Lifecycle
from ggufd.engine.step.output_processor import OutputProcessor
from ggufd.engine.step.step_planner import StepPlanner
from ggufd.engine.step.token_step import TokenStep
from ggufd.engine.submission import Submission
from ggufd.engine.telemetry.counters import Counters
from ggufd.engine.telemetry.trace import StepTrace


class Backend(NamedTuple):
    """What an engine computes with: a context, its vocabulary and grammars, and a draft model if there is one."""

    decoder: Decoder
    vocabulary: Vocabulary
    grammars: Grammars
    draft: DraftModel | None = None


def build_engine(
    backend: Backend,
    queue: RequestQueue,
    scheduler: Scheduler,
    embedder: Embedder,
    rules: EngineRules | None = None,
    clock: Callable[[], float] = time.perf_counter,
    cost_file: CostFile | None = None,
) -> Engine:
    """Engine over one context. Times come from `clock`, in seconds; costs of steps are kept in `cost_file`."""
    rules = rules or EngineRules()
    decoder, vocabulary, grammars, draft = backend
    cache = PrefixCache(
        decoder,
        clock,
        n_cache_reuse=rules.n_cache_reuse,
        cache_ram_bytes=rules.cache_ram_bytes,
        message_ends=vocabulary.eog_tokens,
        disk=rules.disk,
        chunks=scheduler.fixed_chunks,
        steps=scheduler.costs,
    )
    counters, trace = Counters(), StepTrace(clock)
    forecast = Forecast(scheduler.costs)
    shortest_first = ShortestFirst(scheduler.costs, forecast.expected_tokens, len(cache.table.slots))
    queue.shortest_first = scheduler.shortest_first = shortest_first
    announcer = Announcer(queue, cache.table, cache.matcher, forecast)
    pre_roll = (
        PreRoll(decoder, cache.table, cache.cells, cache.placement, scheduler)
        if rules.pre_rolls and decoder.copies_all
        else None
    )
    context_shift = ContextShift(decoder.n_ctx, is_on=rules.shifts_context and decoder.can_shift)
    speculator = Speculator(rules.max_draft if decoder.can_trim else 0, draft)
    sizes = decoder.n_ctx, decoder.n_outputs_max
    drafting = Drafting(speculator, context_shift, *sizes, scheduler.costs, counters, trace, clock)
    token_step = TokenStep(decoder, vocabulary, counters, trace, context_shift, queue.charge_token, clock)
    lifecycle = Lifecycle(queue, cache, token_step, drafting, forecast, pre_roll, counters, clock)
    deadlines, admission = Deadlines(lifecycle, announcer, clock), Admission(queue, cache.table, cache.matcher, rules)
    costs = Costs(scheduler.costs, ThreadTuner(decoder.n_threads))
    batcher = Batcher(decoder, grammars, cache.cells, costs, counters, trace, clock)
    return Engine(
        Submission(decoder, grammars, queue, cache, embedder, clock),
        lifecycle,
        StepPlanner(lifecycle, admission, deadlines, context_shift, drafting, scheduler, trace, clock),
        BatchRunner(batcher, lifecycle, trace),
        OutputProcessor(lifecycle, token_step, drafting, clock),
        EmbeddingStep(embedder, lifecycle, scheduler, clock),
        Maintenance(lifecycle, embedder, grammars, scheduler.costs, cost_file),
        Statistics(lifecycle, announcer, embedder, speculator, trace, clock),
    )
