"""A draft model beside another: its file held against the other's, its place, and what comes of it in a real engine."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ggufd import cli
from ggufd.bench.measure.words import sentences
from ggufd.daemon.served import changed
from ggufd.engine import loader
from ggufd.engine.loader import load
from ggufd.engine.loading.placing import place
from ggufd.engine.messages.config import DraftConfig, EngineConfig, EngineRules
from ggufd.engine.messages.events import Finish, Output
from ggufd.engine.messages.reports import DraftInfo, Stats
from ggufd.errors import ConfigError, ModelError
from ggufd.llama.context.context import Context
from ggufd.llama.model.model import GgufModel
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.models import hub
from ggufd.placement import draft_plan
from ggufd.placement.offload import Device, Machine
from ggufd.planner import report, table
from ggufd.settings import engine_settings, model_files, sources
from ggufd.settings.config import Config
from tests.command.test_console import READY, summary
from tests.llama.test_placing import gpu
from tests.support.fakes.api_client import FakeEngine, running
from tests.support.fakes.fake_engine import make_ready
from tests.support.fakes.fake_llama import make_request
from tests.support.models.franken_deep import write_franken_deep
from tests.support.models.gguf_files import llama, write
from tests.support.models.quantised import demo_pair
from tests.support.models.tiny_model import write_tiny_model

pytestmark = pytest.mark.usefixtures("quiet_log_afterwards")

LARGE = {"n_layers": 16, "width": 2048, "n_heads": 16, "n_kv_heads": 4, "n_ff": 8192, "n_ctx": 4096}
SMALL = {"n_layers": 4, "width": 512, "n_heads": 8, "n_kv_heads": 2, "n_ff": 1024, "n_ctx": 2048}
MEDIUM = SMALL | {"width": 2048, "n_heads": 16, "n_ff": 4096}
GIB = 1 << 30


def file(path: Path, sizes: dict[str, Any], **extra: Any) -> Path:
    return write(path, *llama(**sizes, extra={f"tokenizer.ggml.{key}": value for key, value in extra.items()}))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model and a draft model for it."""
    return file(tmp_path / "large.gguf", LARGE), file(tmp_path / "small.gguf", SMALL)


def config_of(model: Path, draft: Path | str, **flags: Any) -> Config:
    return sources.load(None, {"model": str(model), "model_draft": str(draft), **flags}, {})


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_draft_model_is_found_beside_the_other(pair: tuple[Path, Path]) -> None:
    config = config_of(*pair, n_gpu_layers_draft="3", spec_draft_p_min="0.5")
    model = model_files.find_model(config)
    assert model.draft is not None
    assert model.draft.path == pair[1]
    draft = engine_settings.engine_config(config, model).draft
    assert draft is not None
    assert (draft.model.path, draft.model.n_gpu_layers, draft.p_min) == (str(pair[1]), 3, 0.5)
    assert engine_settings.engine_config(Config(), replace(model, draft=None)).draft is None


def test_one_that_is_not_there_is_named_by_its_flag(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match=r"^--model-draft: nowhere\.gguf: no such file"):
        model_files.find_model(config_of(pair[0], "nowhere.gguf"))


TOKENS = [f"t{i}" for i in range(100)]


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"model": "gpt2"}, "it has a vocabulary of kind gpt2, not llama"),
        ({"tokens": TOKENS + [f"u{i}" for i in range(129)]}, "it has 229 tokens, not 100"),
        ({"tokens": [*TOKENS[:50], "other", *TOKENS[51:]]}, "its token 50 is 'other', not 't50'"),
        ({"bos_token_id": 7}, "its texts have token 7 as BOS, not token 0"),
        ({"add_bos_token": False}, "its texts have none as BOS, not token 0"),
        ({"add_eos_token": True, "eos_token_id": 2}, "its texts have token 2 as EOS, not none"),
    ],
)
def test_another_vocabulary_is_refused_in_one_line(tmp_path: Path, extra: dict[str, Any], why: str) -> None:
    model, draft = file(tmp_path / "large.gguf", LARGE), file(tmp_path / "small.gguf", SMALL, **extra)
    with pytest.raises(ModelError) as caught:
        model_files.find_model(config_of(model, draft))
    assert caught.value.message.startswith(
        f"{draft}: cannot draft for {model}: {why}; a draft model must have the same"
    )
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "extra",
    [
        {"tokens": TOKENS + [f"u{i}" for i in range(128)]},
        {"tokens": ["a", "b", "c", "d", "e", *TOKENS[5:]]},
        {"tokens": TOKENS[:90]},
        {"eos_token_id": 9},
    ],
    ids=["a few more", "other names for marks", "a few less", "another end"],
)
def test_what_llama_cpp_allows_is_allowed(tmp_path: Path, extra: dict[str, Any]) -> None:
    model, draft = file(tmp_path / "large.gguf", LARGE), file(tmp_path / "small.gguf", SMALL, **extra)
    assert model_files.find_model(config_of(model, draft)).draft is not None


