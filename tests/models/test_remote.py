"""Models of a hub, which is a small server on 127.0.0.1 here, and of ollama's local store."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from huggingface_hub import constants, file_download

from ggufd import cli
from ggufd.errors import ModelError
from ggufd.models import download, hub, remote
from ggufd.settings import api_settings, sources
from tests.support.fakes.hub_server import Hub, HubServer
from tests.support.models import gguf_files
from tests.support.models.gguf_files import llama

HEAD, SIZE = gguf_files.header(*llama(n_vocab=20000))
MODEL = HEAD + bytes(range(256)) * (SIZE // 256) + bytes(SIZE % 256)
"""A model of 5 MB, of which the header is a few kB."""

REPO = "someone/model-GGUF"


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository of three quantisations; the library's cache is empty."""
    with HubServer() as made:
        made.repos[REPO] = {f"model.{kind}.gguf": MODEL for kind in ("Q2_K", "Q4_K_M", "Q8_0")}
        made.repos[REPO] |= {"README.md": b"hello", "mmproj-model.f16.gguf": MODEL}
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.setattr(constants, name, str(tmp_path / "cache"))
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield made


def fault(model: str, **options: bool) -> str:
    with pytest.raises(ModelError) as caught:
        hub.find(model, **options)
    message = caught.value.message
    assert "\n" not in message
    return message


