"""LoRA scales of a request: by its `lora` field, by the model's name, or by default."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ggufd.api.services.settings import ApiConfig
from ggufd.engine.messages.requests import Scales
from ggufd.errors import InvalidRequest, NotFound


class RequestedScale(Protocol):
    """Scale that a request asks for, of the adapter at this place among the loaded ones."""

    @property
    def id(self) -> int: ...
    @property
    def scale(self) -> float: ...


class AdapterScales:
    """Loaded adapters, and the scales of a request that does not name any. One for each model."""

    def __init__(self, config: ApiConfig) -> None:
        self._loaded = config.adapters
        self._bases = config.model_names
        self.scales: Scales = _normal(one.scale for one in self._loaded)

    def set_scales(self, requested: Sequence[RequestedScale], param: str | None = None) -> None:
        """Set the default scales; an adapter that is not named gets 0."""
        self.scales = self._scales_of(requested, param)

    def of_request(self, requested: Sequence[RequestedScale] | None, model: str | None) -> Scales:
        """Scales of one request: by its field, else by its model's name, else the default.

        Raises InvalidRequest for an adapter that is not there, NotFound for a name.
        """
        if requested is not None:
            return self._scales_of(requested, "lora")
        base, plus, names = (model or "").partition("+")
        if not plus or base not in self._bases or model in self._bases:
            return self.scales
        return self._scales_by_name([names] if names in self.names else names.split("+"))

    def _scales_of(self, requested: Sequence[RequestedScale], param: str | None) -> Scales:
        for place, one in enumerate(requested):
            if one.id >= len(self._loaded):
                there = f"ids are 0 to {len(self._loaded) - 1}" if self._loaded else "none is loaded (--lora)"
                where = f"{param or ''}[{place}].id"
                raise InvalidRequest(f"'{where}': there is no adapter {one.id}; {there}.", param=where)
        given = {one.id: one.scale for one in requested}
        return _normal(given.get(place, 0.0) for place in range(len(self._loaded)))

    def _scales_by_name(self, names: Sequence[str]) -> Scales:
        """The adapters with these names, each as much as it was loaded with, or whole; no other."""
        known = {one.name: one.scale or 1.0 for one in self._loaded}
        for name in names:
            if name not in known:
                there = f"There are: {', '.join(known)}." if known else "None is loaded (--lora)."
                raise NotFound(f"There is no adapter {name[:100]!r}. {there}", param="model")
        return _normal(known[one.name] if one.name in names else 0.0 for one in self._loaded)

    def as_json(self) -> list[dict[str, Any]]:
        """llama-server's list."""
        scales = self.scales or (0.0,) * len(self._loaded)
        pairs = zip(self._loaded, scales, strict=True)
        return [
            {"id": place, "name": one.name, "path": one.path, "scale": scale}
            for place, (one, scale) in enumerate(pairs)
        ]

    @property
    def names(self) -> list[str]:
        return [one.name for one in self._loaded]

    @property
    def model_names(self) -> list[str]:
        """The model's name with each adapter's, as a request may say it."""
        return [f"{self._bases[0]}+{name}" for name in self.names]


def _normal(scales: Iterable[float]) -> Scales:
    """Nothing of any adapter is no adapter: the same model and the same cache."""
    made = tuple(scales)
    return made if any(made) else ()
