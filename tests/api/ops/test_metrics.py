"""What Prometheus is told: that it is right, who may read it, and that every panel shows something that exists."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as families

from ggufd.engine.messages.reports import Stats
from ggufd.engine.messages.requests import EmbedRequest
from ggufd.engine.telemetry.counters import Counters, Histogram
from ggufd.errors import EngineDown, EngineFailure
from ggufd.keys.ring import Role
from tests.support.fakes.api_client import Api, error_of, ring_of, running
from tests.support.fakes.fake_engine import FakeEngine
from tests.support.fakes.fake_llama import make_engine, make_request

DOCKER = Path(__file__).parents[3] / "docker"


def parsed(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families(text)
        for sample in family.samples
    }


async def scraped(api: Api, **headers: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = await api.http.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=")
    return parsed(response.text)


def of(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def engine_counts(samples: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> tuple[float, float]:
    """Running and waiting requests under vLLM's names."""
    labels = {"model_name": "fake-model"}
    return of(samples, "vllm:num_requests_running", **labels), of(samples, "vllm:num_requests_waiting", **labels)


class TestHistogram:
    @given(st.lists(st.floats(0, 100)), st.lists(st.floats(0, 100), min_size=1, unique=True))
    def test_every_value_is_counted_where_it_belongs(self, values: list[float], bounds: list[float]) -> None:
        bounds.sort()
        histogram = Histogram(tuple(bounds))
        for value in values:
            histogram.observe(value)
        spread = histogram.spread
        for i, bound in enumerate(bounds):
            assert sum(spread.counts[: i + 1]) == sum(value <= bound for value in values)
        assert sum(spread.counts) == len(values)
        assert spread.total == pytest.approx(sum(values))


class TestEngine:
    def test_steps_tokens_and_gaps_are_counted(self) -> None:
        rig = make_engine(n_slots=2)
        for i in range(2):
            rig.add(make_request(i, b"prompt %d" % i, max_tokens=10, ignore_eos=True))
        rig.run()
        stats = rig.engine.stats()
        assert stats.generated_tokens == 20
        assert sum(stats.token_gap_seconds.counts) == 18
        assert sum(stats.step_seconds.counts) == sum(stats.batch_rows.counts) == stats.steps
        assert sum(stats.step_gap_seconds.counts) == stats.steps - 1
        assert stats.batch_rows.total == stats.computed_tokens
        assert stats.steps < stats.busy_slots <= 2 * stats.steps
        assert stats.longest == 8 + 10
        assert stats.step_seconds.total + stats.step_gap_seconds.total >= stats.token_gap_seconds.total / 2

    def test_rest_is_nobodys_gap(self) -> None:
        rig = make_engine(n_slots=1)
        for i in range(3):
            rig.add(make_request(i, b"prompt", max_tokens=2, ignore_eos=True))
            rig.run()
            rig.decoder._now_s += 1000
        stats = rig.engine.stats()
        assert stats.step_gap_seconds.total < 1
        assert stats.token_gap_seconds.total < 10
        assert sum(stats.step_gap_seconds.counts) == stats.steps - 3

    def test_chats_that_go_and_come_back_are_counted(self) -> None:
        rig = make_engine(n_slots=1, cache_ram_bytes=1 << 20)
        chats = [
            bytes([65 + i]) * 3 + b" begins one of two long conversations, and goes on and on " * 2 for i in (0, 1)
        ]
        for i, text in enumerate((*chats, chats[0])):
            rig.add(make_request(i, text, max_tokens=3))
            rig.run()
        stats = rig.engine.stats()
        assert (stats.evictions, stats.restores, stats.host_evictions) == (2, 1, 0)
        assert stats.host_bytes > 0

    def test_counters_begin_at_nothing(self) -> None:
        assert Counters().steps_spread.spread.total == 0


class Scraped(FakeEngine):
    """An engine that tells what a real one counted."""

    def __init__(self, told: Stats) -> None:
        super().__init__()
        self.told = told

    async def stats(self) -> Stats:
        return self.told


@pytest.fixture
def told() -> Stats:
    """Of an engine that has worked."""
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, b"prompt", max_tokens=10, ignore_eos=True), EmbedRequest(3, ((1, 2, 3), (4, 5))))
    rig.run()
    rig.add(make_request(2, b"a long prompt", max_tokens=10))
    rig.engine.step()
    return rig.engine.stats()


