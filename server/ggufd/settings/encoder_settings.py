"""Parameters of the encoder process from the settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from ggufd.llama.gguf.projector_file import ProjectorFile
from ggufd.llama.params import ProjectorParams
from ggufd.models import hub
from ggufd.settings.config import Config

if TYPE_CHECKING:
    from ggufd.images.encoder.messages import EncoderParams

_NICENESS = 3
"""Streams get two thirds of a busy processor, an image the rest.

Measured on two cores beside four streams of 34 tokens a second each: with 0 an image is answered after 1.8 s, and they
have 14 meanwhile, with 3 after 2.2 s (17), with 5 after 2.8 s (20), with 10 after 6.7 s (23). llama-server, whose
streams stand still, takes 1.1 s. Threads that wait for each other would lose most of the share: see `llama.library`.
"""


def encoder_params(config: Config, model: hub.ModelFile, projector: ProjectorFile) -> EncoderParams:
    """Parameters of the encoder for a model and its projector."""
    # Here: most models have no projector, and a server of theirs needs neither.
    from ggufd.images.encoder.messages import EncoderParams
    from ggufd.placement import host

    threads = config.context.threads_batch or config.context.threads or host.compute_threads()
    params = ProjectorParams(
        str(projector.path),
        projector.n_embd,
        n_threads=threads,
        uses_gpu=may_use_gpu(config),
        devices=config.model.device,
        min_tokens=config.model.image_min_tokens,
        max_tokens=config.model.image_max_tokens,
    )
    return EncoderParams(str(model.path), params, niceness=_NICENESS, cpus=cpus_of(config.context.cpus))


def cpus_of(text: str) -> frozenset[int]:
    """CPUs of a list of numbers and ranges, whose form the config has checked."""
    ranges = [part.split("-") for part in text.split(",") if part]
    return frozenset(cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1))


def may_use_gpu(config: Config) -> bool:
    """Whether the projector goes to a GPU, if there is one: where the model's layers may."""
    return config.model.mmproj_offload and config.model.n_gpu_layers != 0 and config.model.device != ("none",)


def row_folder(config: Config) -> Path | None:
    """Folder of rows that outlive the server; None for a temporary one."""
    return platformdirs.user_cache_path("ggufd") / "images" if config.context.cache_disk else None
