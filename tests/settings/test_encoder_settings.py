"""Parameters of the encoder process from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ggufd.images.encoder.messages import EncoderParams
from ggufd.llama.gguf.projector_file import ProjectorFile
from ggufd.models.hub import ModelFile
from ggufd.placement import host
from ggufd.settings import encoder_settings, engine_settings, sources

PROJECTOR = ProjectorFile(Path("/m/mmproj.gguf"), "mlp", 576, 1000)
MODEL = ModelFile(Path("/m/model.gguf"), 0, projector=PROJECTOR)


def params(**settings: Any) -> EncoderParams:
    return encoder_settings.encoder_params(sources.load(None, settings, {}), MODEL, PROJECTOR)


def test_the_files_and_the_width_are_those_that_were_found() -> None:
    made = params()
    assert (made.model_path, made.projector.path, made.projector.n_embd) == ("/m/model.gguf", "/m/mmproj.gguf", 576)
    assert made.niceness == 3


def test_it_computes_where_and_with_as_many_threads_as_the_engine() -> None:
    assert params().projector.n_threads == host.compute_threads()
    assert params(threads="3").projector.n_threads == 3
    assert params(threads="3", threads_batch="5").projector.n_threads == 5
    assert params(cpus="0-2,5").cpus == {0, 1, 2, 5}


@pytest.mark.parametrize(
    ("settings", "uses_gpu"),
    [
        ({}, True),
        ({"mmproj_offload": "false"}, False),
        ({"n_gpu_layers": "0"}, False),
        ({"n_gpu_layers": "9"}, True),
        ({"device": "none"}, False),
        ({"device": "CUDA1"}, True),
    ],
)
def test_it_goes_to_the_gpu_where_the_model_may(settings: dict[str, str], uses_gpu: bool) -> None:
    assert params(**settings).projector.uses_gpu is uses_gpu
    use = engine_settings.engine_config(sources.load(None, settings, {}), MODEL).beside
    assert (use.vram > 0) is uses_gpu
    assert use.ram > 0


def test_limits_of_tokens_are_handed_over() -> None:
    made = params(image_min_tokens="16", image_max_tokens="-1").projector
    assert (made.min_tokens, made.max_tokens) == (16, None)


def test_rows_outlive_the_server_only_beside_a_disk_cache() -> None:
    assert encoder_settings.row_folder(sources.load(None, {}, {})) is None
    folder = encoder_settings.row_folder(sources.load(None, {"cache_disk": "100"}, {}))
    assert folder is not None
    assert folder.name == "images"


def test_without_a_projector_nothing_is_taken() -> None:
    blind = ModelFile(Path("/m/model.gguf"), 0)
    assert engine_settings.engine_config(sources.load(None, {}, {}), blind).beside == (0, 0)
