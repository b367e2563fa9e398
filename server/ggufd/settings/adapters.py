"""LoRA adapters and control vectors of the settings: files and scales, checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from ggufd.api.services.settings import MAX_SCALE, LoraAdapter
from ggufd.errors import ConfigError
from ggufd.llama.gguf import adapter_files, gguf_header
from ggufd.llama.params import ControlVector
from ggufd.models.hub import ModelFile
from ggufd.settings.config import Config


def loras_of(config: Config) -> tuple[LoraAdapter, ...]:
    """LoRA adapters with their default scales.

    Raises ConfigError for two of one name, and for a scale outside what requests may ask for.
    """
    settings = config.model
    named = [*((path, 1.0) for path in settings.lora), *map(_scaled, settings.lora_scaled)]
    for path, scale in named:
        if abs(scale) > MAX_SCALE:
            raise ConfigError(f"--lora-scaled {path}:{scale:g}: expected a scale of {-MAX_SCALE:g} to {MAX_SCALE:g}")
    made = [
        LoraAdapter(Path(path).stem, path, 0.0 if settings.lora_init_without_apply else scale) for path, scale in named
    ]
    names = [one.name for one in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"--lora: two adapters are called {twice}, and requests choose by name; rename one of the files"
        )
    return tuple(made)


def control_vectors_of(config: Config) -> tuple[ControlVector, ...]:
    """Control vectors with their scales."""
    settings = config.model
    plain = [ControlVector(path) for path in settings.control_vector]
    return (*plain, *(ControlVector(*_scaled(text)) for text in settings.control_vector_scaled))


def _scaled(text: str) -> tuple[str, float]:
    """File and scale of FILE:SCALE, whose form the config has checked."""
    path, _, scale = text.rpartition(":")
    return path, float(scale)


def check(config: Config, model: ModelFile) -> None:
    """Check the adapters' and control vectors' headers against the model's.

    Raises ModelError for a file that does not belong to this model, ConfigError for settings that no model allows.
    """
    loras, vectors = loras_of(config), control_vectors_of(config)
    layers = _layers_of(config)
    if not loras and not vectors:
        return
    header = model.shape.gguf if model.shape is not None else gguf_header.read(gguf_header.parts_of(model.path))
    for lora in loras:
        adapter_files.check_lora(lora.path, header)
    for vector in vectors:
        adapter_files.check_control_vector(vector.path, header)
    if layers is not None:
        adapter_files.check_layers(*layers, header)


def _layers_of(config: Config) -> tuple[int, int] | None:
    """Layer range of the control vectors. Raises ConfigError for one that is not valid."""
    layers = config.model.control_vector_layer_range
    if layers is None:
        return None
    first, last = layers
    named = f"--control-vector-layer-range {first},{last}"
    if first > last:
        raise ConfigError(f"{named}: the first layer is greater than the last; swap them")
    if not control_vectors_of(config):
        raise ConfigError(f"{named}: no control vector is set; name one with --control-vector")
    return layers
