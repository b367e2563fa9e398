"""What the person at the terminal reads."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ggufd import console
from ggufd.engine.messages.reports import EmbeddingInfo, ModelInfo, Ready
from ggufd.llama.gguf.projector_file import ProjectorFile
from ggufd.models.hub import ModelFile

MODEL = ModelInfo(
    name="Tiny",
    path="/m/tiny.gguf",
    architecture="llama",
    description="llama 1B Q4_0",
    ftype="Q4_0",
    n_params=1_100_000_000,
    size_bytes=640 << 20,
    n_vocab=32000,
    n_ctx_train=4096,
    n_embd=64,
    n_layer=22,
    chat_template=None,
    bos_piece="<s>",
    eos_piece="</s>",
    metadata={},
)
READY = Ready(
    model=MODEL,
    n_ctx=4096,
    n_slots=4,
    n_batch=2048,
    n_threads=8,
    n_gpu_layers=0,
    devices=(),
    flash_attn=False,
    flash_attn_why="slower on this CPU",
    reuse="any",
    memory_bytes=3 << 30,
    buffers=(),
    build="",
    embedding=EmbeddingInfo("mean", 64, 2048, is_asked_for=False),
    host_cache_bytes=300 << 20,
)
FILE = ModelFile(Path("/m/tiny.gguf"), 640 << 20)


def screen(width: int = 200) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def text(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


def summary(ready: Ready = READY, model: ModelFile = FILE, width: int = 200, *, has_keys: bool = False) -> str:
    shown = screen(width)
    console.show_summary(ready, model, "tiny", "http://127.0.0.1:8080", has_keys=has_keys, console=shown)
    return text(shown)


class TestSummary:
    def test_it_says_what_where_and_how(self) -> None:
        said = summary()
        for words in (
            "tiny: Tiny, llama, Q4_0, 1.1B parameters, 640 MiB",
            "4 slots of 4,096 tokens each",
            "CPU, 8 threads",
            "3.0 GiB; flash attention off (slower on this CPU)",
            "up to 300 MiB, for chats evicted from their slot",
            "http://127.0.0.1:8080 in a browser",
            "http://127.0.0.1:8080/v1",
            "http://127.0.0.1:8080/docs",
        ):
            assert words in said
        assert "demo" not in said

    def test_where_no_ram_is_left_no_chat_is_kept(self) -> None:
        assert "none, for chats evicted from their slot" in summary(replace(READY, host_cache_bytes=0))

    def test_what_becomes_of_an_edited_chat_is_told_where_it_is_not_what_one_expects(self) -> None:
        assert "edited" not in summary()
        words = "evicted from their slot; an edited chat goes on from the checkpoint at the end of an earlier message"
        assert words in summary(replace(READY, reuse="snapshots"))

    def test_what_makes_vectors_says_how(self) -> None:
        assert "Embeddings" not in summary()
        info = EmbeddingInfo("cls", 384, 512, is_asked_for=True)
        said = summary(replace(READY, embedding=info, writes=False, n_ctx=512))
        assert "inputs of up to 512 tokens" in said
        assert "384 dimensions, cls pooling, inputs of up to 512 tokens" in said
        assert "/v1/embeddings" in said
        assert "slot" not in said
        assert "browser" not in said
        assert "/v1/chat" not in said
        said = summary(replace(READY, embedding=replace(info, pooling="rank"), writes=False))
        assert "query and document of up to 512 tokens together" in said
        assert "/v1/rerank" in said

    def test_layers_on_a_gpu(self) -> None:
        said = summary(replace(READY, n_gpu_layers=99, devices=("NVIDIA H100",)))
        assert "NVIDIA H100: 23 of 23 layers; CPU: 8 threads" in said

    def test_the_demo_model_says_how_to_use_another(self) -> None:
        assert "ggufd --model FILE.gguf" in summary(model=replace(FILE, is_demo=True))

    def test_the_curl_line_is_never_wrapped(self) -> None:
        line = console.curl_line("http://127.0.0.1:8080", with_key=False)
        assert line in summary(width=40)

    def test_a_model_with_brackets_in_its_name_is_shown_as_it_is(self) -> None:
        said = summary(replace(READY, model=replace(MODEL, name="[bold]x[/bold] [/]")))
        assert "[bold]x[/bold] [/]" in said


class TestCurlLine:
    def test_its_body_is_valid(self) -> None:
        words = shlex.split(console.curl_line("http://h:1", with_key=False))
        assert words[:2] == ["curl", "http://h:1/v1/chat/completions"]
        assert json.loads(words[-1])["messages"][0]["role"] == "user"

    def test_a_key_is_taken_from_the_environment(self) -> None:
        assert "$GGUFD_API_KEY" in summary(has_keys=True)
        assert "$GGUFD_API_KEY" not in summary()


class TestLoadingBar:
    def test_without_a_terminal_every_quarter_is_one_line(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        with console.LoadingBar("m.gguf", screen()) as bar:
            for percent in range(101):
                bar.update(percent / 100)
        assert [line.rpartition(" ")[0].rpartition(" ")[2] for line in caplog.messages[1:]] == ["25", "50", "75", "100"]

    def test_on_a_terminal_it_is_drawn_and_taken_away(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TERM", "xterm")
        shown = Console(file=io.StringIO(), width=100, force_terminal=True)
        with console.LoadingBar("m.gguf", shown) as bar:
            bar.update(0.5)
        assert "m.gguf" in text(shown)
        assert not caplog.messages

    @pytest.mark.parametrize(("forced", "is_drawn"), [("", False), ("1", True)])
    def test_without_a_console_it_is_drawn_where_rich_would_take_stderr_for_a_terminal(
        self, forced: str, is_drawn: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("FORCE_COLOR", forced)
        monkeypatch.setattr("sys.stderr", io.StringIO())
        with console.LoadingBar("m.gguf") as bar:
            bar.update(0.5)
            shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
        assert ("Loading m.gguf" in shown, caplog.messages[:1] == ["loading m.gguf"]) == (is_drawn, not is_drawn)


def test_the_projector_that_reads_images_is_named() -> None:
    shown = screen()
    projector = ProjectorFile(Path("/m/mmproj-F16.gguf"), "idefics3", 64, 190 << 20)
    console.show_summary(READY, replace(FILE, projector=projector), "tiny", "http://x", console=shown)
    assert re.search(r"Images +read by mmproj-F16\.gguf, idefics3, 190 MiB", text(shown))
    without = screen()
    console.show_summary(READY, FILE, "tiny", "http://x", console=without)
    assert "Images" not in text(without)
