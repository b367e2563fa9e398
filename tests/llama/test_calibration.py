"""The measurement of flash attention: it runs, it is remembered, and a broken memory is measured around."""

from __future__ import annotations

import dataclasses
import itertools
import json
import operator
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from ggufd.llama.calibration import calibration
from ggufd.llama.calibration.attention_model import AttentionShape, write_attention_model
from ggufd.llama.calibration.calibration import Measurement, Side, Times, Unsteady, prefers_flash_attention
from ggufd.llama.context.batch import Batch
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams

PARAMS = ContextParams(n_ctx=256, n_slots=2, n_threads=1, rope_scaling="yarn", rope_freq_scale=0.5)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Model]:
    loaded = Model(ModelParams(str(tiny_model)))
    yield loaded
    loaded.close()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[AttentionShape]:
    """Shapes that were measured; each time flash attention comes out as half as fast."""
    shapes: list[AttentionShape] = []

    def measure(shape: AttentionShape, params: ContextParams) -> dict[Side, Measurement]:
        shapes.append(shape)
        return {"off": Measurement(0.1, 0.01), "on": Measurement(0.2, 0.02)}

    monkeypatch.setattr(calibration, "_measure", measure)
    return shapes


def test_a_real_measurement_gives_an_answer_and_why(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # However busy the machine is.
    monkeypatch.setattr(calibration, "_BUDGET_S", 60.0)
    monkeypatch.setattr(calibration, "_SPREAD", float("inf"))
    is_on, why = prefers_flash_attention(model, PARAMS, tmp_path / "folder" / "memory.json")
    ratio = float(why.split(" measured ")[1].split()[0])
    assert 0.05 < ratio < 20
    assert is_on == (ratio < 1.15)
    (entry,) = json.loads((tmp_path / "folder" / "memory.json").read_text()).values()
    assert all(0 < seconds < 60 for side in ("off", "on") for seconds in entry[side])


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([1.0, 1.1, 1.2], False),
        ([1.0, 1.1, 1.2, 1.3], False),
        ([1.0, 1.1, 1.2, 1.25], True),
        ([9.0, 1.2, 5.0, 1.0, 1.1, 1.2], True),
        ([1.0, 1.1, 1.2, 1.25, 0.5], False),
    ],
    ids=["few", "apart", "close", "some disturbed", "all but one disturbed"],
)
def test_times_are_believed_when_the_best_of_them_agree(seconds: list[float], expected: bool) -> None:
    times = Times()
    for one in seconds:
        times.add(one)
    assert times.agree is expected
    assert times.best == min(seconds)


class FakeContext:
    """Decodes at once, and says that it took a drawn time; what was read is counted, and must be cut back."""

    def __init__(self, draw: Callable[[], float], n_slots: int = 2) -> None:
        self.n_slots = n_slots
        self.batch = Batch.with_capacity(512)
        self._draw = draw
        self._lengths = [0] * n_slots

    def decode(self) -> float:
        for slot, pos in zip(
            *(column[: self.batch.n_rows] for column in (self.batch.seq_id, self.batch.pos)), strict=True
        ):
            assert pos == self._lengths[slot]
            self._lengths[slot] += 1
        return self._draw()

    def trim(self, slot: int, n_keep: int) -> None:
        self._lengths[slot] = n_keep


def time_turns(draw: dict[Side, Callable[[], float]], budget_s: float) -> dict[Side, Measurement]:
    contexts = {side: FakeContext(one) for side, one in draw.items()}
    return calibration._time_turns(contexts, time.perf_counter() + budget_s)  # type: ignore[arg-type]


def test_the_best_time_of_each_side_is_found_under_any_noise() -> None:
    random = Random(1)
    noisy = {side: lambda best=best: best * (1 + random.choice([0, 0, 0.1, 5, 40])) for side, best in BEST.items()}
    assert time_turns(noisy, 60) == {side: Measurement(best, best) for side, best in BEST.items()}


CONTEXT = calibration._calibration_context
BEST: dict[Side, float] = {"off": 0.1, "on": 0.2}


@pytest.mark.timed
def test_a_machine_that_is_never_steady_is_given_up_in_time() -> None:
    wild = itertools.accumulate(itertools.repeat(1.5), operator.mul)
    begin = time.perf_counter()
    with pytest.raises(Unsteady):
        time_turns({"off": lambda: next(wild), "on": lambda: next(wild)}, 0.2)
    assert time.perf_counter() - begin < 5