class TestMetrics:
    async def test_the_engines_numbers_are_told(self, told: Stats) -> None:
        async with running(Scraped(told)) as api:
            samples = await scraped(api)
        assert of(samples, "ggufd_generated_tokens_total") == told.generated_tokens
        assert of(samples, "llamacpp:n_decode_total") == told.steps
        assert of(samples, "ggufd_embedded_tokens_total") == told.embedded_tokens == 5
        assert of(samples, "ggufd_batch_tokens_sum") == told.computed_tokens
        assert of(samples, "ggufd_step_seconds_count") == told.steps
        # Nothing is known of the first, nor expected of those that try fewer threads.
        assert 0 < of(samples, "ggufd_step_cost_error_ratio_count") == sum(told.cost_errors.counts) < told.steps
        assert of(samples, "ggufd_batch_tokens_bucket", le="+Inf") == told.steps
        assert of(samples, "ggufd_slots", state="running") == 1
        assert of(samples, "ggufd_kv_capacity_tokens") == 2 * 512
        assert of(samples, "ggufd_engine_state", state="ready") == 1
        assert of(samples, "llamacpp:requests_processing") == 1

    async def test_requests_are_counted_when_they_end(self, told: Stats) -> None:
        engine = Scraped(told)
        engine.cached_tokens = 2
        async with running(engine, keys=ring_of("k")) as api:
            headers = {"x-api-key": "k"}
            for stream in (True, False):
                await api.post("/v1/completions", {"prompt": "abc", "stream": stream}, headers=headers)
            await api.post("/v1/completions", {"prompt": 3.5}, headers=headers)
            await api.post("/v1/completions", {"prompt": "abc"}, headers={"x-api-key": "wrong"})
            engine.error, engine.error_after = EngineFailure("no room"), 1
            for stream in (True, False):
                await api.post("/v1/completions", {"prompt": "abc", "stream": stream}, headers=headers)
            samples = await scraped(api, **headers)
        assert of(samples, "ggufd_requests_total", key="key-1", reason="stop") == 2
        assert of(samples, "ggufd_requests_total", key="key-1", reason="engine_failure") == 2
        assert of(samples, "ggufd_errors_total", code="engine_failure") == 2
        assert of(samples, "ggufd_errors_total", code="invalid_value") == 1
        assert of(samples, "ggufd_errors_total", code="invalid_api_key") == 1
        assert of(samples, "ggufd_key_tokens_total", key="key-1", kind="generated") == 22 + 2
        assert of(samples, "ggufd_key_tokens_total", key="key-1", kind="cached") == 4
        assert of(samples, "ggufd_time_to_first_token_seconds_count") == 4
        assert of(samples, "llamacpp:tokens_predicted_total") == 24
        assert of(samples, "llamacpp:prompt_tokens_cached_total") == 4
        assert of(samples, "ggufd_queue_wait_seconds_sum") == pytest.approx(0.02)

    async def test_who_prefers_openmetrics_gets_the_same_names(self, told: Stats) -> None:
        """What Prometheus itself asks for."""
        preferred = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        async with running(Scraped(told)) as api:
            samples = await scraped(api, accept=preferred)
        assert of(samples, "llamacpp:n_decode_total") == told.steps

    async def test_rates_are_those_since_the_last_scrape(self, told: Stats) -> None:
        """As llama-server's: the tokens of finished requests over the time that they took."""
        async with running(Scraped(told)) as api:
            answer = await api.ok("/completion", prompt="abc", n_predict=9)
            first, second = await scraped(api), await scraped(api)
            since = (await api.http.get("/metrics")).headers["Process-Start-Time-Unix"]
        names = {"prompt_tokens_seconds": "prompt_per_second", "predicted_tokens_seconds": "predicted_per_second"}
        for name, timing in names.items():
            assert of(first, f"llamacpp:{name}") == pytest.approx(answer["timings"][timing]) != 0
            assert of(second, f"llamacpp:{name}") == 0
        assert 0 <= time.time() - int(since) < 60

    async def test_routers_find_vllms_gauges(self, told: Stats) -> None:
        """As vLLM's production stack reads them: by the parser of Prometheus' client, whatever the labels."""
        engine = Scraped(told)
        engine.gate.clear()
        async with running(engine) as api:
            asking = asyncio.create_task(api.post("/v1/completions", {"prompt": "a"}))
            while not engine.open:  # noqa: ASYNC110 - a fake has no event for this
                await asyncio.sleep(0.005)
            samples = await scraped(api)
            engine.gate.set()
            await asking
        assert engine_counts(samples) == (0, 1)
        share = of(samples, "vllm:kv_cache_usage_perc", model_name="fake-model")
        assert share == of(samples, "ggufd_kv_tokens", state="running") / of(samples, "ggufd_kv_capacity_tokens")
        assert 0 < share < 1
        assert of(samples, "vllm:gpu_cache_usage_perc", model_name="fake-model") == share

    async def test_without_an_engine_the_rest_is_told(self) -> None:
        class Down(FakeEngine):
            async def stats(self) -> Stats:
                raise EngineDown("it is being started again")

        async with running(Down()) as api:
            samples = await scraped(api)
        assert of(samples, "ggufd_time_to_first_token_seconds_count") == 0
        assert engine_counts(samples) == (0, 0)
        assert not [name for name, _ in samples if name.endswith("cache_usage_perc")]
        assert not [name for name, _ in samples if name.startswith("ggufd_step")]

    async def test_applications_count_for_themselves(self) -> None:
        async with running() as first, running() as second:
            await first.ok("/v1/completions", prompt="a")
            assert of(await scraped(first), "ggufd_request_seconds_count") == 1
            assert of(await scraped(second), "ggufd_request_seconds_count") == 0


