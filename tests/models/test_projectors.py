"""Image projectors: the one that is named, and the one that was published with the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from ggufd.errors import ModelError
from ggufd.models import hub, projectors
from ggufd.settings import model_files, sources
from tests.support.fakes.hub_server import Hub, HubServer
from tests.support.models import gguf_files
from tests.support.models.gguf_files import llama
from tests.support.models.projector_file import write_sparse

WIDTH = 64
REPO = "someone/model-GGUF"


def projector(path: Path, kind: str = "mlp", width: int = WIDTH, **metadata: Any) -> Path:
    """A projector of zeros for a model of this width."""
    return write_sparse(path, width, changes={"clip.projector_type": kind, **metadata})


def model(path: Path, **metadata: Any) -> Path:
    return gguf_files.write(path, *llama(width=WIDTH, extra=metadata))


def found(target: Path | str, *flags: str, may_fetch: bool = True) -> hub.ModelFile:
    """The model as a start finds it."""
    given = dict(flag.split("=", 1) for flag in flags)
    return model_files.find_model(sources.load(None, {"model": str(target), **given}, {}), may_fetch=may_fetch)


def path_of(one: hub.ModelFile) -> Path | None:
    return None if one.projector is None else one.projector.path


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


class TestNamed:
    def test_it_is_read_and_checked(self, tmp_path: Path) -> None:
        path = projector(tmp_path / "eyes" / "any-name.gguf")
        one = found(model(tmp_path / "m.gguf"), f"mmproj={path}").projector
        assert one is not None
        assert (one.path, one.kind, one.n_embd) == (path, "mlp", WIDTH)

    def test_one_of_another_width_ends_the_start(self, tmp_path: Path) -> None:
        path = projector(tmp_path / "eyes" / "mmproj.gguf", width=576)
        with pytest.raises(ModelError) as caught:
            found(model(tmp_path / "m.gguf"), f"mmproj={path}")
        assert caught.value.message == (
            f"{path}: makes rows of 576 numbers, but m.gguf has embeddings of 64; --mmproj needs the projector that "
            "was published with this model"
        )

    @pytest.mark.parametrize("name", ["nowhere.gguf", "a\0b"])
    def test_a_name_of_no_file_is_one_line(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ModelError) as caught:
            found(model(tmp_path / "m.gguf"), f"mmproj={name}")
        assert "\n" not in caught.value.message
        assert "--mmproj" in caught.value.message

    def test_a_model_that_only_embeds_reads_no_images(self, tmp_path: Path) -> None:
        path = model(tmp_path / "m.gguf", **{"llama.pooling_type": 1})
        eyes = projector(tmp_path / "eyes" / "mmproj.gguf")
        with pytest.raises(ModelError, match=r"m\.gguf only makes embeddings, and reads no images"):
            found(path, f"mmproj={eyes}")


class TestBeside:
    @pytest.mark.parametrize("name", ["mmproj.gguf", "mmproj-model-f16.gguf", "MMPROJ-F32.GGUF"])
    def test_the_only_one_beside_the_only_model_is_used(self, tmp_path: Path, name: str) -> None:
        path = projector(tmp_path / name)
        assert path_of(found(model(tmp_path / "m.gguf"))) == path
        assert path_of(found(tmp_path)) == path

    def test_it_can_be_left_out(self, tmp_path: Path) -> None:
        projector(tmp_path / "mmproj.gguf")
        assert found(model(tmp_path / "m.gguf"), "mmproj_auto=false").projector is None

    def test_one_that_is_named_comes_first(self, tmp_path: Path) -> None:
        projector(tmp_path / "mmproj.gguf")
        other = projector(tmp_path / "eyes" / "other.gguf")
        one = found(model(tmp_path / "m.gguf"), f"mmproj={other}", "mmproj_auto=false")
        assert path_of(one) == other

    def test_of_several_none_is_guessed(self, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
        for kind in ("f16", "f32"):
            projector(tmp_path / f"mmproj-{kind}.gguf")
        assert found(model(tmp_path / "m.gguf")).projector is None
        assert "2 projectors lie beside the model; name one with --mmproj" in said.text

    def test_beside_several_models_none_is_guessed(self, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
        projector(tmp_path / "mmproj.gguf")
        model(tmp_path / "other.gguf")
        assert found(model(tmp_path / "m.gguf")).projector is None
        assert "other models lie beside mmproj.gguf, too; name it with --mmproj" in said.text

    def test_beside_several_models_it_is_that_of_the_one_whose_name_it_has(self, tmp_path: Path) -> None:
        path = projector(tmp_path / "mmproj.gguf", **{"general.name": "Eyed"})
        eyed = [model(tmp_path / f"eyed-{kind}.gguf", **{"general.name": "Eyed"}) for kind in ("Q4_0", "Q8_0")]
        other = model(tmp_path / "other.gguf", **{"general.name": "Blind"})
        assert [path_of(found(one)) for one in (*eyed, other)] == [path, path, None]

    def test_an_adapter_beside_them_is_no_other_model(self, tmp_path: Path) -> None:
        path = projector(tmp_path / "mmproj.gguf")
        adapter = {"general.architecture": "llama", "general.type": "adapter"}
        gguf_files.write(tmp_path / "style.gguf", adapter, [("blk.0.attn_q.weight.lora_a", (32, 2), "f32")])
        assert path_of(found(model(tmp_path / "m.gguf"))) == path

    @pytest.mark.parametrize(
        ("kind", "width", "words"),
        [("gemma3", WIDTH, "type 'gemma3', which is not served"), ("mlp", 576, "embeddings of 64")],
    )
    def test_one_that_cannot_be_used_is_told_and_left_out(
        self, tmp_path: Path, said: pytest.LogCaptureFixture, kind: str, width: int, words: str
    ) -> None:
        projector(tmp_path / "mmproj.gguf", kind, width)
        assert found(model(tmp_path / "m.gguf")).projector is None
        (line,) = [one.getMessage() for one in said.records if one.levelno == logging.WARNING]
        assert line.startswith("no images are read: ")
        assert words in line


class TestHub:
    @pytest.fixture
    def far(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
        """A hub with one repository of a model and two projectors; the library's cache is empty."""
        made_of = {"m.Q4_K_M.gguf": model(tmp_path / "m.gguf")}
        made_of |= {f"mmproj-{kind}.gguf": projector(tmp_path / f"{kind}.gguf") for kind in ("BF16", "F16", "F32")}
        with HubServer() as made:
            made.repos[REPO] = {name: path.read_bytes() for name, path in made_of.items()}
            monkeypatch.setattr(constants, "ENDPOINT", made.url)
            for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
                monkeypatch.setattr(constants, name, str(tmp_path / "cache"))
            template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            yield made

    def test_that_of_half_precision_is_fetched_with_the_model(self, far: Hub) -> None:
        path = path_of(found(f"hf:{REPO}"))
        assert path is not None
        assert path.name == "mmproj-F16.gguf"
        assert path.read_bytes() == far.repos[REPO]["mmproj-F16.gguf"]

    def test_one_can_be_named(self, far: Hub) -> None:
        path = path_of(found(f"hf:{REPO}", f"mmproj=hf:{REPO}/mmproj-F32.gguf"))
        assert path is not None
        assert path.name == "mmproj-F32.gguf"

    def test_its_header_alone_is_read_for_a_plan(self, far: Hub, tmp_path: Path) -> None:
        one = found(f"hf:{REPO}", may_fetch=False).projector
        assert one is not None
        assert (one.path, one.n_embd) == (Path("mmproj-F16.gguf"), WIDTH)
        assert not list(tmp_path.glob("cache/**/mmproj*"))

    def test_one_that_cannot_be_used_is_not_fetched(
        self, far: Hub, tmp_path: Path, said: pytest.LogCaptureFixture
    ) -> None:
        far.repos[REPO]["mmproj-F16.gguf"] = projector(tmp_path / "x.gguf", "gemma3").read_bytes()
        assert found(f"hf:{REPO}").projector is None
        assert "which is not served" in said.text
        assert not list(tmp_path.glob("cache/**/mmproj*"))

    def test_what_was_fetched_before_needs_no_network(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        before = path_of(found(f"hf:{REPO}"))
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert path_of(found(f"hf:{REPO}")) == before

    def test_a_repository_without_one(self, far: Hub) -> None:
        far.repos[REPO] = {name: data for name, data in far.repos[REPO].items() if "mmproj" not in name}
        assert found(f"hf:{REPO}").projector is None


class TestOllama:
    def put(self, store: Path, monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
        monkeypatch.setenv("OLLAMA_MODELS", str(store))
        layers = [{"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{kind}"} for kind in kinds]
        manifest = store / "manifests" / "registry.ollama.ai" / "library" / "eyed" / "latest"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"layers": layers}))
        model(store / "blobs" / "sha256-model")

    def test_the_projector_of_a_model_is_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.put(tmp_path, monkeypatch, "model", "projector", "template")
        path = projector(tmp_path / "blobs" / "sha256-projector")
        assert path_of(found("ollama:eyed")) == path

    def test_a_model_without_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.put(tmp_path, monkeypatch, "model")
        assert found("ollama:eyed").projector is None


def test_a_stand_in_of_a_model_has_none() -> None:
    assert projectors.published(hub.ModelFile(Path("nowhere.gguf"), 0), may_fetch=False) is None