def test_check_says_it_too(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli_flags = ["check", "-m", str(pair[0]), "-md"]
    with pytest.raises(SystemExit):
        cli.main([*cli_flags, str(pair[1])])
    assert "Draft model" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main([*cli_flags, str(file(tmp_path / "other.gguf", SMALL, model="gpt2"))])
    assert caught.value.code == 1
    assert "a draft model must have the same vocabulary" in capsys.readouterr().err


def test_a_draft_model_and_no_guesses_contradict() -> None:
    with pytest.raises(ConfigError, match="remove one of the two"):
        config_of(Path("m.gguf"), "d.gguf", spec_draft_n_max="0")


def test_another_model_does_not_inherit_it() -> None:
    config = config_of(Path("m.gguf"), "d.gguf")
    assert changed(config, {"model": "other.gguf"}).model.model_draft == ""
    assert changed(config, {"model": "other.gguf", "model_draft": "d2.gguf"}).model.model_draft == "d2.gguf"


# --- its place --------------------------------------------------------------------------------------------------------


def engine_config(model: Path, draft: Path, n_gpu_layers: int | None = None) -> EngineConfig:
    draft_params = ModelParams(str(draft), n_gpu_layers=n_gpu_layers)
    return EngineConfig(ModelParams(str(model)), ContextParams(n_ctx=2048, n_slots=2), draft=DraftConfig(draft_params))


def test_both_go_to_a_gpu_that_has_room(pair: tuple[Path, Path]) -> None:
    placed, _, vram_bytes = place(engine_config(*pair), [gpu(8)])
    alone = place(replace(engine_config(*pair), draft=None), [gpu(8)])
    assert placed.draft is not None
    assert (placed.model.n_gpu_layers, placed.draft.model.n_gpu_layers) == (17, 5)
    assert vram_bytes > alone.vram_bytes


def test_the_draft_model_goes_first_and_leaves_less_to_the_other(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pair = pair[0], file(tmp_path / "medium.gguf", MEDIUM)
    alone = place(replace(engine_config(*pair), draft=None), [gpu(2)]).config
    placed = place(engine_config(*pair), [gpu(2)]).config
    assert placed.draft is not None
    assert placed.draft.model.n_gpu_layers == 5
    assert placed.model.n_gpu_layers is not None
    assert alone.model.n_gpu_layers is not None
    assert 0 < placed.model.n_gpu_layers < alone.model.n_gpu_layers
    in_ram = place(engine_config(*pair, n_gpu_layers=0), [gpu(2)]).config
    assert in_ram.model.n_gpu_layers == alone.model.n_gpu_layers


def test_the_last_try_leaves_both_in_ram(pair: tuple[Path, Path]) -> None:
    placed = place(replace(engine_config(*pair), vram_limit=0), [gpu(8)]).config
    assert placed.draft is not None
    assert (placed.model.n_gpu_layers, placed.draft.model.n_gpu_layers) == (0, 0)


def test_layers_without_a_gpu_are_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match=r"--n-gpu-layers-draft 3: llama\.cpp sees no GPU"):
        place(engine_config(*pair, n_gpu_layers=3), ())


def test_what_is_taken_is_taken_from_the_machine(pair: tuple[Path, Path]) -> None:
    two = tuple(Device(f"GPU {i}", GIB, GIB) for i in range(2))
    machine = Machine(8 * GIB, 8 * GIB, two, vram_limit=GIB)
    model, draft = (hub.find(str(path)).shape for path in pair)
    assert model is not None
    assert draft is not None
    taken = draft_plan.plan(draft, ModelParams(""), model, ContextParams(n_ctx=0, n_slots=4), machine)
    left = draft_plan.remaining(machine, taken)
    assert sum(device.free for device in left.devices) == 2 * GIB - taken.vram.total
    assert left.ram_free == machine.ram_free - taken.needed
    assert left.vram_limit == GIB - taken.vram.total > 0


def test_plan_counts_it(pair: tuple[Path, Path]) -> None:
    machine = Machine(8 * GIB, 8 * GIB)

    def made(config: Config) -> report.ModelPlan:
        model = model_files.with_draft(config, hub.find(str(pair[0])), may_fetch=False)
        return report.make(model, config, engine_settings.context_params(config), machine)

    alone, both = made(Config()), made(config_of(*pair))
    assert both.draft is not None
    assert both.needed == alone.needed + both.draft.needed
    assert report.as_json(both)["draft"]["ram"]["needed"] == both.draft.needed
    assert report.as_json(alone)["draft"] is None
    console = Console(width=160)
    with console.capture() as capture:
        table.show(both, console)
    assert "Draft model, with its cache" in capture.get()
    assert f"-md {pair[1]}" in capture.get()


# --- in a real engine -------------------------------------------------------------------------------------------------


class PricedContext(Context):
    """A context whose steps cost what a large model's would, so that what is guessed is no matter of the machine."""

    def decode(self) -> float:
        super().decode()
        # The draft model is the one of small batches.
        return 1.0 + 0.02 * self.batch.n_rows if self.n_batch > 256 else 0.05


class Said:
    """What an engine said to one request, and to others beside it, and its counts afterwards."""

    def __init__(self, model: Path, draft: Path | None, prompt: str, *others: str, **changes: Any) -> None:
        guesses = None if draft is None else DraftConfig(ModelParams(str(draft)))
        exact: dict[str, Any] = {"flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32"}
        context = ContextParams(n_ctx=512, n_slots=max(2, 1 + len(others)), n_threads=1, **exact)
        loaded = load(
            EngineConfig(ModelParams(str(model)), context, rules=EngineRules(max_draft=15), draft=guesses),
            lambda _: None,
        )
        self.ready, self.texts = loaded.ready, [""] * (1 + len(others))
        file = GgufModel(str(model))
        for i, text in enumerate((prompt, *others)):
            tokens = file.vocabulary.tokenize(text, add_special=True, parse_special=True)
            loaded.engine.add(make_request(i, tokens, **changes))
        file.close()
        self.finish: Finish | None = None
        while loaded.engine.has_work:
            for event in loaded.engine.step():
                if isinstance(event, Output):
                    self.texts[event.request_id] += event.text
                    self.finish = event.finish or self.finish
        loaded.engine.check_integrity()
        self.stats: Stats = loaded.engine.stats()

    @property
    def text(self) -> str:
        return self.texts[0]

    @property
    def acceptance(self) -> float:
        return self.stats.model_accepted_tokens / max(1, self.stats.model_drafted_tokens)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_that_guesses_for_itself_is_hardly_ever_wrong(
    tiny_model: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "Context", PricedContext)
    changes = {"max_tokens": 120, "ignore_eos": True, "temperature": temperature, "seed": 5}
    guessed, plain = (Said(tiny_model, draft, "once", **changes) for draft in (tiny_model, None))
    assert guessed.text == plain.text
    own = guessed.ready.model
    assert guessed.ready.draft == DraftInfo("tiny", own.path, own.ftype, own.n_params, own.size_bytes, 512, 0)
    assert guessed.ready.memory_bytes > plain.ready.memory_bytes
    if temperature == 0:
        # Its own cache is in F16.
        assert guessed.acceptance > 0.9
        assert guessed.stats.steps < 0.4 * plain.stats.steps


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_drafts_for_several_texts_at_once(
    tiny_model: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "Context", PricedContext)
    prompts = ("once", "upon a time there was", "the end of it")
    changes = {"max_tokens": 120, "ignore_eos": True, "temperature": temperature, "seed": 5}
    guessed, plain = (Said(tiny_model, draft, *prompts, **changes) for draft in (tiny_model, None))
    assert guessed.texts == plain.texts
    assert all(len(text) > 50 for text in guessed.texts)
    assert guessed.stats.model_drafted_tokens > 0
    if temperature == 0:
        assert guessed.acceptance > 0.9
        assert guessed.stats.steps < 0.5 * plain.stats.steps


def test_a_model_of_many_idle_layers_says_what_its_parent_guesses(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "Context", PricedContext)
    deep = write_franken_deep(tiny_model, tmp_path / "deep.gguf", n_copies=3)
    changes = {"max_tokens": 100, "ignore_eos": True}
    guessed, parent = Said(deep, tiny_model, "once", **changes), Said(tiny_model, None, "once", **changes)
    assert guessed.text == parent.text
    assert guessed.ready.model.n_layer == 3 * parent.ready.model.n_layer
    assert guessed.acceptance > 0.9


def test_another_tiny_model_guesses_wrongly_and_changes_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "Context", PricedContext)
    other = write_tiny_model(tmp_path / "other.gguf", seed=1)
    guessed, plain = (Said(tiny_model, draft, "once", max_tokens=120, ignore_eos=True) for draft in (other, None))
    assert guessed.text == plain.text
    assert guessed.stats.model_drafted_tokens > 0
    assert guessed.acceptance < 0.3


