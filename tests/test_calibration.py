"""The measurement of flash attention: it runs, it is remembered, and a broken memory is measured around."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.llama import calibration
from server.llama.calibration import AttentionShape, Measurement, prefers_flash_attention, write_layers
from server.llama.model import Model
from server.llama.params import ContextParams, ModelParams

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

    def measure(shape: AttentionShape, params: ContextParams) -> dict[str, Measurement]:
        shapes.append(shape)
        return {"off": Measurement(0.1, 0.01), "on": Measurement(0.2, 0.02)}

    monkeypatch.setattr(calibration, "_measure", measure)
    return shapes


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.getloadavg", lambda: (0.0, 0.0, 0.0))


def test_what_a_busy_machine_measures_is_not_remembered(
    model: Model, measured: list[AttentionShape], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("psutil.getloadavg", lambda: (100.0, 0.0, 0.0))
    prefers_flash_attention(model, PARAMS, tmp_path / "memory.json")
    assert not (tmp_path / "memory.json").exists()


def test_a_real_measurement_gives_an_answer_and_why(model: Model, tmp_path: Path) -> None:
    is_on, why = prefers_flash_attention(model, PARAMS, tmp_path / "folder" / "memory.json")
    ratio = float(why.split(" measured ")[1].split()[0])
    assert 0.05 < ratio < 20
    assert is_on == (ratio < 1.15)
    (entry,) = json.loads((tmp_path / "folder" / "memory.json").read_text()).values()
    assert all(0 < seconds < 60 for side in ("off", "on") for seconds in entry[side])


def test_the_one_layer_has_the_attention_of_the_model(tmp_path: Path) -> None:
    shape = AttentionShape(6, 3, 64)
    write_layers(tmp_path / "layer.gguf", shape, 1)
    layer = Model(ModelParams(str(tmp_path / "layer.gguf")))
    assert AttentionShape.of(layer) == shape
    assert layer.n_layer == 1
    layer.close()


def test_an_answer_is_remembered(model: Model, measured: list[AttentionShape], tmp_path: Path) -> None:
    answers = [prefers_flash_attention(model, PARAMS, tmp_path / "memory.json") for _ in range(3)]
    assert measured == [AttentionShape(4, 2, 8)]
    assert answers == [(False, "a chat turn was measured 2.00 times as long with it on this CPU")] * 3


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
        lambda known: json.dumps(dict.fromkeys(known, 5)).encode(),
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
