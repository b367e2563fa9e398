"""Settings: precedence, and what is said about a wrong one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ggufd.engine.messages.sampling import SAMPLER_NAMES, SamplingParams
from ggufd.errors import ConfigError
from ggufd.settings import sources
from ggufd.settings.config import Config, Setting, settings


@pytest.fixture(autouse=True)
def _no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "user" / name)


def load(text: str = "", flags: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> Config:
    if text:
        Path("config.toml").write_text(text, "utf-8")
    return sources.load(None, flags, env or {})


def faults(text: str = "", flags: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, flags, env)
    return caught.value.message.splitlines()


class TestPrecedence:
    def test_without_any_source_the_defaults_hold(self) -> None:
        assert load() == Config()

    def test_each_source_goes_before_the_next(self) -> None:
        text = "[server]\nport = 1001\n"
        assert load(text).server.port == 1001
        assert load(text, env={"GGUFD_PORT": "1002"}).server.port == 1002
        assert load(text, {"port": "1003"}, {"GGUFD_PORT": "1002"}).server.port == 1003

    def test_sources_are_merged_key_by_key(self) -> None:
        config = load("[server]\nport = 1001\n[queue]\nmax_queue = 3", {"host": "::1"}, {"GGUFD_PING_S": "2"})
        assert (config.server.port, config.server.host, config.server.ping_s) == (1001, "::1", 2.0)
        assert config.queue.max_queue == 3

    def test_an_empty_variable_counts_as_unset(self) -> None:
        assert load(env={"GGUFD_PORT": ""}).server.port == 8080

    def test_the_user_folder_is_read_when_the_working_folder_has_no_file(self, tmp_path: Path) -> None:
        file = tmp_path / "user" / "ggufd" / "config.toml"
        file.parent.mkdir(parents=True)
        file.write_text("[server]\nport = 1001\n")
        assert load().server.port == 1001
        assert load("[server]\nping_s = 2.0\n").server.port == 8080

    def test_a_named_file_goes_before_both(self, tmp_path: Path) -> None:
        other = tmp_path / "other.toml"
        other.write_text("[server]\nport = 7\n")
        Path("config.toml").write_text("[server]\nport = 8\n")
        assert sources.load(other, {}, {}).server.port == 7
        assert sources.load(None, {}, {"GGUFD_CONFIG": str(other)}).server.port == 7

    def test_a_named_file_that_is_missing_is_said(self) -> None:
        with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
            sources.load(Path("nowhere.toml"), {}, {})


class TestWrongKeys:
    def test_line_and_nearest_key_are_said(self) -> None:
        assert faults("# first\n[server]\nhost = '::1'\nprot = 1\n") == [
            "config.toml, line 4: [server] prot is not a setting; did you mean port?"
        ]

    @pytest.mark.parametrize("key", ["prot", '"prot"', "'prot'", '"the prot"', " prot "])
    def test_a_key_is_found_as_it_is_written(self, key: str) -> None:
        (fault,) = faults(f"[model]\n# {key} = 0\n[server]\nhost = 'prot = 1'\n{key}=1\n[queue]\n")
        assert fault.startswith("config.toml, line 5: [server] ")

    def test_a_key_of_another_section_is_sent_home(self) -> None:
        (fault,) = faults("[model]\nport = 1\n")
        assert fault == "config.toml, line 2: [model] port is not a setting of this section; it belongs under [server]"

    def test_a_key_without_a_section(self) -> None:
        (fault,) = faults("port = 1\n")
        assert fault == "config.toml, line 1: port is outside its section: put it under [server]"

    def test_an_unknown_section(self) -> None:
        assert faults("[modle]\nx = 1\n") == ["config.toml, line 1: [modle] is not a section; did you mean [model]?"]

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("context = 5", "a number"),
            ("context = 0.5", "a number"),
            ("context = true", "true or false"),
            ("context = 'long'", "a text"),
            ("context = [1]", "a list"),
            ("[[context]]\nctx_size = 1", "a list"),
            ("context = 2026-01-01", "a date or time"),
        ],
    )
    def test_a_section_that_is_none_is_said_with_its_form(self, text: str, found: str) -> None:
        assert faults(text) == [
            f"config.toml, line 1: context is a section, and {found} was found: write [context] on a line of its own, "
            f"and under it a line for each setting, such as ctx_size = 0"
        ]

    @pytest.mark.parametrize("section", dict.fromkeys(one.section for one in settings()))
    def test_the_form_that_is_shown_can_be_read(self, section: str) -> None:
        (fault,) = faults(f"[[{section}]]")
        header, example = fault.partition("write ")[2].partition(" on a line")[0], fault.partition("such as ")[2]
        assert header == f"[{section}]"
        load(f"{header}\n{example}\n")

    def test_a_setting_that_is_written_as_a_section(self) -> None:
        assert faults("[ctx_size]\nx = 1\n") == [
            "config.toml, line 1: [ctx_size] is a setting, not a section: write ctx_size = ... under [context]"
        ]

    def test_an_unknown_name_without_a_section(self) -> None:
        assert faults("prot = 1\n") == ["config.toml, line 1: prot is not a setting; did you mean port under [server]?"]
        assert faults("contxt = 1\n") == [
            "config.toml, line 1: contxt is neither a section nor a setting; did you mean [context]?"
        ]

    def test_a_key_like_no_other_gets_the_list(self) -> None:
        (fault,) = faults("[queue]\nzzzzzz = 1\n")
        assert "; expected one of: max_queue, max_queue_wait_s, max_gap_ms, " in fault

    def test_the_environment_too(self) -> None:
        assert faults(env={"GGUFD_PROT": "1"}) == ["GGUFD_PROT is not a setting; did you mean GGUFD_PORT?"]

    def test_a_byte_order_mark_is_no_part_of_the_file(self) -> None:
        text = "[server]\nport = 1001\nprot = 1\n"
        Path("config.toml").write_text(text.replace("prot", "# prot"), "utf-8-sig")
        assert sources.load(None, {}, {}).server.port == 1001
        Path("config.toml").write_text(text, "utf-8-sig")
        with pytest.raises(ConfigError, match=r"line 3: \[server\] prot is not a setting"):
            sources.load(None, {}, {})

    @pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
    def test_another_encoding_is_said(self, encoding: str) -> None:
        Path("config.toml").write_text("# f\xfcr\n[server]\n", encoding)
        with pytest.raises(ConfigError, match="not UTF-8 text; save it as UTF-8"):
            sources.load(None, {}, {})

    def test_broken_toml_is_said_with_its_line(self) -> None:
        (fault,) = faults("[server]\nport = = 3\n")
        assert fault.startswith("config.toml: not readable as TOML")
        assert "line 2" in fault

    def test_every_fault_is_said_at_once(self) -> None:
        text = "[server]\nprot = 1\nping_s = 0\n[context]\nparallel = -1\n"
        assert len(faults(text, {"threads": "many"}, {"GGUFD_MAX_QUEUE": "x"})) == 5


class TestWrongValues:
    @pytest.mark.parametrize(
        ("flags", "fault"),
        [
            ({"port": "99999"}, '--port = "99999": expected at most 65535'),
            ({"ping_s": "0"}, '--ping-s = "0": expected more than 0'),
            ({"mmap": "maybe"}, '--mmap = "maybe": expected true or false'),
            ({"temperature": "hot"}, '--temperature = "hot": expected a number'),
            ({"parallel": "four"}, '--parallel = "four": expected a whole number'),
            ({"flash_attn": "maybe"}, "--flash-attn = \"maybe\": expected 'auto', 'on' or 'off'"),
            ({"n_gpu_layers": "most"}, "--n-gpu-layers = \"most\": expected 'auto' or a whole number"),
            ({"n_gpu_layers": "-2"}, "--n-gpu-layers = \"-2\": expected 'auto' or at least 0"),
            ({"n_gpu_layers": "4294967296"}, "--n-gpu-layers = \"4294967296\": expected 'auto' or at most 2147483647"),
            ({"ctx_size": "4294967808"}, '--ctx-size = "4294967808": expected at most 1073741823'),
            ({"batch_size": "4294967296"}, '--batch-size = "4294967296": expected at most 16777216'),
            ({"ubatch_size": "4294967296"}, '--ubatch-size = "4294967296": expected at most 16777216'),
            ({"temperature": "nan"}, '--temperature = "nan": expected a finite number'),
            ({"api_key": "[1"}, "--api-key = (hidden): expected values separated by commas, or a JSON list"),
        ],
    )
    def test_flag_value_and_expectation_are_said(self, flags: dict[str, str], fault: str) -> None:
        assert faults(flags=flags) == [fault]

    def test_a_value_in_the_file_is_said_with_its_line(self) -> None:
        assert faults('[server]\n\nport = "http"\n') == [
            'config.toml, line 3: [server] port = "http": expected a whole number'
        ]

    def test_true_is_no_number(self) -> None:
        (fault,) = faults("[server]\nport = true\n")
        assert fault.startswith("config.toml, line 2: [server] port = true: expected a value")

    def test_a_wrong_sampler_is_said_with_the_right_ones(self) -> None:
        (fault,) = faults(flags={"samplers": "top_k;topp"})
        assert "'top_p'" in fault

    def test_a_key_is_never_shown(self) -> None:
        assert "secret" not in "".join(faults("[server]\napi_key = [['secret']]\n"))


class TestMinusOne:
    """llama-server writes -1 where a word or nothing stands here."""

    def test_all_layers(self) -> None:
        for text in ("-1", "all", "auto"):
            assert load(flags={"n_gpu_layers": text}).model.n_gpu_layers == "auto"

    def test_threads_seed_and_limit(self) -> None:
        config = load("[context]\nthreads = -1\n[sampling]\nseed = -1\nmax_tokens = -1\n")
        assert (config.context.threads, config.sampling.seed, config.sampling.max_tokens) == (0, None, None)


class TestContradictions:
    def test_a_quantised_v_cache_wants_flash_attention(self) -> None:
        (fault,) = faults(flags={"cache_type_v": "q8_0", "flash_attn": "off"})
        assert "needs flash attention" in fault
        assert load(flags={"cache_type_v": "q8_0"}).context.cache_type_v == "q8_0"

    def test_a_slot_must_get_something(self) -> None:
        (fault,) = faults(flags={"ctx_size": "3", "parallel": "4"})
        assert "less than one token each" in fault


class TestLists:
    @pytest.mark.parametrize("text", ["a,b", " a ; b ", '["a", "b"]'])
    def test_three_spellings_in_one_text(self, text: str) -> None:
        assert load(env={"GGUFD_API_KEY": text}).server.api_key == ("a", "b")

    def test_the_file_takes_one_text_or_a_list(self) -> None:
        assert load("[server]\napi_key = 'a'\n").server.api_key == ("a",)
        assert load("[server]\napi_key = ['a', 'b']\n").server.api_key == ("a", "b")

    def test_a_pattern_of_tensors_may_begin_with_a_bracket(self) -> None:
        made = load(flags={"override_tensor": "[0-9]_exps=CPU,exps=CUDA0"}).model.override_tensor
        assert made == ("[0-9]_exps=CPU", "exps=CUDA0")
        assert load(flags={"override_tensor": '["[ab],{2}=CPU"]'}).model.override_tensor == ("[ab],{2}=CPU",)

    @pytest.mark.parametrize(
        ("shares", "words"),
        [("-1,2", "at least 0"), ("0,0", "a share above 0 for at least one GPU"), ("1e39,1", "at most 1000000000000")],
    )
    def test_shares_of_gpus_that_mean_nothing(self, shares: str, words: str) -> None:
        (fault,) = faults(flags={"tensor_split": shares})
        assert fault.endswith(f"expected {words}")

    def test_numbers(self) -> None:
        assert load(flags={"tensor_split": "3,1"}).model.tensor_split == (3.0, 1.0)


class TestContainers:
    def test_what_an_orchestrator_sets_for_a_service_of_this_name_is_no_setting(self) -> None:
        env = {
            "GGUFD_PORT": "tcp://10.0.0.1:80",
            "GGUFD_PORT_80_TCP": "tcp://10.0.0.1:80",
            "GGUFD_PORT_80_TCP_ADDR": "10.0.0.1",
            "GGUFD_SERVICE_HOST": "10.0.0.1",
            "GGUFD_SERVICE_PORT_HTTP": "80",
        }
        assert load(env=env) == Config()

    def test_require_gpu_has_a_short_name(self) -> None:
        assert load(env={"REQUIRE_GPU": "1"}).model.require_gpu is True
        assert load(env={"REQUIRE_GPU": "1", "GGUFD_REQUIRE_GPU": "0"}).model.require_gpu is False


class TestTablesOfModels:
    def test_they_hold_settings_of_one_model(self) -> None:
        config = load("[context]\nctx_size = 4096\n[models.small]\nctx_size = 512\ntemperature = 0.5\n")
        assert config.models == {"small": {"ctx_size": 512, "temperature": 0.5}}
        assert config.context.ctx_size == 4096

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            (
                "[models.a]\nport = 1\n",
                "config.toml, line 2: [models.a] port is no setting of a model; it is the server's, and belongs under "
                "[server]",
            ),
            (
                '[models."a.b"]\nctx_sze = 1\n',
                "config.toml, line 2: [models.a.b] ctx_sze is no setting of a model; did you mean ctx_size?",
            ),
            (
                "[models.a]\nkeep_loaded = 'yes'\n",
                "config.toml, line 2: [models.a] keep_loaded: expected true or false",
            ),
            (
                "[models.a]\nkeep_loade = true\n",
                "config.toml, line 2: [models.a] keep_loade is no setting of a model; did you mean keep_loaded?",
            ),
            ("[models.a]\nctx_size = 'x'\n", '[models.a] ctx_size = "x": expected a whole number'),
            (
                "[models]\na = 1\n",
                "config.toml, line 2: [models] a is no table: write [models.a] on a line of its own",
            ),
            (
                "[[models]]\n",
                "config.toml, line 1: models holds tables: write [models.NAME], and under it a line for each setting",
            ),
        ],
    )
    def test_what_is_wrong_is_named_with_its_place(self, text: str, fault: str) -> None:
        assert faults(text) == [fault]


class TestTable:
    def test_names_are_unique_over_all_sections(self) -> None:
        keys = [one.key for one in settings()]
        assert len(keys) == len(set(keys))

    def test_flags_are_unique(self) -> None:
        flags = [flag for one in settings() for flag in one.flags]
        assert len(flags) == len(set(flags))

    def test_every_sampling_field_of_a_request_has_a_default_here(self) -> None:
        own = {one.key for one in settings() if one.section == "sampling"}
        per_request = {"logit_bias", "grammar"}
        assert own - {"max_tokens"} == set(SamplingParams.__dataclass_fields__) - per_request

    def test_every_sampler_may_be_named(self) -> None:
        assert set(load(flags={"samplers": ",".join(SAMPLER_NAMES)}).sampling.samplers or ()) == SAMPLER_NAMES

    @pytest.mark.parametrize("one", settings(), ids=lambda one: one.key)
    def test_flag_and_variable_reach_the_field(self, one: Setting) -> None:
        text = _another_value(one)
        by_flag = getattr(load(flags={one.key: text}), one.section)
        by_variable = getattr(load(env={one.env: text}), one.section)
        assert getattr(by_flag, one.key) == getattr(by_variable, one.key) != one.field.default

    def test_it_is_frozen(self) -> None:
        with pytest.raises(ValidationError):
            load().server.port = 3


_CANDIDATES = (
    "user",
    "hermes",
    "2048",
    "2,5",
    "a.b=int:3",
    "host:50052",
    "2",
    "true",
    "false",
    "on",
    "none",
    "q8_0",
    "/x",
    "::1",
    "debug",
    "dry",
    "chatml",
    "isolate",
    "nobody",
    "3",
    "15043=-1",
    '{"a": 1}',
    "0.5",
    "a=CPU",
    "shared",
    "json",
    "[]",
)


def _another_value(one: Setting) -> str:
    """A text that this setting takes and that is not its default."""
    for text in _CANDIDATES:
        try:
            value = getattr(getattr(load(flags={one.key: text}), one.section), one.key)
        except ConfigError:
            continue
        if value != one.field.default:
            return text
    raise AssertionError(f"no candidate fits {one.key}")


@given(st.text(max_size=200))
def test_any_file_is_read_or_refused_in_words(text: str) -> None:
    Path("fuzz.toml").write_text(text, "utf-8", errors="surrogatepass")
    with contextlib.suppress(ConfigError):
        sources.load(Path("fuzz.toml"), {}, {})