@pytest.mark.e2e
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_real_model_says_the_same_with_its_small_self_guessing(
    real_pair: tuple[Path, Path], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "Context", PricedContext)
    seed = random.SystemRandom().randrange(2**31)
    topic = sentences(random.Random(seed), 12)
    prompt = f"<|im_start|>user\nGo on with this story: {topic}<|im_end|>\n<|im_start|>assistant\n"
    changes = {"max_tokens": 80, "temperature": temperature, "top_k": 8, "seed": seed}
    model, draft = real_pair
    guessed, plain = (Said(model, one, prompt, **changes) for one in (draft, None))
    print(f"seed {seed}: {guessed.acceptance:.2f} accepted, {guessed.stats}")
    assert guessed.text == plain.text, f"seed {seed}"
    assert guessed.stats.model_drafted_tokens > 0
    # A text that repeats itself is guessed without a model, which then says too little to be judged by.
    if guessed.stats.model_drafted_tokens >= 20 and temperature == 0:
        assert guessed.acceptance > 0.2
        assert guessed.stats.steps < plain.stats.steps


@pytest.fixture(scope="module")
def real_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return demo_pair(tmp_path_factory.mktemp("pair"))


def test_a_model_that_cannot_take_back_is_not_guessed_for(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "can_trim", False)
    with pytest.raises(ModelError, match="cannot drop rejected draft tokens; leave --model-draft out"):
        Said(tiny_model, tiny_model, "once")


# --- what is told of it -----------------------------------------------------------------------------------------------

DRAFT = DraftInfo("Small", "/m/small.gguf", "Q4_0", 135_000_000, 92 << 20, 4096, 0)


def test_the_summary_names_it() -> None:
    said = summary(replace(READY, draft=DRAFT))
    assert "Draft model  Small, Q4_0, 135M parameters, 92 MiB; for up to four requests at once" in said
    assert "Draft model" not in summary()
    assert ", 5 layers on the GPU" in summary(replace(READY, draft=replace(DRAFT, n_gpu_layers=5)))


async def test_the_api_tells_of_it() -> None:
    engine = FakeEngine()
    engine.ready = replace(make_ready(), draft=DRAFT)
    async with running(engine) as api:
        props = (await api.http.get("/props")).json()
        (model,) = (await api.http.get("/v1/models")).json()["data"]
    assert props["draft_model_path"] == "/m/small.gguf"
    assert props["default_generation_settings"]["speculative"] is True
    assert model["meta"]["draft"] == {
        "name": "Small",
        "ftype": "Q4_0",
        "size": 92 << 20,
        "n_params": 135_000_000,
        "n_ctx": 4096,
        "n_gpu_layers": 0,
    }
