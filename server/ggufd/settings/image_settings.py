"""Limits of images from the settings."""

from __future__ import annotations

from pathlib import Path

from ggufd.errors import ConfigError
from ggufd.images.fetching.limits import ImageLimits
from ggufd.settings.config import Config


def image_limits(config: Config) -> ImageLimits:
    """Limits of images. Raises ConfigError where the folder of --media-path is none."""
    images = config.images
    return ImageLimits(
        hosts=images.image_hosts,
        media_path=_folder(images.media_path),
        max_pixels=images.max_image_pixels,
        max_bytes=images.max_image_bytes,
        timeout_s=images.image_timeout_s,
    )


def _folder(text: str) -> Path | None:
    if not text:
        return None
    folder = Path(text)
    if not folder.is_dir():
        raise ConfigError(f"--media-path {text}: not a folder; it holds the files that requests may name.")
    return folder.resolve()
