"""Limits of images from the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufd.errors import ConfigError
from ggufd.images.fetching.limits import ImageLimits
from ggufd.settings.config import Config, ImagesSection
from ggufd.settings.image_settings import image_limits


def test_by_default_nothing_is_fetched_and_the_limits_are_the_librarys() -> None:
    assert image_limits(Config()) == ImageLimits()


def test_what_is_set_is_obeyed(tmp_path: Path) -> None:
    images = ImagesSection(
        image_hosts=("a.test", "*.b.test"),
        media_path=str(tmp_path / "."),
        max_image_pixels=5000,
        max_image_bytes=6000,
        image_timeout_s=7,
    )
    limits = image_limits(Config(images=images))
    assert limits == ImageLimits(("a.test", "*.b.test"), tmp_path.resolve(), 5000, 6000, 7.0)


def test_hosts_may_be_one_string() -> None:
    assert ImagesSection.model_validate({"image_hosts": "a.test, b.test:81"}).image_hosts == ("a.test", "b.test:81")


def test_a_media_path_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        image_limits(Config(images=ImagesSection(media_path=str(tmp_path / "none"))))