def test_a_machine_that_is_always_busy_is_given_up_after_three_starts(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(calibration, "_BUDGET_S", 0.0)
    begun: list[Side] = []
    monkeypatch.setattr(
        calibration, "_calibration_context", lambda params, side: begun.append(side) or CONTEXT(params, side)
    )
    answers = [prefers_flash_attention(model, PARAMS, tmp_path / "memory.json") for _ in range(5)]
    assert [is_on for is_on, _ in answers] == [True] * 5
    assert [why.partition(" busy ")[2] for _, why in answers] == [
        "1 of 3 times: measured again at the next start",
        "2 of 3 times: measured again at the next start",
        "3 of 3 times: not again",
        "3 of 3 times: not again",
        "3 of 3 times: not again",
    ]
    assert begun == [*calibration.SIDES] * 3


def test_a_quiet_start_settles_it_after_busy_ones(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measured: list[AttentionShape]
) -> None:
    measure = calibration._measure

    def busy(*_: object) -> dict[Side, Measurement]:
        raise Unsteady

    monkeypatch.setattr(calibration, "_measure", busy)
    assert prefers_flash_attention(model, PARAMS, tmp_path / "memory.json")[0] is True
    monkeypatch.setattr(calibration, "_measure", measure)
    answers = [prefers_flash_attention(model, PARAMS, tmp_path / "memory.json")[0] for _ in range(2)]
    assert answers == [False, False]
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("shape", "n_layers"),
    [(AttentionShape(9, 3, 64), 4), (AttentionShape(32, 8, 128), 1), (AttentionShape(64, 8, 128), 1)],
    ids=["135M", "7B", "70B"],
)
def test_the_few_layers_have_the_attention_of_the_model_and_little_else(
    tmp_path: Path, shape: AttentionShape, n_layers: int
) -> None:
    path = tmp_path / "layers.gguf"
    write_attention_model(path, shape, shape.quick_layers)
    layers = Model(ModelParams(str(path)))
    assert AttentionShape.of(layers) == shape
    assert layers.n_layer == n_layers
    assert path.stat().st_size < 40e6
    layers.close()


def test_an_answer_is_remembered(model: Model, measured: list[AttentionShape], tmp_path: Path) -> None:
    answers = [prefers_flash_attention(model, PARAMS, tmp_path / "memory.json") for _ in range(3)]
    assert measured == [AttentionShape(4, 2, 8)]
    assert answers == [(False, "a chat turn was measured 2.00 times as long with it on this CPU")] * 3


def test_where_it_is_on_though_it_was_measured_slower_the_reason_is_given(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower = {"off": Measurement(0.10, 0.01), "on": Measurement(0.11, 0.01)}
    monkeypatch.setattr(calibration, "_measure", lambda shape, params: slower)
    is_on, why = prefers_flash_attention(model, PARAMS, None)
    assert is_on
    assert why.endswith(" times as long with it on this CPU, and a few layers favour off: below 1.15 it is on")


@pytest.mark.parametrize("changes", [{"cache_type_k": "f32"}, {"cache_type_v": "f32"}], ids=str)
def test_other_circumstances_are_measured_anew(
    model: Model, measured: list[AttentionShape], tmp_path: Path, changes: dict[str, object]
) -> None:
    prefers_flash_attention(model, PARAMS, tmp_path / "memory.json")
    prefers_flash_attention(model, dataclasses.replace(PARAMS, **changes), tmp_path / "memory.json")  # type: ignore[arg-type]
    assert len(measured) == 2
    assert len(json.loads((tmp_path / "memory.json").read_text())) == 2


def test_without_a_memory_it_is_measured_each_time(model: Model, measured: list[AttentionShape]) -> None:
    prefers_flash_attention(model, PARAMS, None)
    prefers_flash_attention(model, PARAMS, None)
    assert len(measured) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda known: b"\xff\xfe{ not json",
        lambda known: b"[1, 2, 3]",
        lambda known: json.dumps(dict.fromkeys(known, 5.5)).encode(),
        lambda known: json.dumps({key: {"off": [1, 2]} for key in known}).encode(),
        lambda known: json.dumps({key: {"off": ["x", "y"], "on": [1, 2]} for key in known}).encode(),
        lambda known: json.dumps({key: {"off": [0, 0], "on": [1, 2]} for key in known}).encode(),
        lambda known: json.dumps({key: {"off": [1, 2], "on": [1, float("nan")]} for key in known}).encode(),
        lambda known: json.dumps({key: {"off": [1, 2, 3], "on": [1, 2]} for key in known}).encode(),
    ],
    ids=["bytes", "list", "number", "half", "strings", "zero", "nan", "three"],
)
def test_an_unreadable_memory_is_measured_around(
    model: Model, measured: list[AttentionShape], tmp_path: Path, change: object
) -> None:
    memory = tmp_path / "memory.json"
    prefers_flash_attention(model, PARAMS, memory)
    memory.write_bytes(change(json.loads(memory.read_text())))  # type: ignore[operator]
    assert prefers_flash_attention(model, PARAMS, memory)[0] is False
    assert len(measured) == 2


def test_a_memory_that_cannot_be_written_is_no_harm(
    model: Model, measured: list[AttentionShape], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for memory in (tmp_path / "file" / "memory.json", tmp_path):
        is_on, why = prefers_flash_attention(model, PARAMS, memory)
        assert is_on is False
        assert f"not remembered, {memory} cannot be written" in why


def test_without_a_place_for_temporary_files_nothing_is_measured(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    assert prefers_flash_attention(model, PARAMS, None) == (
        False,
        "not measured, since no temporary file could be written: No such file or directory",
    )


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        (Measurement(0.1, 0.009), True),
        (Measurement(0.1, 0.012), False),
        (Measurement(2.9, 0.001), False),
    ],
    ids=["faster", "slower", "messages much slower"],
)
def test_it_is_off_where_a_turn_is_clearly_slower(
    model: Model, monkeypatch: pytest.MonkeyPatch, on: Measurement, expected: bool
) -> None:
    monkeypatch.setattr(calibration, "_measure", lambda *_: {"off": Measurement(0.1, 0.01), "on": on})
    assert prefers_flash_attention(model, PARAMS, None)[0] is expected
