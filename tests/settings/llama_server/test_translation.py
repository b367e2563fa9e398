"""llama-server's command line and variables: how they are read, what is said of them, what goes before what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ggufd.errors import ConfigError
from ggufd.settings import flags, sources
from ggufd.settings.llama_server import translation
from ggufd.settings.llama_server.translation import CommandLine, UnknownOption
from tests.support.llama_server_flags import settings_of


@pytest.fixture(autouse=True)
def _no_settings_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "user" / name)


def line_of(*arguments: str, environ: dict[str, str] | None = None) -> CommandLine:
    return translation.command_line(arguments, flags.options(), environ or {})


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        line_of(*arguments)
    return caught.value.message


class TestSpelling:
    def test_underscores_are_dashes_in_the_name_and_nowhere_else(self) -> None:
        assert line_of("--ctx_size", "64", "--no_slots", "--alias=a_b").arguments == [
            "--ctx-size=64",
            "--no-slots",
            "--alias=a_b",
        ]
        assert line_of("--tool_format", "llama_3").arguments == ["--tool-format", "llama_3"]

    def test_a_value_is_taken_as_it_stands(self) -> None:
        """As in llama-server, the word behind a flag is its value, whatever it looks like."""
        assert line_of("--alias", "--jinja").arguments == ["--alias=--jinja"]
        assert line_of("--seed", "-1").arguments == ["--seed=-1"]
        assert settings_of(["--stop", "-END", "--jinja"]).output.stop == ("-END",)

    def test_a_missing_value(self) -> None:
        assert refusal("--port") == "--port: a value is missing"

    def test_a_value_where_none_is_taken(self) -> None:
        assert refusal("--jinja=1") == "--jinja=1: this flag takes no value; write --jinja"

    def test_two_values_or_both_in_one(self) -> None:
        expected = (3, 5)
        for given in (["3", "5"], ["3,5"]):
            config = settings_of(["--control-vector-layer-range", *given, "--port", "1"])
            assert (config.model.control_vector_layer_range, config.server.port) == (expected, 1)


class TestRepeated:
    def test_of_a_plain_value_the_last_one_counts_and_the_log_says_so(self) -> None:
        line = line_of("--samplers", "top_k", "--samplers", "top_p;min_p")
        assert line.arguments == ['--samplers=["top_p", "min_p"]']
        assert line.notes == ["--samplers was given several times: the last one counts, as in llama-server"]

    def test_two_names_of_one_flag_are_the_same_flag(self) -> None:
        assert settings_of(["-c", "64", "--ctx-size", "128"]).context.ctx_size == 128

    def test_lists_grow(self) -> None:
        config = settings_of(["--lora", "a.gguf,b.gguf", "--lora", '"c,d.gguf"', "--api-key", "k1", "--api-key", "k2"])
        assert config.model.lora == ("a.gguf", "b.gguf", "c,d.gguf")
        assert config.server.api_key == ("k1", "k2")

    def test_of_a_switch_the_last_one_counts(self) -> None:
        assert settings_of(["--no-slots", "--slots"]).server.slots
        assert not settings_of(["--webui", "--no-ui"]).server.ui

    def test_a_template_and_a_file_of_one(self) -> None:
        first = settings_of(["--chat-template", "chatml", "--chat-template-file", "t.jinja"]).model
        assert (first.chat_template, first.chat_template_file) == ("", "t.jinja")
        second = settings_of(["--chat-template-file", "t.jinja", "--chat-template", "chatml"]).model
        assert (second.chat_template, second.chat_template_file) == ("chatml", "")

    def test_variables_of_the_template_are_put_together(self) -> None:
        arguments = ["--chat-template-kwargs", '{"a": 1, "enable_thinking": true}', "--reasoning", "off"]
        made = settings_of([*arguments, "--reasoning-effort", "high"]).model.chat_template_kwargs
        assert json.loads(made) == {"a": 1, "enable_thinking": False, "reasoning_effort": "high"}


class TestSeveralModels:
    def test_several_paths_are_several_models(self) -> None:
        config = settings_of(["-m", "a.gguf", "--model", "hf:owner/b", "-m", "ollama:c", "-m", "ollama:c"])
        assert config.model.model == "a.gguf"
        assert config.pool.more_models == ("hf:owner/b", "ollama:c")
        assert line_of("-m", "a.gguf", "-m", "b.gguf").notes == []

    def test_a_routers_flags(self) -> None:
        config = settings_of(["--models-dir", "models", "--no-models-autoload"])
        assert (config.pool.models_dir, config.pool.swap_for) == ("models", "nobody")
        assert settings_of(["--models-dir", "models", "--models-autoload"]).pool.swap_for == "admin"
        assert "one model is in memory at a time" in line_of("--models-max", "2").notes[0]


class TestOutcomes:
    def test_what_changes_nothing_is_said_with_its_reason(self) -> None:
        line = line_of("--cont-batching", "--no-warmup", "--threads-http", "4", "--port", "1")
        assert line.arguments == ["--port=1"]
        assert line.notes == [
            "--cont-batching changes nothing: requests are always batched continuously",
            "--no-warmup changes nothing: the start does no warm-up of its own",
            "--threads-http changes nothing: one thread serves all connections, without waiting for any",
        ]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--tools", "all"), "this server runs no tools"),
            (("--agent",), "this server runs no tools"),
            (("--webui-mcp-proxy",), "this server runs no tools"),
            (("--models-preset", "m.ini"), "[models.NAME]"),
            (("--mmproj-url", "http://a/m.gguf"), "download the file and name it with --mmproj"),
            (("--draft-max", "8"), "use --spec-draft-n-max"),
            (("--spec-synth-len", "2"), "ggufd bench"),
        ],
    )
    def test_what_is_refused_says_what_to_do(self, arguments: tuple[str, ...], words: str) -> None:
        message = refusal(*arguments)
        assert message.startswith(f"{arguments[0]}: ")
        assert words in message

    def test_the_off_form_of_what_is_refused_is_taken(self) -> None:
        line = line_of("--no-agent", "--no-webui-mcp-proxy")
        assert (line.arguments, len(line.notes)) == ([], 2)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("-fa", "maybe"), "-fa maybe: expected on, off or auto"),
            (
                ("--host", "/run/llama.sock"),
                "--host /run/llama.sock: expected addresses of this machine, separated by commas; UNIX sockets are "
                "llama-server's alone",
            ),
            (("--rope-scale", "0"), "--rope-scale 0: expected a number above 0"),
            (("--load-mode", "fast"), "--load-mode fast: expected one of auto, none, mmap, mlock, mmap+mlock, dio"),
            (("--tensor-split", "a,b"), "--tensor-split a,b: expected a number"),
            (("--chat-template-kwargs", "[1]"), "--chat-template-kwargs [1]: expected a JSON object"),
            (("--hf-file", "m.gguf"), "--hf-file names a file of a repository: --hf-repo OWNER/REPO is missing"),
        ],
    )
    def test_a_wrong_value_says_what_was_expected(self, arguments: tuple[str, ...], message: str) -> None:
        assert refusal(*arguments) == message

    @pytest.mark.parametrize(
        ("name", "near"),
        [("--prot", "--port"), ("--metrcs", "--metrics"), ("--tool-formt", "--tool-format"), ("-ngk", "-ngl")],
    )
    def test_what_nobody_knows_is_an_error_with_a_near_name(self, name: str, near: str) -> None:
        with pytest.raises(UnknownOption, match=f"^{name}: there is no such option; did you mean {near}[?]$"):
            line_of(name)

    def test_a_value_at_a_short_option_is_no_name(self) -> None:
        assert line_of("-c4096", "-t8").arguments == ["-c4096", "-t8"]

    def test_what_is_like_nothing(self) -> None:
        assert refusal("--quux-zzz") == "--quux-zzz: there is no such option; -h lists them all"


class TestValues:
    @pytest.mark.parametrize(
        ("arguments", "model"),
        [
            (["-m", "m.gguf"], "m.gguf"),
            (["-hf", "o/r"], "hf:o/r"),
            (["-hf", "o/r:Q8_0"], "hf:o/r:Q8_0"),
            (["-hff", "d/m.gguf", "-hfr", "o/r:Q8_0"], "hf:o/r/d/m.gguf"),
            (["-hf", "o/r", "-m", "m.gguf"], "hf:o/r"),
            (["-mu", "https://huggingface.co/o/r/resolve/main/m.gguf?download=true"], "hf:o/r/m.gguf"),
            (["-mu", "https://example.org/m.gguf"], "https://example.org/m.gguf"),
        ],
    )
    def test_where_a_model_comes_from(self, arguments: list[str], model: str) -> None:
        assert settings_of(arguments).model.model == model

    def test_a_draft_model_of_the_hub(self) -> None:
        assert settings_of(["-hfd", "o/r:Q4_0"]).model.model_draft == "hf:o/r:Q4_0"
        assert settings_of(["-hfd", "o/r", "-md", "d.gguf"]).model.model_draft == "hf:o/r/d.gguf"

    def test_a_preset_is_several_settings(self) -> None:
        config = settings_of(["--fim-qwen-7b-spec", "--port", "1"])
        assert config.model.model.startswith("hf:ggml-org/Qwen2.5-Coder-7B")
        assert config.model.model_draft.startswith("hf:ggml-org/Qwen2.5-Coder-0.5B")
        assert (config.context.cache_reuse, config.context.batch_size, config.server.port) == (256, 1024, 1)

    @pytest.mark.parametrize(("verbosity", "level"), [("0", "error"), ("2", "warning"), ("3", "info"), ("9", "debug")])
    def test_verbosity_is_a_level(self, verbosity: str, level: str) -> None:
        assert settings_of(["-lv", verbosity]).server.log_level == level

    def test_samplers_by_letter_and_by_any_of_their_names(self) -> None:
        assert settings_of(["--sampler-seq", "dkypmxt"]).sampling.samplers == (
            *("dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"),
        )
        assert settings_of(["--samplers", "Top-K;topp;temp"]).sampling.samplers == ("top_k", "top_p", "temperature")

    def test_escapes_in_breakers_and_none_of_them(self) -> None:
        breakers = ["--dry-sequence-breaker", "\\n", "--dry-sequence-breaker", ","]
        assert settings_of(breakers).sampling.dry_sequence_breakers == ("\n", ",")
        assert settings_of(["--no-escape", *breakers]).sampling.dry_sequence_breakers == ("\\n", ",")
        assert settings_of([*breakers, "--dry-sequence-breaker", "none"]).sampling.dry_sequence_breakers == ()

    def test_layers_of_dense_weights_in_ram(self) -> None:
        config = settings_of(["--n-cpu-ffn", "2", "-ot", "exps=CPU"])
        assert config.model.override_tensor == (r"blk\.(0|1)\.ffn_(up|down|gate)\.=CPU", "exps=CPU")

    def test_minus_one_is_automatic(self) -> None:
        config = settings_of(["-np", "-1", "-cram", "-1", "-n", "-2", "-s", "-1"])
        assert (config.context.parallel, config.context.cache_ram) == (0, "auto")
        assert (config.sampling.max_tokens, config.sampling.seed) == (None, None)

    def test_a_timeout_is_both_of_ours(self) -> None:
        server = settings_of(["--timeout", "600", "--sse-ping-interval", "-1"]).server
        assert (server.read_timeout_s, server.write_timeout_s) == (600, 600)
        assert server.ping_s > 1e6


class TestVariables:
    def test_precedence(self, tmp_path: Path) -> None:
        """Flag, our variable, llama-server's variable, file, default."""
        (tmp_path / "config.toml").write_text("[context]\nctx_size = 1\nparallel = 1\nbatch_size = 1\n", "utf-8")
        environ = {"GGUFD_CTX_SIZE": "3", "LLAMA_ARG_CTX_SIZE": "2", "LLAMA_ARG_N_PARALLEL": "2"}
        context = settings_of([], environ).context
        assert (context.ctx_size, context.parallel, context.batch_size) == (3, 2, 1)
        assert settings_of(["-c", "4"], environ).context.ctx_size == 4

    def test_an_empty_one_is_unset(self) -> None:
        assert settings_of([], {"LLAMA_ARG_CTX_SIZE": ""}).context.ctx_size == 0

    @pytest.mark.parametrize("value", ["0", "off", "false", "disabled"])
    def test_a_switch_is_turned_off(self, value: str) -> None:
        assert not settings_of([], {"LLAMA_ARG_ENDPOINT_SLOTS": value}).server.slots
        assert not settings_of([], {"LLAMA_ARG_NO_ENDPOINT_SLOTS": value}).server.slots

    def test_a_flag_without_an_off_form_is_on_or_not(self) -> None:
        assert settings_of([], {"LLAMA_ARG_RERANKING": "true"}).context.reranking
        assert not settings_of([], {"LLAMA_ARG_RERANKING": "0"}).context.reranking
        assert not settings_of([], {"LLAMA_ARG_RERANKING": "yes"}).context.reranking
        assert line_of(environ={"LLAMA_ARG_RERANKING": "yes"}).notes == [
            "LLAMA_ARG_RERANKING changes nothing: it is read as on where it is on, enabled, true, 1"
        ]

    def test_of_two_that_set_the_same_the_later_one_in_llama_servers_order_counts(self) -> None:
        both = {"LLAMA_ARG_CHAT_TEMPLATE_FILE": "t.jinja", "LLAMA_ARG_CHAT_TEMPLATE": "chatml"}
        model = settings_of([], both).model
        assert (model.chat_template, model.chat_template_file) == ("", "t.jinja")

    def test_half_of_what_belongs_together_is_noted(self) -> None:
        (note,) = line_of(environ={"LLAMA_ARG_HF_FILE": "m.gguf"}).notes
        assert "--hf-repo OWNER/REPO is missing" in note

    def test_a_fault_names_the_variable(self) -> None:
        environ = {"LLAMA_ARG_PORT": "http", "LLAMA_ARG_FLASH_ATTN": "maybe", "LLAMA_ARG_UI": "maybe"}
        with pytest.raises(ConfigError) as caught:
            sources.load(None, {}, environ)
        assert set(caught.value.message.splitlines()) == {
            'LLAMA_ARG_PORT = "http": expected a whole number',
            'LLAMA_ARG_FLASH_ATTN = "maybe": expected on, off or auto',
            'LLAMA_ARG_UI = "maybe": expected one of on, enabled, true, 1, off, disabled, false, 0',
        }

    def test_what_is_refused_as_a_flag_is_refused_as_a_variable(self) -> None:
        with pytest.raises(ConfigError, match=r"^LLAMA_ARG_TOOLS: this server runs no tools"):
            sources.load(None, {}, {"LLAMA_ARG_TOOLS": "all"})
        assert sources.load(None, {}, {"LLAMA_ARG_AGENT": "0"})

    def test_a_repository_and_its_file_may_be_a_variable_and_a_flag(self) -> None:
        environ = {"LLAMA_ARG_HF_REPO": "o/r", "LLAMA_ARG_MODEL": "/models"}
        assert settings_of([], environ).model.model == "hf:o/r"
        assert settings_of(["--hf-file", "m.gguf"], environ).model.model == "hf:o/r/m.gguf"
        assert settings_of(["--hf-repo", "o/r"], {"LLAMA_ARG_HF_FILE": "m.gguf"}).model.model == "hf:o/r/m.gguf"

    def test_notes(self) -> None:
        environ = {"LLAMA_ARG_CONT_BATCHING": "1", "LLAMA_ARG_CTX_SIZ": "1", "LLAMA_CACHE": "/c", "PATH": "/bin"}
        assert line_of(environ=environ).notes == [
            "LLAMA_ARG_CONT_BATCHING changes nothing: requests are always batched continuously",
            "LLAMA_ARG_CTX_SIZ changes nothing: llama-server has no such variable; did you mean LLAMA_ARG_CTX_SIZE?",
        ]

    def test_a_config_file_of_llama_cpps_is_not_passed_over_without_a_word(self, tmp_path: Path) -> None:
        assert line_of(environ={"XDG_CONFIG_HOME": str(tmp_path), "HOME": "/"}).notes == []
        (tmp_path / "llama.cpp").mkdir()
        (tmp_path / "llama.cpp" / "config.ini").write_text("[*]\ntemp = 0\n")
        (note,) = line_of(environ={"XDG_CONFIG_HOME": str(tmp_path)}).notes
        assert note == f"{tmp_path}/llama.cpp/config.ini is not read: put its lines into config.toml"

    def test_what_the_downloads_obey(self) -> None:
        assert line_of("--hf-token", "t", "--offline").exports == {"HF_TOKEN": "t", "HF_HUB_OFFLINE": "1"}
        assert line_of(environ={"LLAMA_ARG_OFFLINE": "1"}).exports == {"HF_HUB_OFFLINE": "1"}


class TestKeysAreHidden:
    def test_in_an_error(self) -> None:
        secret: Any = "s3cret"
        with pytest.raises(ConfigError) as caught:
            sources.load(None, {}, {"LLAMA_API_KEY": secret, "LLAMA_ARG_PORT": "x"})
        assert secret not in caught.value.message