def break_off(far: Hub, files: list[remote.RemoteFile], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that fetches them fail when three fifths have come."""
    with monkeypatch.context() as patch:
        patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
        patch.setattr("time.sleep", lambda seconds: pytest.fail("tried again"))
        far.cut_after = len(MODEL) * 3 // 5
        with pytest.raises(pytest.fail.Exception, match="tried again"):
            download.fetch(f"hf:{REPO}", files)
    far.cut_after = None


def parts_left() -> list[Path]:
    return list(Path(constants.HF_HUB_CACHE).rglob("*.part"))


class TestChoice:
    @pytest.mark.parametrize(
        ("model", "name"),
        [
            (f"hf:{REPO}", "model.Q4_K_M.gguf"),
            (f"hf:{REPO}:q2_k", "model.Q2_K.gguf"),
            (f"hf:{REPO}:Q8_0", "model.Q8_0.gguf"),
            (f"hf:{REPO}/model.Q2_K.gguf", "model.Q2_K.gguf"),
            (f"hf:{REPO}/mmproj-model.f16.gguf", "mmproj-model.f16.gguf"),
        ],
    )
    def test_the_file_that_is_meant(self, far: Hub, model: str, name: str) -> None:
        assert [one.name for one in remote.find(model)] == [name]

    def test_the_only_one(self, far: Hub) -> None:
        far.repos["a/b"] = {"x.IQ3_M.gguf": MODEL}
        assert remote.find("hf:a/b")[0].name == "x.IQ3_M.gguf"

    def test_all_parts(self, far: Hub) -> None:
        far.repos["a/b"] = {f"Q4/m-Q4_K_M-0000{i}-of-00002.gguf": MODEL for i in (1, 2)}
        assert [one.name[-19:] for one in remote.find("hf:a/b:q4_k_m")] == [
            "00001-of-00002.gguf",
            "00002-of-00002.gguf",
        ]

    def test_a_missing_part(self, far: Hub) -> None:
        far.repos["a/b"] = {"m-00001-of-00002.gguf": MODEL}
        assert "there is no m-00002-of-00002.gguf" in fault("hf:a/b")

    def test_a_quantisation_that_is_not_there(self, far: Hub) -> None:
        message = fault(f"hf:{REPO}:Q5_K_M")
        assert "no file is Q5_K_M" in message
        assert "model.Q2_K.gguf, model.Q4_K_M.gguf, model.Q8_0.gguf" in message

    def test_a_part_of_a_name_is_not_it(self, far: Hub) -> None:
        assert "no file is Q4_K" in fault(f"hf:{REPO}:Q4_K")

    def test_no_model_at_all(self, far: Hub) -> None:
        far.repos["a/b"] = {"model.safetensors": b"x"}
        assert "no .gguf file" in fault("hf:a/b")

    @pytest.mark.parametrize("model", ["hf:", "hf:a", "hf:a/b/c", "hf:a/../..", "hf:a/b:c:d", "hf:a b/c"])
    def test_what_is_no_name(self, model: str) -> None:
        assert "expected hf:OWNER/REPO" in fault(model)


class TestFetching:
    def test_it_arrives_and_is_found_again(self, far: Hub) -> None:
        found = hub.find(f"hf:{REPO}")
        assert found.path.read_bytes() == MODEL
        assert (found.path.name, found.source) == ("model.Q4_K_M.gguf", f"hf:{REPO}")
        served = far.served
        assert hub.find(f"hf:{REPO}").path == found.path
        assert far.served - served < len(MODEL) / 2

    def test_a_half_file_is_continued(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
        files = remote.find(f"hf:{REPO}")
        far.cut_after = len(MODEL) // 2
        assert download.fetch(f"hf:{REPO}", files).read_bytes() == MODEL
        assert far.served < 1.1 * len(MODEL)

    def test_a_connection_that_always_breaks(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        files = remote.find(f"hf:{REPO}")
        far.cut_after = 0
        with pytest.raises(ModelError, match="the hub cannot be reached or does not answer as expected"):
            download.fetch(f"hf:{REPO}", files)

    def test_a_file_that_was_left_half_done_is_continued_by_the_next_try(
        self, far: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        files = remote.find(f"hf:{REPO}")
        break_off(far, files, monkeypatch)
        (part,) = parts_left()
        assert part.stat().st_size > len(MODEL) // 2
        caplog.set_level("INFO", "ggufd")
        served = far.served
        shares: list[float] = []
        path = download.fetch(f"hf:{REPO}", files, shares.append)
        assert path.read_bytes() == MODEL
        assert far.served - served < 0.6 * len(MODEL)
        assert shares[0] > 0.5
        assert [line for line in caplog.messages if line.startswith("downloading")][-1].endswith(": 100 % of 5 MB")
        assert "model.Q4_K_M.gguf: resumes at 3 MB of 5 MB" in caplog.text
        assert [one.name for one in path.resolve().parent.iterdir()] == [files[0].sha256]

    def test_a_server_that_cannot_continue_begins_anew(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        files = remote.find(f"hf:{REPO}")
        break_off(far, files, monkeypatch)
        far.has_ranges = False
        assert download.fetch(f"hf:{REPO}", files).read_bytes() == MODEL

    @pytest.mark.parametrize(
        ("part", "is_told"), [(MODEL[:-1] + b"?", True), (b"?" * 100, True), (MODEL + b"and more", False)]
    )
    def test_a_half_file_that_is_not_of_this_one(
        self, far: Hub, part: bytes, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
    ) -> None:
        break_off(far, remote.find(f"hf:{REPO}"), monkeypatch)
        parts_left()[0].write_bytes(part)
        if is_told:
            assert "its checksum is wrong" in fault(f"hf:{REPO}")
        assert hub.find(f"hf:{REPO}").path.read_bytes() == MODEL

    def test_two_that_fetch_it_at_once(self, far: Hub) -> None:
        files = remote.find(f"hf:{REPO}")
        with ThreadPoolExecutor() as pool:
            tries = [pool.submit(download.fetch, f"hf:{REPO}", files) for _ in range(3)]
        assert {one.result().read_bytes() for one in tries} == {MODEL}
        assert far.served < 1.5 * len(MODEL)

    @pytest.mark.parametrize("why", ["no checksum", "no links", "many streams"])
    def test_what_cannot_be_continued_is_left_to_the_library(
        self, far: Hub, monkeypatch: pytest.MonkeyPatch, why: str
    ) -> None:
        files = remote.find(f"hf:{REPO}")
        if why == "no checksum":
            files = [dataclasses.replace(one, sha256=None) for one in files]
        monkeypatch.setattr(file_download, "are_symlinks_supported", lambda folder: why != "no links")
        monkeypatch.setattr(constants, "HF_XET_HIGH_PERFORMANCE", why == "many streams")
        break_off(far, files, monkeypatch)
        assert not parts_left()
        assert download.fetch(f"hf:{REPO}", files).read_bytes() == MODEL

    def test_so_is_what_the_hub_has_in_its_own_protocol_only(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", len(MODEL) - 1)
        assert "too large to be downloaded using the regular download method" in fault(f"hf:{REPO}")
        assert not parts_left()

    def test_a_disk_that_fills_up_meanwhile(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        break_off(far, remote.find(f"hf:{REPO}"), monkeypatch)
        monkeypatch.setattr(file_download, "http_get", full)
        message = fault(f"hf:{REPO}")
        assert "cannot be written: [Errno 28] No space left on device; make room, or set HF_HOME" in message
        assert message.endswith("; 3 MB of 5 MB are kept, and the next try resumes there")

    def test_a_hub_that_is_not_there(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("a hub that is not there was tried again"))
        assert "the hub cannot be reached" in fault(f"hf:{REPO}")

    def test_what_was_fetched_before_needs_no_network(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        path = hub.find(f"hf:{REPO}:Q2_K").path
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("a hub that is not there was tried again"))
        assert hub.find(f"hf:{REPO}:Q2_K").path == path
        assert hub.find(f"hf:{REPO}").path == path
        assert "the hub cannot be reached" in fault(f"hf:{REPO}:Q8_0")

    def test_a_damaged_download_is_deleted(self, far: Hub) -> None:
        far.is_damaged = True
        assert "its checksum is wrong" in fault(f"hf:{REPO}")
        far.is_damaged = False
        assert hub.find(f"hf:{REPO}").path.read_bytes() == MODEL

    def test_how_much_has_come_is_told_of_all_parts_together(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
        far.repos["a/b"] = {f"m-0000{i}-of-00002.gguf": MODEL[:-1] + bytes([i]) for i in (1, 2)}
        shares: list[float] = []
        download.fetch("hf:a/b", remote.find("hf:a/b"), shares.append)
        assert shares == sorted(shares)
        assert shares[0] < 0.1
        assert shares[-1] > 0.98
        assert 20 < len(shares) <= 100

    def test_a_cached_file_that_was_cut_off_is_fetched_again(self, far: Hub) -> None:
        path = hub.find(f"hf:{REPO}").path
        with path.resolve().open("r+b") as file:
            file.truncate(len(MODEL) // 2)
        found = hub.find(f"hf:{REPO}").path
        assert (found, found.read_bytes()) == (path, MODEL)

    def test_an_older_version_stays_until_the_newer_one_is_there(
        self, far: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        older = hub.find(f"hf:{REPO}").path
        monkeypatch.setattr("tests.support.fakes.hub_server.COMMIT", "2" * 40)
        head, size = gguf_files.header(*llama(n_vocab=30000))
        newer = far.repos[REPO]["model.Q4_K_M.gguf"] = head + bytes(size)
        files = remote.find(f"hf:{REPO}")
        far.cut_after = 1000
        with pytest.raises(ModelError):
            download.fetch(f"hf:{REPO}", files)
        assert older.read_bytes() == MODEL
        far.cut_after = None
        assert download.fetch(f"hf:{REPO}", files).read_bytes() == newer

    def test_a_full_disk_is_said_before_the_first_byte(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        class Usage(NamedTuple):
            total: int = 10**9
            used: int = 10**9
            free: int = 10**6

        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage())
        assert "make room, or set HF_HOME to another disk" in fault(f"hf:{REPO}")
        assert far.served < len(MODEL) / 2

    def test_the_token_is_sent(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        far.token = "hf_secret"
        assert "HF_TOKEN is not set" in fault(f"hf:{REPO}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert hub.find(f"hf:{REPO}").size_bytes == len(MODEL)


class TestHeader:
    def test_it_is_read_without_the_rest(self, far: Hub) -> None:
        found = hub.find(f"hf:{REPO}", may_fetch=False)
        assert found.shape is not None
        assert found.shape.n_vocab == 20000
        assert found.size_bytes == len(MODEL)
        assert far.served < 2_000_000
        assert far.ranges

    def test_plan(self, far: Hub, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit):
            cli.main(["plan", f"hf:{REPO}:q8_0"])
        out = capsys.readouterr().out
        assert out.startswith("model.Q8_0.gguf")
        assert f"ggufd -m hf:{REPO}:q8_0 " in out
        # A header of the model, and one of the projector beside it.
        assert far.served < 2 * 1_100_000

    def test_a_model_that_cannot_be_served_is_not_downloaded(self, far: Hub) -> None:
        far.repos["a/b"] = {"m.gguf": gguf_files.header(llama()[0], llama()[1][:3])[0] + bytes(5_000_000)}
        assert "tensors are missing" in fault("hf:a/b")
        assert far.served < 2_000_000

    def test_a_server_without_ranges(self, far: Hub) -> None:
        far.has_ranges = False
        assert "does not support range requests" in fault(f"hf:{REPO}", may_fetch=False)


class TestFailures:
    def test_no_such_repository(self, far: Hub) -> None:
        assert "no such repository" in fault("hf:no/body")

    def test_terms_to_accept(self, far: Hub) -> None:
        far.gated.add(REPO)
        assert "accept its terms" in fault(f"hf:{REPO}")

    def test_terms_to_accept_of_which_the_list_says_nothing(self, far: Hub) -> None:
        far.gated.add(REPO)
        far.files_are_gated = True
        assert "accept its terms" in fault(f"hf:{REPO}", may_fetch=False)

    @pytest.mark.parametrize("listing", [b"<html>Log in</html>", b'{"a": 1}', b'[{"type": "file", "path": "a.gguf"}]'])
    def test_an_answer_that_is_not_the_hubs(self, far: Hub, listing: bytes) -> None:
        far.listing = listing
        assert "does not answer as expected" in fault(f"hf:{REPO}")

    @pytest.mark.timeout(60)
    def test_a_hub_that_says_nothing(self, far: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote, "_TIMEOUT_S", 0.2)
        far.is_silent = True
        assert "cannot be reached" in fault(f"hf:{REPO}", may_fetch=False)

    def test_the_library_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def absent(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.startswith("huggingface_hub"):
                raise ModuleNotFoundError(name=name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", absent)
        assert "pip install 'ggufd[hub]'" in fault("hf:a/b")


class TestOllama:
    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
        return tmp_path

    def put(self, store: Path, name: str, layers: Any) -> None:
        host = "" if name.startswith("hf.co/") else "registry.ollama.ai"
        path = store / "manifests" / host / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"layers": layers}))

    @pytest.mark.parametrize(
        ("model", "manifest"),
        [
            ("ollama:tiny", "library/tiny/latest"),
            ("ollama:tiny:1b", "library/tiny/1b"),
            ("ollama:me/x:y", "me/x/y"),
            ("ollama:hf.co/me/x-GGUF", "hf.co/me/x-GGUF/latest"),
            ("ollama:hf.co/me/x-GGUF:Q4_K_M", "hf.co/me/x-GGUF/Q4_K_M"),
        ],
    )
    def test_its_file_is_found(self, store: Path, model: str, manifest: str) -> None:
        kinds = ("template", "model")
        layers = [{"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{kind}"} for kind in kinds]
        self.put(store, manifest, layers)
        gguf_files.write(store / "blobs" / "sha256-model", *llama())
        found = hub.find(model)
        assert found.path == store / "blobs" / "sha256-model"
        assert found.source == model

    def test_it_keeps_its_name(self, store: Path) -> None:
        """Its file is called by a checksum."""
        model = hub.ModelFile(store / "blobs" / "sha256-00", 0, source="ollama:tiny:1b")
        assert api_settings.model_id(sources.load(None, {}, {}), model) == "tiny:1b"

    def test_an_adapter_beside_it_is_told(self, store: Path, caplog: pytest.LogCaptureFixture) -> None:
        kinds = ("model", "adapter")
        layers = [{"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{kind}"} for kind in kinds]
        self.put(store, "library/tiny/latest", layers)
        gguf_files.write(store / "blobs" / "sha256-model", *llama())
        assert hub.find("ollama:tiny").path == store / "blobs" / "sha256-model"
        (told,) = [one.getMessage() for one in caplog.records]
        assert f"only with --lora {store / 'blobs' / 'sha256-adapter'}" in told

    def test_no_such_model(self, store: Path) -> None:
        assert "ollama has no such model on this machine" in fault("ollama:nothing")

    @pytest.mark.parametrize("layers", [[], [{}], None, [{"mediaType": "application/vnd.ollama.image.model"}]])
    def test_a_broken_manifest(self, store: Path, layers: Any) -> None:
        self.put(store, "library/tiny/latest", layers)
        assert "is not the manifest of a model" in fault("ollama:tiny")

    def test_a_missing_blob(self, store: Path) -> None:
        layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:gone"}]
        self.put(store, "library/tiny/latest", layers)
        with pytest.raises(ModelError, match="no such file"):
            hub.find("ollama:tiny")

    @pytest.mark.parametrize("model", ["ollama:", "ollama:../x", "ollama:a:b:c", "ollama:a/b/c/d"])
    def test_what_is_no_name(self, store: Path, model: str) -> None:
        with pytest.raises(ModelError):
            hub.find(model)
