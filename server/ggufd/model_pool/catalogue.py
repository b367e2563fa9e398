"""Catalogue of the known models: their names and what their headers say. Knows neither settings nor files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_LATEST = ":latest"
"""Ollama's clients put this behind a name without a tag."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the header of a model's file says. `quantisation` is as the file names it; empty if it does not."""

    architecture: str
    n_params: int
    n_layers: int
    n_ctx_train: int
    width: int
    quantisation: str = ""
    only_embeds: bool = False
    chat_template: str = ""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Model that may be loaded: its name in the API, other names for it, and where it comes from, as `-m` takes it.

    `file` is the name of its file, which is a name too. `size_bytes` and `facts` are None as long as it lies on a hub.
    `created` is a Unix time.
    """

    name: str
    source: str
    aliases: tuple[str, ...] = ()
    file: str = ""
    size_bytes: int | None = None
    facts: ModelFacts | None = field(default=None, compare=False, repr=False)
    created: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """All names of it."""
        return tuple(dict.fromkeys(name for name in (self.name, *self.aliases, self.file) if name))


class ModelCatalogue:
    """Known models in the order in which they are listed. Of two models with one name the first has it."""

    def __init__(self, models: Iterable[KnownModel]) -> None:
        self._models = {model.name: model for model in models}
        self._by_name: dict[str, KnownModel] = {}
        for model in self._models.values():
            self._index(model)

    def __iter__(self) -> Iterator[KnownModel]:
        return iter(list(self._models.values()))

    def __len__(self) -> int:
        return len(self._models)

    def __getitem__(self, name: str) -> KnownModel:
        """The model whose own name this is."""
        return self._models[name]

    def add(self, model: KnownModel) -> None:
        """Add a model that was loaded without being known, or what is known of one by now."""
        self._models[model.name] = model
        self._by_name = {name: known for name, known in self._by_name.items() if known.name != model.name}
        self._index(model)

    def find(self, asked: str | None) -> KnownModel | None:
        """The model that a request means by this name; None where it means whichever is loaded."""
        if not asked:
            return None
        # Behind a plus stands a LoRA adapter.
        for name in (asked, asked.removesuffix(_LATEST), asked.partition("+")[0]):
            if (found := self._by_name.get(name)) is not None:
                return found
        return None

    def _index(self, model: KnownModel) -> None:
        # A model's own name goes before what others are called besides.
        self._by_name[model.name] = model
        for name in model.names:
            self._by_name.setdefault(name, model)