class TestWhoMayRead:
    @pytest.mark.parametrize(
        ("metrics_for", "statuses"),
        [
            ("admin", (200, 403, 401)),
            ("user", (200, 200, 401)),
            ("everybody", (200, 200, 200)),
            ("nobody", (404, 404, 401)),
        ],
    )
    async def test_it_is_as_configured(self, metrics_for: str, statuses: tuple[int, ...]) -> None:
        for role, key, status in zip((Role.ADMIN, Role.USER, Role.USER), ("k", "k", "other"), statuses, strict=True):
            async with running(keys=ring_of("k", role=role), metrics_for=metrics_for) as api:
                response = await api.http.get("/metrics", headers={"x-api-key": key})
                assert response.status_code == status
                if status != 200:
                    error_of(response, status)

    async def test_without_keys_everybody_may(self) -> None:
        async with running() as api:
            assert (await api.http.get("/metrics")).status_code == 200


def expressions() -> Iterator[tuple[str, str]]:
    """Title and query of everything that the dashboard shows."""
    dashboard = json.loads((DOCKER / "grafana/dashboards/ggufd.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def metric_names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:ggufd_|llamacpp:|process_)\w+", expression))


class TestDashboard:
    @pytest.mark.parametrize(("title", "expression"), list(expressions()))
    async def test_every_panel_shows_what_exists(self, title: str, expression: str, told: Stats) -> None:
        engine = Scraped(told)
        async with running(engine) as api:
            await api.ok("/v1/completions", prompt="a")
            api.engine.error = EngineFailure("no room")
            await api.post("/v1/completions", {"prompt": "a"})
            await _abort(api)
            samples = await scraped(api)
        names = metric_names(expression)
        assert names, title
        known = {name for name, _ in samples}
        assert names <= known
        for name, values in re.findall(r"(\w+)\{([^}]*)\}", expression):
            labels = dict(re.findall(r'(\w+)!?="([^"]*)"', values))
            assert name.startswith("process_") or any(
                name == one and labels.items() <= dict(found).items() for one, found in samples
            )

    async def test_legends_are_labels(self, told: Stats) -> None:
        dashboard = (DOCKER / "grafana/dashboards/ggufd.json").read_text("utf-8")
        async with running(Scraped(told)) as api:
            await api.ok("/v1/completions", prompt="a")
            await _abort(api)
            await api.post("/v1/completions", {"prompt": 3.5})
            labels = {label for _, found in await scraped(api) for label, _ in found}
        assert set(re.findall(r"\{\{(\w+)\}\}", dashboard)) <= labels

    def test_prometheus_and_grafana_are_wired(self) -> None:
        compose = (DOCKER / "compose.yaml").read_text("utf-8")
        for path in re.findall(r"- \./([\w./-]+):", compose):
            assert (DOCKER / path).exists()
        prometheus = (DOCKER / "prometheus.yml").read_text("utf-8")
        assert "credentials_file: /run/secrets/ggufd_key" in prometheus
        assert "ggufd_key:\n    environment: GGUFD_API_KEY" in compose
        (target,) = re.findall(r'targets: \["([\w.]+):8080"\]', prometheus)
        assert f"aliases: [{target}]" in compose
        # podman-compose would hand the text itself on.
        assert not re.search(r"(\w+): \$\{\1\b", compose)
        source = (DOCKER / "grafana/provisioning/datasources/ggufd.yaml").read_text("utf-8")
        assert "uid: ggufd" in source
        assert {json.dumps(panel["datasource"]) for panel in _panels()} == {'{"type": "prometheus", "uid": "ggufd"}'}


def _panels() -> list[dict[str, object]]:
    panels: list[dict[str, object]] = json.loads((DOCKER / "grafana/dashboards/ggufd.json").read_text())["panels"]
    return panels


async def _abort(api: Api) -> None:
    """A request that Kobold's `abort` ends."""
    api.engine.error = None
    api.engine.gate.clear()
    asking = asyncio.create_task(api.post("/api/v1/generate", {"prompt": "a"}))
    while not api.engine.open:  # noqa: ASYNC110 - a fake has no event for this
        await asyncio.sleep(0.005)
    await api.post("/api/extra/abort", {})
    response: httpx.Response = await asking
    assert response.status_code == 200
    api.engine.gate.set()
